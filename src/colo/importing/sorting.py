"""QEMU's arguments, sorted into a VM file.  It asks nobody: what is known besides is given.

Strategy.  Devices stay in their order, as their places on the buses follow from it; what a device
is joined to on the host (netdevs, character devices, displays) may stand anywhere, and is each
host's own.  Disks that the guest writes become ``[[disks]]`` under the names that they have in the
running VM, so that the file is also that one's.  A drive that made its device by itself
(``if=virtio``) gets that device as QEMU would have made it: behind all others.  What is of a
manager of VMs alone (its sockets, its secrets, descriptors that it opened) is left out or is
given a name again, and each change is said.
"""

from __future__ import annotations

import posixpath as paths
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from colo.config.vm import DISK_ID, NAME, OWN_OPTIONS
from colo.findings import Topic
from colo.importing.draft import DiskFound, Draft, Kind, Line
from colo.importing.joints import chardev, memory, netdev
from colo.importing.known import Known
from colo.qemu.argument_obstacles import argument_obstacles, brings_memory, is_of_this_host
from colo.qemu.drives import Drive, drives, users
from colo.qemu.options import Option, is_on, machine_keys, options, words_of

__all__ = ["sort"]

#: What is of the process, not of the VM.
_OF_THE_PROCESS: Final = (
    "D", "d", "trace", "msg", "gdb", "s", "runas", "chroot", "run-with", "writeconfig", "add-fd",
    "id", "dump-vmstate", "plugin", "perfmap", "jitdump", "only-migratable",
)  # fmt: skip
_MONITORS: Final = ("qmp", "qmp-pretty", "monitor", "mon")
#: What differs by host.
_LOCAL: Final = (
    "netdev", "nic", "net", "chardev", "vnc", "spice", "serial", "parallel", "debugcon",
)  # fmt: skip
#: Options that name a file which both hosts need.
_FILES: Final = ("kernel", "initrd", "bios", "dtb", "readconfig", "option-rom")
_FILES_WITHIN: Final = ("fw_cfg", "smbios", "acpitable")
_FDSET: Final = re.compile(r"/dev/fdset/(\d+)")
_LIBVIRTS: Final = "/libvirt/"


def sort(words: Sequence[str], source: str, known: Known, name: str | None = None) -> Draft:
    """Make a draft of a command, its program first.  ``name``: the VM's."""
    binary = words[0]
    if "/" in binary and not paths.isabs(binary):
        binary = paths.normpath(paths.join(known.folder, binary))
    found = _without_fdsets(options(words[1:]), known)
    called = name or _name(found)
    draft = Draft(called or "vm", source, binary)
    if not called:
        draft.say(Kind.NOTE, "QEMU has no name for it: --name gives it one")
    if not re.fullmatch(NAME, draft.name):
        changed = re.sub(r"[^A-Za-z0-9._-]+", "-", draft.name).strip("-._")[:64]
        text = f"the VM is called {changed or 'vm'}, as {draft.name[:80]!r} can be no name here"
        draft.say(Kind.CHANGED, f"{text}: --name gives it another")
        draft.name = changed or "vm"
    _Sorting(draft, known, found).run()
    for each in argument_obstacles(draft.args, [disk.id for disk in draft.disks]):
        if each.topic is not Topic.DISK_NOT_NAMED:  # it was said why it is not
            draft.say(Kind.TO_DO if each.refused else Kind.NOTE, each.text, each.topic)
    return draft


def _name(found: Sequence[Option]) -> str:
    for each in found:
        if each.name == "name":
            return str(each.keys.get("guest", ""))
    return ""


def _without_fdsets(found: Sequence[Option], known: Known) -> list[Option]:
    """Files that a manager opened for QEMU, by their names again."""
    sets = {}
    for each in found:
        keys = each.keys if each.name == "add-fd" else {}
        if str(keys.get("fd")) in known.files:
            sets[str(keys.get("set"))] = known.files[str(keys["fd"])]

    def named(match: re.Match[str]) -> str:
        return sets.get(match[1], match[0])

    return [Option(each.name, each.value and _FDSET.sub(named, each.value)) for each in found]


