"""Runs of the simulated world: ``python -m tests.sim.run --help``."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import Pool
from random import Random

from colo.errors import ColoError
from colo.membership.member import Member
from colo.membership.states import Event, State
from colo.packets.stand_in import GoesOn
from tests.sim.beside import Beside
from tests.sim.checks import Violation
from tests.sim.cluster import Cluster, Day, Host
from tests.sim.colo import Colo
from tests.sim.coverage import ROWS, Taken
from tests.sim.faults import FAULTS, SUDDEN, heal, is_nowhere
from tests.sim.hybrid_faults import HYBRID_FAULTS, HYBRID_SUDDEN
from tests.sim.world import World

__all__ = ["Outcome", "Total", "play", "play_all"]

_FAULTS_S = 60.0
_MORE_S = 180.0
_RUNS = (
    State.UNPROTECTED, State.BEGINNING, State.COPYING, State.PROTECTED, State.RESUMING,
    State.RUNNING, State.TAKING_OVER,
)  # fmt: skip


@dataclass
class Outcome:
    """What one run came to; ``violation`` is "" where nothing was wrong."""

    seed: int
    violation: str = ""
    faults: Counter[str] = field(default_factory=Counter)
    packets: int = 0
    late: int = 0
    lives: int = 0
    beside: int = 0
    went_on: int = 0
    early: int = 0
    rows: set[Taken] = field(default_factory=set)


def play(
    seed: int,
    log: Callable[[str], object] | None = None,
    make: Callable[..., Member] = Member,
    only: Sequence[str] = (),
    hybrid: bool = False,
) -> Outcome:
    """Play one run: a minute of faults, and then there has to be an end.

    ``only``: the faults that there are, where it is not all of them.  ``hybrid``: mode.
    """
    world, dice = World(seed, log), Random(seed ^ 0x5EED)
    means = {"automatic": dice.random() < 0.85, "fence": dice.random() < 0.2}
    day = _hybrid(_day(dice), seed) if hybrid else _day(dice)
    cluster = Cluster(world, **means, day=day, make=make)
    outcome = Outcome(seed)
    often_s = dice.choice([0.3, 1.0, 3.0, 8.0])
    known = FAULTS | HYBRID_FAULTS if hybrid else FAULTS
    usual = sorted(only or known)
    quick = SUDDEN + HYBRID_SUDDEN if hybrid else SUDDEN
    sudden = sorted(only or (each.__name__ for each in quick))

    def fault(host: Host, kinds: list[str]) -> None:
        if world.now < _FAULTS_S:
            kind = dice.choice(kinds)
            world.say("FAULT", f"{kind} {host.name}")
            outcome.faults[kind] += 1
            known[kind](cluster, host)

    def faults() -> None:
        fault(cluster.hosts[dice.choice("ab")], usual)
        if world.now < _FAULTS_S:
            world.after(dice.expovariate(1 / often_s), faults)

    def entered(host: Host) -> None:
        if dice.random() < cluster.day.eager:
            world.after(dice.uniform(0, dice.choice([0.02, 0.1])), lambda: fault(host, sudden))

    cluster.entered = entered
    try:
        for host in cluster.hosts.values():
            world.after(dice.uniform(0, 2), host.begin)
        world.after(dice.uniform(0, 5), faults)
        world.run(_FAULTS_S + 20)
        heal(cluster)
        operator = _Operator(cluster)
        operator.look()
        world.run(world.now + _MORE_S, lambda: not operator.is_content)
        operator.judge()
    except (Violation, ColoError, AssertionError) as error:
        outcome.violation = f"{type(error).__name__}: {error}"
        world.say("VIOLATED", outcome.violation)
    checks = cluster.checks
    outcome.packets, outcome.late, outcome.lives = checks.packets, checks.late, checks.lives
    outcome.beside, outcome.went_on = checks.beside, checks.went_on
    outcome.early = checks.early
    outcome.rows = world.rows
    return outcome


def _day(dice: Random) -> Day:
    """Every other one is as usual."""
    unusual = Day(
        stock=dice.random() < 0.15,
        holds=dice.random() < 0.2,
        unfit=dice.choice([0.0, 0.0, 0.1]),
        eager=dice.choice([0.0, 0.1, 0.3]),
    )
    return unusual if dice.random() < 0.5 else Day()


def _hybrid(day: Day, seed: int) -> Day:
    """The same in hybrid mode, drawn apart from all the rest."""
    dice = Random(seed ^ 0xB51DE)
    is_always, differs = dice.random() < 0.8, dice.choice([0.0, 0.01, 0.1])
    return replace(day, stock=False, hybrid=True, is_always=is_always, differs=differs)


class _Operator:
    """Does what the status asks an operator for, once nothing goes wrong any more."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.is_content = self._was_well = False

    def look(self) -> None:
        was_well, self._was_well = self._was_well, self._is_well()
        self.is_content = self._was_well and (was_well or not self.cluster.day.hybrid)
        if self.is_content:
            return
        for host in self.cluster.hosts.values():
            colo = host.colo
            if colo is None or not colo.is_alive:
                continue
            other = self.cluster.other(host).colo
            runs = other is not None and other.is_alive and other.state in _RUNS
            if colo.state is State.LOST and runs and not self.cluster.means.node:
                colo.tell(Event.INTERRUPT)
                colo.tell(Event.INTERRUPT)
                break
            if self._is_left_to_nobody():
                colo.tell(Event.ORDER)  # the start that he ordered has failed
                break
            if colo.state is State.ORPHANED and colo.beside is not None and not runs:
                self._have_run(colo, colo.beside, other)
                break
            if colo.state in (State.LOST, State.ORPHANED) and not runs:
                colo.tell(Event.ORDER)  # also a takeover that failed waits for that
                break
            if not self.cluster.means.node and colo.state is State.ORPHANED:
                colo.tell(Event.INTERRUPT)
                colo.tell(Event.INTERRUPT)  # the only copy of a VM that runs elsewhere
                break
            if not self.cluster.means.node and self._begins_anew(colo, other):
                colo.tell(Event.INTERRUPT)
                break
        self.cluster.world.after(5.0, self.look)

    @staticmethod
    def _have_run(colo: Colo, beside: Beside, other: Colo | None) -> None:
        """Where the status says that clients may have heard of more, only as a last resort."""
        is_lacking = beside.stand_in.goes_on_with() is GoesOn.NOTHING
        if is_lacking and other is not None and other.is_alive and other.state is State.LOST:
            other.tell(Event.ORDER)
        else:
            colo.tell(Event.ORDER, force=is_lacking)

    def _is_left_to_nobody(self) -> bool:
        """Whether each host waits for the other one to run the VM, and knows of no copy."""
        states = {self._state(name) for name in self.cluster.hosts}
        return self.cluster.means.node and states == {State.LISTENING} and is_nowhere(self.cluster)

    @staticmethod
    def _begins_anew(colo: Colo, other: Colo | None) -> bool:
        """Each part is begun by hand: the survivor's, and that of a copy that is old."""
        if colo.state is State.RUNNING:
            return True
        idle = other is None or not other.is_alive or other.state is State.LISTENING
        return colo.state is State.LISTENING and idle and colo.host == "a"

    def _is_well(self) -> bool:
        states = {self._state(name) for name in self.cluster.hosts}
        comparing = [host.colo.comparing for host in self.cluster.hosts.values() if host.colo]
        if any(each is not None and each.is_stuck for each in comparing):
            return False
        return self.cluster.was_shut_down or states == {State.PROTECTED, State.KEEPING}

    def _state(self, name: str) -> State | None:
        colo = self.cluster.hosts[name].colo
        return colo.state if colo is not None and colo.is_alive else None

    def judge(self) -> None:
        if not self.is_content:
            states = ", ".join(f"{name}: {self._state(name)}" for name in self.cluster.hosts)
            raise Violation(f"no end: {states}")


