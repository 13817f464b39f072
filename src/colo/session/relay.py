"""Between a primary QEMU and the secondary: its stream one way, messages the other.

What QEMU sends is taken into an area of memory, read there for where each part of it ends, and goes
to the secondary from there (``session.outlet``).  So QEMU need not wait for the network: it is
read as fast as memory is, up to ``room`` bytes that the secondary has not been sent yet; then it
waits.  A checkpoint that is larger than that, or a first copy, flows through.

What the secondary says is shown to ``on_message``; what QEMU is to hear is sent by ``send``.  Only
the return path of a first copy is passed on as it comes.

QEMU does not set TCP_NODELAY, so over plain TCP every turn of its conversation with a secondary
meets delayed acknowledgements.  QEMU's end of this relay is a unix socket, and the relay's own
connection sends at once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from colo.errors import ChannelLost, ColoError
from colo.migration.ram import Limits
from colo.migration.returnpath import ReturnPathDecoder
from colo.protocol.messages import COLOMessage, Message, MessageDecoder, encode
from colo.session.outlet import CodedOutlet, Outlet, PlainOutlet
from colo.session.primary_stream import Came, PrimaryReader
from colo.store.area import Area
from colo.transport.sockets import quick_acks, soon, tune, unacknowledged
from colo.wire.encoder import Encoder
from colo.wire.rate import LinkRate
from colo.wire.verdict import Verdict

__all__ = ["COPY_ROOM", "Relay", "area_for"]

#: A first copy goes through so much; its bytes are used while they are in the processor's cache.
COPY_ROOM: Final = 4 << 20
#: Read from QEMU in one go: many reads, for fewer and longer runs.
_BATCH: Final = 1 << 20
_ANSWER_BYTES: Final = 4096
#: What takes so many bytes to arrive arrives late.
_LATE_BYTES: Final = 64 << 10
#: After so long in one go the event loop gets its turn.
_TURN_S: Final = 0.005


@dataclass(frozen=True)
class _Mark:
    """What the secondary's host had got at a time, and what work had been done on it by then."""

    delivered: int
    when: float
    worked_s: float


def area_for(room: int, limits: Limits) -> Area:
    """Memory for ``room`` bytes, and for the parts of a stream that are read in one piece."""
    size = room + limits.device_bytes + limits.description_bytes + 2 * _BATCH
    return Area(size, "what is held for the secondary")


