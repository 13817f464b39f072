"""The embedded demo: it runs as users run it, and fails where a promise is broken."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from colo.demo import embedded
from colo.demo.telling import DemoError

BROKEN = Path(__file__).parent / "broken_host.py"


def test_the_story_comes_true() -> None:
    command = [sys.executable, "-m", "colo", "demo", "--embedded"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.split())
    for part, times in (
        ("PROTECTED", 3),
        ("SIGKILL in checkpoint 50", 3),
        ("from checkpoint 49: RUNNING", 3),
        ("not one wrong", 3),
        ("none missing, none doubled", 1),
        ("checkpoints 147, in 3 lives", 1),
        ("from kill to running median", 1),
    ):
        assert words.count(part) == times, part


@pytest.mark.parametrize(
    ("promise", "noticed"),
    [
        ("unheld", "do not count by one"),
        ("early", "do not count by one"),
        ("unmarked", "is not as"),
        ("partial", "is not as"),
        ("forgetful", "do not count by one|is not as"),
    ],
)
def test_a_broken_promise_is_noticed(
    promise: str, noticed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_CHECKPOINTS", 5)
    with pytest.raises(DemoError, match=noticed):
        asyncio.run(embedded.tell((sys.executable, str(BROKEN), promise)))


def test_a_last_guest_that_falls_silent_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_STEP_S", 0.05)

    async def run() -> None:
        client = embedded._Client(tmp_path / "client.sock")
        stack = contextlib.AsyncExitStack()
        story = embedded._Story(lambda who, text: None, tmp_path, client, (), stack)
        reading = asyncio.create_task(client.read())
        try:
            with await client.address.connect() as guest:
                await asyncio.get_running_loop().sock_sendall(guest, b"0\n1\n")
                while client.lines < 2:
                    await asyncio.sleep(0)
                await story._hear_more("host B")
        finally:
            reading.cancel()
            await asyncio.wait([reading])

    with pytest.raises(DemoError, match=r"^host B: waited 0 s for 100 lines of its guest$"):
        asyncio.run(run())


def test_a_failure_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    program = (
        "import sys; from colo import cli; from colo.demo import embedded; "
        f"embedded.tell.__defaults__ = ((sys.executable, {str(BROKEN)!r}, 'unmarked'),); cli.main()"
    )
    command = [sys.executable, "-c", program, "demo", "--embedded"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("colo: host B: «failed» instead of «verified» page ")
