"""The clients against the guest's services, both on this host, and against servers that err."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.demo.workload import OUTPUT_SECONDS_MAX, serving

HOST = "127.0.0.1"


def start(name: str, port: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "colo.demo.clients", name, HOST, "--port", str(port)]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)


def end(client: subprocess.Popen[str]) -> dict[str, Any]:
    """Await the client's end and return its verdict, once it fits the exit code."""
    output, _ = client.communicate(timeout=OUTPUT_SECONDS_MAX)
    verdict = json.loads(output.splitlines()[-1])
    assert isinstance(verdict, dict)
    assert verdict["ok"] == (verdict["error"] is None) == (client.returncode == 0)
    return verdict


def verdict(name: str, port: int, *options: str) -> dict[str, Any]:
    return end(start(name, port, *options, "--json"))


@pytest.fixture(scope="module")
def port(workload: Path) -> Iterator[int]:
    with serving(workload, "--line-ms=1") as (_, first_port):
        yield first_port


@pytest.mark.parametrize(
    ("name", "options", "figures"),
    [
        ("stream", ["--count", "50"], {}),
        ("echo", ["--count", "50"], {"requests": 50}),
        ("echo", ["--count", "5", "--size", "200000"], {"requests": 5}),
        ("bulk", ["--mib", "3", "--seed", "18446744073709551615"], {"bytes": 3 << 20}),
        ("sink", ["--mib", "3"], {"bytes": 3 << 20}),
        ("flood", ["--packets", "50"], {"received": 50, "lost": 0}),
        ("clock", ["--count", "6", "--pause-ms", "1", "--rest-s", "0.01"], {"answers": 6}),
    ],
)
def test_client_is_content(
    port: int, name: str, options: list[str], figures: dict[str, int]
) -> None:
    found = verdict(name, port, *options)
    assert found["error"] is None
    assert {key: found[key] for key in figures} == figures


@pytest.mark.parametrize("name", ["stream", "echo", "bulk", "sink", "clock"])
def test_client_ends_when_its_time_is_over(port: int, name: str) -> None:
    found = verdict(name, port, "--seconds", "0.3")
    assert found["error"] is None
    assert found["seconds"] >= 0.3


def test_log_has_a_line_for_each_number(port: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    found = verdict("stream", port, "--count", "20", "--log", str(log))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(found["lines"]))
    assert lines == sorted(lines, key=lambda line: float(line["t"]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_client_with_its_verdict(port: int, number: int) -> None:
    client = start("stream", port, "--json", "--log", "-")
    assert client.stdout is not None
    client.stdout.readline()
    client.send_signal(number)
    assert end(client)["error"] is None


def test_verdict_without_json_is_a_line(port: int) -> None:
    client = start("stream", port, "--count", "1")
    output, _ = client.communicate(timeout=OUTPUT_SECONDS_MAX)
    assert output.startswith("stream: ok (")
    assert output.count("\n") == 1


@contextmanager
def erring(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of one connection; yields its port."""
    with socket.create_server((HOST, 0)) as listener:

        def run() -> None:
            peer, _ = listener.accept()
            with peer:
                serve(peer)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def ends_early(peer: socket.socket) -> None:
    peer.sendall(b"0\n1\n")


def skips_one(peer: socket.socket) -> None:
    peer.sendall(b"0\n1\n3\n")
    peer.recv(1)


def falls_silent(peer: socket.socket) -> None:
    peer.sendall(b"0\n1\n")
    peer.recv(1)


@pytest.mark.parametrize(
    ("serve", "error"),
    [
        (ends_early, "the guest closed the connection"),
        (skips_one, "after 1 came '3'"),
        (falls_silent, "nothing came for 0.2 s"),
    ],
)
def test_client_is_not_content(serve: Callable[[socket.socket], None], error: str) -> None:
    with erring(serve) as port:
        found = verdict("stream", port, "--silence", "0.2")
    assert found["error"] == error
    assert found["lines"] == 2


def test_client_that_cannot_connect() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    assert "cannot connect to 127.0.0.1" in verdict("stream", port)["error"]


@pytest.mark.parametrize("word", ["poweroff", "reboot"])
def test_power(workload: Path, word: str) -> None:
    with serving(workload) as (console, first_port):
        with socket.create_connection((HOST, first_port + 6)) as power:
            power.sendall(f"{word}\n".encode())
            console.line_with(f"colo-guest: {word} asked for")
        assert console.process.wait(OUTPUT_SECONDS_MAX) == -signal.SIGTERM


def test_services_count_on_the_console(workload: Path) -> None:
    with serving(workload) as (console, _):
        assert console.line() == "colo-guest: count=1"
        assert console.line() == "colo-guest: count=2"
