"""The VM file: one TOML file, the same on both hosts, that says what the VM is.

::

    name = "web1"
    mode = "periodic"                        # or hybrid, or auto: a secondary VM runs on host B
    [qemu]
    binary = "qemu-system-x86_64"            # also a path
    args = ["-machine", "pc", "-m", "512"]   # what defines the machine
    accel = "auto"                           # auto, kvm or tcg: where args name none
    [qemu.primary]                           # with colo node: of the first of [hosts]
    args = ["-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"]
    [qemu.secondary]                         # with colo node: of the second
    args = ["-netdev", "tap,id=n0,ifname=tap1,script=no,downscript=no"]
    [[disks]]                                # one each: what the guest writes is replicated
    id = "virtio0"                           # its -device has drive=virtio0
    primary = "/var/lib/colo/web1.qcow2"     # where it lies on each host, raw or *.qcow2;
    secondary = "/var/lib/colo/web1.raw"     # raw on a host that keeps the replica
    [store]
    folder = "/dev/shm"                      # a tmpfs, a hugetlbfs or a disk
    other_memory_mib = 64                    # for blocks besides -m: ROMs, graphics memory
    device_state_mib = 64                    # what a checkpoint's devices may take
    disk_journal_mib = 256                   # for what a disk is written between checkpoints
    [failover]
    arbiter = "etcd:http://e1:2379"          # or file:PATH, exec:COMMAND, pacemaker, manual, none
    fence = "exec:/usr/sbin/host-off"        # not needed: run before a takeover
    heartbeat_s = 0.1                        # how often each host says that it is there
    heartbeat_limit_s = 0.8                  # and after how long a silence it counts as lost
    silence_s = 10.0                         # a primary silent within a checkpoint is lost
    [failover.etcd]                          # not needed: how the arbiter in etcd is reached
    prefix = "colo/"                         # the key is this and the VM's name
    ca = "/etc/colo/etcd-ca.crt"             # who signed the members' certificates
    certificate = "/etc/colo/etcd.crt"       # this host's, and
    key = "/etc/colo/etcd.key"               # its key
    user = "colo"                            # where etcd asks for a user
    password = "..."
    [hosts]                                  # for colo node: how each host reaches the other
    a = "tcp:10.0.0.1:9000"
    b = "tcp:10.0.0.2:9000"
    [checkpoints]
    run_min_ms = 0.5                         # the VM runs at least so long between two,
    stopped_share_max = 0.5                  # and stands still for no more than this share
    age_max_ms = 1000                        # an idle VM is checkpointed so often
    stop_goal_ms = 50                        # a busy one before that would stop it for longer
    latency_goal_ms = 0                      # so long a client's answer may wait for company
    cpu_latency_us = 0                       # not needed: while clients are answered, processors
                                             # that take longer to wake are kept awake
    aside_mib = 512                          # so much of one is held here while the VM runs on
    [hybrid]                                 # where a secondary VM runs:
    patience_ms = 100                        # so long output waits for it to say the same
    age_max_ms = 10000                       # an idle VM is checkpointed so often
    [wire]                                   # between two colos, where a slow link makes it pay:
    compress = true                          # zstd, and
    compare_mib = 64                         # only what differs of pages: memory on host A for it
    [network]
    high_water_mib = 4                       # so much held output asks for a checkpoint at once
    hold_limit_mib = 64                      # beyond so much, packets are dropped
    [metrics]
    listen = "127.0.0.1:9633"                # not needed: where Prometheus finds colo's figures
    [tls]                                    # between the hosts: without it, plain TCP
    ca = "/etc/colo/ca.crt"                  # who signed the certificates of both
    certificate = "/etc/colo/host.crt"       # this host's, and
    key = "/etc/colo/host.key"               # its key
    name = "web1.example"                    # not needed: what both have to be issued for

colo adds what is its own: QMP, ``-incoming``, the memory backend, its preload libraries, and a
``-blockdev`` for each of [[disks]].
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from colo.config.tables import read_table
from colo.errors import UsageError
from colo.migration.ram import Limits
from colo.packets.pace import Pace
from colo.qemu.command_line import Backend, main_memory

__all__ = [
    "DISK_ID",
    "NAME",
    "OWN_OPTIONS",
    "Checkpoints",
    "Disk",
    "EtcdAccess",
    "Failover",
    "Hybrid",
    "Metrics",
    "Network",
    "OneHost",
    "QemuArgs",
    "StoreRoom",
    "TlsFiles",
    "VmConfig",
    "Wire",
    "load",
    "parse",
]

_ACCELERATORS: Final = ("auto", "kvm", "tcg")
_PERIODIC: Final = "periodic"
_MODES: Final = (_PERIODIC, "hybrid", "auto")
_POSITIVE: Final = {
    "store": ("other_memory_mib", "device_state_mib", "disk_journal_mib"),
    "failover": ("silence_s", "heartbeat_s", "heartbeat_limit_s"),
    "checkpoints": ("age_max_ms", "stop_goal_ms"),
    "hybrid": ("patience_ms", "age_max_ms"),
    "network": ("high_water_mib", "hold_limit_mib"),
}
_HOSTS: Final = 2
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_NAME_RULE: Final = "1 to 64 letters, digits, dots, dashes or underscores"
#: What QEMU takes for a node's name.
DISK_ID: Final = r"[A-Za-z][A-Za-z0-9._-]{0,30}"
_DISK_RULE: Final = "a letter, and up to 30 letters, digits, dots, dashes or underscores"
_LATENCY_MAX_US: Final = 1_000_000
OWN_OPTIONS: Final = {
    "-incoming": "colo starts the waiting QEMU itself",
    "-S": "the VM has to run as soon as it is taken over",
    "-daemonize": "colo watches the process that it started",
    "-pidfile": "colo writes qemu.pid into its state folder",
    "-loadvm": "the state comes from the primary",
    "-mem-path": "the VM's memory is the store's image, see [store] folder",
    "-mem-prealloc": "the VM's memory is the store's image, allocated at the start",
}


@dataclass(frozen=True)
class OneHost:
    """``[qemu.primary]``, ``[qemu.secondary]``: what of QEMU's arguments differs by host."""

    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class QemuArgs:
    """``[qemu]``: which QEMU, and what defines the machine."""

    binary: str = "qemu-system-x86_64"
    args: tuple[str, ...] = ()
    accel: str = "auto"
    primary: OneHost = OneHost()
    secondary: OneHost = OneHost()


