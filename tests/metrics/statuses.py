"""Statuses with all that colos write into them."""

from __future__ import annotations

from typing import Any

from colo.status.figures import PHASES, Figures, Times

__all__ = ["NODE", "PRIMARY", "SECONDARY", "timed"]


def timed(*seconds: float) -> dict[str, Any]:
    """What is counted of so many times."""
    times = Times()
    times.extend(seconds)
    return times.counted()


_COMMON: dict[str, Any] = {
    "pid": 1,
    "vm": "web1",
    "meaning": "it is so",
    "checkpoint": 1734,
    "checkpoint_at": 1_000_000.0,
    "arbiter": "file:/shared/web1.grant",
    "grant": 3,
    "error": None,
    "awake": True,
    "written_at": 1_000_000.2,
}
NODE: dict[str, Any] = {
    **_COMMON,
    "role": "node",
    "state": "WAITING",
    "checkpoint": None,
    "checkpoint_at": None,
    "error": "host b is out of reach",
    "qemu": None,
}
del NODE["awake"]
PRIMARY: dict[str, Any] = {
    **_COMMON,
    "role": "primary",
    "state": "PROTECTED",
    "clock": {
        "since": 990_000.0,
        "stood_still_s": 12.5,
        "given_back_s": 12.0,
        "lost_s": 0.5,
        "trouble": None,
        "stopped_share": 0.02,
        "stopped_share_max": 0.5,
    },
    "hybrid": {
        "other": "RUNS",
        "meaning": "it runs",
        "link": True,
        "compared": 900,
        "alike": 890,
        "differed": {"tcp": 3},
        "spells": 4,
        "ended_by": {"difference": 3},
        "rests_s": 0.0,
        "trouble": None,
    },
    "phases_ms": {
        "covered": {"median": 3.5, "p99": 9.0, "max": 12.0},
        "stopped": {"median": 1.5, "p99": 4.0, "max": 6.0},
    },
    "times": {"covered": timed(0.0035, 0.0085), "stopped": timed(0.0015, 0.004)},
    "secondary": "tcp:b:9000",
    "peer": {"checkpoint": 1733, "state": "KEEPING"},
    "bytes_total": 123_456,
    "aside": {"held_bytes": 5, "room_bytes": 50, "memory_bytes": 10, "lag_s": 0.004},
    "wire": {
        "rate": None,
        "is_coded": False,
        "stream_bytes": 100,
        "wire_bytes": 40,
        "work_s": 0.5,
        "by_way": {},
    },
    "network": {
        "n0": {
            "gate": "HOLDING",
            "frames": 9310,
            "bytes": 12 << 20,
            "dropped": 0,
            "held_bytes": 1500,
            "held_max_bytes": 3000,
            "held_ms": {"median": 3.0, "p99": 8.0, "max": 11.0},
            "held": timed(0.003, 0.008),
        }
    },
    "disks": [
        {
            "id": "root",
            "size": 1 << 30,
            "in_step": True,
            "written_bytes": 4096,
            "same_bytes": 0,
            "by_digest": False,
            "share": 1.0,
            "left_s": None,
        }
    ],
    "qemu": {"pid": 2},
}
SECONDARY: dict[str, Any] = {
    **_COMMON,
    "role": "secondary",
    "state": "KEEPING",
    "session": "WAITING",
    **Figures().status(),
    "times": {name: timed(0.001) for name in PHASES if name not in ("covered", "stopped")},
    "guest_bytes": 1 << 29,
    "store_bytes": 1 << 30,
    "store": "/dev/shm/x",
    "disks": [
        {
            "id": "root",
            "size": 1 << 30,
            "condition": "WHOLE",
            "meaning": "it is whole",
            "epoch_bytes": 0,
            "held_bytes": 4096,
            "merge_lag": 1,
        }
    ],
    "on_loss": "takeover",
    "listen": "tcp:0.0.0.0:9000",
    "link": "UP",
    "waits_for": None,
    "peer": {"checkpoint": 1733},
    "forward": {
        "to": "tcp:c:9000",
        "state": "RUNNING",
        "checkpoint": 1730,
        "checkpoints": 12,
        "bytes": 3 << 20,
        "error": None,
    },
    "qemu": {"pid": 2, "qmp": "/q", "starts": 1, "trouble": None},
    "clock": {"trouble": None, "seconds": 1.5},
}
