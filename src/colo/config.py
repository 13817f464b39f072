"""The VM file: one TOML file, the same on both hosts, that says what the VM is.

::

    name = "web1"
    [qemu]
    binary = "qemu-system-x86_64"            # also a path
    args = ["-machine", "pc", "-m", "512"]   # what defines the machine
    accel = "auto"                           # auto, kvm or tcg: where args name none
    [qemu.primary]
    args = ["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"]
    [qemu.secondary]
    args = ["-netdev", "tap,id=n0,ifname=tap1,script=no,downscript=no"]
    [store]
    folder = "/dev/shm"                      # a tmpfs, a hugetlbfs or a disk
    other_memory_mib = 64                    # for blocks besides -m: ROMs, graphics memory
    device_state_mib = 64                    # what a checkpoint's devices may take
    [failover]
    arbiter = "file:/shared/web1.grant"      # or manual, or none
    heartbeat_s = 0.1                        # how often each host says that it is there
    heartbeat_limit_s = 0.8                  # and after how long a silence it counts as lost
    silence_s = 10.0                         # a primary silent within a checkpoint is lost
    [checkpoints]
    run_min_ms = 0.5                         # the VM runs at least so long between two,
    run_factor = 1.0                         # and so many times as long as it was stopped
    age_max_ms = 1000                        # an idle VM is checkpointed so often
    cpu_latency_us = 0                       # not needed: while clients are answered, processors
                                             # that take longer to wake are kept awake
    [network]
    high_water_mib = 4                       # so much held output asks for a checkpoint at once
    hold_limit_mib = 64                      # beyond so much, packets are dropped
    [tls]                                    # between the hosts: without it, plain TCP
    ca = "/etc/colo/ca.crt"                  # who signed the certificates of both
    certificate = "/etc/colo/host.crt"       # this host's, and
    key = "/etc/colo/host.key"               # its key
    name = "web1.example"                    # not needed: what both have to be issued for

colo adds what is its own: QMP, ``-incoming``, the memory backend, the TCG preload.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from colo.arbiters.arbiter import make_arbiter
from colo.errors import UsageError
from colo.migration.format import PAGE_SIZE
from colo.migration.ram import Limits
from colo.packets.pace import Pace

__all__ = ["RAM_BLOCK", "TlsFiles", "VmConfig", "load", "memory_size"]

#: What QEMU calls the main memory of its pc and q35 machines, and so its block in the stream.
RAM_BLOCK: Final = "pc.ram"

_ACCELERATORS: Final = ("auto", "kvm", "tcg")
_QEMU_DEFAULT_MIB: Final = 128
_UNITS: Final = {"": 1 << 20, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_POSITIVE: Final = (
    "other_memory_mib",
    "device_state_mib",
    "silence_s",
    "heartbeat_s",
    "heartbeat_limit_s",
    "age_max_ms",
    "high_water_mib",
    "hold_limit_mib",
)
_LATENCY_MAX_US: Final = 1_000_000
_OWN_OPTIONS: Final = {
    "-incoming": "colo starts the waiting QEMU itself",
    "-S": "the VM has to run as soon as it is taken over",
    "-daemonize": "colo watches the process that it started",
    "-pidfile": "colo writes qemu.pid into its state folder",
    "-loadvm": "the state comes from the primary",
    "-mem-path": "the VM's memory is the store's image, see [store] folder",
    "-mem-prealloc": "the VM's memory is the store's image, allocated at the start",
}


@dataclass(frozen=True)
class TlsFiles:
    """What makes the connections between the hosts secure; ``name``: see ``transport.tls``."""

    ca: Path
    certificate: Path
    key: Path
    name: str | None = None


@dataclass(frozen=True)
class VmConfig:
    """A VM file that was read and checked."""

    name: str
    binary: str = "qemu-system-x86_64"
    args: tuple[str, ...] = ()
    accel: str = "auto"
    primary_args: tuple[str, ...] = ()
    secondary_args: tuple[str, ...] = ()
    store_folder: Path = Path("/dev/shm")
    other_memory_mib: int = 64
    device_state_mib: int = 64
    silence_s: float = 10.0
    arbiter: str = "none"
    heartbeat_s: float = 0.1
    heartbeat_limit_s: float = 0.8
    run_min_ms: float = 0.5
    run_factor: float = 1.0
    age_max_ms: float = 1000.0
    cpu_latency_us: int | None = None
    high_water_mib: float = 4.0
    hold_limit_mib: float = 64.0
    tls: TlsFiles | None = None

    @property
    def pace(self) -> Pace:
        """When to checkpoint."""
        return Pace(
            run_min_s=self.run_min_ms / 1e3,
            run_factor=self.run_factor,
            age_max_s=self.age_max_ms / 1e3,
            high_water=int(self.high_water_mib * (1 << 20)),
        )

    @property
    def memory(self) -> int:
        """The size of the VM's main memory in bytes, from ``-m``."""
        return memory_size(self.args)

    @property
    def limits(self) -> Limits:
        """What a primary of this VM may send at most."""
        return Limits(
            ram_bytes=self.memory + (self.other_memory_mib << 20),
            device_bytes=self.device_state_mib << 20,
        )


def load(path: Path) -> VmConfig:
    """Read and check a VM file.  Raises UsageError with the file's and the key's name."""
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    try:
        return _vm(_Table(table, ""))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error.__cause__


