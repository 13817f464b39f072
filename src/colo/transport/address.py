"""Addresses as users write them: ``unix:PATH`` or ``tcp:HOST:PORT``, the same as QEMU's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colo.errors import UsageError
from colo.transport.sockets import bind_private
from colo.transport.tls import Tls

__all__ = ["Address", "parse_address"]

_PORT_MAX = 65535
_NO_HOST = "can be no host's name: its parts, between the dots, have 1 to 63 characters each"


@dataclass(frozen=True)
class Address:
    """A unix socket's ``path``, or a TCP ``host`` and ``port``, whose connections may be TLS."""

    path: str = ""
    host: str = ""
    port: int = 0
    tls: Tls | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return (
            f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"
        )

    def listen(self) -> socket.socket:
        """Return a listening socket; a unix one is open to its owner only.  Raises UsageError."""
        try:
            return self._listen_unix() if self.path else self._listen_tcp()
        except OSError as error:
            raise UsageError(f"cannot listen on {self}: {error.strerror or error}") from error

    async def connect(self) -> socket.socket:
        """Return a connected socket that does not block.  Raises OSError or ChannelLost."""
        loop = asyncio.get_running_loop()
        if self.path:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            target: Any = self.path
        else:
            if not _can_be_host(self.host):
                raise socket.gaierror(socket.EAI_NONAME, f"{self.host!r} {_NO_HOST}")
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            family, kind, protocol, _, target = found[0]
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, target)
        except BaseException:
            sock.close()
            raise
        return sock if self.tls is None else await self.tls.connect(sock)

    def _listen_tcp(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        return socket.create_server((self.host, self.port), family=family)

    def _listen_unix(self) -> socket.socket:
        self._remove_stale()
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            bind_private(server, self.path)
            server.listen()
        except OSError:
            server.close()
            raise
        return server

    def _remove_stale(self) -> None:
        """Remove a socket that nobody listens on any more."""
        if not Path(self.path).is_socket():
            return
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                Path(self.path).unlink(missing_ok=True)


def parse_address(text: str, tls: Tls | None = None) -> Address:
    """Parse an address; ``tls`` is for one over TCP.  Raises UsageError with what is wrong."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return Address(path=rest)
    if kind == "tcp":
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if host and port.isascii() and port.isdigit() and int(port) <= _PORT_MAX:
            if not _can_be_host(host):
                raise UsageError(f"{text!r} is no address: {host!r} {_NO_HOST}")
            return Address(host=host, port=int(port), tls=tls)
    raise UsageError(f"{text!r} is no address: unix:PATH or tcp:HOST:PORT")


def _can_be_host(host: str) -> bool:
    """Whether a name can be looked up at all: what cannot be encoded is no OSError there."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
