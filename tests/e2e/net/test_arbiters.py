"""Who may run the VM, by a cluster of etcd on the hosts and between them, and by a fence."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from colo.demo.lab import Link, Place
from tests.e2e.basics import wait
from tests.e2e.net.stage import Stage, Vm
from tests.e2e.net.wires import MEMBERS, three_members

pytestmark = pytest.mark.e2e

ETCD = Vm(arbiter="etcd:" + ",".join(f"http://{address}:2379" for address in MEMBERS.values()))
needs_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd-server")


@pytest.fixture
def members(stage: Stage) -> Iterator[dict[Place, subprocess.Popen[bytes]]]:
    """The members of the cluster, running."""
    started: dict[Place, subprocess.Popen[bytes]] = {}
    with three_members(stage):
        try:
            for place in MEMBERS:
                started[place] = start_member(stage, place)
            wait(lambda: etcdctl(stage, "put", "ready", "yes"), "etcd to answer")
            yield started
        finally:
            for each in started.values():
                each.kill()
                each.wait()


def start_member(stage: Stage, place: Place) -> subprocess.Popen[bytes]:
    """Start the member of the cluster at ``place``."""
    url, peer = f"http://{MEMBERS[place]}:2379", f"http://{MEMBERS[place]}:2380"
    all_of_them = ",".join(f"{p.name}=http://{address}:2380" for p, address in MEMBERS.items())
    with (stage.folder / f"etcd-{place.name}.log").open("wb") as log:
        return stage.lab.start(
            place, "etcd", "--name", place.name,
            "--data-dir", str(stage.folder / f"etcd-{place.name}"),
            "--listen-client-urls", url, "--advertise-client-urls", url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", all_of_them,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip


def etcdctl(stage: Stage, *command: str) -> str:
    """What etcdctl prints at the switch; "" where it fails."""
    endpoint = ("--endpoints", f"http://{MEMBERS[Place.SWITCH]}:2379")
    done = stage.lab.start(
        Place.SWITCH, "env", "ETCDCTL_API=3", "etcdctl", *endpoint, *command,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    output, _ = done.communicate(timeout=30)
    return str(output) if done.returncode == 0 else ""


def number(stage: Stage) -> int:
    """The number of the grant that stands in etcd."""
    key = f"colo/{stage.folder.name}"
    text = json.loads(etcdctl(stage, "get", "--print-value-only", key))["text"]
    return int(json.loads(text)["number"])


@needs_etcd
@pytest.mark.parametrize("vm", [ETCD], ids=["etcd"])
@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)  # decided above QEMU
def test_a_host_dies_with_its_member_of_etcd(
    stage: Stage, members: dict[Place, subprocess.Popen[bytes]], vm: Vm
) -> None:
    primary, secondary = stage.protected()
    clients = [stage.client(kind) for kind in ("stream", "echo")]
    members[Place.HOST_A].kill()
    stage.kill(primary)

    secondary.wait_state("RUNNING")
    for client in clients:
        client.wait_heard()
    for client in clients:
        client.check()
    assert number(stage) == 3


@needs_etcd
@pytest.mark.parametrize("vm", [ETCD], ids=["etcd"])
@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)
def test_the_host_on_the_side_of_the_majority_goes_on(
    stage: Stage, members: dict[Place, subprocess.Popen[bytes]], vm: Vm
) -> None:
    """Host B is cut off with its member, which alone grants nothing."""
    primary, secondary = stage.protected()
    client = stage.client("stream")
    with stage.lab.severed(Link.REPLICATION):
        primary.wait_said("the VM runs here alone")
        secondary.wait_said("no grant yet")
        client.wait_heard()
        assert secondary.status()["waits_for"].startswith("no grant yet")
    secondary.wait_said("forgetting ")  # the arbiter says why, or the primary, who is faster
    primary.wait_said("PROTECTED by", 2)
    client.check()


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)
def test_a_takeover_waits_for_the_fence(stage: Stage) -> None:
    fence, off = stage.folder / "fence", stage.folder / "off"
    fence.write_text(f'#!/bin/sh\necho "$@" >>{stage.folder}/asked\nls {off}\n')
    fence.chmod(0o755)
    stage.vm = replace(stage.vm, options=f'fence = "exec:{fence} --outlet 7"')
    primary, secondary = stage.protected()
    client = stage.client("stream")
    stage.kill(primary)

    secondary.wait_said("grant 3 is ours, but the other host may still run: the fence")
    wait(
        lambda: "exit 2: ls: cannot access" in (secondary.status()["waits_for"] or ""),
        "the status to say what the takeover waits for",
    )
    assert secondary.status()["state"] == "ORPHANED"
    off.touch()
    secondary.wait_state("RUNNING")
    asked = (stage.folder / "asked").read_text().splitlines()
    host = stage.lab.run(Place.HOST_A, "hostname").strip()
    assert set(asked) == {f"--outlet 7 {stage.folder.name} {host}"}
    client.wait_heard()
    client.check()


@pytest.mark.parametrize("qemu", ["11.1"], indirect=True)
def test_an_operator_does_without_the_fence(stage: Stage) -> None:
    stage.vm = replace(stage.vm, options='fence = "exec:/bin/false"')
    primary, secondary = stage.protected()
    stage.kill(primary)

    secondary.wait_said("grant 3 is ours, but the other host may still run")
    done = secondary.run("failover")
    assert done.returncode != 0
    assert "the fence /bin/false: exit 1" in done.stderr
    assert "--force does without it" in done.stderr
    done = secondary.run("failover", "--force")
    assert done.returncode == 0, done.stderr
    secondary.wait_state("RUNNING")
