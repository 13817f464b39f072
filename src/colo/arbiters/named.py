"""What the VM file's ``[failover]`` names: the arbiter, and the fence.

``etcd:URL[,URL…]``   a key in etcd
``file:PATH``         a file that both hosts reach
``exec:COMMAND``      a site's own store
``pacemaker``         a cluster by Pacemaker, of which both hosts are nodes
``manual``            nobody is granted anything, but by an operator's order
``none``              whoever asks is granted: for a lone secondary of a stock QEMU
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.command import CommandRegister, parse_command
from colo.arbiters.fence import Fence
from colo.arbiters.file import FileRegister
from colo.arbiters.manual import ManualArbiter, NoArbiter
from colo.arbiters.pacemaker import CibRegister, PacemakerArbiter
from colo.config import VmConfig
from colo.config.vm import EtcdAccess
from colo.errors import UsageError
from colo.pacemaker.cluster import Cluster
from colo.pacemaker.permit import Permit

__all__ = ["check_failover", "make_arbiter", "make_fence"]

_CHOICES: Final = "etcd:URL[,URL…], file:PATH, exec:COMMAND, pacemaker, manual or none"


def make_arbiter(config: VmConfig) -> Arbiter:
    """Make the arbiter that the VM file names.  Raises UsageError."""
    text = config.failover.arbiter
    kind, _, rest = text.partition(":")
    if config.failover.etcd is not None and kind != "etcd":
        raise UsageError(f"[failover.etcd] and arbiter = {text!r}: there is no etcd to reach")
    if kind == "file" and rest:
        if not Path(rest).is_absolute():
            raise UsageError(
                f"[failover] arbiter = {text!r}: the whole path, from / on: another one would be "
                "another file for each folder that colo is started in"
            )
        return Arbiter(FileRegister(Path(rest)))
    if kind == "etcd" and rest:
        return _etcd(rest.split(","), config.name, config.failover.etcd or EtcdAccess())
    if kind == "exec":
        return Arbiter(CommandRegister(parse_command(text, "[failover] arbiter"), config.name))
    if text == "pacemaker":
        return _pacemaker(config)
    if text == "manual":
        return ManualArbiter()
    if text == "none":
        return NoArbiter()
    raise UsageError(f"[failover] arbiter = {text!r}: {_CHOICES}")


def make_fence(config: VmConfig) -> Fence | None:
    """Make the fence that the VM file names; None where it names none.  Raises UsageError."""
    text = config.failover.fence
    return None if text is None else Fence(parse_command(text, "[failover] fence"), config.name)


def check_failover(config: VmConfig) -> None:
    """Raise UsageError where ``[failover]`` names what cannot be."""
    make_arbiter(config)
    make_fence(config)


def _pacemaker(config: VmConfig) -> Arbiter:
    if len(config.hosts) != 2:
        raise UsageError(
            '[failover] arbiter = "pacemaker" is for `colo node`: [hosts] has to have both hosts, '
            "by their names as nodes of the cluster"
        )
    register = CibRegister(config.name, tuple(config.hosts), Cluster())
    return PacemakerArbiter(register, Permit(config.name))


def _etcd(urls: list[str], vm: str, access: EtcdAccess) -> Arbiter:
    from colo.arbiters.etcd import EtcdRegister  # it takes a while, and few need it

    tls = None
    if access.ca is not None or access.certificate is not None:
        if not all(url.startswith("https://") for url in urls):
            raise UsageError("[failover.etcd] ca, certificate: the addresses have to be https://")
        try:
            tls = ssl.create_default_context(cafile=access.ca)
            if access.certificate is not None:
                tls.load_cert_chain(access.certificate, access.key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"[failover.etcd] ca, certificate, key: {error.strerror or error}"
            ) from error
    register = EtcdRegister(
        tuple(urls), f"{access.prefix}{vm}", tls, access.user or "", access.password or ""
    )
    return Arbiter(register)
