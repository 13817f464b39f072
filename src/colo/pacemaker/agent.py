"""The OCF resource agent ``ocf:colo:vm``: a promotable clone, promoted where the VM runs.

Pacemaker starts a ``colo node`` on both hosts and promotes one.  The permit that promote gives is
what colo's arbiter ``pacemaker`` waits for, so the VM runs where Pacemaker says, and nowhere else.

- The *promotion score* says who may be promoted: the host on which the VM runs, one that has a
  whole checkpoint of it, and, where the VM runs nowhere, one whose turn it is to start it.  A host
  that has none of these has no score, and promote fails there.
- *demote* has the VM stop on this host: it is handed over behind a checkpoint where Pacemaker is
  about to promote the other host, and else the guest is powered down.  Only then it returns.
- *stop* leaves nothing of the VM on this host.

It is run for every action, so it imports little.  Source: the OCF resource agent API 1.1, and
Pacemaker's own meta attributes in the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from colo.errors import ColoError, LocalError
from colo.pacemaker.cluster import Cluster
from colo.pacemaker.here import Here, Seen
from colo.pacemaker.permit import PERMITS, Permit

__all__ = ["Agent", "Failed", "Ocf", "agent_file", "main", "metadata", "score"]

_METADATA: Final = Path(__file__).with_name("vm.xml")
_TEMPLATE: Final = Path(__file__).with_name("vm.in")
_PLACE: Final = "#!PYTHON\n"
_POLL_S: Final = 0.1
#: So much earlier than Pacemaker ends an action the action says by itself what it waited for.
_EARLIER_S: Final = 2.0
_TIMEOUT_S: Final = 60.0
_ENDS_S: Final = 5.0
_ORDERS: Final = "control.sock"

#: The states in which the VM runs here, and is heard.
_RUNS: Final = ("UNPROTECTED", "BEGINNING", "COPYING", "PROTECTED")
#: In these it is about to run here.
_BEGINS: Final = ("STARTING", "RESUMING", "PARTING", "TAKING_OVER", "RUNNING")
#: In these its first copy is on its way, or soon will be where the other host is there.
_COMES: Final = ("UNPROTECTED", "BEGINNING", "COPYING")
#: In these it is here, and silent: its right is being decided.
_HANDED_OVER: Final = ("GOING_OVER", "LOST")
_SILENT: Final = (*_BEGINS, *_HANDED_OVER)
#: In these there is a whole checkpoint of it here.
_WHOLE: Final = ("KEEPING", "CUT_OFF", "ORPHANED")
#: In these there is nothing of it here from which it could run.
_NOTHING: Final = ("LISTENING", "GREETED", "RECEIVING")
#: Whose turn it is where the VM runs nowhere: see ``membership.roles``.
_TURNS: Final = ("START", "ASK")

#: The colos that were started, which outlive the agent: nobody waits for them.
_started: list[subprocess.Popen[bytes]] = []


class Ocf(IntEnum):
    """The exit codes of a resource agent."""

    SUCCESS = 0
    GENERIC = 1
    UNIMPLEMENTED = 3
    INSTALLED = 5
    CONFIGURED = 6
    NOT_RUNNING = 7
    RUNNING_PROMOTED = 8
    FAILED_PROMOTED = 9


class Failed(Exception):
    """An action cannot be carried out: its exit code, and a line that says why."""

    def __init__(self, code: Ocf, why: str) -> None:
        super().__init__(why)
        self.code = code


def score(seen: Seen | None, promoted: bool) -> int | None:
    """How much a host wants to be promoted that shows this; None: it must not be."""
    if seen is None:
        return None
    if seen.state in _RUNS or (seen.state in _SILENT and promoted):
        return 100
    if seen.state in _WHOLE:
        return 50
    if seen.state in _SILENT:
        return 20  # it was demoted, and the other host has the very same state
    return 10 if seen.turn in _TURNS else None


class Agent:
    """One VM on this host; ``environment`` is what Pacemaker says, ``permits`` where permits lie.

    Its actions return an exit code, or raise Failed or LocalError.
    """

    def __init__(
        self, environment: Mapping[str, str], cluster: Cluster, permits: Path = PERMITS
    ) -> None:
        self._environment = environment
        self._cluster = cluster
        self._file = Path(self._parameter("config"))
        self._here = Here(Path(self._parameter("state_dir")))
        self._colo = self._parameter("colo", "").split() or [sys.executable, "-P", "-m", "colo"]
        self._vm = self._name()
        self._permit = Permit(self._vm, permits)
        limit_s = float(self._meta("timeout") or _TIMEOUT_S * 1e3) / 1e3
        self._deadline = time.monotonic() + max(limit_s - _EARLIER_S, limit_s / 2)

    def validate_all(self) -> Ocf:
        """See that the VM file is one, for this host and this arbiter."""
        from colo.arbiters.named import check_failover
        from colo.config import load
        from colo.errors import UsageError

        try:
            config = load(self._file, check_failover)
            config.seen_from(self._node())
        except UsageError as error:
            raise Failed(Ocf.CONFIGURED, str(error)) from error
        if config.failover.arbiter != "pacemaker":
            named = f"[failover] arbiter = {config.failover.arbiter!r}"
            raise Failed(Ocf.CONFIGURED, f'{self._file}: {named}: has to be "pacemaker" here')
        if self._meta("clone_max") and self._meta("notify") != "true":
            raise Failed(Ocf.CONFIGURED, "the promotable clone needs the option notify=true")
        return Ocf.SUCCESS

    def start(self) -> Ocf:
        """Have a ``colo node`` run, which knows what this host is to do."""
        if self._here.look() is None:
            self.validate_all()
            self._permit.take_away()
            self._launch()
        self._await_part()
        self._publish()
        return Ocf.SUCCESS

    def stop(self) -> Ocf:
        """Have nothing of the VM on this host."""
        self._put_down()
        self._tell_score(None)
        seen = self._here.look()
        # One that waits for the other host to take the VM has nothing left to do.
        waits = seen is not None and seen.state in _HANDED_OVER
        self._here.end_colo(0.0 if waits else max(self._deadline - time.monotonic(), 0.0) / 2)
        self._here.end_qemus()
        return Ocf.SUCCESS

    def monitor(self) -> Ocf:
        """Say how the VM stands here, and have Pacemaker know who may be promoted."""
        seen, promoted = self._publish()
        if seen is None:
            if promoted:
                return Ocf.FAILED_PROMOTED
            hangs = self._here.colo() is not None or self._here.qemus()
            return Ocf.GENERIC if hangs else Ocf.NOT_RUNNING
        if seen.state in _RUNS or (seen.state in _SILENT and promoted):
            return Ocf.RUNNING_PROMOTED
        if promoted:
            self._say(f"the VM does not run on this host: {seen.state} {seen.error}".rstrip())
            return Ocf.FAILED_PROMOTED
        return Ocf.SUCCESS

    def promote(self) -> Ocf:
        """Have the VM run here, from the last whole checkpoint or from its beginning."""
        self._permit.give()
        try:
            self._wait(self._runs, "the VM does not run here yet")
        except BaseException:
            self._permit.take_away()
            self._publish()
            raise
        self._publish()
        return Ocf.SUCCESS

    def demote(self) -> Ocf:
        """Have the VM not run here any more; a colo that ended with its guest waits here anew."""
        was_there = self._here.look() is not None
        self._put_down()
        if was_there and self._here.look() is None:
            self._launch()
            self._await_part()
        self._publish()
        return Ocf.SUCCESS

    # -- what colo says -------------------------------------------------------------------

    def _publish(self) -> tuple[Seen | None, bool]:
        """Look, and tell Pacemaker how much this host wants to be promoted."""
        seen, promoted = self._here.look(), self._permit.is_there
        self._tell_score(score(seen, promoted))
        return seen, promoted

    def _tell_score(self, number: int | None) -> None:
        """A score that cannot be told now is told by the next monitor."""
        try:
            self._cluster.score(number)
        except LocalError as error:
            self._say(str(error))

    def _runs(self) -> bool:
        """Whether the VM runs here, as promote waits for it.  Raises Failed where it cannot."""
        seen = self._here.look()
        if seen is None:
            raise Failed(Ocf.GENERIC, "no colo runs here that could run the VM: see node.log")
        if seen.state in _NOTHING:
            raise Failed(
                Ocf.GENERIC,
                f"this host has no whole checkpoint of {self._vm}, and did not run it last: it may "
                "not be promoted",
            )
        return seen.state in _RUNS

    def _runs_now(self) -> bool:
        seen = self._here.look()
        return seen is not None and seen.state in _RUNS

    def _goes_elsewhere(self) -> bool:
        """Whether another host is to be promoted in this very transition."""
        others = set(self._meta("notify_promote_uname").split()) - {self._node()}
        return bool(others)

    def _put_down(self) -> None:
        """Have the VM not run here, and get no grant."""
        self._permit.take_away()
        if self._here.look() is None:
            self._here.end_colo(0.0)  # one that hangs
            self._here.end_qemus()
            return
        self._settle(_BEGINS)  # a start that is under way is seen to its end
        if self._runs_now() and self._goes_elsewhere():
            self._hand_over()
        if self._runs_now():
            self._power_down()

    def _settle(self, states: tuple[str, ...]) -> None:
        """Wait until colo is in none of these states, for half of the time that there is."""
        waits_until = time.monotonic() + (self._deadline - time.monotonic()) / 2
        while (seen := self._here.look()) and seen.state in states:
            if time.monotonic() > waits_until:
                return
            time.sleep(_POLL_S)

    def _hand_over(self) -> None:
        """Have the VM stop behind a checkpoint that the other host goes on from.

        A first copy is waited for, as without it the other host has nothing.
        """
        self._settle(_COMES)
        why = self._order({"order": "switchover"}, lambda seen: seen.state not in _RUNS)
        if why:
            self._say(f"the VM is not handed over: {why}")

    def _power_down(self) -> None:
        """Have the guest power down, and colo end with it; what does not is ended."""
        left_s = max(self._deadline - time.monotonic(), 0.0)
        why = self._order({"order": "stop", "grace_s": left_s / 2}, lambda _: False)
        if why:
            self._say(f"the guest is not powered down, and is ended: {why}")
            self._here.end_colo(0.0)
            self._here.end_qemus()
            return
        ends_by = time.monotonic() + _ENDS_S
        while self._here.colo() is not None and time.monotonic() < ends_by:
            time.sleep(_POLL_S)

    # -- doing ----------------------------------------------------------------------------

    def _launch(self) -> None:
        """Start colo, and wait until it says something.  Raises Failed."""
        self._here.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = self._here.folder / "node.log"
        environment = {k: v for k, v in self._environment.items() if not k.startswith("OCF_")}
        command = [*self._colo, "node", str(self._file), "--host", self._node()]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, "--state-dir", str(self._here.folder)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=environment, cwd="/", start_new_session=True,
            )  # fmt: skip
        _started.append(process)

        def is_up() -> bool:
            if (code := process.poll()) is not None:
                lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise Failed(Ocf.GENERIC, f"colo node ended, exit {code}: {lines[-1]}")
            seen = self._here.look()
            return seen is not None and seen.pid == process.pid

        self._wait(is_up, "colo node says nothing")

    def _await_part(self) -> None:
        """Wait until colo knows what this host is to do.  Raises Failed."""

        def is_known() -> bool:
            seen = self._here.look()
            return seen is None or seen.state != "LOOKING" or bool(seen.turn)

        self._wait(is_known, "colo node does not know yet what this host is to do")

    def _order(self, order: dict[str, Any], is_done: Callable[[Seen], bool]) -> str:
        """Give colo an order, and wait until the VM stands so, or colo has ended.

        Returns "" then, else why not.
        """
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(self._here.folder / _ORDERS))
                sock.sendall(json.dumps({**order, "given_at": time.monotonic()}).encode() + b"\n")
                sock.settimeout(_POLL_S)
                while time.monotonic() < self._deadline:
                    seen = self._here.look()
                    if seen is None or is_done(seen):
                        return ""
                    with contextlib.suppress(TimeoutError):
                        if answer := sock.recv(4096):
                            return _refusal(answer)
                        time.sleep(_POLL_S)  # it has hung up: it ends
        except (OSError, ValueError) as error:
            return str(error)
        return "it takes too long"

    def _wait(self, is_done: Callable[[], bool], what: str) -> None:
        while not is_done():
            if time.monotonic() > self._deadline:
                seen = self._here.look()
                state = f"{seen.state} {seen.error}".rstrip() if seen is not None else "gone"
                raise Failed(Ocf.GENERIC, f"{what}; colo is {state}")
            time.sleep(_POLL_S)

    # -- what Pacemaker says --------------------------------------------------------------

    def _parameter(self, name: str, default: str | None = None) -> str:
        value = self._environment.get(f"OCF_RESKEY_{name}", default)
        if value is None:
            raise Failed(Ocf.CONFIGURED, f"the parameter {name} is missing")
        return value

    def _name(self) -> str:
        """The VM's name: where its file cannot be read any more, as colo has said it."""
        try:
            return str(tomllib.loads(self._file.read_text())["name"])
        except (OSError, ValueError, KeyError) as error:
            if name := self._here.vm():
                return name
            raise Failed(Ocf.INSTALLED, f"config={self._file}: no VM file: {error}") from error

    def _meta(self, name: str) -> str:
        return self._environment.get(f"OCF_RESKEY_CRM_meta_{name}", "").strip()

    def _node(self) -> str:
        return self._meta("on_node") or self._cluster.this_node()

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _refusal(answer: bytes) -> str:
    """Why colo does not do as ordered; "" where it says that it has."""
    content = json.loads(answer)
    return "" if content["ok"] else str(content["text"])


