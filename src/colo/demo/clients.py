"""Clients of the guest's services: ``python -m colo.demo.clients stream HOST``.

Each holds one TCP connection for its whole life, ends at its bounds, at SIGTERM or at the first
offence, and then says its verdict: a line, or with ``--json`` one JSON object.  Exit codes: 0
all was as it must be, 1 it was not, 2 wrong usage.  With ``--log`` it also writes a JSON line
for each thing that came.  ``t`` and ``began`` are of the wall clock; ``since`` and all lengths
of time are of CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import contextlib
import functools
import json
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol

import click

from colo.demo.verdicts import (
    BulkJudge,
    ClockJudge,
    EchoJudge,
    FloodJudge,
    RecordsJudge,
    SinkJudge,
    StreamJudge,
    generate,
)
from colo.errors import ColoError

__all__ = ["main"]

_FIRST_PORT: Final = 7000
_STREAM, _ECHO, _GENERATE, _SINK, _FLOOD, _FLOODED, _, _CLOCK, _RECORDS = range(9)  # after it
_BLOCK: Final = 1 << 18
_FLOOD_BUFFER: Final = 64 << 20
_FLOOD_SETTLE_S: Final = 0.5
_DATAGRAM_MAX: Final = 2048
_ENDLESS: Final = 1 << 62
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; the socket module does not have it
_MIB: Final = 1 << 20


class ConnectionEnded(ColoError):
    """The connection did not last as long as the client."""


class _Stopped(BaseException):
    """SIGTERM or SIGINT: it is enough."""


class Judge(Protocol):
    """What all judges in `verdicts` have."""

    @property
    def offence(self) -> str | None:
        """The first thing that is wrong with what came."""

    @property
    def error(self) -> str | None:
        """The offence, or what is missing."""

    def figures(self) -> dict[str, Any]:
        """What to report."""


@dataclass(frozen=True)
class Options:
    """What all clients are told."""

    host: str
    port: int
    seconds: float | None
    silence: float
    log: IO[str] | None
    json: bool


class Session:
    """One client's connection, until the client's time is over."""

    def __init__(self, options: Options, service: int) -> None:
        self._options = options
        address = (options.host, options.port + service)
        try:
            self.peer = socket.create_connection(address, timeout=options.silence)
        except OSError as error:
            raise ConnectionEnded(f"cannot connect to {options.host}: {error}") from error
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = float("inf") if options.seconds is None else options.seconds
        self._deadline = time.monotonic() + seconds

    def over(self) -> bool:
        """Whether the client's time is over."""
        return time.monotonic() >= self._deadline

    def send(self, data: bytes) -> None:
        """Send all of it.  Raises ConnectionEnded."""
        try:
            self.peer.sendall(data)
        except TimeoutError:
            raise ConnectionEnded(f"nothing was taken for {self._options.silence:g} s") from None
        except OSError as error:
            raise ConnectionEnded(f"the connection ended: {error}") from error

    def receive(self, size: int = _BLOCK) -> bytes:
        """Receive some bytes; none where the client's time is over.  Raises ConnectionEnded."""
        silence = self._options.silence
        left = self._deadline - time.monotonic()
        if left <= 0:
            return b""
        self.peer.settimeout(min(left, silence))
        try:
            data = self.peer.recv(size)
        except TimeoutError:
            if left <= silence:
                return b""
            raise ConnectionEnded(f"nothing came for {silence:g} s") from None
        except OSError as error:
            raise ConnectionEnded(f"the connection ended: {error}") from error
        finally:
            self.peer.settimeout(silence)
        if not data:
            raise ConnectionEnded("the guest closed the connection")
        return data

    def line(self) -> bytes:
        """Receive a line; a part of one where the client's time is over."""
        line = b""
        while not line.endswith(b"\n") and (data := self.receive()):
            line += data
        return line

    def extend(self, seconds: float) -> None:
        """Give the client ``seconds`` from now, if it had less left."""
        self._deadline = max(self._deadline, time.monotonic() + seconds)

    def log(self, **record: Any) -> None:
        """Write a JSON line with the time, if there is a log."""
        if self._options.log is not None:
            line = json.dumps({"t": time.time(), **record})
            print(line, file=self._options.log, flush=True)

    def flooded(self) -> socket.socket:
        """Return the socket that the guest floods, with room for a lot."""
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _FLOOD_BUFFER)
        except PermissionError:  # no root: as much as the system lets us have
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _FLOOD_BUFFER)
        receiver.bind((self.peer.getsockname()[0], self._options.port + _FLOODED))
        receiver.setblocking(False)
        return receiver


