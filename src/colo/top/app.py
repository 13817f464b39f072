"""``colo top``: looks at the state folders twice a second, and does what keys ask for."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Final

from colo.node.orders import Order, ordered
from colo.status.history import read_history
from colo.status.overview import View, find, look
from colo.top.screen import Model, draw
from colo.top.terminal import Key, Keys, Terminal

__all__ = ["Top"]

_LOOK_S: Final = 0.5
_HISTORY: Final = 20
_KEYS_BYTES: Final = 1024
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Top:
    """The view of all VMs in a folder of state folders."""

    def __init__(self, under: Path, terminal: Terminal) -> None:
        self._terminal = terminal
        self._model = Model(under, ascii_only=terminal.ascii_only)
        self._keys = Keys()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ordered: str | None = None  # the VM of which a switchover is under way
        self._ordering: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Show them until the user has enough.  Returns the exit code; raises UsageError."""
        self._look()
        loop = asyncio.get_running_loop()
        for number in _ENDINGS:
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGWINCH, self._draw)
        loop.add_signal_handler(signal.SIGTSTP, self._stand_aside)
        looking: asyncio.Task[None] | None = None
        try:
            self._terminal.enter()
            loop.add_reader(self._terminal.keyboard, self._read)
            looking = asyncio.create_task(self._keep_looking())
            await asyncio.wait({self._over, looking}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                looking.result()
        finally:
            if looking is not None:
                looking.cancel()
            loop.remove_reader(self._terminal.keyboard)
            self._terminal.leave()
        return 0

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _stand_aside(self) -> None:
        """Ctrl-Z: the shell has the terminal until it lets this go on."""
        self._terminal.leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._terminal.enter()
        self._draw()

    async def _keep_looking(self) -> None:
        while True:
            self._draw()
            await asyncio.sleep(_LOOK_S)
            self._look()

    def _look(self) -> None:
        model = self._model
        model.views = [look(folder) for folder in find(model.under)]
        model.trends.look(model.views)
        model.history = read_history(model.view.folder, _HISTORY) if model.view else []

    def _draw(self) -> None:
        try:
            self._terminal.show(draw(self._model, *self._terminal.size, time.time()))
        except OSError:  # the terminal is gone
            self._end()

    # -- keys -----------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            data = os.read(self._terminal.keyboard, _KEYS_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
        for key in self._keys.take(data):
            self._press(key)
        self._draw()

    def _press(self, key: Key) -> None:
        model = self._model
        if model.asked is not None:
            view, model.asked = model.asked, None
            if key is Key.YES:
                self._ordering = asyncio.create_task(self._switch_over(view))
            elif key is Key.QUIT:
                self._end()
            return
        match key:
            case Key.QUIT:
                self._end()
            case Key.UP | Key.DOWN | Key.FIRST | Key.LAST:
                far = len(model.views)
                model.move({Key.UP: -1, Key.DOWN: 1, Key.FIRST: -far, Key.LAST: far}[key])
                model.history = read_history(model.view.folder, _HISTORY) if model.view else []
            case Key.SWITCHOVER:
                self._ask(model.view)

    def _ask(self, view: View | None) -> None:
        """Have the user confirm a switchover, where there can be one."""
        if view is None:
            return
        why = ""
        if self._ordered is not None:
            why = f"{self._ordered}: its switchover is under way"
        elif not view.is_alive:
            why = f"{view.vm}: colo does not run"
        elif view.role != "primary":
            why = f"{view.vm}: the VM does not run here: say that on its host"
        if why:
            self._say(why, failed=True)
        else:
            self._model.selected = view.folder
            self._model.asked = view

    async def _switch_over(self, view: View) -> None:
        """Give the order; it may take as long as it takes, and nobody waits for it at the end."""
        self._ordered = view.vm
        self._say(f"{view.vm}: it goes over …")
        answer = await ordered(view.folder, Order("switchover"))
        self._ordered = None
        self._say(f"{view.vm}: {answer.text}", failed=not answer.ok)
        self._draw()

    def _say(self, text: str, failed: bool = False) -> None:
        self._model.message, self._model.failed = text, failed
