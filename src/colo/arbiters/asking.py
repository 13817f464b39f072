"""How an arbiter is asked: without waiting for ever, as its file may lie on a dead network mount.

A call that hangs cannot be stopped; it is given up.  Whoever gave it up acts as if it had never
been made: the VM ends, or another host is told that it may go on.  So a call that comes to life
again later must not change anything, and there is one moment at which that is settled: a register
says ``about_to_write`` right before it asks for the change, and goes no further where the asker was
faster.  Where the asker was slower, the change may be made, or may still be made later, as long as
nothing else has been written meanwhile.  The answer that it does not get may be a grant: it is told
so, and asking again is answered with that grant.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, ParamSpec, TypeVar, cast

from colo.errors import LocalError, NoAnswer

__all__ = ["about_to_write", "reach"]

_ANSWER_S: Final = 3.0
_NO_ANSWER: Final = (
    "the arbiter did not answer in {:.0f} s: see whether it can be reached from here; a file on a "
    "dead network mount hangs"
)
_CALLS_MAX: Final = 4
_calls: list[threading.Thread] = []

P = ParamSpec("P")
T = TypeVar("T")


class _Call:
    """One call, between the one who asked and the thread that carries it out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_given_up = False
        self._writes = False

    def about_to_write(self) -> None:
        """From now on something may change.  Raises LocalError where nobody waits any more."""
        with self._lock:
            if self._is_given_up:
                raise LocalError("who asked the arbiter has given up")
            self._writes = True

    def give_up(self) -> bool:
        """Let it change nothing from now on; return whether it may have changed something."""
        with self._lock:
            self._is_given_up = True
            return self._writes


_current: ContextVar[_Call | None] = ContextVar("call", default=None)


def about_to_write() -> None:
    """Say, as a register, that the change is about to be asked for.

    Raises LocalError where whoever asked has given up: then nothing may change.
    """
    call = _current.get()
    if call is not None:
        call.about_to_write()


async def reach(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call an arbiter.

    Raises NoAnswer where there is none in 3 seconds; then, or when this is cancelled, the call is
    given up.  Raises LocalError where too many of those still hang.

    Each call has a thread of its own, for which nobody waits, not even at the end of the program:
    one that hangs holds up nothing else.  So few may hang that no more are begun then.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()
    this = _Call()

    def settle(result: T | None, error: Exception | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(cast(T, result))

    def ask() -> None:
        _current.set(this)
        result, failure = None, None
        try:
            result = call(*args, **kwargs)
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
            loop.call_soon_threadsafe(settle, result, failure)

    _calls[:] = [thread for thread in _calls if thread.is_alive()]
    if len(_calls) >= _CALLS_MAX:
        raise LocalError("the arbiter has not answered for some time")
    _calls.append(threading.Thread(target=ask, name="arbiter", daemon=True))
    _calls[-1].start()
    try:
        async with asyncio.timeout(_ANSWER_S):  # wait_for may lose a cancellation
            return await answer
    except TimeoutError:
        raise NoAnswer(_NO_ANSWER.format(_ANSWER_S), this.give_up()) from None
    finally:
        this.give_up()
