"""Who connects to a secondary: one primary, by up to four connections, and whoever else comes.

A colo says hello on its control link, and brings the other connections after that; a stock QEMU
brings its checkpoint channel alone.  Whoever cannot be taken in is closed, and told of.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import reach
from colo.config import VmConfig
from colo.errors import LocalError, PeerError
from colo.membership.grant import Grant
from colo.membership.states import Do, Event, State
from colo.membership.words import Hello, Word, WordKind
from colo.node.admission import Greeting
from colo.node.kept import Kept
from colo.node.performer import Performer
from colo.transport.acceptor import Reception, Refusals
from colo.transport.control_link import Link
from colo.transport.tls import Tls

__all__ = ["OPEN", "Callers"]

#: In these a checkpoint channel may be taken in.
OPEN: Final = (State.LISTENING, State.GREETED)
#: In these a hybrid link may be.
_GREETED: Final = (State.GREETED, State.RECEIVING, State.KEEPING)


class Callers:
    """Takes in for ``part`` and ``kept`` who connects.

    ``link`` is the primary's control link.  ``refused`` gets why somebody was not taken in, and
    whether that is news; ``left`` what the primary's last words were, or why there are none.
    """

    def __init__(
        self,
        config: VmConfig,
        arbiter: Arbiter,
        part: Performer,
        kept: Kept,
        refused: Callable[[str, bool], None],
        left: Callable[[str], None],
    ) -> None:
        self._config, self._arbiter = config, arbiter
        self._part, self._kept = part, kept
        self._refused, self._left = refused, left
        self.link: Link | None = None
        self._link_was = False
        self._refusals = Refusals()
        self._greetings: list[Greeting] = []
        self._channel: tuple[socket.socket, str, bool]  # the one that has come

    def door(self, server: socket.socket, tls: Tls | None) -> Reception:
        """Where they come in."""
        takers = self._take_channel, self._take_link, self._take_disks, self._take_hybrid
        return Reception(server, *takers, self._strange, tls)

    def news(self) -> None:
        """Something else was told: who is refused again is told of again."""
        self._refusals.clear()

    # -- the control link -----------------------------------------------------------------

    def _take_link(self, sock: socket.socket, peer: str) -> None:
        Greeting(
            sock,
            self._config,
            self._arbiter,
            lambda: {"checkpoint": self._kept.number, "state": self._part.state.name},
            self._welcome,
            lambda why: self._strange(peer, why),
            self._hear,
            self._link_lost,
            self._greetings,
        )

    def _welcome(self, link: Link, hello: Hello) -> str | None:
        """Take a primary in by its control link, or return why not."""
        grant = Grant(hello.grant, hello.holder)
        if Do.REFUSE in self._part.tell(Event.LINK_UP, grant=grant):
            return self._occupied()
        self.link, self._link_was = link, True
        link.also_heard = self._kept.last_heard
        self.news()
        return None

    def _hear(self, word: Word) -> None:
        if word.kind is WordKind.SAVED:
            self._kept.saved(word)
            return
        self._left(f"the primary says: {word.kind.value}")
        match word.kind:
            case WordKind.DEAD | WordKind.HANDOVER:
                grant = None if word.grant is None else Grant(word.grant, "")
                facts = {"word": word.kind, "grant": grant, "lacks": self._kept.lacks}
                self._part.tell(Event.SAYS_GONE, **facts)
            case WordKind.SHUTDOWN:
                self._part.tell(Event.SAYS_SHUTDOWN)
            case WordKind.BYE | WordKind.ALONE:
                self._part.tell(Event.LETS_GO)

    def _link_lost(self, error: PeerError) -> None:
        self.link = None
        self._left(str(error))
        self._part.tell(Event.LINK_LOST, lacks=self._kept.lacks)

    def say(self, word: Word) -> None:
        """Say it to the primary, where there is a link."""
        if self.link is not None:
            self.link.say(word)

    def forget(self) -> None:
        """Nothing of the last primary counts any more."""
        if self.link is not None:
            self.link.close()
            self.link = None
        self._link_was = False

    def link_state(self) -> str:
        """What the status file has of the control link."""
        if self.link is not None:
            return "UP"
        return "LOST" if self._link_was else "NONE"

    # -- the other connections ------------------------------------------------------------

    async def _take_channel(self, sock: socket.socket, peer: str, is_coded: bool) -> None:
        """Take a checkpoint channel in, or close it."""
        part, kept = self._part, self._kept
        why, link, last, known = None, self.link, kept.session, 0
        if last is not None and last.applying is not None and part.state in OPEN:
            await asyncio.wait({last.applying})  # it was forgotten: let it end
        if link is None and part.state in OPEN:
            try:
                known = (await reach(self._arbiter.begin)).number
            except LocalError as error:
                why = str(error)
        if why is None and kept.disks.lacking:
            why = "its [[disks]] are not in step here: it takes a colo to replicate them"
        if why is None and self.link is not link:
            why = "a control link has come or gone meanwhile"
        if why is None:
            self._channel = sock, peer, is_coded
            if Do.REFUSE not in part.tell(Event.CHANNEL_UP, grant=Grant(known, "")):
                return
            why = self._occupied()
        sock.close()
        self._strange(peer, why)

    def receive(self) -> str:
        """Take in what the channel brings that has come; return who brings it."""
        self._kept.receive(*self._channel)
        return self._channel[1]

    async def _take_disks(self, sock: socket.socket, peer: str) -> None:
        """Take a disk link in, or close it."""
        if why := await self._kept.disks.greet(sock, lambda: self._known(State.GREETED)):
            self._strange(peer, why)

    async def _take_hybrid(self, sock: socket.socket, peer: str) -> None:
        """Take a hybrid link in, or close it."""
        if why := await self._kept.greet_hybrid(sock, lambda: self._known(*_GREETED)):
            self._strange(peer, why)

    def _known(self, *states: State) -> Grant | None:
        """The primary's grant, in one of these states."""
        return self._part.member.facts.known if self._part.state in states else None

    # -- who is not taken in --------------------------------------------------------------

    def _occupied(self) -> str:
        """Why no other primary can be taken in."""
        match self._part.state:
            case State.RUNNING | State.TAKING_OVER:
                return "the VM runs here"
            case State.ORPHANED | State.CUT_OFF:
                number = self._kept.number
                return f"checkpoint {number} of the primary that was lost waits for a decision"
            case State.GREETED:
                return "it has a control link already"
            case _:
                return "this VM has its primary already"

    def _strange(self, peer: str, why: str) -> None:
        """A connection was refused; that is news once, however often it comes again."""
        is_new = self._refusals.is_new(peer, why)
        self._refused(f"a connection from {peer} was refused: {why}", is_new)
