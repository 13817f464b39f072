"""The wire between a primary and its secondary: a relay that knows the phase of the checkpoint.

It passes bytes on in both directions and reads along: the seven COLO messages, the pages and the
device state of each checkpoint.  So it can stop at a chosen place, down to the byte, and hold all
that comes after; whoever told it to can then kill a side, cut the connection, or let it go on.

It has its own small parser on purpose: what colo makes of the stream is what is being tested.

Source: ``colo_do_checkpoint_transaction`` in QEMU's ``migration/colo.c``.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Generator
from enum import Enum
from pathlib import Path
from typing import Final

__all__ = ["Phase", "Wire"]

READY, REQUEST, REPLY, SEND, SIZE, RECEIVED, LOADED = range(7)

PART: Final = (0x02, 0x03)
EOF: Final = 0x00
FOOTER_BYTES: Final = 5
ZERO, PAGE, END_OF_PAGES, CONTINUE = 0x02, 0x08, 0x10, 0x20
PAGE_BYTES: Final = 4096
#: Of 11.x's return path, which comes before the first COLO message: type and length of PONG, SHUT.
RETURN_PATH: Final = (0x00020004, 0x00010004)

READ_BYTES: Final = 1 << 18
WAIT_S: Final = 60.0


class Phase(Enum):
    """Where the wire can stop in a checkpoint, in order."""

    REQUEST = "before the request reaches the secondary"
    REPLY = "before the reply reaches the primary"
    RAM = "within the pages"
    DEVICES = "within the device state"
    RECEIVED = "the secondary has it whole, but the primary is not told"
    LOADED = "between VMSTATE_RECEIVED and VMSTATE_LOADED"
    DONE = "after VMSTATE_LOADED"

    @property
    def is_whole(self) -> bool:
        """Whether the secondary has the checkpoint whole by then."""
        return self in (Phase.RECEIVED, Phase.LOADED, Phase.DONE)


class Wire:
    """Listens at ``path`` for one primary and connects it to the secondary at ``target``.

    ``on_stopped`` is called with a checkpoint's number when the primary's VM is stopped for it;
    the first migration is number 0.
    """

    def __init__(
        self, path: Path, target: Path, on_stopped: Callable[[int], None] = lambda number: None
    ) -> None:
        self.path = path
        self.checkpoint = 0
        #: How many bytes of the pages, or of the device state, had passed when the wire stopped.
        self.passed = 0
        self.error: BaseException | None = None
        #: Set it to a bytearray, and it gets all of the first migration.
        self.first_migration: bytearray | None = None
        self._target = target
        self._on_stopped = on_stopped
        self._trap: tuple[Phase, int, float] | None = None
        self._changed = threading.Condition()
        self._holding = self._stopped = self._cut = False
        self._parsing = False
        self._parser = _Checkpoints(self._mark)
        self._limit: int | None = None
        self._first_limit: int | None = None
        self._phase_start = self._end = 0
        self._passed = 0  # bytes of checkpoints that went out, or are just going
        self._answers: list[int] = []  # that the secondary may still give in this checkpoint
        self._ram_bytes = PAGE_BYTES
        self._sides: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._threads = [threading.Thread(target=self._guarded, args=(self._serve,))]
        self._threads[0].start()

    # -- for the test ------------------------------------------------------------------------

    def stop_at(self, phase: Phase, fraction: float = 0.0, ahead: int = 1) -> int:
        """Stop at ``phase`` of the checkpoint that is ``ahead`` of the current one.

        ``fraction``, from 0 to 1, is how far into the pages or the device state.  Returns the
        checkpoint's number.
        """
        with self._changed:
            number = self.checkpoint + ahead
            self._trap = (phase, number, fraction)
        return number

    def stop_in_first_migration(self, passed: int) -> None:
        """Stop when about so many bytes have passed, before the first checkpoint."""
        self._first_limit = passed

    def wait_stopped(self) -> None:
        """Wait until the wire has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self.error, WAIT_S)
            assert self._stopped, (
                f"the wire did not stop at {self._trap}; at checkpoint {self.checkpoint}, "
                f"error {self.error!r}"
            )

    def go_on(self) -> None:
        """Pass on what was held."""
        with self._changed:
            self._trap = self._limit = None
            self._holding = self._stopped = False
            self._changed.notify_all()

    def go_on_to_end(self) -> None:
        """From within the device state, pass on to the checkpoint's last byte and stop again."""
        with self._changed:
            self._limit = self._end
            self._holding = self._stopped = False
            self._changed.notify_all()
        self.wait_stopped()

    def cut(self) -> None:
        """Close the connection on both sides; what is held is lost."""
        with self._changed:
            self._cut = True
            self._changed.notify_all()
        for side in self._sides:
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the relay."""
        self.cut()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        for side in self._sides:
            side.close()

    # -- the relay ---------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError:
            self.cut()  # a side has gone; the other one learns it
        except BaseException as error:
            self.error = error
            self.cut()

    def _serve(self) -> None:
        primary, _ = self._server.accept()
        self._sides.append(primary)
        secondary = socket.socket(socket.AF_UNIX)
        self._sides.append(secondary)
        secondary.connect(str(self._target))
        up = threading.Thread(target=self._guarded, args=(lambda: self._up(primary, secondary),))
        self._threads.append(up)
        up.start()
        self._down(secondary, primary)

    def _up(self, primary: socket.socket, secondary: socket.socket) -> None:
        """From the primary: the stream and the requests."""
        while data := primary.recv(READ_BYTES):
            if not self._parsing:
                self._pass_first(secondary, data)
                continue
            self._parser.feed(data)
            start, before = 0, self._passed
            while self._limit is not None and self._limit <= before + len(data):
                self.passed = self._limit - self._phase_start
                self._passed, end = self._limit, self._limit - before
                self._pass_and_stop(secondary, data[start:end])
                start = end
            self._wait_open()
            self._passed = before + len(data)
            self._pass_if_open(secondary, data[start:])
        self.cut()

    def _pass_first(self, secondary: socket.socket, data: bytes) -> None:
        """Pass bytes of the first migration on."""
        if self.first_migration is not None:
            self.first_migration += data
        if self._first_limit is not None:
            self._first_limit -= len(data)
            if self._first_limit < 0:
                self._first_limit = None
                self._pass_and_stop(secondary, data[: len(data) // 2])
        self._pass_if_open(secondary, data)

    def _down(self, secondary: socket.socket, primary: socket.socket) -> None:
        """From the secondary: the return path, then messages."""
        held = bytearray()
        while data := secondary.recv(READ_BYTES):
            held += data
            while len(held) >= 4:
                word = int.from_bytes(held[:4], "big")
                size = 8 if word in RETURN_PATH else 4
                if len(held) < size:
                    break
                self._pass_answer(primary, bytes(held[:size]), word)
                del held[:size]
        self.cut()

    def _pass_answer(self, primary: socket.socket, answer: bytes, word: int) -> None:
        if len(answer) == 4:
            self._check_answer(word)
            if word == READY:
                self._on_stopped(0)
                self._parsing = True
            elif self._is_trapped(_HELD[word]):
                self._pass_and_stop(primary, b"")
            elif word == LOADED and self._is_trapped(Phase.DONE):
                self._pass_and_stop(primary, answer)
                return
        self._pass_if_open(primary, answer)

    def _check_answer(self, word: int) -> None:
        """The secondary says what it has to, in order, and nothing before it is true."""
        if not self._parsing:
            assert word == READY, f"the secondary says {word} and not CHECKPOINT_READY"
            return
        expected = self._answers.pop(0) if self._answers else None
        assert word == expected, f"the secondary says {word} and not {expected}"
        if word == RECEIVED:
            assert self._end and self._passed >= self._end, (
                f"the secondary says VMSTATE_RECEIVED and has not got checkpoint {self.checkpoint}"
            )

    def _mark(self, what: str, offset: int, value: int) -> None:
        """Take a landmark that ends at ``offset``; set the limit where the trap lies here."""
        trap = self._trap
        fraction = trap[2] if trap is not None else 0.0
        match what:
            case "request":
                with self._changed:
                    self.checkpoint += 1
                self._answers, self._end = [REPLY, RECEIVED, LOADED], 0
                if self._is_trapped(Phase.REQUEST):
                    self._limit = offset - 4
            case "send":
                self._on_stopped(self.checkpoint)
                self._phase_start = offset
                if self._is_trapped(Phase.RAM):
                    self._limit = offset + int(fraction * self._ram_bytes)
            case "pages":
                self._ram_bytes = offset - self._phase_start
                if self._is_trapped(Phase.RAM) and self._limit is not None:
                    self._limit = min(self._limit, offset - 1)
            case "size":
                self._phase_start = offset
                if self._is_trapped(Phase.DEVICES):
                    self._limit = offset + int(fraction * (value - 1))
                self._end = offset + value

    def _is_trapped(self, phase: Phase) -> bool:
        return self._trap is not None and self._trap[:2] == (phase, self.checkpoint)

    def _pass_and_stop(self, to: socket.socket, data: bytes) -> None:
        with self._changed:
            self._holding = True  # before the bytes go out: they may be answered at once
        if data:
            to.sendall(data)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._wait_open()

    def _pass_if_open(self, to: socket.socket, data: bytes) -> None:
        self._wait_open()
        if data:
            to.sendall(data)

    def _wait_open(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._holding or self._cut)
            if self._cut:
                raise OSError("the wire is cut")


#: The answers that can be held back, by phase.
_HELD: Final = {REPLY: Phase.REPLY, RECEIVED: Phase.RECEIVED, LOADED: Phase.LOADED}
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")


class _Checkpoints:
    """Finds the landmarks of checkpoints; ``mark`` gets a name, its end's offset and a value."""

    def __init__(self, mark: Callable[[str, int, int], None]) -> None:
        self._mark = mark
        self._data = bytearray()
        self._offset = 0
        self._reader = self._read()
        self._wanted = next(self._reader)

    def feed(self, data: bytes) -> None:
        self._data += data
        start = 0
        while len(self._data) - start >= self._wanted:
            end = start + self._wanted
            self._offset += self._wanted
            self._wanted = self._reader.send(bytes(self._data[start:end]))
            start = end
        del self._data[:start]

    def _read(self) -> Generator[int, bytes, None]:
        while True:
            yield from self._message(REQUEST)
            self._mark("request", self._offset, 0)
            yield from self._message(SEND)
            self._mark("send", self._offset, 0)
            yield from self._pages()
            self._mark("pages", self._offset, 0)
            yield from self._message(SIZE)
            (size,) = _U64.unpack((yield 8))
            self._mark("size", self._offset, size)
            yield size

    def _message(self, expected: int) -> Generator[int, bytes, None]:
        (word,) = _U32.unpack((yield 4))
        assert word == expected, f"the primary says {word} and not {expected}"

    def _pages(self) -> Generator[int, bytes, None]:
        while (item := (yield 1)[0]) != EOF:
            assert item in PART, f"item {item:#x} in a checkpoint's RAM"
            yield 4
            while True:
                (header,) = _U64.unpack((yield 8))
                if header & END_OF_PAGES:
                    break
                if not header & CONTINUE:
                    yield (yield 1)[0]
                assert header & (PAGE | ZERO), f"page header {header:#x}"
                yield PAGE_BYTES if header & PAGE else 1
            yield FOOTER_BYTES