@dataclass(frozen=True)
class Disk:
    """One of ``[[disks]]``: a disk that the guest writes, and where it lies on each host.

    As with QEMU's arguments, ``primary`` is the first host's with ``colo node``.
    """

    id: str
    primary: Path
    secondary: Path


@dataclass(frozen=True)
class StoreRoom:
    """``[store]``: where the guest's memory lies on host B, and what else there is room for."""

    folder: Path = Path("/dev/shm")
    other_memory_mib: int = 64
    device_state_mib: int = 64
    disk_journal_mib: int = 256


@dataclass(frozen=True)
class EtcdAccess:
    """``[failover.etcd]``: how an arbiter in etcd is reached, and where in it the grant is."""

    prefix: str = "colo/"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: str | None = None


@dataclass(frozen=True)
class Failover:
    """``[failover]``: when the other host is lost, and who may go on then.

    ``arbiter`` and ``fence`` are texts here: they are made, and so checked, in ``colo.arbiters``.
    """

    arbiter: str = "none"
    fence: str | None = None
    etcd: EtcdAccess | None = None
    heartbeat_s: float = 0.1
    heartbeat_limit_s: float = 0.8
    silence_s: float = 10.0

    @property
    def limits_s(self) -> tuple[float, float]:
        """How long the other host may be silent: while it has no whole copy, and then."""
        return max(self.silence_s, self.heartbeat_limit_s), self.heartbeat_limit_s


@dataclass(frozen=True)
class Checkpoints:
    """``[checkpoints]``: how often the VM is checkpointed."""

    run_min_ms: float = 0.5
    stopped_share_max: float = 0.5
    age_max_ms: float = 1000.0
    cpu_latency_us: int | None = None
    aside_mib: float = 512.0
    stop_goal_ms: float = 50.0
    latency_goal_ms: float = 0.0


