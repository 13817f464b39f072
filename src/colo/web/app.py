"""What the page asks for: itself, what there is as a stream of events, and orders.

The server is colo's own (``colo.http``): a page, a stream and one order need no framework, and none
of its dependencies.  The page is three files as they are; it needs nothing from anywhere else.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from colo.errors import ColoError
from colo.http.server import HttpServer, Request, Response, refusal
from colo.node.orders import Order, ordered
from colo.status.history import HISTORY, Line, read_history
from colo.status.overview import View, find, health_of, look, trouble
from colo.transport.address import Address
from colo.web.guard import Guard

__all__ = ["Web"]

_PAGE: Final = Path(__file__).with_name("page")
_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_FIELDS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_EVERY_S: Final = 1.0
_HISTORY: Final = 200


class Web:
    """The page of the VMs in a folder of state folders."""

    def __init__(self, under: Path, guard: Guard, orders: bool) -> None:
        self._under = under
        self._guard = guard
        self._orders = orders
        self._host = socket.gethostname()
        self._seen: tuple[float, list[View], str] = (-_EVERY_S, [], "")
        self._histories: dict[Path, tuple[tuple[int, int, int], list[Line]]] = {}
        self._over = asyncio.Event()

    def stop(self) -> None:
        """Ask to end."""
        self._over.set()

    async def run(self, address: Address, on_ready: Callable[[], object] = lambda: None) -> int:
        """Serve until ``stop``.  Returns the exit code; raises UsageError."""
        server = HttpServer(self.answer)
        await server.start(address.listen())
        try:
            on_ready()
            await self._over.wait()
        finally:
            await server.close()
        return 0

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        if (refused := self._guard.refuse(request)) is not None:
            return refused
        if request.path == "/order":
            return await self._order(request)
        if request.method == "POST":
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        if request.path == "/events":
            return Response(kind="text/event-stream", stream=self._events())
        if request.path == "/vms":
            body = json.dumps(self._now({}), indent=1).encode()
            return Response(body, "application/json")
        if request.path not in _FILES:
            return refusal(HTTPStatus.NOT_FOUND)
        name, kind = _FILES[request.path]
        return Response((_PAGE / name).read_bytes(), kind, fields=_FIELDS)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        """What there is, again and again; of a history only what is new."""
        known: dict[str, float] = {}
        while True:
            yield f"data: {json.dumps(self._now(known))}\n\n".encode()
            await asyncio.sleep(_EVERY_S)

    def _look(self) -> tuple[list[View], str]:
        """All VMs, looked at once for all who want to know."""
        now = time.monotonic()
        if now - self._seen[0] >= 0.9 * _EVERY_S:
            try:
                self._seen = now, [look(folder) for folder in find(self._under)], ""
            except ColoError as error:
                self._seen = now, [], str(error)
        return self._seen[1:]

    def _now(self, known: dict[str, float]) -> dict[str, Any]:
        """All there is; ``known``: by VM, when the last line was that is known of its history."""
        views, error = self._look()
        return {
            "at": time.time(),
            "host": self._host,
            "under": str(self._under),
            "orders": self._orders,
            "error": error,
            "vms": [self._vm(view, known) for view in views],
        }

    def _vm(self, view: View, known: dict[str, float]) -> dict[str, Any]:
        name = view.folder.name
        lines = self._history(view.folder)
        content = {
            "id": name,
            **view.as_json(),
            "trouble": trouble(view),
            "sums": dict(view.sums or {}),
        }
        last = lines[-1].at if lines else 0.0
        if known.get(name) != last:
            known[name] = last
            content["history"] = [_line(line) for line in lines]
        return content

    def _history(self, folder: Path) -> list[Line]:
        """What became of a VM; it is read where there is more."""
        try:
            found = (folder / HISTORY).stat()
        except OSError:
            return []
        is_now = found.st_ino, found.st_size, found.st_mtime_ns
        read = self._histories.get(folder)
        if read is None or read[0] != is_now:
            read = self._histories[folder] = is_now, read_history(folder, _HISTORY)
        return read[1]

    async def _order(self, request: Request) -> Response:
        if request.method != "POST":
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        if not self._orders:
            return refusal(HTTPStatus.FORBIDDEN, "it is read-only: see --allow-orders")
        if (refused := self._guard.refuse_order(request)) is not None:
            return refused
        try:
            content = json.loads(request.body)
            name, order = content["id"], content["order"]
        except (ValueError, KeyError, TypeError):
            return refusal(HTTPStatus.BAD_REQUEST)
        folders = [view.folder for view in self._look()[0] if view.folder.name == name]
        if not folders or order != "switchover":
            return refusal(HTTPStatus.BAD_REQUEST, "there is no such VM, or no such order")
        answer = await ordered(folders[0], Order(order))
        body = json.dumps({"ok": answer.ok, "text": answer.text}).encode()
        return Response(body, "application/json")


def _line(line: Line) -> dict[str, Any]:
    return {**asdict(line), "health": health_of(line.state).name}
