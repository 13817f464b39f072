"""Where NBD clients come in: a socket that only this host's own processes reach."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Collection
from pathlib import Path

from colo.errors import UsageError
from colo.nbd.server import Export, Limits, serve_connection
from colo.transport.address import Address
from colo.transport.sockets import accepted

__all__ = ["Server", "listen"]


class Server:
    """Serves ``exports`` to all who come to ``server``; later ones see what is in it then.

    ``on_error`` is told of each connection that did not end in order.
    """

    def __init__(
        self,
        server: socket.socket,
        exports: Collection[Export],
        on_error: Callable[[Exception], None],
        limits: Limits | None = None,
    ) -> None:
        self._server = server
        self._exports = exports
        self._on_error = on_error
        self._limits = limits or Limits()
        self._clients: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Accept until cancelled; then close ``server`` and all connections."""
        try:
            async for sock, _ in accepted(self._server):
                if len(self._clients) >= self._limits.clients:
                    sock.close()
                    continue
                client = asyncio.create_task(self._serve(sock))
                self._clients.add(client)
                client.add_done_callback(self._clients.discard)
        finally:
            _close(self._server)
            for client in self._clients:
                client.cancel()
            if self._clients:
                await asyncio.wait(self._clients)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            await serve_connection(sock, self._exports, self._limits)
        except Exception as error:
            self._on_error(error)


def listen(address: Address) -> socket.socket:
    """Listen at a unix socket, open to its owner only, or at a port of this host's loopback.

    Raises UsageError; NBD asks nobody who they are, so nobody else may get there.
    """
    if not address.path and not _is_loopback(address.host):
        raise UsageError(f"NBD at {address}: only a unix socket or the loopback is safe")
    return address.listen()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _close(server: socket.socket) -> None:
    """Close a listening socket; a unix one's path goes with it."""
    if server.family == socket.AF_UNIX:
        Path(server.getsockname()).unlink(missing_ok=True)
    server.close()
