"""The lines of docs/two-hosts.md, in their order, and on which host each is to be said."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Final

from tests.e2e.basics import ROOT

__all__ = ["Block", "Page"]

_PLACES: Final = {"on both hosts": ("a", "b"), "on host a": ("a",), "on host b": ("b",)}
_PLACE_OR_BLOCK: Final = re.compile(
    r"\*\*(?P<place>on [a-z ]+)\*\*|^ *```sh\n(?P<lines>.*?)^ *```$", re.I | re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """Lines of a shell, and the hosts on which the page says them."""

    hosts: tuple[str, ...]
    lines: str


class Page:
    """All blocks, taken one after the other: a test that has taken all has played the page."""

    def __init__(self, name: str = "docs/two-hosts.md") -> None:
        self._blocks: list[Block] = []
        hosts: tuple[str, ...] = ()
        for found in _PLACE_OR_BLOCK.finditer((ROOT / name).read_text()):
            if found["place"]:
                hosts = _PLACES[found["place"].lower()]
            else:
                self._blocks.append(Block(hosts, textwrap.dedent(found["lines"]).rstrip("\n")))

    def take(self, begin: str) -> Block:
        """The next block, which has to begin so."""
        block = self._blocks.pop(0)
        assert block.lines.startswith(begin), f"not {begin!r}, the page says {block.lines!r}"
        return block

    @property
    def is_played(self) -> bool:
        """Whether nothing is left."""
        return not self._blocks
