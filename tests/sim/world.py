"""A world with a time of its own: processes that pause and die, and connections that break.

Everything that happens is an event at a time; what is drawn is drawn from one seed.  So a run is
the same whenever it is played with the same seed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from tests.sim.coverage import Taken

__all__ = ["Connection", "End", "Process", "Timer", "World"]


class Timer:
    """Something that is to happen; it does not once it is cancelled."""

    __slots__ = ("act",)

    def __init__(self, act: Callable[[], object]) -> None:
        self.act: Callable[[], object] | None = act

    def cancel(self) -> None:
        self.act = None


class World:
    """The time, the dice, the wires, and what was seen."""

    def __init__(self, seed: int, log: Callable[[str], object] | None = None) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.cut: set[tuple[str, str]] = set()  # wires, from and to: hosts, or "arbiter"
        self.slow_s = 0.0  # how much longer than usual a message may take
        self.connections: list[Connection] = []
        self.rows: set[Taken] = set()
        self._log = log
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0

    def after(self, delay_s: float, act: Callable[[], object]) -> Timer:
        timer = Timer(act)
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, timer))
        return timer

    def run(self, until_s: float, goes_on: Callable[[], bool] = lambda: True) -> None:
        """Let time pass."""
        while self._heap and self._heap[0][0] <= until_s and goes_on():
            self.now, _, timer = heapq.heappop(self._heap)
            if timer.act is not None:
                timer.act()
        if goes_on():
            self.now = until_s

    def some(self, least_s: float, most_s: float) -> float:
        """A time between these."""
        return self.random.uniform(least_s, most_s)

    def say(self, who: str, what: str) -> None:
        if self._log is not None:
            self._log(f"{self.now:10.4f} {who:8} {what}")

    @property
    def is_told(self) -> bool:
        """Whether somebody reads what is said."""
        return self._log is not None

    def changed(self) -> None:
        """A wire, a process or a host is not what it was."""
        self.connections = [each for each in self.connections if each.is_open]
        for each in self.connections:
            each.changed()


class Process:
    """Something on a host that acts in time, while it is alive and not paused."""

    def __init__(self, world: World, host: str, drift: float = 1.0) -> None:
        self.world, self.host, self.drift = world, host, drift
        self.is_alive, self.is_paused = True, False
        self.stood_s = 0.0  # before what is dealt with now
        self._since = 0.0
        self._backlog: list[tuple[bool, Callable[[], object]]] = []

    def after(self, delay_s: float, act: Callable[[], object]) -> Timer:
        """Act, by this process's own clock."""
        timer = Timer(act)
        self.world.after(delay_s * self.drift, lambda: self.take(lambda: self._fire(timer), False))
        return timer

    @staticmethod
    def _fire(timer: Timer) -> None:
        if timer.act is not None:
            timer.act()

    def take(self, act: Callable[[], object], is_input: bool = True) -> None:
        """Have this happen to the process, now or once it goes on."""
        if not self.is_alive:
            return
        if self.is_paused:
            self._backlog.append((is_input, act))
        else:
            act()

    def pause(self) -> None:
        self.is_paused, self._since = True, self.world.now
        self.world.changed()

    def resume(self) -> None:
        """Go on: what has come is read before any timer is looked at, as an event loop does."""
        self.is_paused = False
        self.world.changed()
        self.stood_s = self.world.now - self._since
        backlog, self._backlog = self._backlog, []
        for _, act in sorted(backlog, key=lambda item: not item[0]):
            if self.is_alive:
                act()
        self.stood_s = 0.0

    def kill(self, with_host: bool = False) -> None:
        """End it: its connections are closed, but where its host is off as well."""
        self.is_alive = False
        for connection in self.world.connections:
            for end in connection.ends:
                if end.process is self:
                    (connection.vanish if with_host else connection.close)(end)
        self.world.changed()


class End:
    """One end of a connection: whose it is, and what hears."""

    def __init__(
        self, process: Process, heard: Callable[[Any], object], lost: Callable[[], object]
    ) -> None:
        self.process, self.heard, self.lost = process, heard, lost
        self.inbox: deque[Any] = deque()
        self.is_open = True
        self.silence: Timer | None = None
        self.limit_s: float | None = None  # of this end, where it has another
        self.comes: Timer | None = None