@dataclass
class _Sorting:
    """One import under way."""

    draft: Draft
    known: Known
    found: list[Option]
    used: set[int] = field(default_factory=set)
    behind: list[Line] = field(default_factory=list)
    flash: dict[str, str | bool | None] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    uses: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Sort all of it."""
        self.uses = users(self.found)
        for drive in drives(self.found):
            self._drive(drive)
        self._monitors()
        self._left_behind()
        for at, option in enumerate(self.found):
            if at not in self.used:
                self._option(option)
        self.draft.shared += self.behind
        self._machine()
        self._devices_without_netdev()
        say = self.draft.say
        if self.dropped:
            own = "colo has its own, or it is not of the VM"
            say(Kind.LEFT_OUT, f"{', '.join(self.dropped)}: {own}")
        if self.needed:
            text = (
                f"have these files on both hosts, the same: {', '.join(dict.fromkeys(self.needed))}"
            )
            say(Kind.TO_DO, text, Topic.FILES)
        say(Kind.TO_DO, "say who may run the VM, in [failover] arbiter", Topic.ARBITER)
        say(Kind.TO_DO, "name both hosts in [hosts], for `colo node`", Topic.HOSTS)

    # -- disks ---------------------------------------------------------------------------------

    def _drive(self, drive: Drive) -> None:
        path = drive.path and paths.normpath(paths.join(self.known.folder, drive.path))
        if not drive.written or not drive.attached:
            if path and drive.where:
                self.needed.append(path)
            return
        seen = self.known.disks.get(drive.id)
        if seen is not None and path is not None and seen.path != path and paths.isabs(seen.path):
            self.draft.say(Kind.CHANGED, f"disk {drive.id} is {seen.path} now, and was {path}")
            path = seen.path
        kind = seen.format if seen is not None and seen.format else drive.format
        why = self._why_not(drive, path, kind)
        if why:
            text = f"disk {drive.id} ({drive.where}) cannot be one of [[disks]]: {why}"
            self.draft.say(Kind.TO_DO, text, Topic.DISK_NOT_NAMED)
            return
        assert path is not None
        self.used |= set(drive.at)
        self._join(drive)
        comments = self._of_disk(drive, path, kind)
        base = path.removesuffix(".qcow2")
        other = f"{base}.raw" if path != base else path
        self.draft.disks.append(DiskFound(drive.id, path, other, tuple(comments)))

    def _why_not(self, drive: Drive, path: str | None, kind: str) -> str:
        if drive.twisted:
            return f"there is no place for {', '.join(drive.twisted)}: copy it to a file without"
        if path is None:
            return "it is neither a file nor a block device of this host: map it to one"
        if "\0" in path or not path.isprintable():
            return "its path has characters that cannot be printed"
        if kind not in ("", "raw", "qcow2"):
            return f"its format is {kind}: `qemu-img convert` it to raw or qcow2"
        if not re.fullmatch(DISK_ID, drive.id) or drive.id in {d.id for d in self.draft.disks}:
            return "its id can be none there, or is there twice: give it another one"
        if drive.bus not in ("none", "virtio", "ide", "pflash"):
            return f"with if={drive.bus} no device can be named for it: have one by -device"
        return ""

    def _join(self, drive: Drive) -> None:
        """What has the drive, where it had made that by itself."""
        device = None
        if drive.bus == "virtio":
            kind = "device" if str(self._kind()).startswith("microvm") else "pci"
            device = f"virtio-blk-{kind},drive={drive.id}"
        elif drive.bus == "ide":
            most = 1 if "q35" in str(self._kind()) else 2
            at = f"bus=ide.{drive.index // most},unit={drive.index % most}"
            device = f"ide-hd,{at},drive={drive.id}"
        elif drive.bus == "pflash":
            self.flash[f"pflash{drive.index}"] = drive.id
            text = f"-drive if=pflash of {drive.id} is -machine pflash{drive.index}={drive.id}"
            self.draft.say(Kind.CHANGED, text)
        if device is not None:
            text = f"-drive if={drive.bus} of {drive.id} has a -device now"
            self.behind.append(
                Line(Option("device", device), (self.draft.say(Kind.CHANGED, text),))
            )

    def _of_disk(self, drive: Drive, path: str, kind: str) -> list[str]:
        say = self.draft.say
        comments = []
        if self.uses.get(drive.id, drive.bus).startswith("pflash"):
            text = (
                f"copy {path} of disk {drive.id} to the second host once: it is firmware's memory,"
            )
            comments.append(say(Kind.TO_DO, f"{text} whose length counts", Topic.DISK_FILE))
        if drive.lost:
            lost = ", ".join(dict.fromkeys(drive.lost))
            text = f"disk {drive.id}: colo opens it by itself, without {lost}"
            comments.append(say(Kind.CHANGED, text))
        called = path.endswith(".qcow2")
        if kind == "qcow2" and not called:
            text = (
                f"disk {drive.id} is a qcow2: colo takes it for one by a name that ends in .qcow2"
            )
            text = f"{text}: rename it, or name a link to it"
            comments.append(say(Kind.TO_DO, text, Topic.DISK_FORMAT))
        elif kind == "raw" and called:
            text = f"disk {drive.id} is raw, and its name says qcow2: give it another name"
            comments.append(say(Kind.TO_DO, text, Topic.DISK_FORMAT))
        elif kind == "":
            text = f"disk {drive.id}: its format is not said: colo takes it for"
            text = f"{text} {'qcow2' if called else 'raw'}, by its name"
            comments.append(say(Kind.NOTE, text, Topic.DISK_FORMAT))
        if called:
            text = f"disk {drive.id} on the second host is raw: a replica has to be"
            comments.append(say(Kind.NOTE, text, Topic.DISK_FORMAT))
        return comments

    # -- what is left out ----------------------------------------------------------------------

    def _monitors(self) -> None:
        """Monitors go, and the character devices that only they have."""
        chardevs = []
        for at, each in enumerate(self.found):
            if each.name in _MONITORS:
                self._drop(at)
                chardevs.append(str(each.keys.get("chardev", "")))
        for at, each in enumerate(self.found):
            if each.name == "chardev" and str(each.keys.get("id")) in chardevs:
                self._drop(at)

    def _left_behind(self) -> None:
        """What belongs to this host or this manager alone."""
        gone = set()
        for at, each in enumerate(self.found):
            keys = each.keys
            driver = str(keys.get("driver", ""))
            if each.name == "device" and (is_of_this_host(driver) or brings_memory(driver)):
                self.used.add(at)
                gone.add(str(keys.get("memdev")))
                memory_text = "memory besides the main one is not protected"
                why = "it is this host's hardware" if is_of_this_host(driver) else memory_text
                topic = Topic.DEVICE if is_of_this_host(driver) else Topic.MEMORY_DEVICE
                text = f"the device {driver} {keys.get('id', '')}".strip()
                self.draft.say(Kind.LEFT_OUT, f"{text}: {why}", topic)
                self.draft.say(Kind.TO_DO, f"take {text} out of the running VM too", topic)
            elif each.name == "object" and keys.get("qom-type") == "secret" and self._is_own(keys):
                self._secret(at, str(keys.get("id")))
        for at, each in enumerate(self.found):
            if each.name == "object" and str(each.keys.get("id")) in gone:
                self.used.add(at)

    @staticmethod
    def _is_own(keys: Mapping[str, object]) -> bool:
        """Whether a secret can be read with libvirt's key alone, or is that key."""
        return "keyid" in keys or _LIBVIRTS in str(keys.get("file", ""))

    def _secret(self, at: int, name: str) -> None:
        self._drop(at, f"-object secret {name}")
        pattern = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
        for number, other in enumerate(self.found):
            if number not in (at, *self.used) and pattern.search(other.text):
                keys = other.keys
                if keys.get("qom-type") != "secret" or not self._is_own(keys):
                    text = (
                        f"{_short(other)} needs the secret {name}, which only libvirt has: give it"
                    )
                    self.draft.say(Kind.TO_DO, f"{text} as -object secret,file=…")

    def _drop(self, at: int, text: str = "") -> None:
        self.used.add(at)
        self.dropped.append(text or _short(self.found[at]))

    # -- option by option ----------------------------------------------------------------------

    def _option(self, option: Option) -> None:
        name = option.name
        if f"-{name}" in OWN_OPTIONS or name in _OF_THE_PROCESS or name == "no-shutdown":
            self.dropped.append(_short(option))
            if name == "mem-path":
                text = (
                    f"memory in {option.text}: for huge pages on host B name a hugetlbfs in [store]"
                )
                self.draft.say(Kind.NOTE, f"{text} folder", Topic.STORE)
            return
        rules: dict[str, Callable[[Option, Draft, Known], Line]] = {
            "netdev": netdev, "nic": netdev, "net": netdev, "chardev": chardev, "object": memory,
        }  # fmt: skip
        rule = rules.get(name)
        line = Line(option) if rule is None else rule(option, self.draft, self.known)
        if name in _FILES and option.text:
            self.needed.append(paths.normpath(paths.join(self.known.folder, option.text)))
        if name in _FILES_WITHIN and "file" in option.keys:
            at = str(option.keys["file"])
            self.needed.append(paths.normpath(paths.join(self.known.folder, at)))
        if name == "readconfig":
            text = f"-readconfig {option.text}: what is in that file was not looked at"
            line = Line(option, (self.draft.say(Kind.NOTE, text),))
        if name == "device" and _LIBVIRTS in option.text:
            self.draft.say(
                Kind.TO_DO, f"{_short(option)}: a file of libvirt's: have it on both hosts"
            )
        (self.draft.local if name in _LOCAL else self.draft.shared).append(line)

    def _kind(self) -> object:
        return machine_keys(words_of(self.found)).get("type", "")

    def _machine(self) -> None:
        """The machine with its version, where that is known, and with its flash."""
        changes = dict(self.flash)
        kind = str(self._kind())
        if self.known.machine and kind != self.known.machine:
            changes["type"] = self.known.machine
            text = f"-machine {kind or '(none)'} is {self.known.machine} in this QEMU: named so now"
            self.draft.say(Kind.CHANGED, text, Topic.MACHINE)
        if not changes:
            return
        lines = self.draft.shared
        places = [at for at, line in enumerate(lines) if line.option.name in ("machine", "M")]
        typed = [at for at in places if "type" in lines[at].option.keys]
        if places:
            at = (typed or places)[-1]
            lines[at] = Line(lines[at].option.changed(changes), lines[at].comments)
        else:
            lines.insert(0, Line(Option("machine", "").changed(changes)))

    def _devices_without_netdev(self) -> None:
        """A device with several queues is no obstacle, where its netdev has one."""
        for line in self.draft.shared:
            if line.option.name == "device" and is_on(line.option.keys.get("mq")):
                netdev_id = line.option.keys.get("netdev")
                text = (
                    f"the card at netdev {netdev_id} has mq=on and one queue: the guest sees that"
                )
                self.draft.say(Kind.NOTE, text, Topic.QUEUES)


def _short(option: Option) -> str:
    """An option in a line for the user: its name, and which one of that name it is."""
    keys = option.keys
    kind = keys.get("qom-type") or keys.get("driver") or ""
    name = keys.get("id") or keys.get("chardev") or ""
    if option.value is not None and not (kind or name):
        name = option.text[:60]
    return " ".join(str(each) for each in (f"-{option.name}", kind, name) if each)
