"""Joins a host's machine with what carries its effects out.

What happens is told to the machine, one thing after the other, and what it asks for is performed in
its order.  A question is a coroutine that ends with its outcome; there is one at a time, and who
stops asking gets no answer any more.  A task that fails ends the part with its error: nothing goes
on half.

What people are told is told from here too; where nobody can be told, nothing changes by that.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from colo.membership.member import Member
from colo.membership.states import FINAL, Do, Event, State
from colo.node.orders import Pending
from colo.node.state_folder import StateFolder

__all__ = ["Outcome", "Performer"]

#: An event and what goes with it; None where it is told by somebody else.
Outcome: TypeAlias = tuple[Event, dict[str, Any]] | None


class Performer(ABC):
    """Performs what ``member`` asks for; ``over`` is done once its part has ended."""

    def __init__(
        self, member: Member, folder: StateFolder, tell_user: Callable[[str], None]
    ) -> None:
        self.member = member
        self.pending = Pending()  # an order to decide
        self._folder = folder
        self._tell_user = tell_user
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events: deque[tuple[Event, dict[str, Any]]] = deque()
        self._telling = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._question: asyncio.Task[Outcome] | None = None
        self._pause: asyncio.TimerHandle | None = None

    @property
    def state(self) -> State:
        """The machine's state."""
        return self.member.state

    def tell(self, event: Event, **facts: Any) -> tuple[Do, ...]:
        """Tell the machine that something happened, and perform what it asks for.

        Returns that; nothing where this happened within another event, and comes after it.
        """
        self._events.append((event, facts))
        first: tuple[Do, ...] | None = None
        if self._telling:
            return ()
        self._telling = True
        try:
            while self._events:
                event, facts = self._events.popleft()
                effects = self._take(event, facts)
                first = effects if first is None else first
        except Exception as error:
            self.fail(error)
        finally:
            self._telling = False
        return first or ()

    def _take(self, event: Event, facts: dict[str, Any]) -> tuple[Do, ...]:
        before, overridden = self.state, self.member.facts.overridden
        effects = self.member.handle(event, **facts)
        if self.member.facts.overridden != overridden:
            with contextlib.suppress(OSError):  # it is full, or gone
                self._folder.override(self.member.facts.overridden)
        if self.state is not before:
            self._end_pause()
            self.entered(before, event)
        for effect in effects:
            if effect is Do.STOP_ASKING:
                self.stop_asking()
            else:
                self.perform(effect)
        if self.member.facts.grant.number:
            with contextlib.suppress(OSError):
                self._folder.note_grant(self.member.facts.grant)
        self.performed(event)
        if self.state in FINAL and not self.over.done():
            self.over.set_result(None)
        return effects

    @abstractmethod
    def perform(self, effect: Do) -> None:
        """Begin what is asked for; what takes time is begun as a question, or a task."""

    @abstractmethod
    def entered(self, before: State, event: Event) -> None:
        """The state has changed; its effects come next."""

    @abstractmethod
    def performed(self, event: Event) -> None:
        """An event has been dealt with."""

    # -- people ---------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Tell the user a line."""
        with contextlib.suppress(OSError):  # nobody reads it any more
            self._tell_user(f"{self.member.vm}: {text}")

    def write_status(self) -> None:
        """Have the state folder say how the VM stands."""
        with contextlib.suppress(OSError):  # it is full, or gone
            self._folder.write_status(self.status())

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """What ``status.json`` says of this part."""

    # -- what takes time ------------------------------------------------------------------

    def ask(self, question: Coroutine[Any, Any, Outcome]) -> None:
        """Have a question answered; the one before is not any more."""
        self.stop_asking()
        self._question = asking = self.spawn(question)

        def answered(task: asyncio.Task[Outcome]) -> None:
            if task is not self._question or task.cancelled() or task.exception() is not None:
                return
            self._question = None
            outcome = task.result()
            if outcome is not None:
                event, facts = outcome
                self.tell(event, **facts)

        asking.add_done_callback(answered)

    def stop_asking(self) -> None:
        """Want no answer any more."""
        question, self._question = self._question, None
        if question is not None and question is not asyncio.current_task():
            question.cancel()

    def pause(self, seconds: float) -> None:
        """Tell of the time once it has come, if the state is this one then."""
        self._end_pause()
        loop = asyncio.get_running_loop()
        self._pause = loop.call_later(seconds, self.tell, Event.TIME)

    def _end_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def spawn(self, work: Coroutine[Any, Any, Any], is_needed: bool = True) -> asyncio.Task[Any]:
        """Have work done beside all else, until ``close``.

        Where it fails this part ends, if it ``is_needed``.
        """
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done if is_needed else self._tasks.discard)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End this part with an error."""
        if not self.over.done():
            self.over.set_exception(error)

    async def close(self) -> None:
        """End all that is still being done."""
        self._end_pause()
        self._question = None
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
