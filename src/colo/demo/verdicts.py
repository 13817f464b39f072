"""What a client of the guest's services may say about what it got.  No I/O, no clock.

Each judge is fed with what came and when (seconds, of a clock that only runs forward), and says
at any time what it found: ``offence`` is the first thing that is wrong; ``error`` is None where
nothing is wrong and what had to come has come; ``figures()`` are for a report.  What the guest's
services send is described in ``guest/serve.c``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "BulkJudge",
    "ClockJudge",
    "EchoJudge",
    "FloodJudge",
    "Gaps",
    "RecordsJudge",
    "SinkJudge",
    "StreamJudge",
    "Words",
    "generate",
    "mix",
    "multiples",
    "quantiles",
]

#: Numbers of 64 bits, and arithmetic modulo 2^64.
Words = npt.NDArray[np.uint64]

_GOLDEN: Final = 0x9E3779B97F4A7C15
_WORD: Final = 8
_U64: Final = (1 << 64) - 1
_LINE_BYTES_MAX: Final = 20  # a u64 in decimal
_SHOWN_MAX: Final = 60
_CLOCK_EDGE: Final = 15  # so many answers, at either end, are one reading of a clock
_GAPS_MAX: Final = 100  # recorded one by one; the longest is known in any case


def mix(words: Words) -> Words:
    """The finalizer of splitmix64."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def multiples(first: int, count: int, offset: int = 0) -> Words:
    """Return ``offset + index * GOLDEN`` for ``count`` indices from ``first``, modulo 2^64."""
    index = np.arange(count, dtype=np.uint64)
    return index * np.uint64(_GOLDEN) + np.uint64((offset + first * _GOLDEN) & _U64)


def generate(seed: int, first: int, count: int) -> bytes:
    """Return ``count`` words of splitmix64 from ``seed``, from word ``first``, as bytes."""
    return mix(multiples(first + 1, count, seed)).astype("<u8").tobytes()


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Median, p99 and maximum; None of nothing."""
    if not values:
        return None
    median, p99, most = np.quantile(np.asarray(values), (0.5, 0.99, 1.0))
    return {"median": float(median), "p99": float(p99), "max": float(most)}


class Gaps:
    """When nothing came: the longest time, and each one over ``limit_s``."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._last: float | None = None
        self.longest_s = 0.0
        self.found: list[dict[str, float]] = []

    def heard(self, at: float, position: int) -> None:
        """Something came; ``position`` says how far things were until then."""
        if self._last is not None:
            silent = at - self._last
            self.longest_s = max(self.longest_s, silent)
            if silent > self._limit_s and len(self.found) < _GAPS_MAX:
                gap = {"position": position, "since": self._last, "ms": silent * 1e3}
                self.found.append(gap)
        self._last = at

    def figures(self) -> dict[str, Any]:
        """The longest, and the list."""
        return {"gap_ms_max": self.longest_s * 1e3, "gaps": self.found}


class StreamJudge:
    """Lines ``<n>\\n`` that count from 0 by one."""

    def __init__(self, gap_s: float = 0.2) -> None:
        self.offence: str | None = None
        self.next = 0
        self._rest = b""
        self._gaps = Gaps(gap_s)

    def feed(self, data: bytes, at: float) -> range:
        """Take what came and return the numbers of the lines that it completed."""
        first = self.next
        if self.offence is None:
            self._gaps.heard(at, self.next)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                if line != b"%d" % self.next:
                    self.offence = f"after {self.next - 1} came {_shown(line)}"
                    break
                self.next += 1
            if self.offence is None and len(self._rest) > _LINE_BYTES_MAX:
                self.offence = f"after {self.next - 1} came {_shown(self._rest)}"
        return range(first, self.next)

    @property
    def error(self) -> str | None:
        """The offence, or that nothing came."""
        return self.offence or (None if self.next else "not one line came")

    def figures(self) -> dict[str, Any]:
        """Lines and gaps."""
        return {"lines": self.next, **self._gaps.figures()}


