"""The drives that QEMU's arguments make: how they are called, what they lie on, who uses them.

A drive is ``-drive`` or one of its short forms, or the root of a tree of ``-blockdev`` that a
device uses.  It is called as QEMU calls it where nobody has given it a name, so that the name is
also that of the running VM.  Source: ``drive_new`` in ``blockdev.c``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from colo.qemu.options import Option, is_on, machine_keys, words_of

__all__ = ["FILTERS", "Drive", "drives", "users"]

#: Nodes that pass on what they are asked: what is below them is the disk.
FILTERS: Final = ("throttle", "copy-on-read")
_FILES: Final = ("file", "host_device")
_FORMATS: Final = ("raw", "qcow2")
#: What of a drive is said in another place, or is QEMU's way to name it.
_SAID_HERE: Final = (
    "id node-name file driver format if index bus unit media readonly read-only filename "
    "file.filename file.driver auto-read-only discard detect-zeroes snapshot file.node-name"
)
_SAID: Final = frozenset(_SAID_HERE.split())
#: How it is done, not what: colo's own ``-blockdev`` does without.
_HOW: Final = re.compile(
    r"(file\.)?(cache|aio|locking|werror|rerror|throttling|iops|bps|copy-on-read|group)"
    r"([-._].*)?"
)
_SHORT: Final = {"hda": 0, "hdb": 1, "hdc": 2, "hdd": 3, "": 0}
_DEPTH_MAX: Final = 16
_PROTOCOL: Final = re.compile(r"[A-Za-z0-9+.-]+:")
_PFLASH: Final = re.compile(r"pflash[01]")


@dataclass(frozen=True)
class Drive:
    """A drive; ``at``: which of the options make it, by their numbers.

    ``path``: the file or block device; None where it is something else, or more than that, and
    ``where`` says what.  ``format``: raw, qcow2, another, or "" where QEMU has to find it out.
    ``bus``: "none" where a ``-device`` has it, else what ``if=`` says.  ``lost``: keys that say how
    it is read and written.  ``twisted``: keys for which there is no place in the VM file.
    """

    id: str
    at: tuple[int, ...]
    path: str | None
    where: str
    format: str = ""
    written: bool = True
    bus: str = "none"
    index: int = 0
    lost: tuple[str, ...] = ()
    twisted: tuple[str, ...] = ()
    attached: bool = True


def users(found: Sequence[Option]) -> dict[str, str]:
    """Who uses the drive of each name: a ``-device``'s driver, or ``pflash0`` of the machine."""
    used = {}
    for each in found:
        keys = each.keys if each.name == "device" else {}
        if isinstance(keys.get("drive"), str):
            used[keys["drive"]] = str(keys.get("driver", ""))
    for key, value in machine_keys(words_of(found)).items():
        if _PFLASH.fullmatch(key):
            used[str(value)] = key
    return used


def drives(found: Sequence[Option]) -> list[Drive]:
    """All drives of a command line, in its order."""
    used = users(found)
    one_a_bus = "q35" in str(machine_keys(words_of(found)).get("type", ""))
    taken: dict[str, set[int]] = {}
    throwaway = ("snapshot",) if any(each.name == "snapshot" for each in found) else ()
    plain = []
    for at, each in enumerate(found):
        if (keys := _plain(each)) is not None:
            drive = _drive(at, keys, taken, one_a_bus, used)
            plain.append(replace(drive, twisted=(*drive.twisted, *throwaway)))
    return sorted([*plain, *_trees(found, used)], key=lambda drive: drive.at[0])


def _plain(option: Option) -> dict[str, Any] | None:
    """The keys of a ``-drive``, also of a short form; None where it is none."""
    if option.name == "drive":
        return option.keys
    if option.name in _SHORT and option.value is not None:
        return {"file": option.value, "index": str(_SHORT[option.name])}
    if option.name == "cdrom":
        return {"file": option.text, "index": "2", "media": "cdrom"}
    if option.name == "pflash":
        return {"file": option.text, "if": "pflash", "format": "raw"}
    return None


def _drive(
    at: int,
    keys: Mapping[str, Any],
    taken: dict[str, set[int]],
    one_a_bus: bool,
    used: Mapping[str, str],
) -> Drive:
    bus = str(keys.get("if", "ide"))
    most = {"ide": 1 if one_a_bus else 2, "scsi": 7}.get(bus, 0)
    index = _index(keys, most, taken.setdefault(bus, set()))
    is_cdrom = keys.get("media") == "cdrom"
    kind = ("-cd" if is_cdrom else "-hd") if bus in ("ide", "scsi") else ""
    place = f"{index // most}{kind}{index % most}" if most else f"{kind}{index}"
    name = str(keys.get("id", f"{bus}{place}"))
    text = str(keys.get("file", keys.get("file.filename", "")))
    protocol = keys.get("file.driver", "file")
    rest = [key for key in keys if key not in _SAID]
    lost = tuple(key for key in rest if _HOW.fullmatch(key))
    twisted = [key for key in rest if key not in lost]
    twisted += ["snapshot"] if is_on(keys.get("snapshot")) else []
    return Drive(
        id=name,
        at=(at,),
        path=_path(text) if protocol in _FILES else None,
        where=text,
        format=str(keys.get("format", keys.get("driver", ""))),
        written=bool(text)
        and not (is_cdrom or is_on(keys.get("readonly")) or is_on(keys.get("read-only"))),
        bus=bus,
        index=index,
        lost=lost,
        twisted=tuple(twisted),
        attached=bus != "none" or name in used,
    )


