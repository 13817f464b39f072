"""QEMU's command line as a list of options, and an option's value as keys and values.

A value is taken apart as QEMU does it: keys and values between commas, a comma within a value
doubled, the first key implied, or all of it one JSON object.  What is changed is written again in
the form in which it came, and all that is not changed stays as it is, byte for byte.

Source: ``qemu-options.hx`` (which options have a value), ``util/keyval.c`` and
``util/qemu-option.c`` (values).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "Option",
    "changed",
    "escape",
    "is_off",
    "is_on",
    "machine_keys",
    "option_name",
    "options",
    "pairs",
    "read_keys",
    "words_of",
]

#: Options without a value.
_WITHOUT: Final = (
    "enable-kvm snapshot nographic curses no-fd-bootchk no-acpi no-hpet no-quit sdl full-screen "
    "alt-grab ctrl-grab win2k-hack rtc-td-hack usb no-reboot no-shutdown S daemonize singlestep "
    "nodefaults no-user-config nodefconfig only-migratable old-param semihosting mem-prealloc "
    "preconfig show-cursor xen-attach xen-domid-restrict enable-fips enable-sync-profile no-frame "
    "no-kvm no-kvm-irqchip hax h help version portrait"
)
_BARE: Final = frozenset(_WITHOUT.split())
#: By option: the key of a first value that has none.
_IMPLIED: Final = {
    "device": "driver", "netdev": "type", "nic": "type", "net": "type", "chardev": "backend",
    "object": "qom-type", "machine": "type", "M": "type", "blockdev": "driver", "name": "guest",
    "mon": "chardev", "m": "size", "accel": "accel", "tpmdev": "type", "fsdev": "fsdriver",
    "vnc": "vnc", "cpu": "model", "numa": "type", "smp": "cpus", "audiodev": "driver",
    "sandbox": "enable", "display": "type", "virtfs": "fsdriver", "fw_cfg": "name",
}  # fmt: skip
_ON: Final = ("on", "yes", "true", "y", True)
_OFF: Final = ("off", "no", "false", "n", False)


@dataclass(frozen=True)
class Option:
    """``-name value``; ``value`` is None where it has none, ``name`` "" where the word is none.

    A word that is no option is a disk's file to QEMU.
    """

    name: str
    value: str | None = None

    @property
    def text(self) -> str:
        """The value; "" where there is none."""
        return self.value or ""

    @property
    def keys(self) -> dict[str, Any]:
        """The keys and values in the value."""
        return read_keys(self.text, _IMPLIED.get(self.name, ""))

    def changed(self, changes: Mapping[str, str | bool | None]) -> Option:
        """The same with these keys changed: see ``changed``."""
        implied = _IMPLIED.get(self.name, "")
        return Option(self.name, changed(self.text, implied, changes))

    def words(self) -> tuple[str, ...]:
        """The words of the command line."""
        if not self.name:
            return (self.text,)
        return (f"-{self.name}",) if self.value is None else (f"-{self.name}", self.value)

    def __str__(self) -> str:
        return " ".join(self.words())


def options(args: Sequence[str]) -> list[Option]:
    """The options of a command line, without its program.

    An option that is not known has the next word as its value, unless that begins with a dash.
    """
    found: list[Option] = []
    words = list(args)
    at = 0
    while at < len(words):
        name = option_name(words[at])
        at += 1
        if not name:
            found.append(Option("", words[at - 1]))
        elif name in _BARE or at == len(words) or (name not in _VALUED and _is_name(words[at])):
            found.append(Option(name))
        else:
            found.append(Option(name, words[at]))
            at += 1
    return found


def words_of(found: Sequence[Option]) -> list[str]:
    """The command line that options make."""
    return [word for each in found for word in each.words()]


def option_name(word: str) -> str | None:
    """An option's name without its dashes; None where the word is none."""
    return word.removeprefix("-").removeprefix("-") if word.startswith("-") else None


def _is_name(word: str) -> bool:
    return word.startswith("-")


def pairs(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each word that may be an option and what follows it, whether that is its value or not."""
    for word, value in itertools.zip_longest(args, args[1:], fillvalue=""):
        if (name := option_name(word)) is not None:
            yield name, value


def read_keys(value: str, implied: str) -> dict[str, Any]:
    """The keys and values of an option; ``implied``: the key of a first value that has none.

    JSON that is none has no keys.
    """
    if value.startswith("{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {}
    read: dict[str, Any] = {}
    for number, part in enumerate(_parts(value)):
        key, equals, text = part.partition("=")
        if not equals and number == 0:
            read[implied] = key
        elif key:
            read[key] = text if equals else "on"
    return read


def changed(value: str, implied: str, changes: Mapping[str, str | bool | None]) -> str:
    """A value with some keys changed, taken out (None) or added, in the form in which it came."""
    if value.startswith("{"):
        content = read_keys(value, implied)
        if not changes or not content:
            return value
        for key, new in changes.items():
            content.pop(key, None) if new is None else content.update({key: new})
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    left = dict(changes)
    parts = []
    for number, part in enumerate(_parts(value) if value else []):
        key, equals, _ = part.partition("=")
        name = implied if number == 0 and not equals else key
        if name not in changes:
            parts.append(escape(part))
        elif left.get(name) is not None:  # the first of its name has the new value
            parts.append(_part(name, left.pop(name), bare=number == 0 and not equals))
    parts += [_part(key, new) for key, new in left.items() if new is not None]
    return ",".join(parts)


def machine_keys(args: Sequence[str]) -> dict[str, Any]:
    """All that ``-machine`` says, as often as it is there."""
    found: dict[str, Any] = {}
    for option, value in pairs(args):
        if option in ("machine", "M"):
            found |= read_keys(value, "type")
    return found


def escape(value: object) -> str:
    """A value inside a QEMU option: its commas are doubled."""
    return str(value).replace(",", ",,")


def is_on(value: object) -> bool:
    """Whether a value says yes, in any form that QEMU takes."""
    return value in _ON


def is_off(value: object) -> bool:
    """Whether a value says no."""
    return value in _OFF


def _part(key: str, value: str | bool | None, bare: bool = False) -> str:
    text = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
    return escape(text) if bare else f"{key}={escape(text)}"


def _parts(value: str) -> list[str]:
    """What is between the commas, with doubled ones as one."""
    return [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]


#: Options with a value that may begin with a dash.
_WITH: Final = (
    "append kernel initrd serial parallel monitor qmp qmp-pretty drive hda hdb hdc hdd cdrom fda "
    "fdb incoming loadvm pidfile D d uuid vga spice smbios rtc boot bios global readconfig "
    "overcommit msg mem-path add-fd iscsi L dtb set trace acpitable option-rom watchdog "
    "watchdog-action icount runas chroot debugcon gdb k id run-with"
)
_VALUED: Final = frozenset(_IMPLIED) | frozenset(_WITH.split())
