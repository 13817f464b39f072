"""What a status becomes for Prometheus: by its own rules, and with the numbers that it had."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from colo.membership.states import State
from colo.metrics.arbiter import Reached
from colo.metrics.families import families
from colo.status.figures import BOUNDS_S
from colo.status.history import Line
from tests.metrics.statuses import NODE, PRIMARY, SECONDARY

LAST = Line(1.0, "secondary", "KEEPING", "", takeovers=2, takeover_at=900_000.0)
REACHED = Reached(asked=7, failed=1, is_up=True, answer_s=0.01)


def exposed(
    status: dict[str, Any], last: Line | None = LAST, reached: Reached | None = REACHED
) -> CollectorRegistry:
    class One(Collector):
        def collect(self) -> Iterable[Metric]:
            return families("web1", status, last, reached)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(One())
    return registry


def value(of: CollectorRegistry, name: str, **labels: str) -> float | None:
    return of.get_sample_value(name, {"vm": "web1", **labels})


@pytest.mark.parametrize("status", [NODE, PRIMARY, SECONDARY, {}], ids=["node", "a", "b", "none"])
def test_it_is_as_prometheus_wants_it(status: dict[str, Any]) -> None:
    text = generate_latest(exposed(status))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", b"")
    names = [line.split()[2] for line in text.decode().splitlines() if line.startswith("# TYPE ")]
    assert len(names) == len(set(names)), "each is told of once"


def test_the_numbers_of_a_primary_are_those_of_its_status() -> None:
    found = exposed(PRIMARY)
    assert value(found, "colo_state", colo_state="PROTECTED") == 1
    assert value(found, "colo_role", colo_role="primary") == 1
    states = [value(found, "colo_state", colo_state=state) for state in State.__members__]
    assert (states.count(1), states.count(0)) == (1, len(State) - 1)
    for name, expected in (
        ("checkpoints_total", 2),
        ("checkpoint_number", 1734),
        ("checkpoint_timestamp_seconds", 1_000_000),
        ("checkpoint_stopped_seconds_count", 2),
        ("checkpoint_stopped_seconds_sum", 0.0055),
        ("checkpoint_covered_seconds_sum", 0.012),
        ("sent_bytes_total", 123_456),
        ("lag_seconds", 0.004),
        ("aside_bytes", 5),
        ("wire_coding", 0),
        ("wire_rate_bytes_per_second", None),
        ("wire_stream_bytes_total", 100),
        ("wire_sent_bytes_total", 40),
        ("stood_still_seconds_total", 12.5),
        ("clock_lost_seconds_total", 0.5),
        ("stopped_ratio", 0.02),
        ("hybrid_link", 1),
        ("hybrid_packets_compared_total", 900),
        ("hybrid_packets_alike_total", 890),
        ("hybrid_spells_total", 4),
        ("grant_number", 3),
        ("processors_awake", 1),
        ("takeovers_total", 2),
        ("takeover_timestamp_seconds", 900_000),
        ("arbiter_up", 1),
        ("arbiter_asked_total", 7),
        ("arbiter_failures_total", 1),
        ("arbiter_answer_seconds", 0.01),
        ("received_bytes_total", None),
    ):
        assert value(found, f"colo_{name}") == expected, name
    assert value(found, "colo_hybrid", colo_hybrid="RUNS") == 1
    assert value(found, "colo_hybrid_differences_total", protocol="tcp") == 3
    assert value(found, "colo_hybrid_ends_total", cause="difference") == 3
    card = {"netdev": "n0"}
    assert value(found, "colo_held_bytes", **card) == 1500
    assert value(found, "colo_packets_total", **card) == 9310
    assert value(found, "colo_packets_dropped_total", **card) == 0
    assert value(found, "colo_gate", colo_gate="HOLDING", **card) == 1
    assert value(found, "colo_packets_held_seconds_bucket", le="0.005", **card) == 1
    assert value(found, "colo_disk_in_step", disk="root") == 1
    assert value(found, "colo_disk_sent_bytes_total", disk="root") == 4096
    buckets = [
        value(found, "colo_checkpoint_stopped_seconds_bucket", le=f"{bound}") for bound in BOUNDS_S
    ]
    assert buckets == [0, 0, 1, 1] + [2] * (len(BOUNDS_S) - 4)


def test_the_numbers_of_a_secondary_are_those_of_its_status() -> None:
    found = exposed(SECONDARY, reached=None)
    assert value(found, "colo_link", colo_link="UP") == 1
    assert value(found, "colo_checkpoints_total") == 1
    assert value(found, "colo_checkpoint_apply_seconds_count") == 1
    assert value(found, "colo_received_bytes_total") == 0
    assert value(found, "colo_sent_bytes_total") is None
    assert value(found, "colo_disk_replica", disk="root", colo_disk_replica="WHOLE") == 1
    assert value(found, "colo_disk_merge_lag_checkpoints", disk="root") == 1
    assert value(found, "colo_forward_checkpoint_number") == 1730
    assert value(found, "colo_arbiter_up") is None, "nobody asks it"


def test_a_vm_that_was_never_taken_over_has_a_counter_that_says_so() -> None:
    found = exposed(NODE, last=None)
    assert value(found, "colo_takeovers_total") == 0
    assert value(found, "colo_takeover_timestamp_seconds") is None
    assert value(found, "colo_state", colo_state="WAITING") == 1