class Relay:
    """Joins two connected sockets until one of them ends.

    ``coder``: what is sent goes through it.  ``return_path``: the secondary first speaks the
    return-path protocol, as it does with QEMU 11.  ``on_came`` is called when a part of QEMU's
    stream has come whole, and before the secondary has its last byte.  When one side ends it,
    ``on_lost`` is called, or ``on_qemu_lost``, once and with why.
    """

    def __init__(
        self,
        qemu: socket.socket,
        secondary: socket.socket,
        area: Area,
        limits: Limits,
        return_path: bool,
        coder: Encoder | None,
        on_message: Callable[[Message], None],
        on_came: Callable[[Came], None],
        on_lost: Callable[[ColoError], None],
        on_qemu_lost: Callable[[str], None],
    ) -> None:
        self._qemu = qemu
        self._secondary = secondary
        self._area, self._buffer = area, area.buffer
        self._buffer.start = self._buffer.end = 0
        self._coder = coder
        self._outlet: Outlet
        if coder is None:
            self._outlet = PlainOutlet(self._buffer)
        else:
            self._outlet = CodedOutlet(self._buffer, coder)
        self._reader = PrimaryReader(self._buffer, limits, self._outlet.on_pages)
        self._return_path = ReturnPathDecoder() if return_path else None
        self._on_message = on_message
        self._on_came = on_came
        self._on_lost = on_lost
        self._on_qemu_lost = on_qemu_lost
        self._loop = asyncio.get_running_loop()
        self._decoder = MessageDecoder()
        self._rate, self._verdict = LinkRate(), Verdict()
        self._since_whole: _Mark | None = None  # a checkpoint is, and the secondary has not all
        self._since_full: _Mark | None = None  # QEMU waits for room
        self._answers = bytearray()  # for QEMU
        self._is_busy = False  # more answers may follow at once
        self._is_read = self._is_full = False  # QEMU, the secondary's socket
        self._qemu_waits = False  # its VM stands still, and it is sending
        self._is_over = False  # what came last is whole
        self._pushes_on = False  # more is to be sent, in the event loop's next turn
        self._began = 0  # where a checkpoint does
        self._began_at = self._saved_s = 0.0
        self._is_late = False  # the secondary gets it when it has been here for some time
        self._whole: int | None = None  # where what came last ends, in bytes of the stream
        #: How many bytes the checkpoint has that came last, whole; 0 for a first copy.
        self.whole_bytes = 0
        #: When the last byte was sent of the copy or checkpoint that came last; None before.
        self.whole_sent_at: float | None = None
        self._open = True
        #: So many bytes may lie here.
        self.room = COPY_ROOM
        #: Send on as soon as there is something, and not only when all of a checkpoint is here.
        self.hurries = True
        self.bytes_taken = self.bytes_sent = 0
        tune(qemu)
        tune(secondary)
        self._acknowledge = quick_acks(secondary)
        self._read_qemu(True)
        self._loop.add_reader(secondary, self._from_secondary)

    @property
    def held_bytes(self) -> int:
        """How much of QEMU's stream lies here, and the secondary has not been sent."""
        return self._outlet.unsent_bytes if self._open else 0

    @property
    def memory_bytes(self) -> int:
        """How much memory that may take up now."""
        return self._area.memory_bytes

    @property
    def rate(self) -> float | None:
        """The rate of the way to the secondary, in bytes a second, where it is known."""
        return self._rate.value

    @property
    def saved_s(self) -> float | None:
        """How long after its VM was stopped the devices of that checkpoint were saved.

        None where the secondary hears of that as it happens.
        """
        return self._saved_s if self._is_late else None

    def close(self) -> None:
        """Close both connections; nothing is called any more."""
        if self._open:
            self._open = False
            for sock in (self._qemu, self._secondary):
                self._loop.remove_reader(sock)
            self._loop.remove_writer(self._secondary)
            self._qemu.close()
            self._secondary.close()

    # -- QEMU -----------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Say a message to QEMU; those that are said together go together."""
        self._answers += encode(message)
        if not self._is_busy:
            self._answer()

    def _answer(self) -> None:
        """Send what QEMU is to have: a few bytes, and it reads each before it goes on."""
        answers, self._answers = self._answers, bytearray()
        if not answers or not self._open:
            return
        try:
            taken = self._qemu.send(answers)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._lose_qemu(f"QEMU ended COLO's connection: {error.strerror}")
            return
        if taken < len(answers):
            self._lose_qemu("QEMU does not read the secondary's answers")

    def _read_qemu(self, is_read: bool) -> None:
        """Have it be read, or wait."""
        if is_read and not self._is_read:
            self._loop.add_reader(self._qemu, self._from_qemu)
        elif self._is_read and not is_read:
            self._loop.remove_reader(self._qemu)
        self._is_read = is_read

    def _from_qemu(self) -> None:
        until = self._loop.time() + _TURN_S
        try:
            while self._open and self._loop.time() < until:
                if not self._has_room(self.room):
                    self._read_qemu(False)
                    self._since_full = self._mark(self._coder)
                    break
                count = soon(self._take) if self._qemu_waits else self._take()
                if not count:
                    self._lose_qemu("QEMU ended COLO's connection")
                    return
                self._took(count)
                self._push_unless_qemu_waits()
        except BlockingIOError:
            pass
        except OSError as error:
            self._lose_qemu(f"QEMU ended COLO's connection: {error.strerror}")
            return
        self._push_unless_qemu_waits()

    def _push_unless_qemu_waits(self) -> None:
        """While its VM stands still all time is QEMU's, if there is room for what it sends."""
        if self.hurries or not self._qemu_waits or not self._has_room(self.room):
            self._push()

    def _take(self) -> int:
        """Take what QEMU has sent, up to a batch; return how much, 0 at the end."""
        room, count = self._buffer.writable(_BATCH), 0
        try:
            while count < len(room) and (got := self._qemu.recv_into(room[count:])):
                count += got
        except BlockingIOError:
            if not count:
                raise
        return count

    def _took(self, count: int) -> None:
        self._buffer.wrote(count)
        self.bytes_taken += count
        self._is_busy = True
        try:
            while self._open and (came := self._reader.advance()) is not None:
                self._note(came)
                self._on_came(came)
                if came is Came.BEGINNING:
                    self._push()  # the secondary hears at once that the VM is stopped
        except ColoError as error:
            self._end(error)
        finally:
            self._is_busy = False
        self._answer()

    def _note(self, came: Came) -> None:
        self._qemu_waits = came in (Came.BEGINNING, Came.SAVED)
        if came in (Came.COPY, Came.CHECKPOINT):
            self._is_over = True
            self._whole, self.whole_sent_at = self._position, None
        match came:
            case Came.BEGINNING:
                self._decide()
                self._began, self._began_at = self._position, self._loop.time()
            case Came.SAVED:
                self._saved_s = self._loop.time() - self._began_at
            case Came.CHECKPOINT:
                self.whole_bytes = self._position - self._began
                left = self.held_bytes + unacknowledged(self._secondary)
                self._is_late = left > _LATE_BYTES
                self._since_whole = self._mark(self._coder)
        self._outlet.came(came, self._reader)

    @property
    def _position(self) -> int:
        """How far QEMU's stream has been read, in bytes."""
        return self.bytes_taken - self._buffer.available

    # -- the secondary --------------------------------------------------------------------

    def _push(self) -> None:
        """Send the secondary what lies here, as far as its socket takes it now."""
        until = self._loop.time() + _TURN_S
        while self._open and not self._is_full:
            if self._loop.time() > until:
                self._go_on_pushing()
                break
            pieces = self._outlet.pieces(is_short=not self._has_room(self.room))
            if not pieces:
                break
            try:
                sent = self._secondary.sendmsg(pieces)
            except BlockingIOError:
                self._is_full = True
                self._loop.add_writer(self._secondary, self._writable)
            except OSError as error:
                self._lose(f"the secondary ended the connection: {error.strerror}")
                return
            else:
                self._outlet.took(sent)
                self.bytes_sent += sent
                if self._whole is not None and self.bytes_taken - self.held_bytes >= self._whole:
                    self._whole, self.whole_sent_at = None, self._loop.time()
        self._make_room()

    def _go_on_pushing(self) -> None:
        """The event loop has its turn first."""
        if not self._pushes_on:
            self._pushes_on = True
            self._loop.call_soon(self._push_on)

    def _push_on(self) -> None:
        self._pushes_on = False
        self._push()

    def _writable(self) -> None:
        self._is_full = False
        self._loop.remove_writer(self._secondary)
        self._push()

    def _make_room(self) -> None:
        """What was read and sent is used up; QEMU is read where there is room again."""
        if not self._open:
            return
        used = self._buffer.start
        is_empty = used == self._buffer.end
        if self._outlet.may_rewind and (is_empty or used >= min(COPY_ROOM, self.room)):
            self._outlet.rewound(used)
            if is_empty and self._is_over:
                self._area.clear()
                self._is_over = False
            else:
                self._buffer.rewind()
        if not self._is_read and self._has_room(self.room // 2):
            self._read_qemu(True)
            self._measure(self._since_full)

    def _has_room(self, room: int) -> bool:
        """Whether more may be read; if not, all that has been read is to be sent first."""
        buffer = self._buffer
        is_there = buffer.end + _BATCH <= len(buffer.data) and buffer.start < 2 * self.room
        return is_there and self.held_bytes < room

    def _from_secondary(self) -> None:
        try:
            data = self._secondary.recv(_ANSWER_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"the secondary ended the connection: {error.strerror}")
            return
        if not data:
            self._lose("the secondary ended the connection")
            return
        self._is_busy = True
        try:
            if self._return_path is not None and self._return_path.status is None:
                path, data = self._return_path.feed(data)
                self._answers += path
            for message in self._decoder.feed(data):
                if message.kind is COLOMessage.VMSTATE_RECEIVED:
                    self._measure(self._since_whole)
                    self._judge(self._since_whole)
                self._on_message(message)
        except ColoError as error:
            self._end(error)
        finally:
            self._is_busy = False
        self._answer()
        if self._open:
            self._acknowledge()

    def _decide(self) -> None:
        """Whether the checkpoint that begins is to be coded at all."""
        if self._coder is not None:
            rate = self._rate.value
            is_coded = rate is not None and self._verdict.is_coded
            self._coder.rate = rate if is_coded else None

    def _mark(self, coder: Encoder | None) -> _Mark | None:
        """From now on what gets there counts, for the rate."""
        if coder is None:
            return None
        return _Mark(
            self.bytes_sent - unacknowledged(self._secondary),
            self._loop.time(),
            coder.figures.total.work_s,
        )

    def _measure(self, since: _Mark | None) -> None:
        """So much has got there since then: that tells how fast the way is."""
        coder = self._coder
        if since is None or coder is None or (now := self._mark(coder)) is None:
            return
        seconds = now.when - since.when - (now.worked_s - since.worked_s)
        self._rate.add(now.delivered - since.delivered, seconds, coder.rate is not None)
        if since is self._since_full:
            coder.rate = self._rate.value  # for a copy, which is one long stretch

    def _judge(self, since: _Mark | None) -> None:
        """What came of coding that checkpoint, or not."""
        if since is not None and self._coder is not None and self._rate.value is not None:
            took_s = self._loop.time() - since.when
            self._verdict.note(self._coder.rate is not None, self.whole_bytes, took_s)

    # -- the end --------------------------------------------------------------------------

    def _lose(self, why: str) -> None:
        self._end(ChannelLost(why))

    def _lose_qemu(self, why: str) -> None:
        if self._open:
            self._on_qemu_lost(why)
            self.close()

    def _end(self, error: ColoError) -> None:
        """Say so first: QEMU may run its VM again the moment that its end is closed."""
        if self._open:
            self._on_lost(error)
            self.close()
