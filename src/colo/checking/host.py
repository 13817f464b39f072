"""What of a VM file this host cannot do: its QEMU, its disks, its network, its room.

Each part asks the code that would refuse later, and gives what that says its entry in
docs/refused.md.  Nothing is started but QEMU's ``--version`` and the small program that tries KVM.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from colo.arbiters.arbiter import Arbiter, require_exclusive, require_memory
from colo.arbiters.asking import reach
from colo.arbiters.command import parse_command
from colo.arbiters.named import make_arbiter
from colo.config import VmConfig
from colo.config.vm import Disk
from colo.errors import ColoError, GuestError
from colo.findings import Finding, Topic, note
from colo.membership.grant import Record
from colo.node.replicas import QCOW2_REPLICA
from colo.node.state_folder import StateFolder, check_length
from colo.qemu.argument_obstacles import argument_obstacles
from colo.qemu.colo_mode import never_enters
from colo.qemu.command_line import largest_first, taps
from colo.qemu.drives import users
from colo.qemu.open_taps import NAME_MOST
from colo.qemu.options import is_off, options
from colo.qemu.preload import CLOCK_LIBRARY, TCG_LIBRARY, needs_preload
from colo.qemu.process import NOT_LARGEST_FIRST, version_of, working_accelerator
from colo.store.image import mib, require_room
from colo.transport.address import Address, parse_address
from colo.transport.tls import make_tls

__all__ = ["Part", "check_arbiter", "check_host", "is_qcow2"]

_NETWORK: Final = Path("/sys/class/net")
_MEMINFO: Final = Path("/proc/meminfo")
_QCOW2: Final = b"QFI\xfb"
#: Options and keys that name a file which the guest reads.
_FILE_OPTIONS: Final = ("kernel", "initrd", "bios", "dtb", "readconfig", "option-rom")


@dataclass(frozen=True)
class Part:
    """Which part this host has: ``first`` has ``[qemu.primary]``, the other ``[qemu.secondary]``.

    ``host``: its name in [hosts], for ``colo node``; "" for single steps.
    """

    first: bool
    host: str = ""

    def args(self, config: VmConfig) -> tuple[str, ...]:
        """QEMU's arguments on this host."""
        qemu = config.qemu
        return (*qemu.args, *(qemu.primary if self.first else qemu.secondary).args)

    def at(self, disk: Disk) -> Path:
        """Where a disk lies on this host."""
        return disk.primary if self.first else disk.secondary

    @property
    def follows(self) -> bool:
        """Whether this host may keep another one's checkpoints."""
        return bool(self.host) or not self.first


def check_host(config: VmConfig, part: Part, state_dir: Path | None) -> Iterator[Finding]:
    """What stands in the way on this host, a line each; takes as long as KVM has to be tried."""
    yield from _qemu(config)
    yield from argument_obstacles(part.args(config), [disk.id for disk in config.disks])
    yield from _files(part.args(config))
    yield from _taps(part.args(config))
    if config.has_secondary_vm and part.follows:
        yield from _said(Topic.TAP, lambda: taps(part.args(config)))
    used = users(options(part.args(config)))
    for disk in config.disks:
        is_flash = used.get(disk.id, "").startswith("pflash")
        yield from _disk(disk.id, part.at(disk), part, is_flash)
    yield from _addresses(config, part)
    yield from _fence(config)
    if part.follows:
        yield from _store(config)
    if state_dir is not None:
        yield from _state_folder(state_dir, config, part)


async def check_arbiter(config: VmConfig, part: Part) -> list[Finding]:
    """Whether the arbiter can be asked, and can be one here."""
    try:
        arbiter = make_arbiter(config)
        require_exclusive(arbiter)
        if part.host:
            require_memory(arbiter, config.failover.arbiter)
        record = await reach(_looked_at, arbiter)
    except ColoError as error:
        return [Finding(Topic.ARBITER, f"{error}")]
    text = config.failover.arbiter
    kind, _, path = text.partition(":")
    if record is None and kind == "file" and not os.access(Path(path).parent, os.W_OK):
        what = f"[failover] arbiter = {text!r}: its folder is not there, or may not be written"
        return [Finding(Topic.ARBITER, f"{what}: mount it on both hosts")]
    if record is not None and record.holder:
        what = f"grant {record.number} is {record.holder}'s: who begins anew is asked about that"
        return [note(Topic.ARBITER, what)]
    return []


def _looked_at(arbiter: Arbiter) -> Record | None:
    return arbiter.look() if arbiter.automatic else None


def _said(topic: Topic, call: Callable[[], object]) -> Iterator[Finding]:
    """What a call refuses."""
    try:
        call()
    except ColoError as error:
        yield Finding(topic, str(error))
    except OSError as error:
        what = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        yield Finding(topic, f"{what}{error.strerror or error}")