@dataclass(frozen=True)
class Hybrid:
    """``[hybrid]``: when to checkpoint while a secondary VM runs."""

    patience_ms: float = 100.0
    age_max_ms: float = 10000.0


@dataclass(frozen=True)
class Wire:
    """``[wire]``: what may be done to send less, where the link's rate makes that pay."""

    compress: bool = True
    compare_mib: float = 64.0

    @property
    def is_used(self) -> bool:
        """Whether anything may."""
        return self.compress or self.compare_mib > 0


@dataclass(frozen=True)
class Network:
    """``[network]``: how much output is held."""

    high_water_mib: float = 4.0
    hold_limit_mib: float = 64.0


@dataclass(frozen=True)
class Metrics:
    """``[metrics]``: where a colo that runs tells its figures, HOST:PORT or unix:PATH."""

    listen: str | None = None


@dataclass(frozen=True)
class TlsFiles:
    """What makes the connections between the hosts secure; ``name``: see ``transport.tls``."""

    ca: Path
    certificate: Path
    key: Path
    name: str | None = None


@dataclass(frozen=True)
class VmConfig:
    """A VM file that was read and checked: a field for each of its tables."""

    name: str
    mode: str = "periodic"
    qemu: QemuArgs = QemuArgs()
    store: StoreRoom = StoreRoom()
    failover: Failover = Failover()
    checkpoints: Checkpoints = Checkpoints()
    hybrid: Hybrid = Hybrid()
    wire: Wire = Wire()
    network: Network = Network()
    metrics: Metrics = Metrics()
    tls: TlsFiles | None = None
    hosts: dict[str, str] = field(default_factory=dict)
    disks: tuple[Disk, ...] = ()

    def other_host(self, host: str) -> str:
        """The name of the other one of the two hosts.  Raises UsageError with what is missing."""
        if len(self.hosts) != _HOSTS:
            raise UsageError(
                "[hosts]: two of them, a name and an address for each, as in "
                '`a = "tcp:10.0.0.1:9000"`'
            )
        if host not in self.hosts:
            raise UsageError(
                f"this host is {host}, and [hosts] has {' and '.join(self.hosts)}: say --host NAME"
            )
        return next(name for name in self.hosts if name != host)

    def seen_from(self, host: str) -> VmConfig:
        """What it is on ``host`` in either role: its own arguments, those of the first host or not.

        Raises UsageError where [hosts] does not name it.
        """
        first, second = self.qemu.primary, self.qemu.secondary
        is_second = next(iter(self.hosts)) == self.other_host(host)
        own = second if is_second else first
        here = [each.secondary if is_second else each.primary for each in self.disks]
        disks = tuple(Disk(each.id, at, at) for each, at in zip(self.disks, here, strict=True))
        return replace(self, qemu=replace(self.qemu, primary=own, secondary=own), disks=disks)

    @property
    def has_secondary_vm(self) -> bool:
        """Whether a secondary VM runs on host B, where it pays."""
        return self.mode != _PERIODIC

    @property
    def pace(self) -> Pace:
        """When to checkpoint."""
        return Pace(
            run_min_s=self.checkpoints.run_min_ms / 1e3,
            stopped_share_max=self.checkpoints.stopped_share_max,
            age_max_s=self.checkpoints.age_max_ms / 1e3,
            high_water=int(self.network.high_water_mib * (1 << 20)),
            stop_goal_s=self.checkpoints.stop_goal_ms / 1e3,
            latency_goal_s=self.checkpoints.latency_goal_ms / 1e3,
        )

    @property
    def backends(self) -> tuple[Backend, ...]:
        """What the VM's main memory is made of."""
        return main_memory(self.qemu.args)

    @property
    def memory(self) -> int:
        """The size of the VM's main memory in bytes."""
        return sum(backend.block.length for backend in self.backends)

    @property
    def limits(self) -> Limits:
        """What a primary of this VM may send at most."""
        return Limits(
            ram_bytes=self.memory + (self.store.other_memory_mib << 20),
            device_bytes=self.store.device_state_mib << 20,
        )


