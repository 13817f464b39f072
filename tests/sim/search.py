"""All that can happen in a small world: every order of every event, within a few faults.

Two hosts, a VM on one and a whole copy of it on the other, and an arbiter.  There is no time: a
heartbeat's limit may run out, a pause may end and a question may be answered whenever they can.
Each state of this world is a tuple, so it is seen once; whatever can happen in it is tried.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from colo.errors import ColoError
from colo.membership import grant as moves
from colo.membership.grant import Foreign, Grant, Moved, Record
from colo.membership.member import Facts, Means, Member
from colo.membership.states import FINAL, Do, Event, State
from colo.membership.words import WordKind

__all__ = ["Found", "search"]

A, B = "a/1/1", "b/1/1"
_FIRST = Grant(1, A)  # that under which the VM is protected
_ARBITERS = frozenset({Do.ASK, Do.ASK_BY_ORDER})
_WORDS = {
    Do.SAY_DEAD: WordKind.DEAD,
    Do.SAY_BYE: WordKind.BYE,
    Do.SAY_ALONE: WordKind.ALONE,
    Do.SAY_HANDOVER: WordKind.HANDOVER,
    Do.SAY_SHUTDOWN: WordKind.SHUTDOWN,
}
#: States in which a host's VM is, or will be, heard.
_HEARD = frozenset({State.UNPROTECTED, State.RUNNING, State.TAKING_OVER, State.RESUMING})


@dataclass(frozen=True)
class Side:
    """One host."""

    state: State
    facts: Facts
    #: What was asked and is not answered; what the arbiter has answered, and was not heard.
    asked: Do | None = None
    answer: tuple[Event, Grant | None] | None = None
    pauses: bool = False
    #: What the other host has said, in order, and was not heard.
    inbox: tuple[tuple[WordKind, int], ...] = ()
    link_up: bool = True
    channel_up: bool = True
    alive: bool = True  # its VM's process
    has_copy: bool = False


@dataclass(frozen=True)
class Small:
    """The whole world."""

    a: Side
    b: Side
    record: Record
    #: What of the VM was heard since the copy was taken: then the copy is not the VM any more.
    a_spoke: bool = False
    faults: int = 0


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    states: int
    steps: int
    violation: str
    path: tuple[str, ...]


def begin(means: Means) -> Small:
    """PROTECTED on host a, a whole checkpoint on host b."""
    grant = _FIRST
    a = Facts(grant=grant, right=True, linked=True, connected=True, contested=True, protected=True)
    b = Facts(known=grant, linked=True, connected=True)
    return Small(
        Side(State.PROTECTED, replace(a, was_protected=True)),
        Side(State.KEEPING, b, has_copy=True),
        Record(1, A),
    )


def search(
    means: Means,
    faults: int = 2,
    make: Callable[..., Member] = Member,
    most: int = 2_000_000,
) -> Found:
    """Try all that can happen with so many faults."""
    first = begin(means)
    seen: dict[Small, tuple[Small | None, str]] = {first: (None, "")}
    todo, steps = deque([first]), 0
    while todo and len(seen) < most:
        world = todo.popleft()
        for name, act in _moves(world, faults, means):
            steps += 1
            try:
                after = act(make)
                violation = _violation(after)
            except ColoError as error:
                after, violation = world, f"{type(error).__name__}: {error}"
            if violation:
                return Found(len(seen), steps, violation, (*_path(seen, world), name))
            if after not in seen:
                seen[after] = world, name
                todo.append(after)
    return Found(len(seen), steps, "", ())


def _path(seen: dict[Small, tuple[Small | None, str]], world: Small) -> tuple[str, ...]:
    names: list[str] = []
    at: Small | None = world
    while at is not None:
        at, name = seen[at]
        if name:
            names.append(name)
    return tuple(reversed(names))


def _violation(world: Small) -> str:
    a, b = world.a, world.b
    if a.alive and a.state in _HEARD and b.state in _HEARD and not b.facts.forced:
        return f"two voices: host a is {a.state.name}, host b {b.state.name}"
    if b.state in _HEARD and world.a_spoke:
        return "host b runs the copy, and host a was heard since that was taken"
    gone = not a.alive and a.state is State.DEAD and not b.has_copy and b.state not in _HEARD
    # By the arbiter the VM was host a's alone, or somebody ended the protection or gave it up.
    rightly = world.record.grant != _FIRST or a.facts.by_order or b.state is State.GONE
    if gone and not rightly:
        return "the only copy is gone, though the VM could have gone on from it"
    return ""


def _moves(
    world: Small, most: int, means: Means
) -> Iterator[tuple[str, Callable[[Callable[..., Member]], Small]]]:
    """All that can happen now."""
    for name in ("a", "b"):
        side: Side = getattr(world, name)
        other = "b" if name == "a" else "a"
        tell = _Teller(world, name, means)
        if side.state in FINAL or side.state is State.RUNNING:
            continue
        if side.answer is not None:
            event, grant = side.answer
            facts: dict[str, Any] = {} if grant is None else {"grant": grant}
            yield f"{name} hears {event.name}", tell(event, drop=True, **facts)
        if side.asked in _ARBITERS and side.answer is None:
            yield f"the arbiter answers {name}", _answered(world, name, heard=True)
            if world.faults < most:
                yield f"the arbiter's answer to {name} is lost", _answered(world, name, False)
                no = partial_no_answer(world, name, means)
                yield f"{name} has no answer", no
        elif side.asked is Do.LOOK and side.alive:
            yield f"{name}'s QEMU answers", tell(Event.ANSWERS, drop=True)
            if world.faults < most:
                yield f"{name}'s QEMU hangs", tell(Event.HUNG, drop=True, fault=True)
        elif side.asked is Do.RUN_ALONE and side.alive:
            yield f"{name}'s VM runs", tell(Event.RUNS, drop=True)
            if world.faults < most:
                yield f"{name}'s VM is stuck", tell(Event.STUCK, drop=True, fault=True)
        elif side.asked is Do.LOAD:
            yield f"{name} has loaded", tell(Event.RUNS, drop=True)
            if world.faults < most:
                yield f"{name} cannot load", tell(Event.STUCK, drop=True, fault=True)
        elif side.asked is Do.HEAR_OUT:
            yield f"{name} has heard it out", tell(Event.HEARD_OUT, drop=True)
        elif side.asked is Do.REST:
            yield f"{name}'s VM rests", tell(Event.AT_REST, drop=True)
            yield f"{name}'s VM does not rest", tell(Event.NOT_AT_REST, drop=True)
        elif side.asked is Do.AWAIT_TAKEN:
            taken = Event.TAKEN if world.record.grant != side.facts.grant else Event.TIME
            yield f"{name} has waited: {taken.name}", tell(taken, drop=True)
        elif side.asked is Do.FENCE:
            yield f"{name}'s fence says off", tell(Event.OFF, drop=True, fences=other)
            yield f"{name}'s fence does not say", tell(Event.NOT_OFF, drop=True)
        if side.pauses:
            yield f"{name}'s pause ends", tell(Event.TIME, pauses=False)
        if side.inbox and side.link_up:
            kind, number = side.inbox[0]
            yield f"{name} hears {kind.value}", tell.word(kind, number)
        if not side.link_up and side.facts.linked and not side.inbox:
            yield f"{name} misses the link", tell(Event.LINK_LOST)
        if not side.channel_up and side.facts.connected:
            yield f"{name} misses the channel", tell(Event.LOST)
        if not side.alive and name == "a" and tell.can(Event.DIED):
            yield "a sees that its VM is dead", tell(Event.DIED)
        if world.faults < most:
            yield from _faults(world, name, tell)


def _faults(
    world: Small, name: str, tell: _Teller
) -> Iterator[tuple[str, Callable[[Callable[..., Member]], Small]]]:
    side: Side = getattr(world, name)

    def world_with(**changes: object) -> Callable[[Callable[..., Member]], Small]:
        changed = replace(world, faults=world.faults + 1)
        sides = {key: value for key, value in changes.items() if key in ("a", "b")}
        return lambda _: replace(changed, **sides)  # type: ignore[arg-type]

    if name == "a" and side.alive:
        yield "a's VM dies", world_with(a=replace(side, alive=False))
    if name == "a" and side.link_up:
        dark = replace(world.b, link_up=False)
        yield "the link is lost", world_with(a=replace(side, link_up=False), b=dark)
        yield "b hears nothing of a", world_with(b=replace(world.b, link_up=False))
        yield "a hears nothing of b", world_with(a=replace(side, link_up=False))
    if name == "a" and side.channel_up:
        ours, theirs = replace(side, channel_up=False), replace(world.b, channel_up=False)
        yield "the channel breaks", world_with(a=ours, b=theirs)
    for event, words in (
        (Event.INTERRUPT, "is told to end"),
        (Event.ORDER, "is told to run the VM"),
        (Event.SWITCHOVER, "is told to hand over"),
    ):
        orderly = event is not Event.ORDER or side.state in (State.LOST, State.ORPHANED)
        if not tell.means.automatic:  # one person decides, and once
            orderly &= not any(_decided(each) for each in (world.a, world.b) if each is not side)
        if tell.can(event) and orderly:
            yield f"{name} {words}", tell(event, fault=True)


def _put(world: Small, name: str, side: Side) -> Small:
    """The world with one side another."""
    return replace(world, a=side) if name == "a" else replace(world, b=side)


def _decided(side: Side) -> bool:
    """Whether an operator has told this side to run the VM."""
    return side.facts.ordered or side.facts.ends or side.facts.right or side.state in _HEARD


def _answered(world: Small, name: str, heard: bool) -> Callable[[Callable[..., Member]], Small]:
    """The arbiter makes the move that a side has asked for."""

    def act(_: Callable[..., Member]) -> Small:
        side: Side = getattr(world, name)
        facts, holder = side.facts, A if name == "a" else B
        result: object
        if side.asked is Do.ASK_BY_ORDER:
            result = moves.order(world.record, holder)
        elif name == "a":
            result = moves.take(world.record, facts.grant.number, holder)
        else:
            result = moves.take(world.record, facts.known.number, holder, facts.void)
        record = result if isinstance(result, Record) else world.record
        answer: tuple[Event, Grant | None] = Event.DENIED, None
        if isinstance(result, Record):
            answer = Event.GRANTED, result.grant
        elif not isinstance(result, Moved):
            assert isinstance(result, Foreign)
            answer = Event.NO_ANSWER, None
        after = replace(side, asked=None, answer=answer) if heard else side
        faults = world.faults if heard else world.faults + 1
        return _put(replace(world, record=record, faults=faults), name, after)

    return act


def partial_no_answer(
    world: Small, name: str, means: Means
) -> Callable[[Callable[..., Member]], Small]:
    """The call is given up: what it asked for may be done, and is not done later."""
    return _Teller(world, name, means)(Event.NO_ANSWER, drop=True, fault=True, may_be_done=True)


class _Teller:
    """Tells one side that something happened, and does what it asks for."""

    def __init__(self, world: Small, name: str, means: Means) -> None:
        self.world, self.name, self.means = world, name, means
        self.side: Side = getattr(world, name)

    def can(self, event: Event) -> bool:
        member = Member("vm", self.means, self.side.state)
        return member.can(event)

    def word(self, kind: WordKind, number: int) -> Callable[[Callable[..., Member]], Small]:
        """Hear the first word in the inbox."""
        event = Event.LETS_GO
        facts: dict[str, Any] = {}
        if kind in (WordKind.DEAD, WordKind.HANDOVER):
            grant = Grant(number, "") if kind is WordKind.DEAD else None
            event, facts = Event.SAYS_GONE, {"word": kind, "grant": grant}
        elif kind is WordKind.SHUTDOWN:
            event = Event.SAYS_SHUTDOWN
        return self(event, hears=True, **facts)

    def __call__(
        self,
        event: Event,
        *,
        drop: bool = False,
        hears: bool = False,
        fault: bool = False,
        pauses: bool | None = None,
        fences: str | None = None,
        **facts: Any,
    ) -> Callable[[Callable[..., Member]], Small]:
        def act(make: Callable[..., Member]) -> Small:
            side, world = self.side, self.world
            if drop:
                side = replace(side, asked=None, answer=None)
            if hears:
                side = replace(side, inbox=side.inbox[1:])
            if pauses is not None:
                side = replace(side, pauses=pauses)
            member = make("vm", self.means, side.state)
            member.facts = side.facts
            effects = member.handle(event, **facts)
            if member.state is not side.state:
                side = replace(side, pauses=False)
            side = replace(side, state=member.state, facts=member.facts)
            other = "b" if self.name == "a" else "a"
            there: Side = getattr(world, other)
            spoke = world.a_spoke
            for effect in effects:
                side, there, spoke = _do(self.name, effect, side, there, spoke)
            if fences == "a":
                there = replace(there, alive=False)
            faults = world.faults + fault
            after = replace(world, faults=faults, a_spoke=spoke)
            return _put(_put(after, self.name, side), other, there)

        return act


def _do(name: str, effect: Do, side: Side, there: Side, spoke: bool) -> tuple[Side, Side, bool]:
    """Carry one effect out."""
    match effect:
        case Do.ASK | Do.ASK_BY_ORDER | Do.LOOK | Do.RUN_ALONE | Do.LOAD | Do.FENCE:
            return replace(side, asked=effect, answer=None), there, spoke
        case Do.HEAR_OUT | Do.REST | Do.AWAIT_TAKEN:
            return replace(side, asked=effect, answer=None), there, spoke
        case Do.STOP_ASKING:
            return replace(side, asked=None, answer=None), there, spoke
        case Do.PAUSE:
            return replace(side, pauses=True), there, spoke
        case Do.CLOSE:
            return replace(side, channel_up=False), replace(there, channel_up=False), spoke
        case Do.HANG_UP:
            return replace(side, link_up=False), replace(there, link_up=False), spoke
        case Do.FORGET:
            there = replace(there, link_up=False, channel_up=False)
            forgotten = replace(side, has_copy=False, asked=None, answer=None)
            return replace(forgotten, link_up=False, channel_up=False), there, spoke
        case Do.OPEN:
            return side, there, spoke or name == "a"
        case _ if effect in _WORDS and there.link_up and side.link_up:
            word = _WORDS[effect], side.facts.last_number
            return side, replace(there, inbox=(*there.inbox, word)), spoke
        case _:
            return side, there, spoke
