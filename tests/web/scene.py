"""A host with VMs, and ``colo web`` that shows them."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from colo.node.state_folder import StateFolder
from tests.metrics.statuses import NODE, PRIMARY, SECONDARY, timed
from tests.orders import take_orders

__all__ = ["Scene"]

_END_S = 15


class Scene:
    """Five VMs of a host, each in another state, and a ``colo web`` with these options."""

    def __init__(self, under: Path, *options: str) -> None:
        self.under = under
        self.folders: dict[str, StateFolder] = {}
        self.seconds: list[float] = []
        self.tell("web1", {**PRIMARY, "secondary": "tcp:10.0.0.2:9000"})
        self.tell("db1", {**SECONDARY, "primary": "tcp:10.0.0.2:40112", "state": "RECEIVING"})
        self.tell("db1", {**SECONDARY, "primary": "tcp:10.0.0.2:40112"})
        alone = {**PRIMARY, "state": "UNPROTECTED", "secondary": "tcp:10.0.0.3:9000"}
        kept = {**SECONDARY, "primary": "tcp:10.0.0.3:40112"}
        took = {"takeover": {"total_ms": 12.4}, "error": "the other side was silent for 0.8 s"}
        self.tell("mail", kept)
        self.tell("mail", {**kept, "state": "RUNNING", **took})
        self.tell("mail", {**alone, "error": "tcp:10.0.0.3:9000 is out of reach: no answer"})
        self.tell("files", NODE)
        self.tell("build", {**SECONDARY, "state": "SHUTDOWN"})
        self.age()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        colo = str(Path(sys.executable).parent / "colo")
        command = [colo, "web", "--under", str(under), "--listen", f"127.0.0.1:{port}", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.told = self.process.stderr.readline()
        found = re.search(r"http://\S+", self.told)
        assert found, self.told
        self.url = found.group()
        self.base = f"http://127.0.0.1:{port}/"

    def tell(self, vm: str, status: dict[str, Any], **more: Any) -> None:
        """A VM's colo writes its status."""
        if vm not in self.folders:
            self.folders[vm] = StateFolder(self.under / vm)
        now = {"vm": vm, "checkpoint_at": time.time()}
        self.folders[vm].write_status({**status, **now, **more})

    def age(self) -> None:
        """What has happened so far was over the last 50 minutes."""
        for folder in self.folders.values():
            path = folder.path / "history.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for number, line in enumerate(lines):
                line["at"] = time.time() - 3000 + 900 * number
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def checkpoint(self, *seconds: float) -> None:
        """More checkpoints of web1, which took so long; the others say that they are there."""
        self.seconds += seconds
        card = {**PRIMARY["network"]["n0"], "held": timed(*(2 * each for each in self.seconds))}
        times = {"stopped": timed(*self.seconds), "covered": timed(*self.seconds)}
        where = {"secondary": "tcp:10.0.0.2:9000", "network": {"n0": card}}
        self.tell("web1", PRIMARY, times=times, **where)
        for vm in ("db1", "mail", "files"):
            self.tell(vm, self.folders[vm].last)

    def take_orders(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        """Have web1's colo take one order and answer it; it is in the list then."""
        return take_orders(self.folders["web1"].control, answer)

    def close(self) -> None:
        """End it; it ends in good order."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(_END_S)
        assert self.process.stderr is not None
        rest = self.process.stderr.read()
        self.process.stderr.close()
        for folder in self.folders.values():
            folder.close()
        assert (code, rest) == (0, "")
