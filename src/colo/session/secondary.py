"""What arrives from the primary: bytes in, answers and requests out.

This joins the secondary's machine, the stream's readers and the store.  It performs the effects
that take no time (answer, stage, commit, discard) and hands the others to the shell, which
performs them in its own time and reports back: PREPARE, APPLY, CLOSE and TAKE_OVER.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from colo.errors import LimitExceeded, PeerError, ShortRead
from colo.migration.format import Command
from colo.migration.ram import Bytes, Offsets, PageRun, RamBlock
from colo.migration.reader import Header, LiveStateReader, Migration, MigrationReader
from colo.migration.writer import pong, shut
from colo.protocol.messages import Message, encode, parse_message
from colo.protocol.secondary import Secondary
from colo.protocol.tables import Do, Effect, SecondaryEvent, SecondaryState
from colo.status.figures import Figures
from colo.store.store import Since, Store
from colo.wire.decoder import Decoder

__all__ = ["Checks", "EpochDisks", "Incoming"]

_RECEIVING: Final = frozenset(
    {
        SecondaryState.RECEIVING_RAM,
        SecondaryState.AWAITING_SIZE,
        SecondaryState.RECEIVING_DEVICES,
    }
)


#: The store judges the memory's size by the block list, which is short, and says more of it.
_ANY_SIZE: Final = (1 << 64) - 1


class Checks(Protocol):
    """What a first migration is held against, part by part; each may raise PeerError."""

    def check_header(self, header: Header) -> None:
        """The machine, before any memory."""

    def check_blocks(self, blocks: tuple[RamBlock, ...]) -> None:
        """The blocks of memory, before any page."""

    def check_devices(self, migration: Migration) -> None:
        """The whole, before it counts."""


class EpochDisks(Protocol):
    """The disks of the primary's VM, whose writes belong to the checkpoints."""

    def is_here(self, number: int) -> bool:
        """Whether all is here that the VM wrote before checkpoint ``number``."""

    def require(self, number: int) -> None:
        """Raise DiskError where checkpoint ``number`` cannot be committed."""

    def commit(self, number: int) -> None:
        """What was written before it is the disks at that checkpoint; this takes no time."""


