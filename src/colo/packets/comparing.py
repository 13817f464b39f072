"""The output rule of hybrid mode: which packets may leave before their checkpoint is safe.

A secondary VM runs on the other host since checkpoint N, and gets what the primary VM gets.  *What
the primary has said since checkpoint N may leave once the secondary VM has said the same*: then
that one can go on in its place, and nothing that was heard is missing there.  Whatever else was
said waits for the next checkpoint, as in periodic mode.

«The same» is:

- of TCP, bytes of a stream, however they are cut into segments: the secondary has sent the same
  bytes at the same sequence numbers, as far as this segment goes; it has acknowledged no less than
  this segment does, so a client throws nothing away that only the primary has; and FIN and RST
  stand at the same place.  Window, timestamp and SACK may differ: they promise nothing.
- A SYN is never the same.  Two VMs draw different sequence numbers, so a connection leaves with
  a checkpoint, and from then on both have the very same one.  So nothing has to be translated,
  and clients go on after a takeover whatever host they were connected at.
- of everything else, the frame (see ``packets.frames``).

What checkpoint N covers counts as said: what the primary repeats of it may leave, and an
acknowledgement that says no more than it has.

*The order is the primary's*: a packet that has to wait holds up all that come after it on its card.

Each checkpoint begins a new epoch: what the secondary VM of an older one said counts no more, as
that VM is replaced by what the checkpoint holds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import Final

from colo.packets.frames import ACK, FIN, RST, SYN, URG, Datagram, Flow, Segment, frames, look_into

__all__ = ["Counts", "OutputRule"]

_MODULUS: Final = 1 << 32
_HALF: Final = 1 << 31
_FLOWS_MOST: Final = 16384
_DATAGRAMS_MOST: Final = 1024
#: A datagram that only the secondary has said counts as a difference for no longer.
_STALE_S: Final = 1.0
#: And for so long it holds up that what was said behind it counts as heard.
_UNHEARD_S: Final = 0.2


def _after(a: int, b: int) -> int:
    """How far ``a`` is after ``b``, modulo 2**32: negative where it is before."""
    distance = (a - b) % _MODULUS
    return distance - _MODULUS if distance >= _HALF else distance


@dataclass
class Counts:
    """Frames since the start: of the primary, those released as the other VM said the same.

    ``waited_s``: how long these have waited, together; ``differed``: how often a difference was
    found, by protocol.
    """

    compared: int = 0
    alike: int = 0
    waited_s: float = 0.0
    differed: dict[str, int] = field(default_factory=dict)


@dataclass
class _Reach:
    """How far the primary has got in a stream; ``syn``: where it last began, if that was seen."""

    end: int
    ack: int | None = None
    syn: int | None = None

    def note(self, said: Segment) -> None:
        """It says this."""
        if said.flags & SYN:
            self.end, self.ack, self.syn = said.end, None, said.seq
        elif _after(said.end, self.end) > 0:
            self.end = said.end
        if said.flags & ACK and (self.ack is None or _after(said.ack, self.ack) > 0):
            self.ack = said.ack


class _Stream:
    """What the secondary VM has said in one TCP stream since the checkpoint.

    ``covered``: how far that one covers it, where this is known.
    """

    def __init__(self, covered: _Reach | None) -> None:
        self.clear_to = covered.end if covered is not None else None  # alike, or covered
        self.acked = covered.ack if covered is not None else None
        self.left = self.acked  # the highest acknowledgement that has left
        self._syn = covered.syn if covered is not None else None
        self.fin_at: int | None = None
        self.resets: set[int] = set()
        self._said = bytearray()  # from clear_to on, or from where it began
        self._start: int | None = self.clear_to
        self._unknown_before: int | None = None  # where the secondary began, if that is all we know

    def say(self, segment: Segment) -> int:
        """The secondary says this; return how many bytes more are kept."""
        if segment.flags & SYN:
            return 0
        if segment.flags & ACK and (self.acked is None or _after(segment.ack, self.acked) > 0):
            self.acked = segment.ack
        if segment.flags & FIN:
            self.fin_at = (segment.seq + len(segment.data)) % _MODULUS
        if segment.flags & RST:
            self.resets.add(segment.seq)
        if not segment.data:
            return 0
        if self._start is None:
            self._start = self.clear_to = self._unknown_before = segment.seq
        skip = -_after(segment.seq, (self._start + len(self._said)) % _MODULUS)
        if skip < 0:
            return 0  # a gap: what is missing may still come
        new = segment.data[skip:]
        self._said += new
        return len(new)

    def same(self, segment: Segment) -> bool | None:
        """Whether the secondary has said no less; None where it has not yet, False: other."""
        flags, data = segment.flags, segment.data
        if flags & URG or (flags & SYN and segment.seq != self._syn):
            return False
        if flags & RST:
            return True if segment.seq in self.resets else None
        if data:
            if self.clear_to is None:
                return None
            if self._unknown_before is not None and _after(segment.seq, self._unknown_before) < 0:
                return None
            begin = -_after(segment.seq, self.clear_to)  # so much of it is alike already
            if begin < 0:
                return None
            new = data[begin:]
            if new:
                there = len(self._said)
                if self._said[: len(new)] != new[:there]:
                    return False
                if there < len(new):
                    return None
        if flags & FIN:
            end = (segment.seq + len(data)) % _MODULUS
            is_covered = self.clear_to is not None and _after(end, self.clear_to) < 0
            if not is_covered and self.fin_at != end:
                return None if self.fin_at is None else False
        if flags & ACK and (self.acked is None or _after(segment.ack, self.acked) > 0):
            return None
        return True

    def is_heard(self, end: int, ack: int | None) -> bool:
        """Whether so much has left."""
        has_data = self.clear_to is not None and _after(end, self.clear_to) <= 0
        return has_data and (ack is None or (self.left is not None and _after(ack, self.left) <= 0))

    def passed(self, segment: Segment) -> int:
        """It leaves; return how many bytes are kept no more."""
        if segment.flags & ACK and (self.left is None or _after(segment.ack, self.left) > 0):
            self.left = segment.ack
        if not segment.data or self.clear_to is None:
            return 0
        end = (segment.seq + len(segment.data)) % _MODULUS
        ahead = _after(end, self.clear_to)
        if ahead <= 0:
            return 0
        del self._said[:ahead]
        self.clear_to = self._start = end
        return ahead


@dataclass(eq=False, slots=True)
class _Spoken:
    """A frame of the secondary's, of which the primary has not said as much yet."""

    size: int
    at: float
    stream: _Stream | None = None
    end: int = 0
    ack: int | None = None
    content: bytes = b""
    is_heard: bool = False

    def may_be_forgotten(self, now: float) -> bool:
        """Whether clients know it already, or would be told again by the guest itself."""
        if self.stream is None:
            return self.is_heard or now - self.at > _UNHEARD_S
        self.is_heard = self.stream.is_heard(self.end, self.ack)
        return self.is_heard or now - self.at > _STALE_S