@dataclass
class Total:
    """What many runs came to."""

    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    packets: int = 0
    late: int = 0
    lives: int = 0
    beside: int = 0
    went_on: int = 0
    early: int = 0
    rows: set[Taken] = field(default_factory=set)
    failures: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.runs += 1
        self.faults += outcome.faults
        self.packets += outcome.packets
        self.late += outcome.late
        self.lives += outcome.lives
        self.beside += outcome.beside
        self.went_on += outcome.went_on
        self.early += outcome.early
        self.rows |= outcome.rows
        if outcome.violation:
            self.failures.append(outcome)


def play_seed(seed: int, log: Callable[[str], object] | None = None) -> Outcome:
    """Play one seed: where it is odd only a few kinds of faults, which so meet each other often.

    Every third is in hybrid mode.
    """
    dice, hybrid = Random(seed), seed % 3 == 0
    known = sorted(FAULTS | HYBRID_FAULTS if hybrid else FAULTS)
    few = dice.sample(known, dice.randint(2, 5)) if seed % 2 else ()
    return play(seed, log, only=few, hybrid=hybrid)


def play_all(first: int, count: int, processes: int, step: int = 1) -> Total:
    """Play so many seeds from ``first`` on: each, or one in ``step``."""
    total, seeds = Total(), range(first, first + count * step, step)
    with Pool(processes) as pool:
        for outcome in pool.imap_unordered(play_seed, seeds, chunksize=16):
            total.add(outcome)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description="Play the simulated world.")
    parser.add_argument("--runs", type=int, default=1000, help="how many seeds")
    parser.add_argument("--hybrid", action="store_true", help="play hybrid mode only")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seed", type=int, help="play this one alone, and tell all of it")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rows", action="store_true", help="say which rows were never taken")
    options = parser.parse_args()
    if options.seed is not None:
        outcome = play_seed(options.seed, print)
        return int(bool(outcome.violation))
    began = time.monotonic()
    first = options.first + (-options.first % 3 if options.hybrid else 0)
    total = play_all(first, options.runs, options.processes, 3 if options.hybrid else 1)
    took_s = time.monotonic() - began
    left = sorted(ROWS - total.rows)
    print(
        f"{total.runs:,} runs, {total.faults.total():,} faults, {total.lives:,} lives of the VM, "
        f"{total.packets:,} packets heard, {total.late:,} of them late and {total.early:,} before "
        f"their checkpoint; {total.beside:,} secondary VMs, {total.went_on:,} of them taken over; "
        f"in {took_s:.0f} s; of {len(ROWS)} rows of all tables {len(ROWS) - len(left)} were taken"
    )
    for role, state, event, number in left if options.rows else []:
        print(f"not taken: {role}: {event} in {state}, row {number}")
    for outcome in total.failures[:20]:
        print(f"seed {outcome.seed}: {outcome.violation}")
    print(f"{len(total.failures)} of {total.runs} runs violated something")
    return int(bool(total.failures))


if __name__ == "__main__":
    sys.exit(main())
