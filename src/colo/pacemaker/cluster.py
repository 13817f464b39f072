"""What is asked of the Pacemaker cluster that this host is a node of, by Pacemaker's own commands.

A value is kept in the cluster's configuration (the CIB), in a property set of its own.  Pacemaker
carries changes out one after the other on all nodes of a partition, and a change that names what it
replaces finds that or does nothing: that is the compare-and-set.

Each command is bounded.  Sources: cibadmin(8), crm_mon(8), crm_attribute(8); the exit codes are
those of Pacemaker's crm_exit_t.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from colo.errors import LocalError, NoAnswer

__all__ = ["Cluster", "Nodes"]

_COMMAND_S: Final = 2.0
#: How long another node may take to show its copy, in whole seconds.
_OTHER_S: Final = 1
_OK: Final = 0
_NOT_THERE: Final = 105  # CRM_EX_NOSUCH
_THERE_ALREADY: Final = 108  # CRM_EX_EXISTS


@dataclass(frozen=True)
class Nodes:
    """The cluster's nodes: those that are members, and those that are surely off.

    Who is neither is lost, and not fenced yet.
    """

    members: frozenset[str]
    off: frozenset[str]


class Cluster:
    """The cluster, as this host sees it.  All calls raise LocalError where nothing can be known."""

    def nodes(self) -> Nodes:
        """Return who is there.

        Raises LocalError where this host is in no partition that may decide, or where nobody would
        fence a node that is lost: then nobody is ever surely off.
        """
        code, text, why = _run("crm_mon", "--one-shot", "--output-as=xml")
        try:
            told = ElementTree.fromstring(text) if code == _OK else None
        except ElementTree.ParseError:
            told = None
        if told is None:
            raise LocalError(f"Pacemaker does not answer on this host: {why}")
        options, dc = told.find(".//cluster_options"), told.find(".//current_dc")
        if options is None or options.get("stonith-enabled") != "true":
            raise LocalError("Pacemaker fences nobody here: set stonith-enabled=true")
        if dc is None or dc.get("with_quorum") != "true":
            raise LocalError("this host is in a part of the cluster that has no quorum")
        nodes = told.findall("./nodes/node")
        members = {n.get("name", "") for n in nodes if n.get("online") == "true"}
        unclean = {n.get("name", "") for n in nodes if n.get("unclean") == "true"}
        every = {n.get("name", "") for n in nodes}
        return Nodes(frozenset(members - unclean), frozenset(every - members - unclean))

    def value(self, name: str, node: str) -> str | None:
        """Return what the node's copy of the CIB has under ``name``; None where it has nothing."""
        code, text, why = _run(
            "cibadmin", "--query", "--xpath", f"//nvpair[@id='{name}']",
            "--node", node, "--timeout", str(_OTHER_S),
        )  # fmt: skip
        if code == _NOT_THERE:
            return None
        try:
            value = ElementTree.fromstring(text).get("value") if code == _OK else None
        except ElementTree.ParseError:
            value = None
        if value is None:
            raise LocalError(f"Pacemaker on host {node} does not answer: {why}")
        return value

    def replace(self, name: str, expected: str | None, new: str) -> bool:
        """Have the CIB hold ``new`` under ``name`` where it holds ``expected``; whether it did.

        Raises NoAnswer where it may have.
        """
        pair = f"<nvpair id={quoteattr(name)} name={quoteattr(name)} value={quoteattr(new)}/>"
        if expected is None:
            properties = f"<cluster_property_set id={quoteattr(name + '-set')}>{pair}"
            command = ("--create", "--scope", "crm_config")
            pair = f"{properties}</cluster_property_set>"
        else:
            if "'" in expected:
                raise LocalError(f"Pacemaker's CIB holds something else than colo's under {name}")
            command = ("--modify", "--xpath", f"//nvpair[@id='{name}' and @value='{expected}']")
        code, _, why = _run("cibadmin", *command, "--xml-text", pair)
        if code not in (_OK, _NOT_THERE, _THERE_ALREADY):
            raise NoAnswer(f"Pacemaker did not take a change: {why}", True)
        return code == _OK

    def score(self, number: int | None) -> None:
        """Say how much the agent's resource wants to be promoted here; None: it must not be.

        The resource is the one in the environment of whoever calls this.
        """
        how = ("--delete",) if number is None else ("--update", str(number))
        code, _, why = _run("crm_attribute", "--promotion", "--lifetime", "reboot", *how)
        if code not in (_OK, _NOT_THERE):
            raise LocalError(f"Pacemaker does not take the promotion score: {why}")

    def this_node(self) -> str:
        """Return the name of this host as a node."""
        code, text, why = _run("crm_node", "--name")
        if code != _OK:
            raise LocalError(f"Pacemaker does not say which node this is: {why}")
        return text.strip()


def _run(*command: str) -> tuple[int, str, str]:
    """Return a command's exit code, its output, and what went wrong, in a line.

    Raises LocalError where it cannot be run, NoAnswer where it does not end.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_COMMAND_S,
            check=False,
        )
    except FileNotFoundError:
        raise LocalError(f"{command[0]} is missing: install Pacemaker and its commands") from None
    except OSError as error:
        raise LocalError(f"{command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not end in {_COMMAND_S:.0f} s", True) from None
    last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return done.returncode, done.stdout, last