class Incoming:
    """One primary's session with the secondary.

    ``clock`` gives seconds and never goes back.  ``checks`` may raise PeerError on a machine that
    cannot be taken over here.  With ``disks`` a checkpoint is whole once their part is here too.
    ``is_coded``: the bytes come in frames.
    """

    def __init__(
        self,
        vm_name: str,
        store: Store,
        figures: Figures,
        clock: Callable[[], float],
        checks: Checks | None = None,
        disks: EpochDisks | None = None,
        is_coded: bool = False,
    ) -> None:
        self.machine = Secondary(vm_name)
        self.requests: list[Do] = []
        self._store = store
        self._figures = figures
        self._clock = clock
        self._checks = checks
        self._disks = disks
        self._lacks_disks: Callable[[], bool] | None = None  # what is done once they are here
        self._buffer = store.staging.buffer
        self._buffer.start = self._buffer.end = 0
        self._decoder = Decoder(self._buffer, self._bases) if is_coded else None
        self._out = bytearray()
        self._device_size = 0
        self._asked = self._sent = self._ram_done = self._saved = 0.0
        self._saved_after = (-1, 0.0)  # of which checkpoint, and how long after its beginning
        self._began = 0
        self._blocks: tuple[RamBlock, ...] = ()
        self._first = MigrationReader(
            self._buffer,
            replace(store.limits, ram_bytes=_ANY_SIZE),
            self._on_blocks,
            self._on_pages,
            self._on_command,
        )
        self._live: LiveStateReader | None = None

    @property
    def state(self) -> SecondaryState:
        """The machine's state."""
        return self.machine.state

    @property
    def bytes_received(self) -> int:
        """How many bytes of the stream have been read."""
        return self._buffer.position

    @property
    def vm_waits(self) -> bool:
        """Whether the primary's VM stands still for what comes next, and some of that is here."""
        return self.state in _RECEIVING and self._buffer.end > self._began

    def writable(self, at_most: int) -> memoryview:
        """Where to receive the next bytes into.  Raises LimitExceeded."""
        return (self._decoder or self._buffer).writable(at_most)

    def received(self, count: int) -> None:
        """Take ``count`` bytes that were received into ``writable()``.

        Raises PeerError of some kind; the session is over then.
        """
        if self._decoder is not None:
            self._decoder.received(count)
        else:
            self._buffer.wrote(count)
        while self._advance():
            pass
        if self.state is SecondaryState.INCOMING:
            self._buffer.rewind()

    def disks_are_here(self) -> None:
        """What was asked of the disks is here.  Raises PeerError, or DiskError."""
        while self._advance():
            pass

    def saved_after(self, number: int, seconds: float) -> None:
        """So long after its VM was stopped the devices of checkpoint ``number`` were saved."""
        self._saved_after = number, seconds

    def to_send(self) -> bytes:
        """Return, once, the bytes that have to go to the primary."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def applied(self) -> None:
        """Say that the committed pages are in the images."""
        self._store.applied()

    def handle(self, event: SecondaryEvent) -> None:
        """Take an event from the shell."""
        self._perform(self.machine.handle(event))

    def closed(self) -> PeerError | None:
        """The primary closed the channel: say where that cut it off, if inside something."""
        if self.state is SecondaryState.INCOMING:
            try:
                self._first.close()
            except PeerError as error:
                return error
        elif self.state is not SecondaryState.READY:
            live = self.state in _RECEIVING
            got = self._buffer.end - self._began if live else self._buffer.available
            return ShortRead(f"checkpoint {self.machine.number} ({self.state.name})", got)
        elif self._buffer.available:
            return ShortRead("a COLO message", self._buffer.available)
        elif self._decoder is not None:
            try:
                self._decoder.end()
            except PeerError as error:
                return error
        return None

    def stalled(self) -> PeerError | None:
        """Say what is wrong with a primary that has been silent for long, if that can be told."""
        return self._first.stalled() if self.state is SecondaryState.INCOMING else None

    def _advance(self) -> bool:
        """Take one step with what the buffer holds; return whether there was one."""
        state = self.machine.state
        if self._lacks_disks is not None:
            return self._with_disks(self._lacks_disks)
        if state is SecondaryState.INCOMING:
            return self._first.advance() and self._received_first()
        if state is SecondaryState.RECEIVING_RAM:
            return self._live is not None and self._live.advance() and self._ram_received()
        if state is SecondaryState.RECEIVING_DEVICES:
            whole = self._buffer.available >= self._device_size
            return whole and self._with_disks(self._devices_received)
        parsed = parse_message(self._buffer.data, self._buffer.start, self._buffer.end)
        if parsed is None:
            return False
        message, length = parsed
        effects = self.machine.receive(message)
        self._buffer.start += length
        self._perform(effects)
        return True

    def _with_disks(self, then: Callable[[], bool]) -> bool:
        """Go on once all is here that the VM wrote to its disks before this checkpoint."""
        is_here = self._disks is None or self._disks.is_here(self.machine.number)
        self._lacks_disks = None if is_here else then
        return is_here and then()

    def _received_first(self) -> bool:
        migration = self._first.migration
        assert migration is not None
        if self._checks is not None:
            self._checks.check_devices(migration)
        if migration.return_path:
            self._out += shut()
        return self._with_disks(self._migrated)

    def _migrated(self) -> bool:
        self.handle(SecondaryEvent.MIGRATED)
        self._buffer.rewind()
        return True

    def _ram_received(self) -> bool:
        self._ram_done = self._clock()
        self._figures.phases["ram"].append(self._ram_done - self._sent)
        self.handle(SecondaryEvent.RAM_RECEIVED)
        return True

    def _devices_received(self) -> bool:
        pages, size = self._store.staging.pages, self._buffer.end - self._began
        self.handle(SecondaryEvent.DEVICES_RECEIVED)
        now = self._clock()
        self._figures.phases["devices"].append(now - self._ram_done)
        self._figures.phases["received"].append(now - self._sent)
        self._figures.checkpoint(pages, size)
        return True

    def _perform(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect.do:
                case Do.SEND:
                    assert effect.message is not None
                    self._out += encode(Message(effect.message, effect.value))
                    self._send_time(effect)
                case Do.RECEIVE_RAM:
                    self._begin_ram()
                case Do.RECEIVE_DEVICES:
                    assert effect.value is not None
                    self._begin_devices(effect.value)
                case Do.COMMIT:
                    self._commit()
                case Do.DISCARD:
                    self._store.discard()
                case _:
                    if effect.do is Do.PREPARE:
                        self._asked = self._clock()
                    self.requests.append(effect.do)

    def _send_time(self, effect: Effect) -> None:
        if self.state is SecondaryState.REPLIED:
            self._figures.phases["prepare"].append(self._clock() - self._asked)

    def _begin_ram(self) -> None:
        assert self._first.migration is not None
        self._sent = self._clock()
        self._began = self._buffer.start
        self._live = LiveStateReader(
            self._buffer, self._first.ram, self._first.migration.ram_section, self._store.stage
        )

    def _begin_devices(self, size: int) -> None:
        if size > self._store.limits.device_bytes:
            raise LimitExceeded("device state", size, self._store.limits.device_bytes)
        self._device_size = size
        self._saved = self._clock()

    def _commit(self) -> None:
        """Memory, devices and disks, in one step: what may fail comes before anything counts."""
        if self._disks is not None:
            self._disks.require(self.machine.number)
        if self._first.migration is not None and self._live is None:
            now = self._clock()
            self._store.commit_migration(self._first.migration, Since(now, now))
        else:
            state = bytes(self._buffer.take(self._device_size))
            number, after_s = self._saved_after
            saved = self._sent + after_s if number == self.machine.number else self._saved
            self._store.commit(self.machine.number, state, Since(self._sent, saved))
        if self._disks is not None:
            self._disks.commit(self.machine.number)

    def _on_blocks(self, header: Header, blocks: tuple[RamBlock, ...]) -> None:
        if self._checks is not None:
            self._checks.check_header(header)
        self._store.define(blocks)
        self._blocks = blocks
        if self._decoder is not None:
            self._decoder.set_blocks(blocks)
        if self._checks is not None:
            self._checks.check_blocks(blocks)

    def _bases(self, block: int, numbers: Offsets) -> Bytes:
        """What pages are in the last whole checkpoint: the images, before the next one begins."""
        pages: Bytes = self._store.images[self._blocks[block].name].pages[numbers]
        return pages

    def _on_pages(self, run: PageRun) -> None:
        self._store.write(run)

    def _on_command(self, command: Command, value: int | None) -> None:
        if command is Command.PING and value is not None:
            self._out += pong(value)
