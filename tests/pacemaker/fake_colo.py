"""Stands in for ``colo node``: says in status.json what the test has put into the folder.

``fake`` is what it says, ``on-ORDER`` what it says once it got that order (and «gone» to end),
``answer-ORDER`` what it answers, ``next`` what the next colo says; ``orders`` has all that it got.
With ``stays``, read at the start, it does not end at SIGTERM, and notes it in ``asked-to-end``.
With ``permit``, the path of one in it, it says PROTECTED while that is there, and ``fake`` else.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    folder = Path(sys.argv[sys.argv.index("--state-dir") + 1])
    vm = Path(sys.argv[2]).stem
    if (folder / "refuses").exists():
        print("the VM file is wrong: mend it", file=sys.stderr)
        sys.exit(2)
    (folder / "argv").write_text(json.dumps(sys.argv[1:]))
    follow(folder, "next")
    if (folder / "stays").exists():
        signal.signal(signal.SIGTERM, lambda *_: (folder / "asked-to-end").touch())
    control = folder / "control.sock"
    control.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(control))
        server.listen()
        while (said := says(folder))["state"] != "gone":
            status = {"vm": vm, "pid": os.getpid(), "written_at": time.time(), **said}
            half = folder / ".half"
            half.write_text(json.dumps(status))
            half.rename(folder / "status.json")
            if select.select([server], [], [], 0.02)[0]:
                obey(folder, server)


def says(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "fake").read_text())
    permit = folder / "permit"
    if permit.exists() and Path(permit.read_text()).exists() and content["state"] != "gone":
        return {"state": "PROTECTED"}
    assert isinstance(content, dict)
    return content


def follow(folder: Path, name: str) -> None:
    """From now on say what is in that file, where there is one."""
    if (then := folder / name).exists():
        half = folder / ".fake"
        half.write_bytes(then.read_bytes())
        half.rename(folder / "fake")


def obey(folder: Path, server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection, connection.makefile("rw") as stream:
        order = json.loads(stream.readline())
        with (folder / "orders").open("a") as log:
            log.write(json.dumps(order) + "\n")
        name = order["order"]
        follow(folder, f"on-{name}")
        if (answer := folder / f"answer-{name}").exists():
            stream.write(answer.read_text() + "\n")


if __name__ == "__main__":
    main()
