"""A real Prometheus gathers what both hosts tell, with colo's own rules, while one of them dies."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from colo.metrics.shared import SHARED, shared
from tests.e2e.basics import wait
from tests.e2e.nodes import NodeHost, Nodes, free_ports, playing

pytestmark = pytest.mark.e2e

CARD = ("-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0")
_END_S = 15


class Prometheus:
    """The distribution's; it scrapes ``targets``, by their names, every half second."""

    def __init__(self, folder: Path, targets: dict[str, int]) -> None:
        if shutil.which("prometheus") is None:
            pytest.skip("no prometheus: apt-get install prometheus")
        (port,) = free_ports(1)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1")
        self.log = folder / "prometheus.log"
        (folder / SHARED["rules"]).write_text(shared("rules"))
        scrapes = [
            {"targets": [f"127.0.0.1:{at}"], "labels": {"instance": name}}
            for name, at in targets.items()
        ]
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [SHARED["rules"]],
            "scrape_configs": [{"job_name": "colo", "static_configs": scrapes}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # which is YAML too
        command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={folder / 'tsdb'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def ask(self, query: str) -> dict[str, float]:
        """By the instance's name: what it answers now."""
        try:
            answer: dict[str, Any] = self._client.get("/query", params={"query": query}).json()
        except httpx.TransportError:  # it has not begun yet
            return {}
        assert answer["status"] == "success", answer
        return {
            each["metric"].get("instance", ""): float(each["value"][1])
            for each in answer["data"]["result"]
        }

    def knows(self, query: str, instances: set[str]) -> bool:
        """Whether just these have an answer."""
        return set(self.ask(query)) == instances

    def wait(self, query: str, **expected: float) -> None:
        """Wait until that is the answer."""
        wait(lambda: self.ask(query) == expected, f"{query} to be {expected}: {self.ask(query)}")

    def close(self) -> None:
        self._client.close()
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(_END_S) == 0, self.log.read_text()


@pytest.fixture
def nodes(qemu: str) -> Iterator[Nodes]:
    with playing(qemu, args=CARD) as nodes:
        yield nodes


def telling(nodes: Nodes, host: NodeHost, port: int) -> NodeHost:
    """That host, with a VM file by which it tells its figures: both are on one machine here."""
    text = (nodes.folder / "vm.toml").read_text()
    file = nodes.folder / f"{host.name}.toml"
    file.write_text(f'{text}[metrics]\nlisten = "127.0.0.1:{port}"\n')
    return NodeHost(nodes.folder, host.name, file)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_what_prometheus_gathers_is_what_happens(nodes: Nodes) -> None:
    ports = dict(zip("ab", free_ports(2), strict=True))
    a = nodes.a = telling(nodes, nodes.a, ports["a"])
    b = nodes.b = telling(nodes, nodes.b, ports["b"])
    a.start()
    b.start()
    prometheus = Prometheus(nodes.folder, ports)
    try:
        _gathers(nodes, prometheus, a, b, ports)
    finally:
        prometheus.close()


def _gathers(
    nodes: Nodes, prometheus: Prometheus, a: NodeHost, b: NodeHost, ports: dict[str, int]
) -> None:
    nodes.wait_protected(a)
    prometheus.wait('colo_state{colo_state="PROTECTED"} == 1', a=1)
    prometheus.wait('colo_state{colo_state="KEEPING"} == 1', b=1)
    prometheus.wait("colo_arbiter_up", a=1, b=1)
    prometheus.wait("colo_takeovers_total", a=0, b=0)
    for query in (
        "rate(colo_checkpoints_total[10s]) > 0",
        "rate(process_cpu_seconds_total[10s]) > 0",
        "time() - colo_checkpoint_timestamp_seconds < 5",
    ):
        wait(partial(prometheus.knows, query, {"a", "b"}), query)
    stopped = "histogram_quantile(0.99, rate(colo_checkpoint_stopped_seconds_bucket[10s]))"
    covered = "histogram_quantile(0.99, rate(colo_checkpoint_covered_seconds_bucket[10s]))"
    wait(lambda: 0 < prometheus.ask(stopped).get("a", 0) < 10, "stopped times")
    wait(lambda: 0 < prometheus.ask(covered).get("a", 0) < 10, "covered times")
    prometheus.wait('colo_gate{netdev="n0",colo_gate="HOLDING"} == 1', a=1)
    assert "received_bytes" not in httpx.get(f"http://127.0.0.1:{ports['a']}/metrics").text

    text = httpx.get(f"http://127.0.0.1:{ports['b']}/metrics").content
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")

    done_by = a.run("switchover")
    assert done_by.returncode == 0, done_by.stderr
    prometheus.wait("colo_takeovers_total", a=0, b=1)
    prometheus.wait('ALERTS{alertname="ColoTookOver",alertstate="firing"}', b=1)
    nodes.wait_protected(b)
    b.die()
    prometheus.wait("colo_takeovers_total", a=1)
    prometheus.wait('up{job="colo"}', a=1, b=0)
    prometheus.wait('colo_role{colo_role="primary"} == 1', a=1)