# -- QEMU ----------------------------------------------------------------------------------------


def _qemu(config: VmConfig) -> Iterator[Finding]:
    try:
        version = version_of(config.qemu.binary)
    except GuestError as error:
        yield Finding(Topic.QEMU_BINARY, str(error))
        return
    if (broken := never_enters(version)) is not None:
        yield Finding(Topic.QEMU_VERSION, f"{broken}; --allow-broken-qemu where it is mended")
    try:
        accelerator = working_accelerator(config.qemu)
    except GuestError as error:
        yield Finding(Topic.KVM, str(error))
        return
    if accelerator == "tcg":
        text = "QEMU runs this VM under TCG, a hundred times slower than with KVM: /dev/kvm"
        yield note(Topic.KVM, f"{text} is not there, does not work, or is not asked for")
        if (first := largest_first(config.qemu.args)) is not None:
            yield Finding(Topic.MEMORY_ORDER, NOT_LARGEST_FIRST.format(first))
    if needs_preload(version[0], accelerator, len(config.backends)):
        yield from _said(Topic.TCG_LIBRARY, TCG_LIBRARY.built)
    for each in _said(Topic.CLOCK_LIBRARY, CLOCK_LIBRARY.built):
        text = f"the guest's clock loses the time that checkpoints take: {each.text}"
        yield note(Topic.CLOCK_LIBRARY, text)


def _files(args: tuple[str, ...]) -> Iterator[Finding]:
    """Files that QEMU reads and are not there."""
    for each in options(args):
        named = each.text if each.name in _FILE_OPTIONS else None
        if each.name in ("cdrom", "drive"):
            named = str(each.keys.get("file", "")) if each.name == "drive" else each.text
        if named and named.startswith("/") and not os.access(named, os.R_OK):
            text = f"-{each.name} {named}: it is not there, or may not be read: have the same on"
            yield Finding(Topic.FILES, f"{text} both hosts")


def _taps(args: tuple[str, ...]) -> Iterator[Finding]:
    for each in options(args):
        keys = each.keys if each.name in ("netdev", "nic", "net") else {}
        name = str(keys.get("ifname", keys.get("br", "")))
        if not name or keys.get("type") not in ("tap", "bridge"):
            continue
        is_tap = keys.get("type") == "tap" and "ifname" in keys
        where = f"netdev {keys.get('id', keys.get('type'))}: {name}"
        if len(os.fsencode(name)) > NAME_MOST or "/" in name:
            text = f"{where} can be no interface's name: at most {NAME_MOST} characters"
            yield Finding(Topic.TAP, text)
        elif not (_NETWORK / name).exists():
            if is_tap and is_off(keys.get("script")):
                text = f"{where} is not there: make it and put it on the bridge (`ip tuntap add dev"
                yield note(
                    Topic.TAP, f"{text} {name} mode tap`), or QEMU makes one that leads nowhere"
                )
            elif not is_tap:
                yield Finding(Topic.TAP, f"{where} is not there: make the bridge")
        elif is_tap and not (_NETWORK / name / "tun_flags").exists():
            yield Finding(
                Topic.TAP, f"{where} is no tap: `ip tuntap add dev NAME mode tap` makes one"
            )


# -- disks ---------------------------------------------------------------------------------------


def is_qcow2(path: Path) -> bool | None:
    """Whether a file is a qcow2 by what is in it; None where that cannot be seen."""
    try:
        with path.open("rb") as file:
            return file.read(len(_QCOW2)) == _QCOW2
    except OSError:
        return None


def _disk(name: str, path: Path, part: Part, is_flash: bool) -> Iterator[Finding]:
    where = f"[[disks]] {name}: {path}"
    called_qcow2 = path.suffix == ".qcow2"
    if called_qcow2 and not part.first:
        yield Finding(Topic.DISK_FORMAT, QCOW2_REPLICA.format(name, path))
    elif called_qcow2 and part.host:
        text = f"{where} is a qcow2: after a takeover this host can follow only once it is"
        yield note(Topic.DISK_FORMAT, f"{text} raw (`qemu-img convert -O raw`)")
    try:
        status = path.stat()
    except FileNotFoundError:
        if part.first:
            text = f"{where} is not there: make it (`qemu-img create`), or put the path right"
            yield Finding(Topic.DISK_FILE, text)
        elif is_flash:
            text = f"{where} is firmware's memory, as long as the first host's from the start: copy"
            yield Finding(Topic.DISK_FILE, f"{text} that file here once")
        elif not os.access(path.parent, os.W_OK):
            text = (
                f"{where}: its folder is not there, or may not be written: the replica is made in"
            )
            yield Finding(Topic.DISK_FILE, f"{text} it")
        return
    except OSError as error:
        yield Finding(Topic.DISK_FILE, f"{where}: {error.strerror}")
        return
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        yield Finding(Topic.DISK_FILE, f"{where} is neither a file nor a block device")
        return
    if not os.access(path, os.R_OK | os.W_OK):
        yield Finding(Topic.DISK_FILE, f"{where} may not be read and written by this user")
        return
    holds_qcow2 = is_qcow2(path)
    if holds_qcow2 and not called_qcow2:
        text = f"{where} holds a qcow2, and colo takes it for raw: give it a name that ends in"
        yield Finding(Topic.DISK_FORMAT, f"{text} .qcow2, a link too")
    elif called_qcow2 and holds_qcow2 is False:
        text = f"{where} holds no qcow2, and its name says so: give it another name"
        yield Finding(Topic.DISK_FORMAT, text)