class OutputRule:
    """The packets of one card.  ``limit``: the most bytes kept of what the secondary says ahead.

    ``vnet``: see ``frames``.

    ``differs``: a difference was found, by protocol, in what waits; it waits for a checkpoint.
    """

    def __init__(self, limit: int, counts: Counts | None = None, vnet: bool = True) -> None:
        self._limit, self._vnet = limit, vnet
        self.counts = counts or Counts()
        self._covered: OrderedDict[Flow, _Reach] = OrderedDict()  # by the last checkpoint
        self._reached: dict[Flow, _Reach] = {}  # since then
        self._is_live = False
        self._waiting: deque[tuple[Segment | Datagram, int, float]] = deque()
        self._streams: dict[Flow, _Stream] = {}
        self._datagrams: dict[Flow, deque[_Spoken]] = {}
        self._spoken: deque[_Spoken] = deque()
        self._kept = 0
        self.differs: str | None = None

    @property
    def waits_since(self) -> float | None:
        """Since when the oldest packet waits."""
        return self._waiting[0][2] if self._waiting else None

    def primary(self, data: bytes, now: float) -> int:
        """The primary VM says these whole frames.  Returns what ``release`` does."""
        for frame, size in frames(data, self._vnet):
            said = look_into(frame)
            if isinstance(said, Segment):
                self._note(said)
            self._waiting.append((said, size, now))
            self.counts.compared += 1
        return self.release(now)

    def secondary(self, data: bytes, now: float) -> int:
        """The secondary VM says these whole frames.  Returns what ``release`` does."""
        for frame, size in frames(data, self._vnet):
            said = look_into(frame)
            spoken = _Spoken(size, now)
            if isinstance(said, Segment):
                spoken.stream = stream = self._stream(said.flow)
                self._kept += stream.say(said)
                spoken.end = (said.seq + len(said.data)) % _MODULUS
                spoken.ack = said.ack if said.flags & ACK else None
            else:
                spoken.content = said.content
                there = self._datagrams.setdefault(said.flow, deque(maxlen=_DATAGRAMS_MOST))
                there.append(spoken)
            self._spoken.append(spoken)
        if self._kept > self._limit or len(self._datagrams) > _FLOWS_MOST:
            self.differs = self.differs or "too far ahead"
        return self.release(now)

    def release(self, now: float) -> int:
        """Return how many bytes may leave, of those that wait, the oldest first."""
        size = 0
        while self._waiting and self._is_live and self.differs is None:
            said, length, came = self._waiting[0]
            same = self._same(said, now)
            if not same:
                if same is False:
                    self._differ(said)
                break
            self._waiting.popleft()
            size += length
            self.counts.alike += 1
            self.counts.waited_s += now - came
            if isinstance(said, Segment):
                self._kept -= self._stream(said.flow).passed(said)
        return size

    def heard(self, now: float) -> int:
        """Return how many bytes of what the secondary has said need not be repeated any more.

        Since the last call; they are the oldest.
        """
        size = 0
        while self._spoken and self._spoken[0].may_be_forgotten(now):
            size += self._spoken.popleft().size
        return size

    def cover(self) -> None:
        """A checkpoint covers all that was said so far: a new epoch begins.

        Nothing leaves before ``live``.
        """
        self._waiting.clear()
        self.forget()
        for flow, reach in self._reached.items():
            self._covered[flow] = reach
            self._covered.move_to_end(flow)
        self._reached.clear()
        while len(self._covered) > _FLOWS_MOST:
            self._covered.popitem(last=False)

    def live(self, now: float) -> int:
        """That checkpoint is safe, and a secondary VM runs from it.  Returns as ``release``."""
        self._is_live = True
        return self.release(now)

    def forget(self) -> None:
        """Nothing that a secondary VM has said counts; what waits, waits."""
        self._is_live = False
        self._streams.clear()
        self._datagrams.clear()
        self._spoken.clear()
        self._kept = 0
        self.differs = None

    # -- within ---------------------------------------------------------------------------

    def _note(self, said: Segment) -> None:
        """How far the primary gets is what the next checkpoint covers."""
        reach = self._reached.get(said.flow)
        if reach is None:
            known = self._covered.get(said.flow)
            reach = _Reach(said.end) if known is None else replace(known)
            self._reached[said.flow] = reach
        reach.note(said)

    def _stream(self, flow: Flow) -> _Stream:
        stream = self._streams.get(flow)
        if stream is None:
            stream = self._streams[flow] = _Stream(self._covered.get(flow))
        return stream

    def _same(self, said: Segment | Datagram, now: float) -> bool | None:
        if isinstance(said, Segment):
            return self._stream(said.flow).same(said)
        there = self._datagrams.get(said.flow)
        if not there:
            return None
        for spoken in there:
            if spoken.content == said.content:
                spoken.is_heard = True
                there.remove(spoken)
                return True
        return None if there[-1].at < now - _STALE_S else False

    def _differ(self, said: Segment | Datagram) -> None:
        self.differs = name = said.flow[0]
        if isinstance(said, Segment) and said.flags & SYN:
            name = "connection"
        self.counts.differed[name] = self.counts.differed.get(name, 0) + 1
