"""What a waiting QEMU really is, asked of itself: memory, processors, PCI devices.

What QEMU does not tell, or tells in a form that is not known here, is left out and said: it then
cannot be compared with what a primary sends, which is no reason not to protect its VM.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

from colo.errors import GuestError
from colo.migration.fitting import Machine, Memory, PciId
from colo.qemu.monitor import Monitor

__all__ = ["ask_machine", "parse_blocks", "parse_cpus", "parse_pci"]

_ASK_S: Final = 5.0
#: The name, which may be missing; page size, offset, and the two lengths.  On QEMU 11 more follows.
_BLOCK: Final = re.compile(
    r" *(?P<name>.*?) +\d+(?:\.\d+)? [KMGTP]?i?B  0x[0-9a-f]{16} "
    r"0x(?P<used>[0-9a-f]{16}) 0x(?P<largest>[0-9a-f]{16})(?: .*)?"
)
_HEAD: Final = re.compile(r" *Block Name +PSize +Offset +Used +Total.*")
#: Targets whose every processor has a section of its own, by its index.
_TARGETS: Final = ("x86_64", "i386")

T = TypeVar("T")


async def ask_machine(qemu: Monitor, tell: Callable[[str], None]) -> Machine:
    """Ask ``qemu`` what it has; ``tell`` is told what could not be learned, a line each."""

    async def ask(what: str, parse: Callable[[Any], T], command: str, **given: Any) -> T | None:
        try:
            return parse(await qemu.execute(command, **given))
        except GuestError as error:
            why = str(error)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            why = f"QEMU answers {command} in an unknown form: {error!r}"
        tell(f"{what} will not be compared with the primary's: {why}")
        return None

    try:
        async with asyncio.timeout(_ASK_S):
            return Machine(
                blocks=await ask(
                    "memory",
                    parse_blocks,
                    "human-monitor-command",
                    command_line="info ramblock",
                ),
                cpus=await ask("the processors", parse_cpus, "query-cpus-fast"),
                cpus_most=await _cpus_most(qemu),
                pci=await ask("PCI devices", parse_pci, "query-pci"),
                kvm=await ask(
                    "the accelerator", lambda answer: bool(answer["enabled"]), "query-kvm"
                ),
            )
    except TimeoutError:
        tell(f"nothing will be compared with the primary's: QEMU did not answer in {_ASK_S:.0f} s")
        return Machine()


def parse_blocks(answer: str) -> dict[str, Memory]:
    """The blocks in what ``info ramblock`` prints.  Raises ValueError where it prints otherwise."""
    head, *lines = answer.splitlines() or [""]
    if not _HEAD.fullmatch(head):
        raise ValueError(head)
    blocks = {}
    for line in lines:
        if not line.strip():
            continue
        match = _BLOCK.fullmatch(line)
        if match is None:
            raise ValueError(line)
        blocks[match["name"]] = Memory(int(match["used"], 16), int(match["largest"], 16))
    if not blocks:
        raise ValueError(answer)
    return blocks


def parse_cpus(answer: list[dict[str, Any]]) -> frozenset[int] | None:
    """The indices in the answer of ``query-cpus-fast``; None where sections do not go by them."""
    if any(cpu["target"] not in _TARGETS for cpu in answer):
        return None
    return frozenset(int(cpu["cpu-index"]) for cpu in answer)


def parse_pci(answer: list[dict[str, Any]]) -> dict[str, PciId] | None:
    """What is on the first bus in the answer of ``query-pci``; None where there is none.

    Before its firmware has run, QEMU tells nothing of the buses behind bridges.
    """
    for bus in answer:
        if bus["bus"] == 0:
            return {
                f"{int(each['slot']):02x}.{int(each['function']):x}": (
                    int(each["id"]["vendor"]),
                    int(each["id"]["device"]),
                )
                for each in bus["devices"]
            }
    return None


async def _cpus_most(qemu: Monitor) -> int | None:
    """How many processors the machine has room for; None where none can be plugged in."""
    try:
        return len(await qemu.execute("query-hotpluggable-cpus"))
    except (GuestError, TypeError):
        return None