Talk = Callable[[Session], None]


def converse(name: str, options: Options, service: int, judge: Judge, talk: Talk) -> None:
    """Connect, talk, and exit with the judge's verdict."""
    began, clock = time.time(), time.monotonic()
    failure = None
    with _stoppable():
        try:
            session = Session(options, service)
            with session.peer:
                talk(session)
        except ConnectionEnded as ended:
            failure = str(ended)
        except _Stopped:
            pass
    seconds = time.monotonic() - clock
    error = judge.offence or failure or judge.error
    facts = {"began": began, "seconds": seconds, **judge.figures()}
    if "bytes" in facts:
        facts["mib_per_s"] = facts["bytes"] / _MIB / seconds
    if options.json:
        click.echo(json.dumps({"client": name, "ok": error is None, "error": error, **facts}))
    else:
        shown = ", ".join(f"{key} {_shown(value)}" for key, value in facts.items())
        click.echo(f"{name}: {error or 'ok'} ({shown})")
    sys.exit(0 if error is None else 1)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise _Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    yield
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return "/".join(_shown(part) for part in value.values())
    return str(len(value)) if isinstance(value, list) else str(value)


def _client(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that all have, as its first argument."""

    @functools.wraps(command)
    def run(
        host: str,
        port: int,
        seconds: float | None,
        silence: float,
        log: IO[str] | None,
        json_: bool,
        **own: Any,
    ) -> None:
        command(Options(host, port, seconds, silence, log, json_), **own)

    decorators = (
        click.argument("host"),
        click.option("--port", default=_FIRST_PORT, help="The guest's first port."),
        click.option("--seconds", type=float, help="End after so long."),
        click.option("--silence", default=10.0, help="Fail after so many seconds of nothing."),
        click.option("--log", type=click.File("w"), help="Write JSON lines; - is stdout."),
        click.option("--json", "json_", is_flag=True, help="The verdict as a JSON object."),
    )
    for decorate in reversed(decorators):
        run = decorate(run)
    return run


_gap = click.option("--gap-ms", default=200.0, help="Record each silence longer than this.")
_seed = click.option("--seed", default=1, help="Which bytes.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Clients that notice each byte that the guest's services lose, double or get wrong."""


@main.command()
@_client
@click.option("--count", type=int, help="End after so many lines.")
@_gap
def stream(options: Options, count: int | None, gap_ms: float) -> None:
    """Read the lines that the guest counts."""
    judge = StreamJudge(gap_ms / 1e3)

    def talk(session: Session) -> None:
        while judge.offence is None and (count is None or judge.next < count):
            data = session.receive()
            if not data:
                return
            for number in judge.feed(data, time.monotonic()):
                session.log(n=number)

    converse("stream", options, _STREAM, judge, talk)


@main.command()
@_client
@click.option("--count", type=int, help="End after so many requests.")
@click.option("--size", default=1, help="The bytes of a request.", type=click.IntRange(1, _BLOCK))
@click.option("--pause-ms", default=0.0, help="Wait so long between requests.")
@_gap
def echo(options: Options, count: int | None, size: int, pause_ms: float, gap_ms: float) -> None:
    """Send requests and await each one's answer."""
    judge = EchoJudge(size, gap_ms / 1e3)

    def talk(session: Session) -> None:
        while not session.over() and (count is None or len(judge.rtts_ms) < count):
            session.send(judge.request(time.monotonic()))
            while data := session.receive():
                if judge.feed(data, time.monotonic()):
                    break
            if not data or judge.offence is not None:
                return
            session.log(n=len(judge.rtts_ms) - 1, rtt_ms=judge.rtts_ms[-1])
            time.sleep(pause_ms / 1e3)

    converse("echo", options, _ECHO, judge, talk)


@main.command()
@_client
@click.option("--mib", type=int, help="Ask for so many MiB; without it, for as long as it may.")
@_seed
@_gap
def bulk(options: Options, mib: int | None, seed: int, gap_ms: float) -> None:
    """Receive as fast as it goes, and compare every byte."""
    judge = BulkJudge(seed, gap_ms / 1e3)
    wanted = _ENDLESS if mib is None else mib * _MIB

    def talk(session: Session) -> None:
        session.send(b"%d %d\n" % (wanted, seed))
        while judge.offence is None and judge.bytes < wanted:
            data = session.receive()
            if not data:
                return
            judge.feed(data, time.monotonic())
            session.log(bytes=judge.bytes)

    converse("bulk", options, _GENERATE, judge, talk)


@main.command()
@_client
@click.option("--mib", type=int, help="Send so many MiB; without it, for as long as it may.")
@_seed
def sink(options: Options, mib: int | None, seed: int) -> None:
    """Send as fast as it goes, and compare the sum that the guest makes of it."""
    judge = SinkJudge()
    wanted = _ENDLESS if mib is None else mib * _MIB

    def talk(session: Session) -> None:
        while judge.bytes < wanted and not session.over():
            block = generate(seed, judge.bytes // 8, _BLOCK // 8)
            session.send(block)
            judge.sent(block)
            session.log(bytes=judge.bytes)
        session.extend(options.silence)
        session.peer.shutdown(socket.SHUT_WR)
        judge.answered(session.line())

    converse("sink", options, _SINK, judge, talk)


@main.command()
@_client
@click.option("--packets", default=10_000, help="Ask for so many datagrams.")
@click.option("--lost-max", default=0, help="Let so many be lost.")
def flood(options: Options, packets: int, lost_max: int) -> None:
    """Receive UDP datagrams as fast as they go, and count those that are lost."""
    judge = FloodJudge(packets, lost_max)

    def talk(session: Session) -> None:
        with session.flooded() as receiver:
            session.send(b"%d\n" % packets)
            sockets, wait_s = [receiver, session.peer], options.silence
            while not session.over() and judge.lost > 0:
                ready, _, _ = select.select(sockets, [], [], wait_s)
                if not ready:
                    break
                if session.peer in ready:  # all are sent: what comes, comes now
                    session.line()
                    sockets, wait_s = [receiver], _FLOOD_SETTLE_S
                _drain(receiver, judge)
            session.log(**judge.figures())

    converse("flood", options, _FLOOD, judge, talk)


@main.command()
@_client
@click.option("--count", default=40, help="End after so many questions.")
@click.option("--pause-ms", default=20.0, help="Wait so long between two.")
@click.option("--rest-s", default=0.0, help="Once, in their middle, rest so long.")
def clock(options: Options, count: int, pause_ms: float, rest_s: float) -> None:
    """Ask the guest for its time, and hold that against the time that passes here."""
    judge = ClockJudge()

    def talk(session: Session) -> None:
        while not session.over() and judge.answers < count:
            judge.asked(time.monotonic_ns())
            session.send(b"\n")
            line = session.line()
            if not line.endswith(b"\n"):
                return
            judge.feed(line)
            if judge.offence is not None:
                return
            session.log(n=judge.answers, behind_ms=judge.behind_ms)
            time.sleep(rest_s if judge.answers == count // 2 and rest_s else pause_ms / 1e3)

    converse("clock", options, _CLOCK, judge, talk)


@main.command()
@_client
@click.option("--verify-every", default=100, help="Have all looked at after so many.")
@_gap
def records(options: Options, verify_every: int, gap_ms: float) -> None:
    """Have the guest put records on its disk, one after the other."""
    judge = RecordsJudge(gap_ms / 1e3)

    def talk(session: Session) -> None:
        while not session.over() and judge.offence is None:
            for_more = judge.answers % verify_every != verify_every - 1
            judge.asked(for_more)
            session.send(b"\n" if for_more else b"verify\n")
            line = session.line()
            if not line.endswith(b"\n"):
                return
            judge.feed(line, time.monotonic())
            session.log(n=judge.last)

    converse("records", options, _RECORDS, judge, talk)


def _drain(receiver: socket.socket, judge: FloodJudge) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            datagram = receiver.recv(_DATAGRAM_MAX)
            judge.feed(int.from_bytes(datagram[:8], "little"))


if __name__ == "__main__":
    main()