class Connection:
    """Two ends; what is sent comes in order, or is lost with the connection.

    ``limit_s``: how long an end may hear nothing, where both beat; None where they do not.
    """

    def __init__(self, world: World, one: End, two: End, limit_s: float | None) -> None:
        self.world, self.ends, self.limit_s = world, (one, two), limit_s
        #: Since when it is not certain that both ends hear each other.
        self.doubtful_since: float | None = None
        self.deaf: set[End] = set()  # nothing gets to these, and nobody notices
        self.lag_s = 0.0  # how much longer than others it takes
        world.connections.append(self)
        self.changed()

    @property
    def is_open(self) -> bool:
        return self.ends[0].is_open or self.ends[1].is_open

    def _other(self, end: End) -> End:
        return self.ends[1] if end is self.ends[0] else self.ends[0]

    def _passes(self, to: End) -> bool:
        is_cut = (self._other(to).process.host, to.process.host) in self.world.cut
        return not is_cut and to not in self.deaf

    def send(self, end: End, what: object) -> None:
        if end.is_open:
            self._put(self._other(end), what)

    def close(self, end: End) -> None:
        """What it has sent still comes, and then that it is closed; it hears nothing more."""
        if end.is_open:
            self._shut(end)
            self._put(self._other(end), _CLOSED)

    def vanish(self, end: End) -> None:
        """Its host is off: nothing more comes of it, not even that."""
        self._shut(end)

    def _put(self, to: End, what: object) -> None:
        if to.is_open:
            to.inbox.append(what)
            self._pump(to)

    def _pump(self, to: End) -> None:
        if to.comes is None and to.inbox and to.is_open and self._passes(to):
            delay_s = self.world.some(0.0001, 0.004) + self.world.some(
                0, self.world.slow_s + self.lag_s
            )
            to.comes = self.world.after(delay_s, lambda: self._deliver(to))

    def _deliver(self, to: End) -> None:
        to.comes = None
        if to.is_open and to.inbox and self._passes(to):
            what = to.inbox.popleft()
            to.process.take(lambda: self._hear(to, what))
            self._pump(to)

    def _hear(self, to: End, what: object) -> None:
        if not to.is_open:
            return
        if what is _CLOSED:
            self.lose(to)
        else:
            to.heard(what)

    def lose(self, end: End) -> None:
        """The connection is of no more use to this end."""
        if end.is_open:
            self.close(end)
            end.lost()

    def _shut(self, end: End) -> None:
        end.is_open = False
        end.inbox.clear()
        self._quiet(end)

    @staticmethod
    def _quiet(end: End) -> None:
        if end.silence is not None:
            end.silence.cancel()
            end.silence = None

    def unheard_s(self, end: End) -> float:
        """For how long this end is not certain to be heard, by its own clock."""
        if self.doubtful_since is None:
            return 0.0
        return (self.world.now - self.doubtful_since) / end.process.drift

    def _doubt(self) -> None:
        fine = all(
            end.is_open and not end.process.is_paused and self._passes(end) for end in self.ends
        )
        if not fine and self.doubtful_since is None:
            self.doubtful_since = self.world.now
        elif fine and self.doubtful_since is not None:
            # A beat has to get there, and its answer back.
            self.world.after(0.01 + 2 * self.world.slow_s, partial(self._certain, self._doubts))
        if not fine:
            self._doubts += 1

    _doubts = 0

    def _certain(self, doubts: int) -> None:
        if doubts == self._doubts:
            self.doubtful_since = None

    def changed(self) -> None:
        """Look who hears whom now."""
        self._doubt()
        for end in self.ends:
            if not end.is_open:
                continue
            self._pump(end)
            if self.limit_s is None:
                continue
            other = self._other(end)
            if other.is_open and not other.process.is_paused and self._passes(end):
                self._quiet(end)
            elif end.silence is None:
                limit_s = end.limit_s or self.limit_s
                end.silence = end.process.after(limit_s, partial(self.lose, end))

    def be_strict(self, end: End, limit_s: float) -> None:
        """From now on this end waits no longer than that."""
        end.limit_s = limit_s
        if end.is_open:
            self._quiet(end)
            self.changed()


_CLOSED = object()
