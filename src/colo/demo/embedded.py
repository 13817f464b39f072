"""``colo demo --embedded``: the whole story with a guest in memory; all that it needs is Python.

Each host is a process, the guest is memory and a blob in it, and both roles of the protocol are
colo's own.  A host is killed in the middle of a checkpoint, at a byte that is drawn at random; the
other one takes over and is protected by the first one, which has come back; and is killed in turn.
A client is connected all the while.  Whatever the story claims is checked, and the demo fails
where it was not so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from colo.demo.telling import DemoError, Event, begin, side_by_side
from colo.demo.verdicts import StreamJudge
from colo.status.figures import Summary, summarise
from colo.transport.address import Address

__all__ = ["tell"]

_HOST: Final = (sys.executable, "-m", "colo.demo.host")
_NAMES: Final = ("host A", "host B")
_ROUNDS: Final = 3
_CHECKPOINTS: Final = 50
_LINES_AFTER: Final = 100
_STEP_S: Final = 10.0
_POLL_S: Final = 0.01
_MIB_PAGES: Final = 256


async def tell(host: Sequence[str] = _HOST) -> int:
    """Tell the story; return 0.  Raises ColoError where something was not as it should be.

    ``host``: the command that is a host.
    """
    console, say = begin(
        "What runs survives the death of its host.",
        "Host A and host B are processes of Python; the guest is memory in one of them.",
    )
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="colo-demo-")))
        client = _Client(folder / "client.sock")
        story = _Story(say, folder, client, host, stack)
        reading = asyncio.create_task(client.read())
        stack.callback(reading.cancel)
        await story.run()
        client.check()
        say("client", f"{client.lines} lines, [green]none missing, none doubled[/green]")
        console.print()
        for line in story.side_by_side():
            console.print(line)
        console.print()
        for line in story.figures():
            console.print(line)
    return 0


class _Host:
    """A host's process.  It says what happens to it, in order."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    async def event(self, kind: str) -> dict[str, Any]:
        """Wait for its next event, which has to be of this kind."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(_STEP_S):
                line = await self.process.stdout.readline()
        except TimeoutError:
            raise DemoError(f"{self.name}: waited {_STEP_S:.0f} s for «{kind}»") from None
        event: dict[str, Any] = json.loads(line or '{"event": "gone"}')
        if event["event"] != kind:
            text = event.get("text", "")
            raise DemoError(f"{self.name}: «{event['event']}» instead of «{kind}» {text}".strip())
        return event

    async def kill(self) -> None:
        """SIGKILL, and see it gone."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class _Client:
    """Reads what the guest says, from one host after the other."""

    def __init__(self, path: Path) -> None:
        self.address = Address(path=str(path))
        self.seen: list[tuple[float, range]] = []
        self._server = self.address.listen()
        self._judge = StreamJudge()

    @property
    def lines(self) -> int:
        """How many there were: the number of the next one."""
        return self._judge.next

    def check(self) -> None:
        """Raise DemoError where a line is missing or doubled."""
        if self._judge.error is not None:
            raise DemoError(f"the client's lines do not count by one: {self._judge.error}")

    async def read(self) -> None:
        """Read one host's connection to its end, and then the next one's, until cancelled."""
        loop = asyncio.get_running_loop()
        with self._server:
            self._server.setblocking(False)
            while True:
                sock, _ = await loop.sock_accept(self._server)
                with sock, contextlib.suppress(ConnectionError):
                    while data := await loop.sock_recv(sock, 1 << 16):
                        now = time.monotonic()
                        self.seen.append((now, self._judge.feed(data, now)))


