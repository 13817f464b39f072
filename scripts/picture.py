"""Draws docs/architecture.svg: what runs on either host, what goes between them, by which module.

python scripts/picture.py docs/architecture.svg            write
python scripts/picture.py --check docs/architecture.svg    exit with 1 where it is stale

A box names the modules that do what it says; tests see that they exist.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 1080, 640
LINE = 16


@dataclass(frozen=True)
class Box:
    """``at``: the left upper corner.  ``modules``: by their paths in the package."""

    at: tuple[int, int]
    size: tuple[int, int]
    title: str
    text: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    kind: str = "ours"


@dataclass(frozen=True)
class Arrow:
    """Along these points; ``text`` stands above the ``middle``, or at the longest piece's."""

    points: tuple[tuple[int, int], ...]
    text: str = ""
    both: bool = False
    kind: str = "flow"
    middle: tuple[int, int] | None = None


FRAMES = (
    Box((20, 90), (430, 490), "host A: the VM runs here", kind="host"),
    Box((630, 90), (430, 490), "host B: the VM waits here", kind="host"),
)
BOXES = (
    Box((20, 14), (430, 50), "clients, by the network", kind="other"),
    Box((630, 14), (430, 50), "the arbiter: who may run the VM", (), ("arbiters/arbiter",), "other"),
    Box((40, 125), (390, 52), "QEMU: the VM", ("stock, 7.2 or 11",), kind="other"),
    Box((40, 207), (185, 92), "the gate",
        ("holds what the VM says", "until it is safe"), ("packets/gate", "qemu/packet_filters")),
    Box((245, 207), (185, 92), "checkpoints aside",
        ("QEMU runs on while", "the rest is sent"), ("session/own_primary", "session/outlet")),
    Box((40, 318), (185, 92), "comparing",
        ("hybrid mode: what both", "VMs say leaves at once"),
        ("session/comparing", "packets/comparing")),
    Box((245, 318), (185, 92), "disks", ("what the guest writes,", "by epoch"),
        ("session/disk_feed", "qemu/mirrors")),
    Box((40, 430), (390, 66), "the protocol's primary, and when to checkpoint",
        (), ("protocol/primary", "protocol/courier", "packets/pace")),
    Box((40, 512), (390, 52), "the host's machine", (), ("membership/member", "node/protecting")),
    Box((650, 125), (185, 72), "a QEMU that waits", ("its memory is the store",),
        ("qemu/standby",), "other"),
    Box((855, 125), (185, 72), "the secondary VM", ("hybrid mode: it runs",),
        ("qemu/secondary_vm",), "other"),
    Box((650, 222), (390, 66), "the store: the last whole checkpoint",
        ("staging, then images; a commit moves references",), ("store/store", "migration/reader")),
    Box((650, 318), (185, 92), "beside", ("begins and ends the", "secondary VM"),
        ("node/beside", "node/secondary_disks")),
    Box((855, 318), (185, 92), "replicas", ("the disks at the", "last whole checkpoint"),
        ("disks/replica", "session/disk_intake")),
    Box((650, 430), (390, 66), "the protocol's secondary", ("VMSTATE_RECEIVED, VMSTATE_LOADED",),
        ("protocol/secondary", "session/intake")),
    Box((650, 512), (390, 52), "the host's machine", (),
        ("membership/member", "node/keeping", "node/taking_over")),
)  # fmt: skip
ARROWS = (
    Arrow(((130, 64), (130, 125)), both=True),
    Arrow(((132, 177), (132, 207)), both=True),
    Arrow(((337, 177), (337, 207))),
    Arrow(((430, 250), (650, 250)), "checkpoints"),
    Arrow(((225, 390), (235, 390), (235, 420), (640, 420), (640, 372), (650, 372)),
          "input, and what it says", True, middle=(540, 420)),
    Arrow(((430, 345), (600, 345), (600, 306), (945, 306), (945, 318)),
          "disk writes", middle=(515, 345)),
    Arrow(((430, 463), (650, 463)), "COLO messages", True),
    Arrow(((430, 538), (650, 538)), "heartbeats, words", True),
    Arrow(((742, 222), (742, 197))),
    Arrow(((947, 222), (947, 197)), kind="dashed"),
    Arrow(((1040, 538), (1050, 538), (1050, 64)), kind="dashed"),
    Arrow(((30, 538), (30, 76), (640, 76), (640, 40)), kind="dashed"),
)  # fmt: skip
NOTE = (
    "A packet leaves host A once host B has the checkpoint that covers it. "
    "When host A dies, host B asks the arbiter, and the waiting QEMU goes on."
)
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1c2733 }
  .title { font-weight: 600 }
  .module { font: 11px ui-monospace, monospace; fill: #4a6078 }
  .label { font-size: 12px; paint-order: stroke; stroke: #ffffff; stroke-width: 5px }
  .paper { fill: #ffffff } .host { fill: #f4f7fa; stroke: #b8c4d0 }
  .ours { fill: #e3eefb; stroke: #5b8fd0 } .other { fill: #f3ecdc; stroke: #b89b5a }
  .flow, .dashed { fill: none; stroke: #3c5a7c; stroke-width: 1.6 }
  .dashed { stroke-dasharray: 5 4 } marker path { fill: #3c5a7c }
  @media (prefers-color-scheme: dark) {
    text { fill: #dde6ee } .module { fill: #9bb2c9 } .label { stroke: #10161d }
    .paper { fill: #10161d } .host { fill: #18212b; stroke: #3b4a5a }
    .ours { fill: #1d3450; stroke: #5b8fd0 } .other { fill: #3a3220; stroke: #b89b5a }
    .flow, .dashed { stroke: #8fb0d4 } marker path { fill: #8fb0d4 }
  }
"""


def modules() -> list[str]:
    """All that the picture names."""
    return [each for box in BOXES for each in box.modules]


def picture() -> str:
    """The whole file."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>colo: what runs on either host, and what goes between them</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto-start-reverse"><path d="M0 0 8 4 0 8z"/></marker></defs>',
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
        *(line for each in FRAMES for line in _box(each)),
        *(_line(each) for each in ARROWS),
        *(line for each in BOXES for line in _box(each)),
        *(line for each in ARROWS for line in _label(each)),
        _text(WIDTH // 2, HEIGHT - 22, NOTE, "note", "middle"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _box(box: Box) -> Iterator[str]:
    (x, y), (width, height) = box.at, box.size
    yield f'<rect class="{box.kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    middle = x + width // 2
    yield _text(middle, y + 20, box.title, "title", "middle")
    for number, text in enumerate(box.text, 1):
        yield _text(middle, y + 20 + LINE * number, text, "text", "middle")
    if box.modules:
        wide = width > 200
        rows = [" · ".join(box.modules)] if wide else list(box.modules)
        for number, row in enumerate(reversed(rows)):
            yield _text(middle, y + height - 7 - 13 * number, row, "module", "middle")


def _line(arrow: Arrow) -> str:
    points = " ".join(f"{x},{y}" for x, y in arrow.points)
    start = ' marker-start="url(#head)"' if arrow.both else ""
    return f'<polyline class="{arrow.kind}" points="{points}" marker-end="url(#head)"{start}/>'


def _label(arrow: Arrow) -> Iterator[str]:
    if arrow.text:
        (x, y), (to_x, _) = arrow.points[0], arrow.points[-1]
        at_x, at_y = arrow.middle or ((x + to_x) // 2, y)
        yield _text(at_x, at_y - 6, arrow.text, "label", "middle")


def _text(x: int, y: int, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def main(arguments: list[str]) -> int:
    path = Path(next(each for each in arguments if not each.startswith("--")))
    if "--check" not in arguments:
        path.write_text(picture(), encoding="utf-8")
        return 0
    is_stale = not path.exists() or path.read_text(encoding="utf-8") != picture()
    if is_stale:
        print(f"{path} is stale: python scripts/picture.py {path}", file=sys.stderr)
    return int(is_stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
