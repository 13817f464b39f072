"""Hybrid mode on host B: a secondary VM runs beside the primary, from the last whole checkpoint on.

The primary's host says when one is to begin, and sends what the network brings for the primary VM;
what the secondary VM says goes back there, to be compared.  A checkpoint ends it: a new one begins
from that, if the primary's host wants it, once a QEMU waits for that.

What it means that one runs, has spoken or has died is decided in ``packets.stand_in``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from colo.config import VmConfig
from colo.disks.extents import Extents
from colo.errors import ChannelLost, ColoError, GuestError, PeerError
from colo.membership.grant import Grant
from colo.node.replicas import Replicas
from colo.node.secondary_disks import SecondaryDisks
from colo.node.state_folder import SECONDARY_VM
from colo.packets.gate import Rule
from colo.packets.hybrid_words import HYBRID_VERSION, Kind, Said
from colo.packets.stand_in import GoesOn, StandIn
from colo.qemu.command_line import taps
from colo.qemu.identity import instance
from colo.qemu.open_taps import OpenTaps
from colo.qemu.process import LaunchPlan
from colo.qemu.secondary_vm import SecondaryVm
from colo.qemu.standby import WaitingQemu
from colo.session.first_line import HYBRID, first_line
from colo.session.hybrid_link import HybridHello, HybridLink, answer_hybrid
from colo.store.export import migration_stream
from colo.store.store import Store

__all__ = ["Beside", "taps_of"]

_log = logging.getLogger("colo.beside")

_HELLO_S: Final = 2.0
_FOLDERS: Final = 4
#: A QEMU that did not start is started again so much later.
_AGAIN_S: Final = 1.0


class Beside:
    """The secondary VM of ``store``, and the QEMU that waits to be the next one.

    ``waiting``: the QEMU that takes over from the store, and becomes what runs here.  ``settled``
    waits until the store's images equal its last whole checkpoint.  ``disks``: what is kept of the
    VM's.
    """

    def __init__(
        self,
        config: VmConfig,
        plan: LaunchPlan,
        store: Store,
        folder: Path,
        waiting: WaitingQemu,
        open_taps: OpenTaps,
        settled: Callable[[], Awaitable[None]],
        on_change: Callable[[], None],
        disks: Replicas,
    ) -> None:
        self._vm_name = config.name
        self._limit = int(config.network.hold_limit_mib * (1 << 20))
        self._mapped = {each.block.name: each.address for each in config.backends}
        self._images = {
            each.block.name: store.images[each.block.name].path for each in config.backends
        }
        self._plan, self._store, self._folder = plan, store, folder
        self._waiting, self.taps, self._settled = waiting, open_taps, settled
        self._on_change = on_change
        self._disks = disks
        self._paths = [disk.secondary for disk in config.disks]
        self._next: WaitingQemu | None = None
        self._numbers = count()
        self._vm: SecondaryVm | None = None
        self._written: Callable[[], Mapping[str, Extents]] = dict
        self._stand_in = StandIn(self._limit)
        self._beginning: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[Any]] = set()
        self._link: HybridLink | None = None
        self._is_heard = False  # the primary has said something: it can be told something
        self._is_over = False
        self._why: str | None = None
        self.begun = 0
        self.has_taken_over = False

    # -- the QEMU that waits --------------------------------------------------------------

    async def prepare(self) -> None:
        """Have the first one wait.  Raises GuestError."""
        await self._launch()

    def renew(self) -> None:
        """Have other ones wait: a disk has another size than these know."""
        if self._next is not None:
            self._next.renew()

    async def _launch(self) -> None:
        folder = self._folder / f"{SECONDARY_VM}{next(self._numbers) % _FOLDERS}"
        folder.mkdir(mode=0o700, exist_ok=True)
        self._next = made = WaitingQemu(
            self._plan, self._images, folder, self._say_ready, self.taps.files, is_shared=False
        )
        try:
            await made.start()
        except BaseException:
            self._next = None
            await made.stop()
            raise

    async def _prepare_next(self) -> None:
        while not self._is_over:
            try:
                await self._launch()
            except GuestError as error:
                self._why = f"no secondary VM: {error}"
                _log.error("%s", self._why)
                self._on_change()
                await asyncio.sleep(_AGAIN_S)
                continue
            self._say_ready()
            return

    def _say_ready(self) -> None:
        if self._next is not None and self._next.is_ready and self._is_heard:
            self._say(Kind.READY)
        self._on_change()

    # -- the link -------------------------------------------------------------------------

    async def greet(self, sock: socket.socket, primary: Callable[[], Grant | None]) -> str | None:
        """Take in the hybrid link over ``sock``, or return why not; it is closed then.

        ``primary`` gives the grant of the one that can be taken in, or None.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_HELLO_S):
                hello = HybridHello.decode(
                    await first_line(sock, "it closed the hybrid link", HYBRID)
                )
            why = self._refusal(hello, primary())
            await loop.sock_sendall(sock, answer_hybrid(why))
        except TimeoutError:
            why = "it said nothing on the hybrid link"
        except (PeerError, ChannelLost, OSError) as error:
            why = str(error)
        if why is not None:
            sock.close()
            return why
        self._drop_link()
        self._link = HybridLink(sock, hello.cards, self._limit, self._hear, self._lost)
        return None

    def _refusal(self, hello: HybridHello, primary: Grant | None) -> str | None:
        if hello.version != HYBRID_VERSION:
            return f"it speaks version {hello.version} of the hybrid link, not {HYBRID_VERSION}"
        if hello.vm != self._vm_name:
            return f"its VM is {hello.vm}, this one is {self._vm_name}"
        if primary != Grant(hello.grant, hello.holder):
            return "it is not of the primary that has said hello"
        return None

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        self._stand_in.unlinked()
        self._is_heard = False

    def _lost(self, error: ColoError) -> None:
        """What runs goes on, unfed: until the next checkpoint it may be all that is left."""
        self._why = str(error)
        self._drop_link()
        self._on_change()

    def _say(self, kind: Kind, number: int = 0, card: int = 0, payload: bytes = b"") -> None:
        if self._link is not None:
            self._link.say(Said(kind, card, number, payload))

    def _hear(self, said: Said) -> None:
        match said.kind:
            case Kind.INPUT:
                self._input(said.card, said.payload)
            case Kind.CUT:
                self._stand_in.cut(said.number)
            case Kind.START:
                self._start(said.number)
            case Kind.HEARD:
                if self._vm is not None:
                    self._vm.drop(said.card, said.number)
            case _:
                raise PeerError(f"the hybrid link says {said.kind.name} out of place")
        if not self._is_heard:
            self._is_heard = True
            self._say_ready()

    def _input(self, card: int, data: bytes) -> None:
        if not self._stand_in.input(card, data):
            self._end("the network brought more than [network] hold_limit_mib since its checkpoint")
        elif self._vm is not None and self._vm.is_running:
            self._vm.feed(card, data)

    # -- the secondary VM -----------------------------------------------------------------

    def _start(self, number: int) -> None:
        waits = self._next
        why = self._stand_in.refusal(number, waits is not None and waits.is_ready)
        if why is not None:
            self._say(Kind.GONE, number, payload=why.encode())
            return
        assert waits is not None
        folder = waits.folder
        qemu, self._next = waits.give(), None
        rule = partial(self._rule, number)
        disks = SecondaryDisks(self._disks.replicas, self._paths, folder, self._full)
        self._vm = vm = SecondaryVm(qemu, folder, self._images, self.taps, self._limit, rule, disks)
        self._written = disks.written
        self._stand_in.begins(number)
        self._beginning = self._spawn(self._begin(vm, number))

    def _full(self) -> None:
        """It has written so much that it is not kept: only a checkpoint ends that."""
        self._end("it has written as much to its disks as is kept of that in memory")

    def _rule(self, number: int, card: int) -> Rule:
        def said(data: bytes, now: float) -> int:
            self._stand_in.speaks(self._link is not None)
            self._say(Kind.SAID, number, card, data)
            return 0

        return said

    async def _begin(self, vm: SecondaryVm, number: int) -> None:
        try:
            await self._settled()
            checkpoint = self._store.checkpoint
            if vm.is_ended or checkpoint is None or checkpoint.number != number:
                raise GuestError("another checkpoint has come")
            stream = migration_stream(self._store, self._mapped, is_shared=False)
            await vm.begin(stream, checkpoint.since)
        except ColoError as error:
            if not vm.is_ended:
                self._dies(vm, str(error))
            return
        finally:
            # Only now: a QEMU that starts sets the taps anew.
            self._preparing = self._spawn(self._prepare_next())
        if vm.is_ended:
            return
        for card, data in self._stand_in.runs():
            vm.feed(card, data)
        self.begun += 1
        self._why = None
        self._say(Kind.RUNS, number)
        self._watching = self._spawn(self._watch(vm))
        self._on_change()

    async def _watch(self, vm: SecondaryVm) -> None:
        how = await vm.qemu.wait()
        if not vm.is_ended and vm is self._vm:
            why = f"the secondary VM has died: {how}: {vm.qemu.last_words()}"
            _log.error("%s", why)
            self._dies(vm, why)

    def _dies(self, vm: SecondaryVm, why: str) -> None:
        """Nothing can go on with it; whether anything else may is for ``packets.stand_in`` to say.

        The next checkpoint is what another one begins from.
        """
        self._why = why
        vm.kill()
        self._stand_in.died()
        self._say(Kind.GONE, self._stand_in.number, payload=why.encode()[:1000])
        self._on_change()

    def _end(self, why: str) -> None:
        """It is of no use for comparing; where it has spoken, it is still what a takeover needs."""
        vm, stand_in = self._vm, self._stand_in
        number = stand_in.committed if vm is None else stand_in.number
        self._say(Kind.GONE, max(0, number), payload=why.encode()[:1000])
        if vm is not None and not stand_in.is_needed:
            self._drop_vm(vm)

    def _drop_vm(self, vm: SecondaryVm) -> None:
        vm.kill()
        self._vm = None
        self._stand_in.ended()
        self._spawn(self._clear(vm))

    async def _clear(self, vm: SecondaryVm) -> None:
        if self._beginning is not None:
            await asyncio.wait({self._beginning})
        await vm.clear()

    def committed(self, number: int) -> None:
        """A checkpoint is whole: it holds all that anyone has heard, and the VM before it ends.

        Nothing of it is in the images yet.
        """
        if self._stand_in.commits(number) and self._vm is not None:
            self._drop_vm(self._vm)
        self._say_ready()

    def forget(self) -> None:
        """The primary's session is over, and nothing of it counts."""
        self._stand_in.forget()
        if self._vm is not None:
            self._drop_vm(self._vm)
        self._drop_link()

    def force(self) -> None:
        """An operator has the VM run, also from a checkpoint that may be too old."""
        self._stand_in.force()

    @property
    def lacks(self) -> bool:
        """Whether clients may have heard of more than is here."""
        return self._stand_in.lacks

    # -- a takeover -----------------------------------------------------------------------

    async def load(self, store: Store) -> None:
        """Have what is to run ready.  Raises GuestError."""
        if await self._goes_on_with() is GoesOn.CHECKPOINT:
            if self._vm is not None:
                self._drop_vm(self._vm)
            await self._waiting.load(store)

    async def hand_over(self) -> None:
        """Have the disks' files be those of what is to run.  Raises DiskError, GuestError."""
        if await self._goes_on_with() is GoesOn.CHECKPOINT:
            await self._disks.hand_over()
        elif self._paths:
            assert self._vm is not None
            await self._vm.take_disks(self._put_into_disks)

    async def _put_into_disks(self) -> None:
        self._stand_in.gives_disks()
        await self._disks.hand_over(self._written())

    async def _goes_on_with(self) -> GoesOn:
        """What the takeover goes on with.  Raises GuestError where that is nothing."""
        self._stand_in.take_over()
        if self._vm is not None and self._beginning is not None:
            await asyncio.wait({self._beginning})
        if self._vm is not None and self._vm.is_dead:
            self._stand_in.died()
        found, number = self._stand_in.goes_on_with(), self._stand_in.committed
        if found is not GoesOn.NOTHING:
            return found
        if self._stand_in.has_given_disks:
            raise GuestError(
                f"the secondary VM has died, and its disks have gone on since checkpoint {number}: "
                "end colo and start it again, and `colo failover` starts the VM anew on them"
            )
        raise GuestError(
            "the secondary VM has died, and clients may have heard of more than checkpoint "
            f"{number} has; `colo failover --force` runs that one"
        )

    async def run(self) -> None:
        """Have it run.  Raises GuestError."""
        await self._end_next()
        vm = self._vm
        if vm is None:
            await self._waiting.run()
        elif vm.is_dead:
            self._stand_in.died()
            raise GuestError("the secondary VM has died")
        else:
            self._stand_in.let_out()
            assert self._watching is not None
            # First it stands where the next colo finds the VM, should this one be killed now.
            await self._waiting.replace(vm.qemu)
            try:
                await vm.unleash()
            except GuestError:
                await self._waiting.start()  # for a checkpoint that an operator has run by force
                raise
            self._watching.cancel()
            self._vm, self.has_taken_over = None, True
        await self.close()

    async def _end_next(self) -> None:
        """No other QEMU waits to be a secondary VM, or starts to, from now on."""
        self._is_over = True
        if self._preparing is not None and not self._preparing.done():
            self._preparing.cancel()
            await asyncio.wait({self._preparing})
        if self._next is not None:
            await self._next.stop()
            self._next = None

    def instance(self, host: str) -> str:
        """The name of what would run the VM, or runs it, as the holder of a grant."""
        if self._vm is not None and not self._vm.is_ended:
            return instance(self._vm.qemu.pid, host)
        return self._waiting.instance(host)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def close(self) -> None:
        """End what is beside the VM that runs, or was to."""
        if self._vm is not None:
            self._drop_vm(self._vm)
        self._drop_link()
        mine = asyncio.current_task()
        work = {each for each in self._work if each is not mine}
        if work:
            await asyncio.wait(work, timeout=_HELLO_S)
        await self._end_next()
        self.taps.close()
        for number in range(_FOLDERS):
            with contextlib.suppress(OSError):
                shutil.rmtree(self._folder / f"{SECONDARY_VM}{number}")

    def status(self) -> dict[str, Any]:
        """What the status file has of it."""
        vm = self._vm
        return {
            "runs": vm is not None and vm.is_running and not vm.is_ended,
            "from_checkpoint": self._stand_in.number if vm is not None else None,
            "begun": self.begun,
            "input_bytes": self._stand_in.inputs.size,
            "unfed_bytes": vm.unfed_bytes if vm is not None and not vm.is_ended else 0,
            "trouble": self._why,
        }


def taps_of(config: VmConfig) -> OpenTaps:
    """The taps that this VM's QEMUs on host B share, if any; none is open.  Raises UsageError."""
    args = [*config.qemu.args, *config.qemu.secondary.args]
    return OpenTaps(taps(args) if config.has_secondary_vm else ())
