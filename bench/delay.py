"""A link between the hosts that delays, and how fast a link is without colo.

    python -m bench.delay forward HOST TO MS PORT:PORT...   each connection to HOST:PORT goes to TO
    python -m bench.delay answer HOST PORT                  what ``ask`` asks
    python -m bench.delay ask HOST PORT MIB                 round trip and rate, as JSON

``forward`` has every byte arrive so much later, in order, at any rate: this kernel has no netem.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import time
from collections import deque
from typing import Final

from bench.stats import median

__all__ = ["main"]

_CHUNK: Final = 512 << 10
#: So many bytes may be late, as the next link does not take them; then nothing more is read.
_LATE_BYTES: Final = 2 << 20
_TRIPS: Final = 200
_LENGTH_BYTES: Final = 8
_MIB: Final = 1 << 20


def main() -> int:
    """Do what the command line says."""
    match sys.argv[1:]:
        case ["forward", host, to, ms, *ports]:
            pairs = [port.split(":") for port in ports]
            _forward(host, to, float(ms) / 1e3, {int(here): int(there) for here, there in pairs})
        case ["answer", host, port]:
            _answer(host, int(port))
        case ["ask", host, port, mib]:
            print(json.dumps(_ask(host, int(port), int(mib))))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


# -- a link that delays -----------------------------------------------------------------


class _Direction:
    """One direction of a connection.  No bytes are its end."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_s: float) -> None:
        self.source, self.target = source, target
        self._delay_s = delay_s
        self._pieces: deque[tuple[float, memoryview]] = deque()  # when it is due, and what
        self._late = 0  # the bytes of those that were due when the target took no more
        self._ended = False  # nothing more comes
        self.done = False  # and all is passed on

    def reads(self) -> bool:
        """Whether it takes more."""
        return not self._ended and self._late < _LATE_BYTES

    def due_at(self) -> float | None:
        """When the next piece is due."""
        return self._pieces[0][0] if self._pieces else None

    def receive(self) -> None:
        """Take what is there.  Raises OSError."""
        data = self.source.recv(_CHUNK)
        self._ended = not data
        self._pieces.append((time.monotonic() + self._delay_s, memoryview(data)))

    def send(self) -> None:
        """Pass on what is due, as far as the target takes it.  Raises OSError."""
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            while self._pieces and self._pieces[0][0] <= now:
                due, data = self._pieces[0]
                if not data:
                    self.target.shutdown(socket.SHUT_WR)
                    self.done = True
                sent = self.target.send(data) if data else 0
                self._pieces.popleft()
                if sent < len(data):
                    self._pieces.appendleft((due, data[sent:]))
        self._late = 0
        for due, data in self._pieces:
            if due > now:
                break
            self._late += len(data)


def _forward(host: str, to: str, delay_s: float, ports: dict[int, int]) -> None:
    """Forward for ever.  A select, as an epoll's times are whole milliseconds."""
    servers = {socket.create_server((host, here)): there for here, there in ports.items()}
    directions: list[_Direction] = []
    while True:
        now = time.monotonic()
        dues = [(each, due) for each in directions if (due := each.due_at()) is not None]
        late = {each.target for each, due in dues if due <= now}
        waits_s = min((due - now for _, due in dues if due > now), default=None)
        reading = [*servers, *(each.source for each in directions if each.reads())]
        readable, writable, _ = select.select(reading, late, [], waits_s)
        for server in servers.keys() & set(readable):
            directions += _connection(server, (to, servers[server]), delay_s)
        now, broken = time.monotonic(), set()
        for each in directions:
            try:
                if each.source in readable:
                    each.receive()
                due = each.due_at()
                if each.target in writable or (due is not None and due <= now):
                    each.send()
            except OSError:  # one end is gone: so is the connection
                broken |= {each.source, each.target}
        directions = _without(directions, broken)


def _connection(
    server: socket.socket, to: tuple[str, int], delay_s: float
) -> tuple[_Direction, ...]:
    """Accept one; whoever it is for may not be there."""
    near, _ = server.accept()
    try:
        far = socket.create_connection(to)
    except OSError:
        near.close()
        return ()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return _Direction(near, far, delay_s), _Direction(far, near, delay_s)


def _without(directions: list[_Direction], broken: set[socket.socket]) -> list[_Direction]:
    """Close the connections that are broken, and those of which both directions are done."""
    done = {each.source for each in directions if each.done}
    over = broken | {each.source for each in directions if {each.source, each.target} <= done}
    for sock in over:
        sock.close()
    return [each for each in directions if each.source not in over]


# -- how fast a link is -----------------------------------------------------------------


def _answer(host: str, port: int) -> None:
    """For each connection: so many bytes as it says are taken, and answered with one, for ever."""
    room = bytearray(_CHUNK)
    with socket.create_server((host, port)) as server:
        while True:
            sock, _ = server.accept()
            with sock, contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while head := sock.recv(_LENGTH_BYTES, socket.MSG_WAITALL):
                    left = int.from_bytes(head, "big")
                    while left:
                        got = sock.recv_into(room, min(left, _CHUNK))
                        if not got:
                            break
                        left -= got
                    sock.sendall(b"!")


def _ask(host: str, port: int, mib: int) -> dict[str, float]:
    """The round trip of a byte, and the rate of so many MiB."""
    with socket.create_connection((host, port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = [_sent_s(sock, b"?") for _ in range(_TRIPS)]
        data = bytes(mib * _MIB)
        _sent_s(sock, data)  # TCP finds its size
        rate = mib / _sent_s(sock, data)
    return {"round_trip_ms": round(median(trips) * 1e3, 3), "mib_per_s": round(rate, 1)}


def _sent_s(sock: socket.socket, data: bytes) -> float:
    began = time.monotonic()
    sock.sendall(len(data).to_bytes(_LENGTH_BYTES, "big"))
    sock.sendall(data)
    sock.recv(1)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
