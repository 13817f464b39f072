"""What two simulated colos say to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from colo.membership import grant as moves
from colo.membership.grant import Foreign, Grant, Moved
from colo.membership.states import FINAL, Do, Event, State
from colo.membership.words import WordKind
from tests.sim.arbiter import Move
from tests.sim.checks import Violation
from tests.sim.shell import Shell
from tests.sim.world import Connection, End

__all__ = ["Offer", "Talks"]

#: One end of a connection.
Offer: TypeAlias = tuple[Connection, End]

SILENCE_S: Final = 10.0


class Talks(Shell):
    """The control link, and what it takes to have one."""

    def _hello(self, reply: Callable[[Event, Offer | None], object], stays: bool) -> None:
        """Say hello to the other host: a way there, its look at the arbiter, and a way back.

        ``stays``: the connection is to be kept, and is offered with the answer.
        """
        world, me = self.world, self.host
        other = self.cluster.other(self.it)
        facts = self.member.facts
        grant = facts.grant if stays or self.state is State.STARTING else facts.known
        self._question += 1
        number = self._question

        def end(event: Event, offer: Offer | None = None) -> None:
            if number == self._question and self.is_alive:
                self._question += 1
                reply(event, offer)
            elif offer is not None:
                offer[0].close(offer[1])

        def arrive() -> None:
            peer = other.colo
            if (me, other.name) in world.cut or not other.is_up:
                return  # it hears nothing of that, and nothing comes back
            if peer is None or not peer.is_alive or not peer.listens:
                answer(Event.SILENT)
            else:
                colo = peer
                colo.take(lambda: colo.judge(self, grant, answer, stays))

        def answer(event: Event, offer: Offer | None = None) -> None:
            if (other.name, me) not in world.cut:
                delay_s = world.some(0.0005, 0.004)
                world.after(delay_s, lambda: self.take(lambda: end(event, offer)))
            elif offer is not None:
                offer[0].close(offer[1])

        self.after(3.0, lambda: end(Event.SILENT))
        world.after(world.some(0.0005, 0.004), arrive)

    @property
    def listens(self) -> bool:
        return self.can(Event.LINK_UP) and self.state not in FINAL

    def can(self, event: Event) -> bool:
        return self.member.can(event)

    def judge(
        self, caller: Talks, grant: Grant, answer: Callable[..., object], stays: bool
    ) -> None:
        """A primary says hello: see that the arbiter here shows its grant, and take it in."""

        def checked(result: Any) -> None:
            if self.cluster.is_refused():
                answer(self.world.random.choice([Event.UNFIT, Event.OBJECTS]))
                return
            if not self.listens or isinstance(result, Foreign | Moved):
                answer(Event.OBJECTS)
                return
            if Do.REFUSE in self.tell(Event.LINK_UP, grant=result):
                answer(Event.OBJECTS)
                return
            end = End(self, self._hear, self._link_lost)
            theirs = End(caller, caller._hear, caller._link_lost)
            made = Connection(self.world, theirs, end, SILENCE_S)  # before the first copy is whole
            self.link = made, end
            if not caller.is_alive or not stays:
                made.close(theirs)
            answer(Event.AGREES, (made, theirs) if stays else None)

        if not self.means.automatic:
            checked(grant)
            return
        move: Move[Any] = lambda record: moves.check(record, grant)  # noqa: E731
        self.cluster.arbiter.call(self, move, checked, lambda _: answer(Event.OBJECTS))

    def do_question(self) -> None:
        self._hello(lambda event, _: self.tell(event), stays=False)

    def do_call(self) -> None:
        if self.means.stock:
            self.ask(self.world.some(0.0005, 0.004), self._connect)
            return

        def reply(event: Event, offer: Offer | None) -> None:
            if event is not Event.AGREES or offer is None or not offer[1].is_open:
                self.tell(Event.UNFIT if event is Event.UNFIT else Event.UNREACHED)
                return
            self.link = offer
            self.ask(self.world.some(0.0005, 0.02), self._connect)

        self._hello(reply, stays=True)

    def _connect(self) -> None:
        """Have the checkpoint channel, which goes the way of the control link."""
        other = self.cluster.other(self.it)
        peer, cut = other.colo, (self.host, other.name) in self.world.cut
        linked = self.link is not None and self.link[1].is_open
        if peer is None or not peer.is_alive or cut or not (linked or self.means.stock):
            self.tell(Event.UNREACHED)
            return
        ours = End(self, self._from_secondary, self._session_lost)
        theirs = End(peer, lambda _: begin(), lambda: None)

        def begin() -> None:
            theirs.heard, theirs.lost = peer._from_primary, peer._channel_lost
            peer._channel_up(made, theirs)

        # Without a control link its silence is all that tells of the other host.
        made = Connection(self.world, ours, theirs, SILENCE_S if self.means.stock else None)
        self.channel = made, ours
        made.send(ours, "it begins")
        self.tell(Event.REACHED)

    def _channel_up(self, made: Connection, end: End) -> None:
        if not self.can(Event.CHANNEL_UP) or self.state in FINAL:
            made.close(end)
            return
        self._incoming = made, end
        if Do.REFUSE in self.tell(Event.CHANNEL_UP, grant=Grant(0, "")):
            made.close(end)

    def _say(self, what: object) -> None:
        if self.link is not None:
            self.link[0].send(self.link[1], what)

    def _hear(self, what: Any) -> None:
        word, number = what
        match word:
            case WordKind.DEAD | WordKind.HANDOVER:
                grant = Grant(number, "") if number is not None else None
                self._hear_if(Event.SAYS_GONE, word=word, grant=grant, lacks=self.lacks)
            case WordKind.SHUTDOWN:
                self._hear_if(Event.SAYS_SHUTDOWN)
            case WordKind.REFUSED:
                self._hear_if(Event.REJECTED, final=number)
            case _:
                self._see_that_it_is_decided()
                self._hear_if(Event.LETS_GO)

    def _see_that_it_is_decided(self) -> None:
        """The copy is about to be forgotten: then the VM may not need it any more."""
        other = self.cluster.other(self.it).colo
        if other is not None and other.is_alive and other.state is State.LOST and self.store:
            if other.member.facts.by_order:
                return  # somebody has ended the protection
            raise Violation("the copy is to be forgotten, and nobody has decided yet")

    def _hear_if(self, event: Event, **facts: Any) -> None:
        self.tell(event, **facts)

    def _link_lost(self) -> None:
        self.link = None
        self.tell(Event.LINK_LOST, lacks=self.lacks)

    def do_hang_up(self) -> None:
        if self.link is not None:
            self.link[0].close(self.link[1])
            self.link = None

    def do_say_dead(self) -> None:
        self._say((WordKind.DEAD, self.member.facts.last_number))

    def do_say_shutdown(self) -> None:
        self._say((WordKind.SHUTDOWN, None))

    def do_say_bye(self) -> None:
        self._say((WordKind.BYE, None))

    def do_say_alone(self) -> None:
        self._say((WordKind.ALONE, None))

    def do_say_handover(self) -> None:
        self._say((WordKind.HANDOVER, None))

    def do_refuse(self) -> None:
        pass

    def do_await_taken(self) -> None:
        deadline = self.world.now + 3.0
        ours = self.member.facts.grant

        def look() -> None:
            if self.state is not State.GOING_OVER:
                return
            if self.world.now > deadline:
                self.tell(Event.TIME)
                return
            self.cluster.arbiter.call(self, lambda record: record, seen, lambda _: again())

        def seen(record: Any) -> None:
            if self.state is not State.GOING_OVER:
                return
            if record is not None and record.grant != ours:
                self.tell(Event.TAKEN)
            else:
                again()

        def again() -> None:
            self.after(0.02, look)

        look()

    def do_hear_out(self) -> None:
        self.ask(0.5, lambda: self.tell(Event.HEARD_OUT))
