"""A simulated arbiter: the real moves, on a record that is slow, out of reach, or loses answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from colo.membership import grant as moves
from colo.membership.grant import Record, Refusal
from tests.sim.world import Process, World

__all__ = ["Asking", "SimArbiter"]

T = TypeVar("T", bound=Record | Refusal | None)
#: A move on the record.
Move = Callable[[Record | None], T]


class Asking:
    """One call, which its asker may give up."""

    def __init__(self) -> None:
        self.is_given_up = False
        self.writes = False


class SimArbiter:
    """Keeps one record.  A call takes some time; who waits longer than 3 s has no answer."""

    def __init__(self, world: World, is_automatic: bool = True) -> None:
        self.world = world
        self.is_automatic = is_automatic
        self.is_up = True
        self.slow_s = 0.0
        self.loses = 0.0  # how many of the answers are lost
        self.record: Record | None = None

    def call(
        self,
        process: Process,
        move: Move[T],
        answered: Callable[[T], object],
        failed: Callable[[bool], object],
    ) -> Asking:
        """Make a move for a process, and tell it what came of that: maybe nothing, or too late.

        ``failed`` gets whether something may have changed.
        """
        asking, host, world = Asking(), process.host, self.world
        delay_s = world.some(0.0005, 0.01) + (world.some(0, self.slow_s) if self.slow_s else 0)

        def give_up() -> None:
            if not asking.is_given_up:
                asking.is_given_up = True
                failed(asking.writes)

        def arrive() -> None:
            if asking.is_given_up or not process.is_alive:
                return
            if not self.is_up or (host, "arbiter") in world.cut:
                process.take(give_up)
                return
            asking.writes = True
            seen = self.record
            # Between the point of no return and the change there is time, and back is a way.
            world.after(world.some(0, 0.005) + delay_s / 4, lambda: change(seen))

        def change(seen: Record | None) -> None:
            if not self.is_up or (asking.is_given_up and self.record is not seen):
                return  # it is compared with what was read, and nobody tries again
            result = move(self.record)
            if isinstance(result, Record):
                self.record = result
            if world.random.random() < self.loses or ("arbiter", host) in world.cut:
                return
            world.after(world.some(0.0005, 0.01), lambda: process.take(lambda: hear(result)))

        def hear(result: T) -> None:
            if not asking.is_given_up:
                asking.is_given_up = True
                answered(result)

        process.after(3.0, give_up)
        world.after(delay_s, arrive)
        return asking

    @staticmethod
    def begin(record: Record | None) -> Record:
        return moves.begin(record)
