"""A colo that is none, at the end of a control socket: it takes one order and answers it."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

__all__ = ["take_orders"]


def take_orders(control: Path, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Take one order at this socket; once it is answered, it is in the list."""
    orders: list[dict[str, Any]] = []
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(control))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rw") as stream:
            orders.append(json.loads(stream.readline()))
            stream.write(json.dumps(answer) + "\n")
        server.close()

    threading.Thread(target=serve, daemon=True).start()
    return orders
