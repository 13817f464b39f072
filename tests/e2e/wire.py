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
    SENT = "after the last byte, and no answer is waited for"
    RECEIVED = "the secondary has it whole, but the primary is not told"
    LOADED = "between VMSTATE_RECEIVED and VMSTATE_LOADED"
    DONE = "after VMSTATE_LOADED"

    @property
    def is_whole(self) -> bool:
        """Whether the secondary has the checkpoint whole by then."""
        return self in (Phase.SENT, Phase.RECEIVED, Phase.LOADED, Phase.DONE)


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
        #: The offset at which the wire stopped in the bytes of its phase, for a failure's text.
        self.stopped_after = 0
        self.error: BaseException | None = None
        self._target = target
        self._on_stopped = on_stopped
        self._trap: tuple[Phase, int, float] | None = None
        self._changed = threading.Condition()
        self._stopped = self._cut = False
        self._parsing = False
        self._parser = _Checkpoints(self._mark)
        self._limit: int | None = None
        self._ram_start = 0
        self._ram_bytes = PAGE_BYTES
        self._sides: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._threads = [threading.Thread(target=self._guarded, args=(self._serve,))]
        self._threads[0].start()

    # -- for the test ------------------------------------------------------------------------

    def stop_at(self, phase: Phase, fraction: float = 0.0, ahead: int = 2) -> int:
        """Stop at ``phase`` of the checkpoint that is ``ahead`` of the current one.

        ``fraction``, from 0 to 1, is how far into the pages or the device state.  Returns the
        checkpoint's number.
        """
        with self._changed:
            number = self.checkpoint + ahead
            self._trap = (phase, number, fraction)
        return number

    def wait_stopped(self) -> None:
        """Wait until the wire has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self.error, WAIT_S)
            assert self._stopped, (
                f"the wire did not stop at {self._trap}; at checkpoint {self.checkpoint}, "
                f"error {self.error!r}"
            )

    def go_on(self, phase: Phase | None = None, fraction: float = 0.0) -> None:
        """Pass on what was held, up to ``phase`` of the next checkpoint, if one is given."""
        with self._changed:
            self._trap = None
            if phase is not None:
                self._trap = (phase, self.checkpoint + 1, fraction)
            self._limit = None
            self._stopped = False
            self._changed.notify_all()

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
        passed = 0
        while data := primary.recv(READ_BYTES):
            if not self._parsing:
                secondary.sendall(data)
                continue
            self._parser.feed(data)
            start = 0
            while self._limit is not None and self._limit < passed + len(data):
                end = self._limit - passed
                secondary.sendall(data[start:end])
                start = end
                self._stop()
            self._pass_if_open(secondary, data[start:])
            passed += len(data)
            if self._limit == passed:
                self._stop()
        self.cut()

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
                if size == 4:
                    self._answer(word)
                self._pass_if_open(primary, bytes(held[:size]))
                del held[:size]
                if size == 4 and word == LOADED and self._is_trapped(Phase.DONE):
                    self._stop()
        self.cut()

    def _answer(self, word: int) -> None:
        assert word in (READY, REPLY, RECEIVED, LOADED), f"the secondary says {word}"
        if word == READY:
            assert not self._parsing, "a second CHECKPOINT_READY"
            self._on_stopped(0)
            self._parsing = True
        for message, phase in (
            (REPLY, Phase.REPLY),
            (RECEIVED, Phase.RECEIVED),
            (LOADED, Phase.LOADED),
        ):
            if word == message and self._is_trapped(phase):
                self._stop()

    def _mark(self, what: str, offset: int, value: int) -> None:
        """Take a landmark that ends at ``offset``; set the limit where the trap lies here."""
        trap = self._trap
        fraction = trap[2] if trap is not None else 0.0
        match what:
            case "request":
                with self._changed:
                    self.checkpoint += 1
                if self._is_trapped(Phase.REQUEST):
                    self._limit = offset - 4
            case "send":
                self._on_stopped(self.checkpoint)
                self._ram_start = offset
                if self._is_trapped(Phase.RAM):
                    self._limit = offset + int(fraction * self._ram_bytes)
            case "pages":
                self._ram_bytes = offset - self._ram_start
                if self._is_trapped(Phase.RAM) and self._limit is not None:
                    self._limit = min(self._limit, offset - 1)
                    self.stopped_after = self._limit - self._ram_start
            case "size":
                if self._is_trapped(Phase.DEVICES):
                    self.stopped_after = int(fraction * (value - 1))
                    self._limit = offset + self.stopped_after
                elif self._is_trapped(Phase.SENT):
                    self._limit = offset + value

    def _is_trapped(self, phase: Phase) -> bool:
        return self._trap is not None and self._trap[:2] == (phase, self.checkpoint)

    def _stop(self) -> None:
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
            self._changed.wait_for(lambda: not self._stopped or self._cut)
            if self._cut:
                raise OSError("the wire is cut")


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