def _index(keys: Mapping[str, Any], most: int, taken: set[int]) -> int:
    """Which place on the buses of its kind a drive has: the one that is said, or the next."""

    def number(key: str) -> int | None:
        text = str(keys.get(key, ""))
        return int(text) if text.isascii() and text.isdigit() and len(text) < 4 else None

    index = number("index")
    if index is None and number("unit") is not None:
        index = (number("bus") or 0) * max(most, 1) + (number("unit") or 0)
    if index is None:
        index = next(each for each in range(len(taken) + 1) if each not in taken)
    taken.add(index)
    return index


def _path(text: str) -> str | None:
    """The file that a drive's ``file`` names; None where QEMU takes it for something else."""
    for prefix in ("file:", "host_device:"):
        if text.startswith(prefix):
            return text.removeprefix(prefix) or None
    before, slash, _ = text.partition("/")
    if not text or _PROTOCOL.match(before if slash else text):
        return None
    return text


# -- trees of -blockdev --------------------------------------------------------------------------


@dataclass
class _Tree:
    """What was found below a root."""

    at: list[int] = field(default_factory=list)
    path: str | None = None
    where: str = ""
    format: str = ""
    lost: list[str] = field(default_factory=list)
    twisted: list[str] = field(default_factory=list)


def _trees(found: Sequence[Option], used: Mapping[str, str]) -> Iterator[Drive]:
    nodes: dict[str, tuple[int, dict[str, Any]]] = {}
    for at, each in enumerate(found):
        if each.name == "blockdev" and "node-name" in (node := _nested(each.keys)):
            nodes[str(node["node-name"])] = (at, node)
    for name, (at, node) in nodes.items():
        if name not in used:
            continue
        tree = _Tree([at])
        _walk(node, nodes, tree, 0)
        yield Drive(
            id=name,
            at=tuple(sorted(set(tree.at))),
            path=tree.path,
            where=tree.where or str(node.get("driver", "")),
            format=tree.format or ("raw" if tree.path else ""),
            written=not is_on(node.get("read-only")),
            lost=tuple(tree.lost),
            twisted=tuple(tree.twisted),
        )


def _nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with dots in them as dictionaries."""
    nested: dict[str, Any] = {}
    for key, value in keys.items():
        *above, last = key.split(".")
        place = nested
        for each in above:
            inner = place.setdefault(each, {})
            if not isinstance(inner, dict):
                break
            place = inner
        else:
            place[last] = value
    return nested


def _walk(
    node: Mapping[str, Any],
    nodes: Mapping[str, tuple[int, dict[str, Any]]],
    tree: _Tree,
    depth: int,
) -> None:
    """Follow ``file`` down to what lies on the host."""
    driver = str(node.get("driver", ""))
    if driver in _FILES:
        if isinstance(node.get("filename"), str):
            tree.path = tree.where = node["filename"]
            if tree.path.startswith("/dev/fdset/"):
                tree.path = None
        tree.lost += [key for key in ("cache", "aio", "locking") if key in node]
        return
    if driver in FILTERS:
        tree.lost.append(driver)
    elif driver in _FORMATS:
        tree.format = "qcow2" if "qcow2" in (driver, tree.format) else driver
        tree.lost += [key for key in ("cache",) if key in node]
        tree.twisted += [key for key in ("offset", "size", "encrypt", "data-file") if key in node]
    else:
        tree.where = f"{driver} {node.get('filename') or node.get('image') or ''}".strip()
        tree.twisted.append(f"driver {driver}")
    for key in ("file", "backing"):
        below = node.get(key)
        if isinstance(below, str) and below in nodes:
            at, inner = nodes[below]
            if at in tree.at or depth >= _DEPTH_MAX:
                continue
            tree.at.append(at)
            below = inner
        if isinstance(below, dict) and key == "file" and depth < _DEPTH_MAX:
            _walk(below, nodes, tree, depth + 1)
        elif isinstance(below, dict) and depth < _DEPTH_MAX:
            _walk(below, nodes, _Below(tree), depth + 1)


class _Below(_Tree):
    """What is below a backing file belongs to the drive, and says nothing of the disk itself."""

    def __init__(self, tree: _Tree) -> None:
        super().__init__(at=tree.at)
