"""What joins a VM to its host: network, character devices, memory; each as a VM file has it."""

from __future__ import annotations

import re
from typing import Any, Final

from colo.findings import Topic
from colo.importing.draft import Draft, Kind, Line
from colo.importing.known import Known
from colo.qemu.argument_obstacles import has_vhost, queues_of
from colo.qemu.options import Option, is_off, is_on

__all__ = ["chardev", "memory", "netdev"]

#: What only whoever opened them for QEMU has.
_TAP_FDS: Final = ("fd", "fds", "vhostfd", "vhostfds", "vhostforce")
_INTERFACE: Final = re.compile(r"[^\s/,]{1,15}")
#: A folder that libvirt makes for one run of one VM.
_OF_ONE_RUN: Final = re.compile(r"(?P<mount>/.*?)/libvirt/qemu(/ram)?/(\d+-)?[^/]*/?")


def netdev(option: Option, draft: Draft, known: Known) -> Line:
    """A netdev of one queue, whose packets go through QEMU, by the name of its tap."""
    keys = option.keys
    name = str(keys.get("id", option.name))
    changes: dict[str, str | bool | None] = {}
    comments = []
    if keys.get("type") in ("vhost-user", "vhost-vdpa"):
        return Line(option)  # it is told as an obstacle
    if has_vhost(keys):
        changes["vhost"] = False
        text = f"netdev {name}: vhost=off, as vhost leads packets past QEMU, where they are held"
        comments.append(draft.say(Kind.CHANGED, text, Topic.VHOST))
    if (queues := queues_of(keys)) > 1:
        changes["queues"] = None
        text = f"netdev {name}: one queue instead of {queues}"
        comments.append(draft.say(Kind.CHANGED, text, Topic.QUEUES))
    if keys.get("type") == "bridge" or "helper" in keys or "br" in keys:
        text = f"have the bridge {keys.get('br', 'br0')} of netdev {name} on both hosts"
        draft.say(Kind.TO_DO, text, Topic.TAP)
    elif keys.get("type") == "tap":
        changes |= {key: None for key in _TAP_FDS if key in keys}
        if not isinstance(keys.get("ifname"), str):
            changes["ifname"] = _tap(name, keys, draft, known, comments)
        for key in ("script", "downscript"):
            if not is_off(keys.get(key)):
                changes[key] = "no"
        if str(keys.get("script", "no")) != "no":
            text = f"netdev {name}: not by the script {keys['script']}: the tap has to be there, on"
            comments.append(draft.say(Kind.CHANGED, f"{text} its bridge", Topic.TAP))
        tap = changes.get("ifname", keys.get("ifname"))
        text = f"have the tap {tap} of netdev {name} on its bridge, on both hosts"
        draft.say(Kind.TO_DO, text, Topic.TAP)
    elif "fd" in keys or "fds" in keys:
        text = f"netdev {name} was given a descriptor by whoever started QEMU: name what it is"
        comments.append(draft.say(Kind.TO_DO, text, Topic.TAP))
    return Line(option.changed(changes), tuple(comments))


def _tap(name: str, keys: dict[str, Any], draft: Draft, known: Known, comments: list[str]) -> str:
    """The tap behind a descriptor, or a name to be put right."""
    number = str(keys.get("fd", str(keys.get("fds", "")).split(":")[0]))
    found = known.taps.get(number, "")
    if not ("fd" in keys or "fds" in keys):  # QEMU opened one itself: which, is clear of one alone
        others = {line.option.keys.get("ifname") for line in draft.local}
        left = [each for each in known.taps.values() if each not in others]
        found = left[0] if len(left) == 1 else ""
    if _INTERFACE.fullmatch(found):
        text = f"netdev {name}: its tap has no name in the arguments: it is {found}"
        comments.append(draft.say(Kind.CHANGED, text, Topic.TAP))
        return found
    taken = sum(line.option.name == "netdev" for line in draft.local)
    text = (
        f"netdev {name}: which tap it has is not known: put ifname=tap{taken} right, on both hosts"
    )
    comments.append(draft.say(Kind.TO_DO, text, Topic.TAP))
    return f"tap{taken}"


def chardev(option: Option, draft: Draft, known: Known) -> Line:
    """A character device by its path."""
    keys = option.keys
    name = str(keys.get("id", ""))
    comments = []
    if keys.get("backend") == "socket" and "fd" in keys:
        path = known.sockets.get(str(keys["fd"]))
        kind = Kind.CHANGED
        if path is None:
            kind = Kind.TO_DO
            path = f"/run/{draft.name}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.sock"
        text = f"chardev {name} was opened by whoever started QEMU: it is the socket {path} now"
        comments.append(draft.say(kind, text))
        option = option.changed({"fd": None, "path": path, "server": True, "wait": False})
    for key in ("path", "logfile"):
        text = str(option.keys.get(key, ""))
        if text.startswith("/dev/fdset/"):
            other = f"/var/log/{draft.name}-{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.log"
            option = option.changed({key: other})
            said = (
                f"chardev {name}: its {key} was opened by whoever started QEMU: it is {other} now"
            )
            comments.append(draft.say(Kind.CHANGED, said))
        elif "/libvirt/" in text:
            said = f"chardev {name}: {text} is in a folder that libvirt makes: name another one"
            comments.append(draft.say(Kind.TO_DO, said))
    return Line(option, tuple(comments))


def memory(option: Option, draft: Draft, known: Known) -> Line:
    """An object; memory in a folder that was made for one run is in the one above."""
    keys = option.keys
    kind = str(keys.get("qom-type", ""))
    comments = []
    if not kind.startswith("memory-backend-"):
        return Line(option)
    huge = is_on(keys.get("hugetlb")) or "huge" in str(keys.get("mem-path", ""))
    if huge:
        text = "the memory is of huge pages: for host B name a hugetlbfs in [store] folder"
        comments.append(draft.say(Kind.NOTE, text, Topic.STORE))
    match = _OF_ONE_RUN.fullmatch(str(keys.get("mem-path", "")))
    if match is not None and huge:
        option = option.changed({"mem-path": match["mount"]})
        text = f"the memory {keys.get('id')} lies in {match['mount']}, not in a folder of libvirt's"
        comments.append(draft.say(Kind.CHANGED, text))
    elif match is not None:
        text = f"the memory {keys.get('id')} lies in {keys['mem-path']}, which libvirt makes: name"
        comments.append(draft.say(Kind.TO_DO, f"{text} another file"))
    return Line(option, tuple(comments))