def metadata() -> str:
    """What the agent says of itself."""
    return _METADATA.read_text()


def agent_file(python: str) -> str:
    """The text of the agent's file, ``/usr/lib/ocf/resource.d/colo/vm``, run by this Python."""
    return _TEMPLATE.read_text().replace(_PLACE, f"#!{python}\n", 1)


_ACTIONS: Final[dict[str, Callable[[Agent], Ocf]]] = {
    "start": Agent.start,
    "stop": Agent.stop,
    "monitor": Agent.monitor,
    "promote": Agent.promote,
    "demote": Agent.demote,
    "validate-all": Agent.validate_all,
}


def main(
    arguments: list[str],
    environment: Mapping[str, str] = os.environ,
    cluster: Cluster | None = None,
    permits: Path = PERMITS,
) -> int:
    """Carry the action out that the first argument names; return the exit code."""
    action = arguments[0] if arguments else ""
    if action == "meta-data":
        print(metadata(), end="")
        return Ocf.SUCCESS
    if action == "notify":  # what it brings is in the environment of the other actions
        return Ocf.SUCCESS
    if action not in _ACTIONS:
        print(f"usage: vm {'|'.join([*_ACTIONS, 'notify', 'meta-data'])}", file=sys.stderr)
        return Ocf.SUCCESS if action == "usage" else Ocf.UNIMPLEMENTED
    try:
        return _ACTIONS[action](Agent(environment, cluster or Cluster(), permits))
    except Failed as error:
        if error.code is Ocf.INSTALLED and action in ("monitor", "stop"):
            return Ocf.NOT_RUNNING if action == "monitor" else Ocf.SUCCESS
        code, why = error.code, str(error)
    except (ColoError, OSError, TimeoutError) as error:
        code, why = Ocf.GENERIC, str(error)
    print(f"ocf-exit-reason:{why}", file=sys.stderr)
    return code
