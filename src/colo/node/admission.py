"""How a control link begins: a primary says hello, and is taken in or refused.

Before it is taken in, the arbiter here has to show the grant under which it runs: two hosts that
do not ask the same arbiter would each be granted the VM, or neither, once they lose each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.asking import reach
from colo.config import VmConfig
from colo.errors import LocalError, PeerError
from colo.membership.grant import Grant
from colo.membership.words import Hello, Word, WordKind
from colo.transport.control_link import Link

__all__ = ["Greeting"]

_HELLO_S: Final = 2.0
#: Less than the primary waits for the answer to its hello.
_ARBITER_S: Final = 1.5
#: How many may be undecided at once; beyond, the oldest is closed.
_UNDECIDED_MAX: Final = 64


class Greeting:
    """The control link that comes over ``sock``, which it owns.

    ``welcome`` gets the link and a hello that fits, with its grant as that stands, and returns why
    that primary cannot be taken in now, or None: it is taken in, ``hear`` gets its words and
    ``lost`` how it ended.  Whoever is not taken in is closed; ``refused`` gets why, where it said
    hello.  ``undecided`` are those of the same secondary of which neither has happened yet.
    """

    def __init__(
        self,
        sock: socket.socket,
        config: VmConfig,
        arbiter: Arbiter,
        beat: Callable[[], dict[str, Any]],
        welcome: Callable[[Link, Hello], str | None],
        refused: Callable[[str], None],
        hear: Callable[[Word], None],
        lost: Callable[[PeerError], None],
        undecided: list[Greeting],
    ) -> None:
        self._ours = Hello.ours(config)
        self._arbiter = arbiter
        self._welcome = welcome
        self._refused = refused
        self._hear = hear
        self._lost = lost
        self._is_in = False
        self._judging: asyncio.Task[None] | None = None
        every_s, limits_s = config.failover.heartbeat_s, config.failover.limits_s
        self._link = Link(sock, every_s, limits_s, beat, self._word, self._ended, True)
        self._timer = asyncio.get_running_loop().call_later(_HELLO_S, self._close)
        self._undecided = undecided
        undecided.append(self)
        if len(undecided) > _UNDECIDED_MAX:
            undecided[0]._close()

    def _word(self, word: Word) -> None:
        if self._is_in:
            self._hear(word)
        elif self._judging is not None:
            raise PeerError(f"it says {word.kind.value} before its hello is answered")
        else:
            self._judging = asyncio.create_task(self._judge(Hello.of(word)))
            self._timer.cancel()

    def _ended(self, error: PeerError) -> None:
        if self._is_in:
            self._lost(error)
        else:
            self._close()

    def _close(self) -> None:
        self._decided()
        self._link.close()
        if self._judging is not None:
            self._judging.cancel()

    def _decided(self) -> None:
        self._timer.cancel()
        with contextlib.suppress(ValueError):
            self._undecided.remove(self)

    async def _judge(self, hello: Hello) -> None:
        why = hello.refusal(self._ours)
        final = why is not None
        if why is None:
            try:
                async with asyncio.timeout(_ARBITER_S):
                    grant = await reach(self._arbiter.check, Grant(hello.grant, hello.holder))
            except TimeoutError:
                why = f"the arbiter here did not answer in {_ARBITER_S} s"
            except LocalError as error:
                why = str(error)
            else:
                hello = replace(hello, grant=grant.number, holder=grant.holder)
                why = self._welcome(self._link, hello)
        self._decided()
        if why is not None:
            self._link.say(Word(WordKind.REFUSED, {"why": why, "final": final}))
            self._link.close()
            self._refused(why)
            return
        self._is_in = True
        self._link.say(self._ours.word())
        self._link.begin()
