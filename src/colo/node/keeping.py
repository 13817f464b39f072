"""``colo secondary``: the shell around a session, a store and a waiting QEMU.

It decides nothing that the state machine, the failover decision, the arbiter or the command
line has not decided.  It takes one primary in, carries the session's requests out, keeps a
QEMU waiting, takes over when that is due and granted, and says in ``status.json`` what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import reach
from colo.arbiters.named import make_fence
from colo.config import VmConfig
from colo.errors import ColoError, LocalError, Misfit, PeerError
from colo.membership.decision import Decision, Heard, LinkState, OnLoss, decide_secondary
from colo.membership.grant import Grant
from colo.membership.words import Hello, Word, WordKind
from colo.node.admission import Greeting
from colo.node.afterwards import Afterwards, Stay
from colo.node.leaving import to_its_end, until_one_ends
from colo.node.orders import Answer, Order, exported, serve_orders
from colo.node.state_folder import StateFolder
from colo.node.taking_over import Takeover
from colo.protocol.tables import SecondaryEvent, SecondaryState
from colo.qemu.process import LaunchPlan
from colo.qemu.standby import WaitingQemu
from colo.session.awake import Awake
from colo.session.chain import Destination, Forwarding
from colo.session.intake import Receiving
from colo.status.figures import Figures
from colo.store.store import Store
from colo.transport.acceptor import Reception, Refusals
from colo.transport.address import Address
from colo.transport.control_link import Link

__all__ = ["SecondaryNode"]

_STATUS_S: Final = 0.25

#: The orders that only a VM's own host can carry out.
_PRIMARYS: Final = ("switchover", "stop")
_HERE: Final = frozenset({SecondaryState.RUNNING, SecondaryState.TAKEOVER})


class SecondaryNode:
    """One VM's secondary on this host.  ``say`` tells the user what happens, a line at a time."""

    def __init__(
        self,
        config: VmConfig,
        plan: LaunchPlan,
        listen: Address,
        folder: StateFolder,
        arbiter: Arbiter,
        on_loss: OnLoss,
        say: Callable[[str], None],
        forward: Destination | None = None,
        after: Afterwards | None = None,
    ) -> None:
        self._config = config
        self._listen = listen
        self._folder = folder
        self._arbiter = arbiter
        self._on_loss = on_loss
        self._tell = say
        self._after = after = after or Stay()
        self._figures = Figures()
        self._awake = Awake(config, self._say)
        self._refusals = Refusals()
        store_folder = folder.store(config.store.folder, config.name)
        folder.clean(store_folder)
        main = tuple(backend.block for backend in config.backends)
        self._store = Store(store_folder, main, config.limits)
        files = {block.name: self._store.images[block.name].path for block in main}
        self.waiting = WaitingQemu(plan, files, folder.path, self._write_status)
        self._session: Receiving | None = None
        self._last_session: Receiving | None = None
        self._link: Link | None = None
        self._greetings: list[Greeting] = []
        self._heard = Heard()
        who, silence_s = config.name, config.failover.silence_s
        self._forwarding: Forwarding | None = None
        if forward is not None:
            self._forwarding = Forwarding(
                who, self._store, self._settled, forward, silence_s, self._say
            )
        holder, fence = partial(self.waiting.instance, after.host), make_fence(config)
        self._takeover = Takeover(arbiter, fence, self._store, self.waiting, holder, self._say)
        self._warned: Receiving | None = None
        self._error: str | None = None
        self._facts: dict[str, Any] = {}
        self._committed_at: float | None = None
        self._number = -1

    async def run(self) -> int:
        """Serve until the VM that was taken over ends, or this task is cancelled.

        Returns the exit code.  Raises ColoError where it cannot even start.
        """
        tasks: list[asyncio.Task[None]] = []
        with contextlib.ExitStack() as stack:
            stack.callback(self._awake.close)
            try:
                server = stack.enter_context(self._listen.listen())
                await self.waiting.start()
                stack.callback((await serve_orders(self._folder.control, self._obey)).close)
                self._say(
                    f"waiting for a primary on {self._listen} "
                    f"(QEMU {self.waiting.pid} is ready to take over)"
                )
                self._write_status()
                door = Reception(server, self._begin, self._greet, self._strange, self._listen.tls)
                work = (door.serve(), self._watch(), self._end())
                tasks = [asyncio.create_task(each) for each in work]
                if self._forwarding is not None:  # nobody waits for it, nor for its end
                    tasks.append(asyncio.create_task(self._forwarding.run()))
                await until_one_ends(tasks[: len(work)], self._stays)
                return 0
            finally:
                for task in tasks:
                    task.cancel()
                leaving = asyncio.create_task(self._leave())
                await to_its_end(leaving)
                leaving.result()

    # -- the primary's connections --------------------------------------------------------

    @property
    def _state(self) -> SecondaryState | None:
        return self._session.state if self._session is not None else None

    @property
    def _connected(self) -> bool:
        return self._session is not None and self._session.connected

    def _occupied(self) -> str | None:
        """Why no other primary can be taken in, or None."""
        if self._state in _HERE:
            return "the VM runs here"
        if self._state is SecondaryState.LOST:
            return f"checkpoint {self._number} of the primary that was lost waits for a decision"
        return "this VM has its primary already" if self._session is not None else None

    async def _begin(self, sock: socket.socket, peer: str) -> None:
        """A checkpoint channel has connected: take it in, or close it."""
        why, link, last, known = self._occupied(), self._link, self._last_session, 0
        if why is None and last is not None and last.applying is not None:
            await asyncio.wait({last.applying})  # it was forgotten: let it end
        if why is None and link is None:
            try:
                known = (await reach(self._arbiter.begin)).number
            except LocalError as error:
                why = str(error)
        if why is None and self._link is not link:
            why = "a control link has come or gone meanwhile"
        why = why or self._occupied()
        if why is not None:
            sock.close()
            self._strange(peer, why)
            return
        if link is None:
            self._forget_session()
            self._heard.known = known
        self._error = None
        self._facts = {"primary": peer}
        self._session = self._last_session = Receiving(
            self._config.name,
            self._store,
            self._figures,
            sock,
            time.monotonic,
            self._checkpoint,
            self._lost,
            self.waiting,
        )
        self._say(f"a primary has connected from {peer}")
        self._write_status()

    def _greet(self, sock: socket.socket, peer: str) -> None:
        """A control link has connected."""
        Greeting(
            sock,
            self._config,
            self._arbiter,
            self._beat,
            self._welcome,
            lambda why: self._strange(peer, why),
            self._hear,
            self._link_lost,
            self._greetings,
        )

    def _welcome(self, link: Link, hello: Hello) -> str | None:
        """Take a primary in by its control link, or return why not."""
        if self._state is SecondaryState.LOST and hello.grant > self._heard.known:
            self._say("the primary was granted the VM: forgetting the checkpoint held here")
            self._forget_session()
        why = self._occupied()
        if why is None and self._link is not None:
            why = "it has a control link already"
        if why is None:
            self._forget_session()
            self._link = link
            self._heard = Heard(LinkState.UP, hello.grant, hello.holder)
            self._refusals.clear()
        return why

    def _strange(self, peer: str, why: str) -> None:
        """A connection was refused; that is said once, however often it comes again."""
        self._error = f"a connection from {peer} was refused: {why}"
        if self._refusals.is_new(peer, why):
            self._inform(self._error)
        self._write_status()

    def _hear(self, word: Word) -> None:
        if self._heard.hear(word):
            self._decide(f"the primary says: {word.kind.value}")

    def _link_lost(self, error: PeerError) -> None:
        self._link, self._heard.link = None, LinkState.LOST
        self._decide(str(error))

    def _beat(self) -> dict[str, Any]:
        return {"checkpoint": self._number, "state": self._state.name if self._state else ""}

    def _forget_session(self) -> None:
        """Begin anew: nothing of the last primary counts any more."""
        self._takeover.stop_asking()
        if self._session is not None:
            self._session.close()
            self._session = None
        if self._link is not None:
            self._link.close()
            self._link = None
        self._heard = Heard(known=self._heard.known)
        self._number, self._committed_at, self._facts = -1, None, {}

    # -- checkpoints ----------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """The store holds a new checkpoint."""
        assert self._store.checkpoint is not None
        self._number, self._committed_at = self._store.checkpoint.number, time.time()
        self._awake.checkpoint()
        if self._forwarding is not None:
            self._forwarding.fresh.set()
        if self._number == 0:
            self._say("PROTECTED, the first copy is whole")
            self._write_status()

    async def _settled(self) -> None:
        """Wait until the store's images equal its last whole checkpoint.  Raises StoreError."""
        if self._last_session is not None:
            await self._last_session.applied()

    # -- losses ---------------------------------------------------------------------------

    def _lost(self, error: ColoError) -> None:
        """The channel is gone."""
        session = self._session
        assert session is not None
        self._facts["lost_in"] = session.state.name
        session.handle(SecondaryEvent.LOST)
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""
        if session.state is SecondaryState.FAILED:
            self._error = f"{error}{cause}"
            self._say(f"no first copy: {self._error}")
            if self._link is not None:
                final = isinstance(error, Misfit)
                self._link.say(Word(WordKind.REFUSED, {"why": self._error, "final": final}))
            self._forget_session()
            self._write_status()
        else:
            self._decide(f"{error}{cause}")

    def _decide(self, why: str) -> None:
        """Something changed: do what the decision says."""
        if self._state in _HERE:
            return
        if self._session is None or self._number < 0:
            if self._link is None or self._heard.word is not None:
                self._forget_session()
            return
        match decide_secondary(self._connected, self._heard):
            case Decision.FORGET:
                self._say(f"{why}; forgetting checkpoint {self._number}")
                if self._heard.word is WordKind.SHUTDOWN:
                    self._after.shut_down()
                self._forget_session()
            case Decision.ASK:
                self._error = why
                self._ask(why)
            case Decision.WAIT | Decision.GO_ON:
                pass
        self._write_status()

    def _ask(self, why: str) -> None:
        """The primary is lost: ask for the right to take over, or hold."""
        session = self._session
        assert session is not None
        if self._takeover.is_asking:
            return
        if session.connected:
            session.close()
            self._facts["lost_in"] = session.state.name
            session.handle(SecondaryEvent.LOST)
        if self._on_loss is OnLoss.HOLD or not self._arbiter.automatic:
            self._say(
                f"the primary is lost: {why}; holding checkpoint {self._number}: "
                f"`colo failover --state-dir {self._folder.path}` starts it"
            )
            return
        self._say(f"the primary is lost: {why}")
        self._ask_for_grant(session)

    def _ask_for_grant(self, session: Receiving) -> None:
        if session is not self._session:
            return
        self._takeover.ask(self._heard, lambda grant: self._answered(session, grant))

    def _answered(self, session: Receiving, grant: Grant | None) -> None:
        """The arbiter has answered: take over, or forget the VM, which then runs elsewhere."""
        if session is not self._session:
            return
        if grant is not None:
            self._takeover.start(session, grant, self._ended)
            return
        self._say(
            f"the other host has the right to run the VM: forgetting checkpoint {self._number}"
        )
        self._forget_session()
        self._write_status()

    async def _watch(self) -> None:
        """Bound the primary's silence, and keep the status file fresh."""
        while True:
            await asyncio.sleep(_STATUS_S)
            self._write_status()
            if self._session is not None:
                self._session.bound_silence(self._config.failover.silence_s, self._link is not None)

    # -- the takeover ---------------------------------------------------------------------

    def _ended(self, outcome: dict[str, Any] | ColoError) -> None:
        """A takeover has ended: with the VM running here, or with an error."""
        if isinstance(outcome, ColoError):
            self._error = str(outcome)
            self._say(f"NOT RUNNING: {outcome}; `colo failover` tries again")
        else:
            assert self._takeover.grant is not None
            self._facts["takeover"] = {**outcome, "grant": self._takeover.grant.number}
            self._say(
                f"RUNNING HERE, from checkpoint {self._number}, started in "
                f"{outcome['total_ms']:.0f} ms (QEMU {self.waiting.pid})"
            )
            self._store.remove()  # the running QEMU holds its memory; nobody needs the files
            self._after.runs_here()
        self._write_status()

    def _is_running(self) -> bool:
        return self._state is SecondaryState.RUNNING

    async def _end(self) -> None:
        """Wait for the end of the VM that was taken over, or of this part."""
        over = self._after.over
        while not (over.is_set() or self._is_running()):
            await asyncio.sleep(_STATUS_S)
        if over.is_set():
            return
        assert self.waiting.qemu is not None
        how = await self.waiting.qemu.wait()
        self._say(f"the VM has ended; QEMU: {how}")

    async def _stays(self) -> bool:
        """We are told to end: whether that is put off, as it would give up the only copy of a VM.

        It is once for each; whoever says it again means it.
        """
        await self._takeover.settled()
        lives = self._link is not None and not self._heard.is_gone
        if self._state is not SecondaryState.LOST or lives or self._warned is self._session:
            return False
        self._warned = self._session
        self._say(
            f"not ended: checkpoint {self._number} is all that is left of the lost primary's VM; "
            f"`colo export --state-dir {self._folder.path} FILE` keeps it, `colo failover` runs "
            "it; end colo once more to give it up"
        )
        return True

    async def _leave(self) -> None:
        """End what is ours; a VM that runs here goes on."""
        self._takeover.stop_asking()
        await self._takeover.settled()
        qemu = self.waiting.qemu
        if self._is_running() and qemu is not None:
            if self._after.over.is_set():
                self._forget_session()
                return
            if not qemu.exited:
                self._say(f"the VM goes on without colo: QEMU {qemu.pid}, QMP {qemu.qmp_socket}")
            await qemu.detach()
        else:
            self._forget_session()
            await self.waiting.stop()
            self._store.remove()
        self._write_status()

    # -- orders and status ----------------------------------------------------------------

    async def _obey(self, order: Order) -> Answer:
        if order.name == "export" and self._state in _HERE:
            return Answer(False, "the VM runs here: its QEMU can `migrate` to a file")
        if order.name == "export":
            return await exported(self._store, self._settled)
        if order.name in _PRIMARYS:
            return Answer(False, "the VM runs on the other host: say that there")
        if order.name != "failover":
            return Answer(False, f"there is no order {order.name!r}")
        if self._is_running():
            return Answer(True, "the VM runs here already")
        if not self._takeover.is_starting:
            session = self._session
            if session is None or not session.can(SecondaryEvent.FAILOVER):
                return self._after.without_checkpoint()
            if self._connected and not order.force:
                return Answer(
                    False,
                    "the primary is connected and its VM runs: two VMs would run; "
                    "end that one first, or say --force",
                )
            again = partial(self._ask_for_grant, session)
            try:
                grant = await self._takeover.order(self._heard, order.force, again)
            except LocalError as error:
                return Answer(False, f"{error}; --force does without it")
            if session is not self._session:
                return Answer(False, "that checkpoint was forgotten meanwhile")
            if session.can(SecondaryEvent.FAILOVER):  # no other order was faster
                self._takeover.start(session, grant, self._ended, decided_now=True)
        await self._takeover.settled()
        if self._is_running():
            return Answer(True, f"the VM runs here, from checkpoint {self._number}")
        return Answer(False, f"the VM could not be started: {self._error}")

    def _say(self, text: str) -> None:
        self._refusals.clear()
        self._inform(text)

    def _inform(self, text: str) -> None:
        """Tell the user; where nobody can be told any more, nothing changes by that."""
        with contextlib.suppress(OSError):
            self._tell(f"{self._config.name}: {text}")

    def _write_status(self) -> None:
        """Say what we do; a folder that is full or gone decides nothing."""
        with contextlib.suppress(OSError):
            self._folder.write_status(self._status())

    def _grant(self) -> int | None:
        """The number of the grant as far as it is known now: no primary, none."""
        if self._state in _HERE and self._takeover.grant is not None:
            return self._takeover.grant.number
        return None if self._session is None and self._link is None else self._heard.known

    def _status(self) -> dict[str, Any]:
        state = self._state
        return {
            "role": "secondary",
            "vm": self._config.name,
            "state": state.name if state else "LISTENING",
            "meaning": state.value if state else "no primary is connected",
            "mode": "periodic",
            "on_loss": self._on_loss.value,
            "arbiter": self._config.failover.arbiter,
            "grant": self._grant(),
            "listen": str(self._listen),
            "link": self._heard.link.name,
            "waits_for": self._takeover.waits_for,
            "error": self._error or self.waiting.trouble,
            "checkpoint": self._number if self._number >= 0 else None,
            "checkpoint_at": self._committed_at,
            **self._figures.status(),
            **self._store.status(),
            "peer": self._link.peer_figures if self._link is not None else None,
            "forward": self._forwarding.status() if self._forwarding is not None else None,
            **self.waiting.status(),
            "awake": self._awake.held,
            **self._facts,
        }