class ClockJudge:
    """The guest's clock never goes back; how far it falls behind ours is a figure.

    The guest reads its clock some time after it was asked.  So of the first answers, and of the
    last ones, the one counts with which its clock is least far ahead: it was the fastest.
    """

    def __init__(self) -> None:
        self.offence: str | None = None
        self._asked_ns = 0
        self._clock_ns = self._real_ns = -1
        self._ahead: list[tuple[int, int]] = []  # ns, and when it was asked

    @property
    def answers(self) -> int:
        """How many have come."""
        return len(self._ahead)

    def asked(self, at_ns: int) -> None:
        """The guest is being asked."""
        self._asked_ns = at_ns

    def feed(self, line: bytes) -> None:
        """Take its answer, a line."""
        try:
            clock_ns, real_ns = map(int, line.split())
        except ValueError:
            self.offence = f"no time is {_shown(line)}"
            return
        if clock_ns < self._clock_ns or real_ns < self._real_ns:
            self.offence = f"the guest's clock went back: {_shown(line)} after {self._clock_ns}"
        self._clock_ns, self._real_ns = clock_ns, real_ns
        self._ahead.append((clock_ns - self._asked_ns, self._asked_ns))

    @property
    def behind_ms(self) -> float:
        """How far the guest's clock fell behind ours from the first answers to the last."""
        return self._lost()[0]

    def _lost(self) -> tuple[float, float]:
        """How much, in ms, and in how many seconds."""
        if len(self._ahead) < 2:
            return 0.0, 0.0
        edge = max(1, min(_CLOCK_EDGE, len(self._ahead) // 2))
        first, last = min(self._ahead[:edge]), min(self._ahead[-edge:])
        return (first[0] - last[0]) / 1e6, (last[1] - first[1]) / 1e9

    @property
    def error(self) -> str | None:
        """The offence, or that nothing came."""
        return self.offence or (None if self._ahead else "not one answer came")

    def figures(self) -> dict[str, Any]:
        """Answers, and what was lost; a clock that runs ahead has lost less than nothing."""
        lost_ms, span_s = self._lost()
        return {"answers": self.answers, "span_s": span_s, "lost_ms": lost_ms}


class RecordsJudge:
    """Each answer is the number of one more record, or, where all are looked at, the last again."""

    def __init__(self, gap_s: float = 0.2) -> None:
        self.offence: str | None = None
        self.answers = 0
        self.last: int | None = None
        self._more = 1
        self._gaps = Gaps(gap_s)

    def asked(self, for_more: bool) -> None:
        """The guest is asked for one more record, or to look at all of them."""
        self._more = int(for_more)

    def feed(self, line: bytes, at: float) -> None:
        """Take its answer, a line."""
        self._gaps.heard(at, self.answers)
        due = None if self.last is None else self.last + self._more
        if not line.strip().isdigit() or due not in (None, int(line)):
            self.offence = f"after record {self.last} came {_shown(line)}"
            return
        self.last = int(line)
        self.answers += 1

    @property
    def error(self) -> str | None:
        """The offence, or that nothing came."""
        return self.offence or (None if self.answers else "not one answer came")

    def figures(self) -> dict[str, Any]:
        """Answers, the last record that is certainly there, and gaps."""
        return {"answers": self.answers, "last": self.last, **self._gaps.figures()}


class EchoJudge:
    """Each request comes back as it was, and nothing else."""

    def __init__(self, size: int, gap_s: float = 0.2) -> None:
        self.offence: str | None = None
        self.rtts_ms: list[float] = []
        self._size = size
        self._gaps = Gaps(gap_s)
        self._sent_at = 0.0
        self._awaited = b""

    def request(self, at: float) -> bytes:
        """Return the next request: like no other, as far as its size allows."""
        assert not self._awaited
        n = len(self.rtts_ms)
        self._sent_at = at
        self._awaited = generate(n, 0, -(-self._size // _WORD))[: self._size]
        return self._awaited

    def feed(self, data: bytes, at: float) -> bool:
        """Take what came; return whether the answer is whole."""
        self._gaps.heard(at, len(self.rtts_ms))
        if not self._awaited.startswith(data) and self.offence is None:
            self.offence = f"request {len(self.rtts_ms)} was answered with {_shown(data)}"
        self._awaited = self._awaited[len(data) :]
        if not self._awaited:
            self.rtts_ms.append((at - self._sent_at) * 1e3)
        return not self._awaited

    @property
    def error(self) -> str | None:
        """The offence, or that nothing came."""
        return self.offence or (None if self.rtts_ms else "not one answer came")

    def figures(self) -> dict[str, Any]:
        """Round trips in ms, and gaps."""
        figures = {"requests": len(self.rtts_ms), "rtt_ms": quantiles(self.rtts_ms)}
        return {**figures, **self._gaps.figures()}


class BulkJudge:
    """Bytes that are those of splitmix64 from ``seed``."""

    def __init__(self, seed: int, gap_s: float = 0.2) -> None:
        self.offence: str | None = None
        self.bytes = 0
        self._seed = seed
        self._gaps = Gaps(gap_s)

    def feed(self, data: bytes | memoryview, at: float) -> None:
        """Take what came and compare it."""
        self._gaps.heard(at, self.bytes)
        if self.offence is not None:
            return
        first, skip = divmod(self.bytes, _WORD)
        expected = generate(self._seed, first, -(-(skip + len(data)) // _WORD))
        expected = expected[skip : skip + len(data)]
        if expected != data:
            wrong = np.frombuffer(expected, np.uint8) != np.frombuffer(data, np.uint8)
            self.offence = f"byte {self.bytes + int(wrong.argmax())} is wrong"
        self.bytes += len(data)

    @property
    def error(self) -> str | None:
        """The offence, or that nothing came."""
        return self.offence or (None if self.bytes else "not one byte came")

    def figures(self) -> dict[str, Any]:
        """Bytes and gaps."""
        return {"bytes": self.bytes, **self._gaps.figures()}


class SinkJudge:
    """The server's sum over what was sent is ours.  What is sent are whole words."""

    def __init__(self) -> None:
        self.offence: str | None = None
        self.bytes = 0
        self._answered = False
        self._checksum = 0

    def sent(self, data: bytes) -> None:
        """Add whole words to what was sent."""
        words = np.frombuffer(data, "<u8").astype(np.uint64)
        mixed = mix(words ^ multiples(self.bytes // _WORD, len(words)))
        self._checksum = (self._checksum + int(mixed.sum(dtype=np.uint64))) & _U64
        self.bytes += len(data)

    def answered(self, answer: bytes) -> None:
        """Take the whole answer."""
        expected = b"%d %d\n" % (self.bytes, self._checksum)
        self._answered = True
        if answer != expected:
            self.offence = f"{_shown(answer)} instead of {_shown(expected)}"

    @property
    def error(self) -> str | None:
        """The offence, or that the answer is missing."""
        return self.offence or (None if self._answered else "the sink did not answer")

    def figures(self) -> dict[str, Any]:
        """Bytes."""
        return {"bytes": self.bytes}


class FloodJudge:
    """Datagrams with the numbers from 0 to ``packets - 1``: some may be lost, none come twice."""

    def __init__(self, packets: int, lost_max: int = 0) -> None:
        self.received = 0
        self.doubled = 0
        self.disordered = 0
        self._packets = packets
        self._lost_max = lost_max
        self._seen = bytearray(packets)
        self._highest = -1
        self._foreign: int | None = None

    def feed(self, number: int) -> None:
        """Take a datagram's number."""
        if number >= self._packets:
            self._foreign = number
        elif self._seen[number]:
            self.doubled += 1
        else:
            self._seen[number] = 1
            self.received += 1
            self.disordered += number < self._highest
            self._highest = max(self._highest, number)

    @property
    def lost(self) -> int:
        """How many did not come."""
        return self._packets - self.received

    @property
    def offence(self) -> str | None:
        """What is wrong with those that came."""
        if self._foreign is not None:
            return f"a datagram has the number {self._foreign}"
        if self.doubled or self.disordered:
            return f"{self.doubled} datagrams came twice, {self.disordered} out of order"
        return None

    @property
    def error(self) -> str | None:
        """The offence, or how many are missing, once all that comes has come."""
        lost = f"{self.lost} of {self._packets} datagrams are lost"
        return self.offence or (lost if self.lost > self._lost_max else None)

    def figures(self) -> dict[str, Any]:
        """The counts."""
        return {
            "packets": self._packets,
            "received": self.received,
            "lost": self.lost,
            "doubled": self.doubled,
            "disordered": self.disordered,
        }


def _shown(data: bytes) -> str:
    shown = data[:_SHOWN_MAX].decode("ascii", "backslashreplace").strip()
    return repr(shown + "…" if len(data) > _SHOWN_MAX else shown)