class _Story:
    def __init__(
        self,
        say: Callable[[str, str], None],
        folder: Path,
        client: _Client,
        host: Sequence[str],
        stack: contextlib.AsyncExitStack,
    ) -> None:
        self._say = say
        self._folder = folder
        self._client = client
        self._host = host
        self._stack = stack
        self._stopped_ms: list[float] = []
        self._dark_ms: list[float] = []
        self._kills: list[float] = []
        self._events: list[Event] = []
        self._checkpoints = 0

    async def run(self) -> None:
        """A first host, and then a death after the other."""
        host = await self._start(0)
        await host.event("running")
        verified = await host.event("verified")
        mib = verified["pages"] // _MIB_PAGES
        self._say(host.name, f"a guest of {mib} MiB runs: it counts, and writes its memory")
        for number in range(1, _ROUNDS + 1):
            following = await self._start(number)
            await following.event("waiting")
            self._say(following.name, "waits to take over")
            await self._protect_and_kill(host, following)
            host = following
        await self._hear_more(host.name)

    async def _hear_more(self, name: str) -> None:
        """Wait for what the last host's guest goes on to say."""
        enough = self._client.lines + _LINES_AFTER
        try:
            async with asyncio.timeout(_STEP_S):
                while self._client.lines < enough:
                    self._client.check()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise DemoError(
                f"{name}: waited {_STEP_S:.0f} s for {_LINES_AFTER} lines of its guest"
            ) from None

    async def _protect_and_kill(self, host: _Host, following: _Host) -> None:
        await host.event("protected")
        self._say(host.name, "[green]PROTECTED[/green]: what it says waits for its checkpoint")
        for _ in range(1, _CHECKPOINTS):
            self._stopped_ms.append((await host.event("checkpoint"))["stopped_ms"])
        dying = await host.event("dying")
        killed_at = time.monotonic()
        await host.kill()
        number, sent, size = dying["checkpoint"], dying["sent"], dying["size"]
        self._say(
            host.name,
            f"[red]SIGKILL[/red] in checkpoint {number}, with {sent:,} of {size:,} bytes sent",
        )
        taken = await following.event("taken over")
        running = await following.event("running")
        if taken["lost_in"] != "RECEIVING_RAM":
            raise DemoError(f"the kill was not within the memory: {taken['lost_in']}")
        if taken["checkpoint"] != number - 1:
            raise DemoError(f"checkpoint {taken['checkpoint']} was taken over, not {number - 1}")
        dark_ms = (running["at"] - killed_at) * 1e3
        self._say(
            following.name,
            f"drops the half checkpoint; from checkpoint {number - 1}: [green]RUNNING[/green], "
            f"{dark_ms:.1f} ms after the kill, from line {running['line']} on",
        )
        verified = await following.event("verified")
        self._say(
            "guest",
            f"verified itself: {verified['pages']:,} pages after {verified['steps']:,} steps, "
            "[green]not one wrong[/green]",
        )
        self._client.check()
        self._dark_ms.append(dark_ms)
        self._checkpoints += number - 1
        self._kills.append(killed_at)
        taken_over = f"[green]{following.name}: RUNNING from checkpoint {number - 1}[/green]"
        self._events += [
            (killed_at, "", f"[red]{host.name}: SIGKILL[/red]"),
            (running["at"], "", taken_over),
        ]

    async def _start(self, number: int) -> _Host:
        """Start the host of this number: all but the first listen, all but the last go on."""
        command = [*self._host, "--client", str(self._client.address)]
        command += ["--folder", str(self._folder / f"{number}.store")]
        if number:
            command += ["--listen", self._address(number)]
        if number < _ROUNDS:
            command += ["--to", self._address(number + 1), "--checkpoints", str(_CHECKPOINTS)]
            command += ["--fraction", str(random.random())]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        host = _Host(_NAMES[number % len(_NAMES)], process)
        self._stack.push_async_callback(host.kill)
        return host

    def _address(self, number: int) -> str:
        return f"unix:{self._folder}/{number}.sock"

    def side_by_side(self) -> Iterator[str]:
        """The client's view beside what happens, around the first kill."""
        seen: list[Event] = [(at, _text(lines), "") for at, lines in self._client.seen]
        return side_by_side([*seen, *self._events], self._kills[0])

    def figures(self) -> Iterator[str]:
        """The figures at the end."""
        stopped, dark = summarise(self._stopped_ms), summarise(self._dark_ms)
        assert stopped is not None and dark is not None
        for name, value in (
            ("checkpoints", f"{self._checkpoints}, in {_ROUNDS} lives"),
            ("guest stopped for each", _three(stopped)),
            ("from kill to running", f"median {dark.median:.1f} ms, max {dark.max:.1f}"),
        ):
            yield f"  [bold]{name:<26}[/bold]{value}"


def _three(summary: Summary) -> str:
    return f"median {summary.median:.2f} ms, p99 {summary.p99:.2f}, max {summary.max:.2f}"


def _text(lines: range) -> str:
    if not lines:
        return ""
    return f"lines {lines[0]} to {lines[-1]}" if len(lines) > 1 else f"line {lines[0]}"