def memory_size(args: Sequence[str]) -> int:
    """Return the bytes that the last ``-m`` of QEMU's arguments asks for, or QEMU's default."""
    text = f"{_QEMU_DEFAULT_MIB}"
    for option, value in itertools.pairwise(args):
        if option in ("-m", "--m"):
            text = value
    size = ""
    for part in text.split(","):
        key, _, value = part.rpartition("=")
        if key in ("", "size"):
            size = value
        elif key in ("slots", "maxmem"):
            raise UsageError(f"-m {text}: memory that is plugged in later cannot be protected")
    match = re.fullmatch(r"(\d+)([bkmgt]?)", size.lower())
    if match is None:
        raise UsageError(f"-m {text}: not a size that QEMU knows, such as 512 or 2G")
    memory = int(match[1]) * _UNITS[match[2]]
    if not memory or memory % PAGE_SIZE:
        raise UsageError(f"-m {text}: not a multiple of {PAGE_SIZE} bytes")
    return memory


def _vm(top: _Table) -> VmConfig:
    name = top.take("name", str)
    qemu = top.table("qemu")
    primary, secondary = qemu.table("primary"), qemu.table("secondary")
    store, failover = top.table("store"), top.table("failover")
    checkpoints, network = top.table("checkpoints"), top.table("network")
    tls = _tls(top.table("tls")) if "tls" in top else None
    config = VmConfig(
        name=name,
        binary=qemu.take("binary", str, VmConfig.binary),
        args=qemu.strings("args"),
        accel=qemu.take("accel", str, VmConfig.accel),
        primary_args=primary.strings("args"),
        secondary_args=secondary.strings("args"),
        store_folder=Path(store.take("folder", str, str(VmConfig.store_folder))),
        other_memory_mib=store.take("other_memory_mib", int, VmConfig.other_memory_mib),
        device_state_mib=store.take("device_state_mib", int, VmConfig.device_state_mib),
        silence_s=failover.number("silence_s"),
        arbiter=failover.take("arbiter", str, VmConfig.arbiter),
        heartbeat_s=failover.number("heartbeat_s"),
        heartbeat_limit_s=failover.number("heartbeat_limit_s"),
        run_min_ms=checkpoints.number("run_min_ms"),
        run_factor=checkpoints.number("run_factor"),
        age_max_ms=checkpoints.number("age_max_ms"),
        cpu_latency_us=checkpoints.optional("cpu_latency_us", int),
        high_water_mib=network.number("high_water_mib"),
        hold_limit_mib=network.number("hold_limit_mib"),
        tls=tls,
    )
    for table in (primary, secondary, qemu, store, failover, checkpoints, network, top):
        table.finish()
    _check(config)
    return config


def _tls(table: _Table) -> TlsFiles:
    ca, certificate, key = (Path(table.take(each, str)) for each in ("ca", "certificate", "key"))
    name = table.take("name", str, "") or None
    table.finish()
    return TlsFiles(ca, certificate, key, name)


def _check(config: VmConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", config.name):
        raise UsageError(
            f"name = {config.name!r}: 1 to 64 letters, digits, dots, dashes or underscores"
        )
    if config.accel not in _ACCELERATORS:
        raise UsageError(f"[qemu] accel = {config.accel!r}: one of {', '.join(_ACCELERATORS)}")
    make_arbiter(config.arbiter)
    for key in _POSITIVE:
        if not 0 < getattr(config, key) < float("inf"):
            raise UsageError(f"{key} = {getattr(config, key)}: more than 0, and finite")
    if config.heartbeat_limit_s < 2 * config.heartbeat_s:
        raise UsageError(
            f"heartbeat_limit_s = {config.heartbeat_limit_s}: at least twice heartbeat_s = "
            f"{config.heartbeat_s}, or a host that is there counts as lost"
        )
    if config.cpu_latency_us is not None and not 0 <= config.cpu_latency_us <= _LATENCY_MAX_US:
        raise UsageError(
            f"cpu_latency_us = {config.cpu_latency_us}: microseconds, 0 to {_LATENCY_MAX_US}"
        )
    for arg in (*config.args, *config.primary_args, *config.secondary_args):
        if arg in _OWN_OPTIONS:
            raise UsageError(f"[qemu] args: remove {arg}: {_OWN_OPTIONS[arg]}")
        if "memory-backend=" in arg:
            raise UsageError(f"[qemu] args: remove {arg}: colo adds the memory backend")
    for role in (config.primary_args, config.secondary_args):
        if "-m" in role:
            raise UsageError("[qemu] args: -m belongs to both hosts, not to one of them")
    _ = config.memory


_T = TypeVar("_T")
_KINDS: Final = {str: "text", int: "a whole number", float: "a number"}


class _Table:
    """A TOML table that knows which of its keys were asked for."""

    def __init__(self, content: dict[str, Any], path: str) -> None:
        self._content = dict(content)
        self._path = path

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def take(self, key: str, kind: type[_T] | tuple[type, ...], default: Any = None) -> Any:
        value = self._content.pop(key, default)
        if value is None:
            raise UsageError(f"{self._name(key)} is missing")
        if not isinstance(value, kind) or isinstance(value, bool):
            names = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(_KINDS[each] for each in names)
            raise UsageError(f"{self._name(key)} = {value!r}: it has to be {wanted}")
        return value

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        """A value that need not be there."""
        return self.take(key, kind) if key in self else None

    def number(self, key: str) -> float:
        """A number of the same name as a field of VmConfig, and with its default."""
        return float(self.take(key, (int, float), getattr(VmConfig, key)))

    def strings(self, key: str) -> tuple[str, ...]:
        value = self._content.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UsageError(f"{self._name(key)}: a list of texts, one for each argument")
        return tuple(value)

    def table(self, key: str) -> _Table:
        value = self._content.pop(key, {})
        if not isinstance(value, dict):
            raise UsageError(f"[{self._name(key)}] has to be a table")
        return _Table(value, self._name(key))

    def finish(self) -> None:
        """Refuse what nobody asked for: a misspelt key must not be passed over."""
        for key in self._content:
            raise UsageError(f"{self._name(key)}: there is no such key")

    def _name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key