def load(path: Path, check: Callable[[VmConfig], object] | None = None) -> VmConfig:
    """Read and check a VM file.

    Raises UsageError with the file's and the key's name; also where ``check`` raises it.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    try:
        config = parse(text)
        if check is not None:
            check(config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error.__cause__
    return config


def parse(text: str) -> VmConfig:
    """Read and check what a VM file says.  Raises UsageError with the key's name."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(str(error)) from error
    config = read_table(VmConfig, table)
    _check(config)
    return config


def _check(config: VmConfig) -> None:
    if not re.fullmatch(NAME, config.name):
        raise UsageError(f"name = {config.name!r}: {_NAME_RULE}")
    if config.mode not in _MODES:
        raise UsageError(f"mode = {config.mode!r}: one of {', '.join(_MODES)}")
    if config.qemu.accel not in _ACCELERATORS:
        raise UsageError(f"[qemu] accel = {config.qemu.accel!r}: one of {', '.join(_ACCELERATORS)}")
    for table, keys in _POSITIVE.items():
        for key in keys:
            value = getattr(getattr(config, table), key)
            if not 0 < value < float("inf"):
                raise UsageError(f"{key} = {value}: more than 0, and finite")
    failover, latency_us = config.failover, config.checkpoints.cpu_latency_us
    if failover.heartbeat_limit_s < 2 * failover.heartbeat_s:
        raise UsageError(
            f"heartbeat_limit_s = {failover.heartbeat_limit_s}: at least twice heartbeat_s = "
            f"{failover.heartbeat_s}, or a host that is there counts as lost"
        )
    for name, value in (
        ("aside_mib", config.checkpoints.aside_mib),
        ("latency_goal_ms", config.checkpoints.latency_goal_ms),
        ("compare_mib", config.wire.compare_mib),
    ):
        if not 0 <= value < float("inf"):
            raise UsageError(f"{name} = {value}: 0 or more, and finite")
    if not 0 < config.checkpoints.stopped_share_max < 1:
        raise UsageError(
            f"stopped_share_max = {config.checkpoints.stopped_share_max}: a share, more than 0 and "
            "less than 1"
        )
    etcd = failover.etcd or EtcdAccess()
    for one, other in (("certificate", "key"), ("user", "password")):
        if (getattr(etcd, one) is None) != (getattr(etcd, other) is None):
            raise UsageError(f"[failover.etcd] {one} and {other}: both, or none of them")
    if latency_us is not None and not 0 <= latency_us <= _LATENCY_MAX_US:
        raise UsageError(f"cpu_latency_us = {latency_us}: microseconds, 0 to {_LATENCY_MAX_US}")
    ids = [disk.id for disk in config.disks]
    for disk in config.disks:
        if not re.fullmatch(DISK_ID, disk.id):
            raise UsageError(f"[[disks]] id = {disk.id!r}: {_DISK_RULE}")
        if ids.count(disk.id) > 1:
            raise UsageError(f"[[disks]] id = {disk.id!r}: it is there more than once")
        for at in (disk.primary, disk.secondary):
            if not at.is_absolute():
                raise UsageError(f"[[disks]] {disk.id}: {at} has to be a whole path, from / on")
    for host in config.hosts:
        if not re.fullmatch(NAME, host):
            raise UsageError(f"[hosts] {host!r}: {_NAME_RULE}")
    _check_args(config.qemu)
    _ = config.memory


def _check_args(qemu: QemuArgs) -> None:
    for arg in (*qemu.args, *qemu.primary.args, *qemu.secondary.args):
        option = arg.removeprefix("-") if arg.startswith("--") else arg
        if option in OWN_OPTIONS:
            raise UsageError(f"[qemu] args: remove {arg}: {OWN_OPTIONS[option]}")
    for arg in (*qemu.primary.args, *qemu.secondary.args):
        if arg in ("-m", "-numa") or "memory-backend" in arg:
            raise UsageError(
                f"[qemu] args: {arg} belongs to both hosts, not to one of them: host B puts its "
                "own files in the place of memory backends"
            )
