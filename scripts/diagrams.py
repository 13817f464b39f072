"""Writes the diagrams of docs/protocol.md from the state tables.

python scripts/diagrams.py docs/protocol.md            write
python scripts/diagrams.py --check docs/protocol.md    exit with 1 where they are stale
"""

from __future__ import annotations

import sys
from collections import defaultdict
from enum import Enum
from pathlib import Path

from colo.protocol.messages import COLOMessage
from colo.protocol.tables import (
    HYBRID,
    OBSERVER,
    PERIODIC,
    PRIMARY,
    Effect,
    Event,
    ObserverState,
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
    path = Path(arguments[-1])
    before = path.read_text()
    after = before
    after = replace(after, "primary", render(PRIMARY, list(PrimaryState)))
    after = replace(after, "observer", render(OBSERVER, list(ObserverState)))
    after = replace(after, "secondary-periodic", render(PERIODIC, list(SecondaryState)))
    after = replace(after, "secondary-hybrid", render(HYBRID, list(SecondaryState)))
    if check:
        return int(after != before)
    path.write_text(after)
    return 0


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


def enum_words(value: Enum) -> str:
    return value.name.lower().replace("_", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
