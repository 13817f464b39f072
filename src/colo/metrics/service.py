"""``[metrics] listen``: has a running colo tell Prometheus how its VM stands."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from colo.arbiters.arbiter import Arbiter
from colo.config import VmConfig
from colo.errors import LocalError, UsageError
from colo.http.server import HttpServer, Request, Response, refusal
from colo.metrics.arbiter import Reached, watch
from colo.node.state_folder import StateFolder
from colo.transport.address import Address, parse_address

__all__ = ["measured"]

_PATH: Final = "/metrics"
#: It is put together so often at most, however many ask: that takes a millisecond of a VM's colo.
_FRESH_S: Final = 0.2


def measured(
    config: VmConfig, arbiter: Arbiter, run: Callable[[StateFolder], Coroutine[Any, Any, int]]
) -> Callable[[StateFolder], Coroutine[Any, Any, int]]:
    """``run``, with its figures told where the VM file wants that.

    Raises UsageError where it wants them told at no address.
    """
    listen = config.metrics.listen
    if listen is None:
        return run
    address = _address(listen)

    async def run_measured(folder: StateFolder) -> int:
        async with _served(config.name, arbiter, address, folder):
            return await run(folder)

    return run_measured


def _address(text: str) -> Address:
    """HOST:PORT or unix:PATH."""
    try:
        if not text.isprintable():  # such as a NUL, which no address may have
            raise UsageError(text)
        return parse_address(text if text.startswith("unix:") else f"tcp:{text}")
    except UsageError:
        raise UsageError(f"[metrics] listen = {text!r}: HOST:PORT or unix:PATH") from None


@contextlib.asynccontextmanager
async def _served(
    vm: str, arbiter: Arbiter, address: Address, folder: StateFolder
) -> AsyncIterator[None]:
    """Answer at the address meanwhile.  Raises LocalError where that cannot be."""
    reached = Reached() if arbiter.automatic and arbiter.exclusive else None
    server = HttpServer(_handler(vm, folder, reached))
    try:
        sock = address.listen()
    except UsageError as error:
        # It may be free in a moment: who starts colo again and again is to try again.
        raise LocalError(f"[metrics] listen: {error}") from error.__cause__
    async with contextlib.AsyncExitStack() as stack:
        if address.path:
            stack.callback(Path(address.path).unlink, missing_ok=True)
        await server.start(sock)
        stack.push_async_callback(server.close)
        if reached is not None:
            watching = asyncio.create_task(watch(arbiter, reached))
            stack.callback(watching.cancel)
        yield


def _handler(
    vm: str, folder: StateFolder, reached: Reached | None
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """What answers a request for figures."""
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.core import Metric
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector

    from colo.metrics.families import families

    class OfFolder(Collector):
        """What its colo says last, each time anew."""

        def collect(self) -> Iterable[Metric]:
            return families(vm, folder.last, folder.history.last, reached)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(OfFolder())
    ProcessCollector(registry=registry)

    told: dict[str, tuple[float, bytes]] = {}  # by its kind: when, and what

    async def answer(request: Request) -> Response:
        if request.method == "POST":
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        if request.path == "/":
            return Response(f"colo's figures of {vm} are at {_PATH}\n".encode())
        if request.path != _PATH:
            return refusal(HTTPStatus.NOT_FOUND)
        encode, kind = choose_encoder(request.fields.get("accept", ""))
        now = time.monotonic()
        at, body = told.get(kind, (-_FRESH_S, b""))
        if now - at >= _FRESH_S:
            body = encode(registry)
            told[kind] = now, body
        return Response(body, kind)

    return answer
