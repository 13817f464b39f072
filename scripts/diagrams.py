"""Writes the diagrams of docs/protocol.md and docs/host.md from the state tables.

python scripts/diagrams.py docs/protocol.md docs/host.md            write
python scripts/diagrams.py --check docs/protocol.md docs/host.md    exit with 1 where they are stale
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path

from colo.membership.states import FINAL, State
from colo.membership.states import Event as HostEvent
from colo.membership.table import TABLE
from colo.protocol.messages import COLOMessage
from colo.protocol.tables import (
    COURIER,
    PRIMARY,
    SECONDARY,
    CourierState,
    Effect,
    Event,
    PrimaryState,
    S,
    SecondaryState,
    Step,
    Table,
)

#: A row that as many states share is told in words below the diagram.
SHARED = 3


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    stale = 0
    for path in [Path(each) for each in arguments if each != "--check"]:
        before = after = path.read_text()
        for name, content in PICTURES.items():
            if f"<!-- {name}: begin -->" in after:
                after = replace(after, name, content())
        stale |= after != before
        if not check:
            path.write_text(after)
    return int(check and stale)


def replace(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    head, rest = text.split(begin, 1)
    return head + begin + content + end + rest.split(end, 1)[1]


def render(table: Table[S], states: list[S]) -> str:
    """A diagram of the rows of one state each, and a list of those that many states share."""
    rows: dict[tuple[Event, Step[S]], list[S]] = defaultdict(list)
    for (state, event), step in table.items():
        rows[event, step].append(state)
    used = {state for state, _ in table} | {step.to for step in table.values()}
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {states[0].name}"]
    words = []
    for (event, step), sources in rows.items():
        if sources == [step.to] and not step.effects:
            words.append(f"- **{event.name}** changes nothing in {step.to.name}: a late report")
        elif len(sources) < SHARED:
            lines += [f"    {s.name} --> {step.to.name}: {label(event, step)}" for s in sources]
        else:
            names = ", ".join(source.name for source in sources)
            words.append(f"- **{event.name}** → {step.to.name}{doing(step)}, from {names}")
    lines += ["```", "", *words, "", "| state | means |", "|---|---|"]
    lines += [f"| {state.name} | {state.value} |" for state in states if state in used]
    return "\n".join(lines) + "\n"


def label(event: Event, step: Step[S]) -> str:
    kind = "receives" if isinstance(event, COLOMessage) else "on"
    return f"{kind} {event.name}" + doing(step)


def doing(step: Step[S]) -> str:
    return f" / {', '.join(name(effect) for effect in step.effects)}" if step.effects else ""


def name(effect: Effect) -> str:
    if effect.message is not None:
        return f"send {effect.message.name}"
    return enum_words(effect.do)


def host(part: str) -> str:
    """The changes of state of one part of a host's machine, and what each state means."""
    states = list(State)
    first, last = (states.index(State[each]) for each in PARTS[part])
    ours = states[first : last + 1]
    arrows: dict[tuple[State, State], list[str]] = {}
    for (state, event), rows in TABLE.items():
        for row in rows:
            if row.to is not state and (state in ours or row.to in ours) and state not in FINAL:
                labels = arrows.setdefault((state, row.to), [])
                if event.name not in labels:
                    labels.append(event.name)
    for state in ours:
        for row in TABLE.get((state, HostEvent.GO_ON), ()):
            if row.to is not state:
                arrows.setdefault((state, row.to), []).append("GO_ON")
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {a.name} --> {b.name}: {', '.join(on)}" for (a, b), on in arrows.items()]
    lines += ["```", "", "| state | means |", "|---|---|"]
    lines += [f"| {state.name} | {state.value} |" for state in ours]
    return "\n".join(lines) + "\n"


def rules() -> str:
    """Every row of a host's machine, but those that change and do nothing."""
    lines = ["| in | on | where | then | and |", "|---|---|---|---|---|"]
    for (state, event), rows in TABLE.items():
        for row in rows:
            if state in FINAL and (event is not HostEvent.GO_ON or row.to is state):
                continue
            if row.to is state and not row.do:
                continue
            where = ", ".join(enum_words(when) for when in row.when)
            do = ", ".join(enum_words(each) for each in row.do)
            to = "" if row.to is state else row.to.name
            lines.append(f"| {state.name} | {event.name} | {where} | {to} | {do} |")
    return "\n".join(lines) + "\n"


#: The parts of a host's machine, by their first and last states.
PARTS = {
    "looking": ("LOOKING", "WAITING"),
    "leading": ("STARTING", "LEFT"),
    "following": ("LISTENING", "GONE"),
}


def enum_words(value: Enum) -> str:
    return value.name.lower().replace("_", " ")


PICTURES: dict[str, Callable[[], str]] = {
    "primary": lambda: render(PRIMARY, list(PrimaryState)),
    "courier": lambda: render(COURIER, list(CourierState)),
    "secondary": lambda: render(SECONDARY, list(SecondaryState)),
    **{part: partial(host, part) for part in PARTS},
    "rules": rules,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