# -- the host ------------------------------------------------------------------------------------


def _addresses(config: VmConfig, part: Part) -> Iterator[Finding]:
    """TLS, and the addresses of [hosts]; our own has to be one that can be listened on."""
    tls_fails = list(_said(Topic.TLS, lambda: _checked_tls(config)))
    yield from tls_fails
    for name, text in config.hosts.items():
        try:
            address = parse_address(text)
        except ColoError as error:
            yield Finding(Topic.ADDRESS, f"[hosts] {name}: {error}")
            continue
        if address.path == "" and config.tls is None:
            yield note(Topic.TLS, f"[hosts] {name} = {text!r} without [tls]: not encrypted")
        if name == part.host:
            yield from _own_address(name, address)


def _checked_tls(config: VmConfig) -> None:
    tls = make_tls(config)
    if tls is not None:
        tls.check()


def _own_address(name: str, address: Address) -> Iterator[Finding]:
    if not address.path:
        for each in _said(Topic.ADDRESS, lambda: address.listen().close()):
            text = f"[hosts] {name}: {each.text}: it has to be this host's, and free: a colo that"
            yield Finding(Topic.ADDRESS, f"{text} runs already has it")
    elif not os.access(Path(address.path).parent, os.W_OK):
        text = f"[hosts] {name}: {address}: its folder is not there, or may not be written"
        yield Finding(Topic.ADDRESS, text)


def _fence(config: VmConfig) -> Iterator[Finding]:
    if config.failover.fence is not None:
        command = parse_command(config.failover.fence, "[failover] fence")[0]
        if not os.access(command, os.X_OK) or Path(command).is_dir():
            text = f"[failover] fence: {command} is not there, or may not be executed"
            yield Finding(Topic.FENCE, text)


def _store(config: VmConfig) -> Iterator[Finding]:
    """Room for the guest's memory, in its folder and in this host's memory."""
    folder, needed = config.store.folder, config.limits.ram_bytes
    if not folder.is_dir():
        text = f"[store] folder = {folder}: it is not there: make it, mount it, or name another one"
        yield Finding(Topic.STORE, text)
        return
    if not os.access(folder, os.W_OK):
        yield Finding(Topic.STORE, f"[store] folder = {folder}: it may not be written")
        return
    short = list(_said(Topic.STORE, lambda: require_room(folder, needed, "the checkpoint store")))
    yield from short
    free = _free_memory()
    if not short and free is not None and free < needed and folder == Path("/dev/shm"):
        text = f"this host has {mib(free)} of memory to spare, the checkpoint store needs"
        yield note(Topic.STORE, f"{text} {mib(needed)}: it does not fit beside what runs now")


def _free_memory() -> int | None:
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
        return int(found[1]) << 10 if found else None
    return None


def _state_folder(path: Path, config: VmConfig, part: Part) -> Iterator[Finding]:
    """Whether it can be had, and holds the journals of the disks."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    journals = len(config.disks) * config.store.disk_journal_mib << 20
    if part.follows and journals and (free := _free_room(there)) < journals:
        text = f"state folder {path}: {mib(free)} are free, the journals of the disks need"
        yield Finding(Topic.STATE_FOLDER, f"{text} {mib(journals)}: make room")
    if path.exists():
        yield from _said(Topic.STATE_FOLDER, lambda: _opened(path))
        return
    yield from _said(Topic.STATE_FOLDER, lambda: check_length(path.absolute()))
    if not os.access(there, os.W_OK):
        text = f"state folder {path}: {there} may not be written"
        yield Finding(Topic.STATE_FOLDER, text)


def _free_room(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def _opened(path: Path) -> None:
    StateFolder(path).close()
