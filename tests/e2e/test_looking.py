"""VMs as operators look at them, and one that goes over and back by a click and a key."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.basics import colo, wait
from tests.e2e.nodes import Nodes, free_ports, playing
from tests.top.pty_screen import PtyScreen

pytestmark = pytest.mark.e2e

CARD = ("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0")
_END_S = 15


@pytest.fixture
def nodes(qemu: str) -> Iterator[Nodes]:
    with playing(qemu, args=CARD) as nodes:
        yield nodes


def status_of_all(nodes: Nodes) -> tuple[int, dict[str, dict[str, Any]]]:
    """What `colo status --all --json` ends with and says, by the state folder's name."""
    command = [colo(), "status", "--all", "--json", "--under", str(nodes.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, {Path(view["state_dir"]).name: view for view in json.loads(done.stdout)}


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_a_vm_is_looked_at_and_goes_over_by_a_click_and_a_key(nodes: Nodes) -> None:
    a, b = nodes.a, nodes.b
    a.start()
    assert wait((a.state / "status.json").exists, "a status")
    assert status_of_all(nodes)[0] == 1, "nobody protects it yet"
    b.start()
    nodes.wait_protected(a)
    a.console.wait_progress()
    code, found = status_of_all(nodes)
    assert code == 0, found
    assert {name: view["state"] for name, view in found.items()} == {
        "a": "PROTECTED",
        "b": "KEEPING",
    }
    assert 0 < found["a"]["stopped_ms"]["median"] <= found["a"]["stopped_ms"]["p99"] < 10_000
    assert found["a"]["peer_state"] == "KEEPING"
    assert found["a"]["lag_s"] < 10 and found["b"]["age_s"] < 10

    (port,) = free_ports(1)
    command = [colo(), "web", "--under", str(nodes.folder), "--listen", f"127.0.0.1:{port}"]
    web = subprocess.Popen([*command, "--allow-orders"], stderr=subprocess.PIPE, text=True)
    assert web.stderr is not None
    try:
        url = re.search(r"http\S+", web.stderr.readline())
        assert url is not None
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.get(url.group())
            order = {"id": "a", "order": "switchover"}
            answer = client.post("/order", json=order, headers={"X-Colo-Order": "1"})
            assert answer.json() == {"ok": True, "text": "the VM runs on the other host"}
            nodes.wait_protected(b)
            vms = {vm["id"]: vm for vm in client.get("/vms").json()["vms"]}
            assert [line for line in vms["b"]["history"] if line["takeover_ms"] is not None]
            assert "GOING_OVER" in {line["state"] for line in vms["a"]["history"]}
    finally:
        web.send_signal(signal.SIGTERM)
        assert web.wait(_END_S) == 0
        web.stderr.close()

    b.console.wait_progress()
    screen = PtyScreen("top", "--under", str(nodes.folder))
    try:
        screen.wait_for("2 VMs, all well")
        screen.press(b"j")
        screen.wait(lambda text: re.search(r"^>.*PROTECTED", text, re.MULTILINE), "host b's VM")
        screen.press(b"s")
        screen.wait_for("y/n")
        screen.press(b"y")
        screen.wait_for("the VM runs on the other host")
        screen.press(b"q")
        assert screen.end() == 0
        assert screen.is_ours
    finally:
        screen.close()
    nodes.wait_protected(a)
    a.console.wait_progress()
    a.console.verify()
