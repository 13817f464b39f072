"""`colo top` in a real terminal: what it shows, what keys do, and that the terminal comes back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from colo.node.state_folder import StateFolder
from tests.metrics.statuses import NODE, PRIMARY, SECONDARY, timed
from tests.orders import take_orders
from tests.top.pty_screen import PtyScreen


class Colos:
    """Three VMs whose colos run, web1's as its primary; what their state folders say changes."""

    def __init__(self, under: Path) -> None:
        self.under = under
        self.folders = {name: StateFolder(under / name) for name in ("db1", "web1", "x")}
        self.tell("db1", SECONDARY)
        self.tell("web1", PRIMARY)
        self.tell("x", NODE)

    def tell(self, vm: str, status: dict[str, Any], **more: Any) -> None:
        self.folders[vm].write_status({**status, "vm": vm, "checkpoint_at": time.time(), **more})

    def take_orders(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        """Have web1's colo take one order and answer it; it is in the list then."""
        return take_orders(self.folders["web1"].control, answer)


@pytest.fixture
def colos(tmp_path: Path) -> Iterator[Colos]:
    colos = Colos(tmp_path)
    yield colos
    for folder in colos.folders.values():
        folder.close()


@pytest.fixture
def top(colos: Colos) -> Iterator[PtyScreen]:
    with ExitStack() as stack:
        screen = PtyScreen("top", "--under", str(colos.under))
        stack.callback(screen.close)
        screen.wait_for("colo top", ">db1")
        yield screen


def test_it_shows_all_of_them_as_they_are_now(top: PtyScreen, colos: Colos) -> None:
    text = top.wait_for("3 VMs, 1 to look at", "web1 PROTECTED", "x    WAITING")
    assert "1.5/4.0" in text and "3.0/8.0" in text
    assert text.splitlines()[-1] == "q quit  ↑↓ select  s switchover"
    colos.tell("web1", PRIMARY, state="UNPROTECTED", error="host b is out of reach")
    top.wait_for("web1 UNPROTECTED", "2 to look at")
    top.press(b"\x1b[B")
    text = top.wait_for(">web1", "  host b is out of reach")
    assert "primary UNPROTECTED: host b is out of reach" in text, "its history"
    top.press(b"q")
    assert top.end() == 0
    assert top.is_ours


def test_times_are_drawn_as_they_come(top: PtyScreen, colos: Colos) -> None:
    seconds: list[float] = []
    for each in (0.001, 0.004, 0.002, 0.008, 0.001):
        seconds.append(each)
        times = {"stopped": timed(*seconds), "covered": timed(*seconds)}
        colos.tell("web1", PRIMARY, times=times)
        time.sleep(0.55)
    text = top.wait(lambda text: sum(text.count(bar) for bar in "▁▂▃▄▅▆▇█") >= 3, "bars")
    assert "█" in next(line for line in text.splitlines() if "web1" in line)


def test_a_switchover_is_asked_for_and_then_ordered(top: PtyScreen, colos: Colos) -> None:
    orders = colos.take_orders({"ok": True, "text": "the VM runs on the other host"})
    top.press(b"s")
    top.wait_for("db1: the VM does not run here")
    top.press(b"\x1b[B")
    top.wait_for(">web1")
    for no in (b"n", b"\x1b", b"x\x1b[A"):
        top.press(b"s")
        top.wait_for("have web1 go over to tcp:b:9000? y/n")
        top.press(no)
        top.wait(lambda text: "y/n" not in text, "the question to go")
        top.press(b"\x1b[F\x1b[A")
    assert orders == []
    top.press(b"s")
    top.wait_for("y/n")
    top.press(b"y")
    top.wait_for("web1: the VM runs on the other host")
    assert [order["order"] for order in orders] == ["switchover"]
    top.press(b"q")
    assert top.end() == 0


def test_an_order_that_hangs_holds_nobody_up(top: PtyScreen, colos: Colos) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(colos.folders["web1"].control))
    server.listen()
    top.press(b"j")
    top.wait_for(">web1")
    top.press(b"sy")
    top.wait_for("web1: it goes over")
    top.press(b"s")
    top.wait_for("its switchover is under way")
    top.press(b"q")
    assert top.end() == 0
    assert top.is_ours
    server.close()


def test_a_colo_that_takes_no_orders_is_told(top: PtyScreen) -> None:
    top.press(b"js")
    top.wait_for("y/n")
    top.press(b"y")
    top.wait_for("web1: no colo runs with the state folder")


@pytest.mark.parametrize("size", [(40, 10), (132, 50), (20, 5), (5, 2), (80, 24)])
def test_the_window_gets_another_size(top: PtyScreen, size: tuple[int, int]) -> None:
    top.resize(*size)
    name = "colo "[: size[0]].strip()
    foot = "q quit  ↑↓ select  s switchover"[: size[0]].strip()
    top.wait(
        lambda text: text.startswith(name) and text.split("\n")[size[1] - 1].strip() == foot,
        f"a screen of {size}",
    )
    top.press(b"q")
    assert top.end() == 0
    assert top.is_ours


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_terminal_comes_back_however_it_ends(top: PtyScreen, number: int) -> None:
    assert top.mode != top.before
    assert top.end(number) == 0
    assert top.is_ours


def test_ctrl_c_and_ctrl_s_as_they_are_typed(top: PtyScreen, colos: Colos) -> None:
    top.press(b"\x13")  # Ctrl-S: nothing stands still
    colos.tell("x", PRIMARY)
    top.wait_for("3 VMs, all well")
    top.press(b"\x03")
    assert top.end() == 0
    assert top.is_ours


def test_ctrl_z_gives_the_terminal_to_the_shell_for_a_while(top: PtyScreen, colos: Colos) -> None:
    top.press(b"\x1a")
    top.wait_stopped()
    assert top.is_ours
    colos.tell("x", PRIMARY)
    os.kill(top.pid, signal.SIGCONT)
    top.wait_for("3 VMs, all well")
    assert top.mode != top.before
    top.press(b"q")
    assert top.end() == 0
    assert top.is_ours


def test_a_folder_that_goes_away_ends_it_with_a_line(tmp_path: Path) -> None:
    under = tmp_path / "some"
    under.mkdir()
    screen = PtyScreen("top", "--under", str(under))
    try:
        screen.wait_for("no VM has a state folder in")
        under.rmdir()
        assert screen.end() == 2
        assert screen.is_ours
        line = screen.raw.rsplit(b"\x1b[?1049l", 1)[1].decode()
        assert line == f"colo: {under}: No such file or directory; say --under DIR\r\n"
    finally:
        screen.close()


def test_a_terminal_without_colours_and_letters(colos: Colos) -> None:
    plain = {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    screen = PtyScreen("top", "--under", str(colos.under), more=plain)
    try:
        text = screen.wait_for("q quit  up/down select  s switchover")
        assert text.isascii()
        assert b"\x1b[32m" not in screen.raw
    finally:
        screen.close()


def test_without_a_terminal_it_says_what_does_not_need_one(colos: Colos) -> None:
    colo = str(Path(sys.executable).parent / "colo")
    done = subprocess.run(
        [colo, "top", "--under", str(colos.under)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "colo: `colo top` needs a terminal; `colo status --all` does not\n"
