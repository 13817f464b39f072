"""A simulated VM whose guest is one that two hosts can run beside each other.

Its clients have one connection with it, and get datagrams.  What it sends follows from what it is:
two that begin from one checkpoint say the same, each at times of its own, until one of them draws
something that the other does not.  It gets numbered input, and acknowledges it, as TCP does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from colo.packets.frames import Segment, frames, look_into
from tests.packets.two_vms import tcp, udp
from tests.sim.checks import Moment
from tests.sim.vm import Vm, nothing

__all__ = ["Guest", "TalkingVm"]

_WORD: Final = struct.Struct(">II")
_SIZE: Final = 4
_DATAGRAM_EVERY: Final = 5
_INPUT_OFTEN: Final = 0.1
_BEHIND_S: Final = 0.3


@dataclass(frozen=True)
class Guest:
    """What a guest is: so many words said, the last one, so much input, when the next is due."""

    depth: int
    value: int
    inputs: int
    due: float

    def next(self, drawn: int) -> Guest:
        """What it is one word later; ``drawn``: 0 where it draws nothing of its own."""
        value = (self.value * 1_664_525 + 1_013_904_223 + drawn) % (1 << 32)
        return replace(
            self, depth=self.depth + 1, value=value, due=self.due + 0.01 + (value >> 8) % 110 / 1e3
        )

    @property
    def acknowledges(self) -> bool:
        """Whether its last word tells how much input it has; others are datagrams."""
        return self.depth % _DATAGRAM_EVERY > 0

    def word(self) -> bytes:
        """The frame that says it."""
        if self.acknowledges:
            return tcp(self.depth * _SIZE, self.inputs, self.value.to_bytes(_SIZE, "big"))
        return udp(_WORD.pack(self.depth, self.value))


def _depth(frame: memoryview) -> int:
    said = look_into(frame)
    if isinstance(said, Segment):
        return said.seq // _SIZE
    return int(_WORD.unpack(said.content[-_WORD.size :])[0])


class TalkingVm(Vm):
    """One QEMU process with such a guest.

    ``on_input`` hears what the network brings.  ``is_beside``: the network does not have it.
    """

    vnet = True
    is_beside = False
    on_input: Callable[[int], object] = staticmethod(nothing)
    differs = 0.0  # how likely it is to draw something at a word
    _guest = Guest(0, 0, 0, 0.0)
    _born_depth = 0

    def start(self, at: Moment | None) -> None:
        """Begin a life."""
        guest = None if at is None else at.guest
        assert guest is None or isinstance(guest, Guest)
        self._guest = guest or Guest(0, self.world.random.getrandbits(32), 0, self.world.now)
        self._born_depth = self._guest.depth
        self.life, self.position = self._checks.born(at), 0
        self._checks.begins(self.life, self._guest.inputs)
        self.run()

    @property
    def now(self) -> Moment:
        return Moment(self.life, self.position, self._guest)

    def feed(self, number: int) -> None:
        """The network brings this input; what comes again, or not in its order, is not taken."""
        if self.runs and number == self._guest.inputs + 1:
            self._guest = replace(self._guest, inputs=number)

    def _tick(self) -> None:
        now, dice = self.world.now, self.world.random
        if not self.runs:
            self.after(0.02, self._tick)
            return
        if now >= self._guest.due:
            self._step(now)
        wait_s = max(0.001, self._guest.due - now)
        self.after(wait_s + dice.random() * 0.006, self._tick)

    def _step(self, now: float) -> None:
        dice = self.world.random
        if not self.is_beside and dice.random() < _INPUT_OFTEN:
            self.feed(self._guest.inputs + 1)
            self.on_input(self._guest.inputs)
        drawn = dice.getrandbits(31) if self.differs and dice.random() < self.differs else 0
        due = max(self._guest.due, now - _BEHIND_S)
        self._guest = replace(self._guest, due=due).next(drawn)
        self.position += 1
        guest = self._guest
        self._checks.says(self.life, guest.value, guest.inputs, guest.acknowledges)
        self._transmit()

    def _frame(self) -> bytes:
        return self._guest.word()

    def _moments(self, data: bytes) -> Iterator[Moment]:
        for frame, _ in frames(data):
            yield Moment(self.life, _depth(frame) - self._born_depth)

    def release_nothing(self, count: int) -> None:
        """So many bytes of what its gate holds need not be said again."""
        assert self.gate is not None
        self.gate.release_first(min(count, self.gate.held_bytes), self.world.now)
