"""TLS between the hosts: all is as without it, and who does not belong there is kept out."""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from colo.config import TlsFiles
from colo.demo.lab import REPLICATION_ADDRESS, Place
from tests.certificates import Authority
from tests.e2e.net.stage import PORT, WAIT_S, Stage

pytestmark = pytest.mark.e2e

PLAIN = (
    "import socket; "
    f"s = socket.create_connection({(REPLICATION_ADDRESS[Place.HOST_B], PORT)}, 30); "
    "s.sendall(b'QEVM\\0\\0\\0\\3'); s.settimeout(30); "
    "exec('try: print(len(s.recv(1)))\\nexcept OSError: print(0)')"
)


def use(stage: Stage, files: TlsFiles) -> None:
    """What is started from now on has these."""
    paths = {"ca": files.ca, "certificate": files.certificate, "key": files.key}
    lines = "".join(f"{key} = {json.dumps(str(path))}\n" for key, path in paths.items())
    stage.vm = replace(stage.vm, options=f"[tls]\n{lines}")


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_hosts_come_and_go_over_tls(stage: Stage, draw: random.Random, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "ca")
    stranger = Authority.make(tmp_path / "other").issue("b")
    use(stage, authority.issue("a"))
    primary = stage.run("a")
    use(stage, authority.issue("b"))
    first = stage.secondary("b")
    assert primary.wait_said("PROTECTED by").endswith(", over TLS")
    clients = [stage.client(kind) for kind in ("stream", "echo")]

    stage.lab.run(Place.HOST_A, sys.executable, "-c", PLAIN, seconds=WAIT_S)
    first.wait_said("it does not speak TLS")
    primary.wait_checkpoints()
    stage.kill(first)
    primary.wait_said("the VM runs here alone")

    use(stage, stranger)
    wrong = stage.secondary("b2")
    primary.wait_said("is out of reach: its certificate is not accepted")
    wrong.wait_said("it does not accept our certificate")
    assert len(primary.said("PROTECTED by")) == 1
    stage.kill(wrong)

    use(stage, authority.files("b"))
    second = stage.secondary("b3")
    primary.wait_said("PROTECTED by", 2)
    primary.wait_checkpoints()
    time.sleep(draw.random())
    stage.kill(primary)
    second.wait_state("RUNNING")
    for client in clients:
        client.wait_heard()
    for client in clients:
        client.check()
