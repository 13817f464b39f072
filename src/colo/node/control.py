"""Orders to a running colo: one line of JSON over ``control.sock``, answered by one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeAlias

from colo.errors import ColoError

__all__ = ["Answer", "Obey", "give_order", "serve_orders"]

_ORDER_BYTES: Final = 4096
_READ_S: Final = 1.0
_ANSWER_S: Final = 120.0


@dataclass(frozen=True)
class Answer:
    """Whether the order was carried out, and a line about it."""

    ok: bool
    text: str


Obey: TypeAlias = Callable[[str, bool], Awaitable[Answer]]


async def serve_orders(path: Path, obey: Obey) -> asyncio.Server:
    """Serve orders at ``path``; ``obey`` gets an order's name and whether it is forced."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _READ_S)
            order = json.loads(line[:_ORDER_BYTES])
            answer = await obey(str(order["order"]), bool(order.get("force")))
        except (ValueError, KeyError, TypeError, AttributeError, TimeoutError):
            answer = Answer(False, "that is not an order")
        with contextlib.suppress(OSError):
            writer.write(json.dumps(asdict(answer)).encode() + b"\n")
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(serve, path)


def give_order(state_dir: Path, order: str, force: bool = False) -> Answer:
    """Give an order to the colo of a state folder and wait for its answer.  Raises ColoError."""
    path = state_dir / "control.sock"
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_ANSWER_S)
            sock.connect(str(path))
            sock.sendall(json.dumps({"order": order, "force": force}).encode() + b"\n")
            with sock.makefile() as stream:
                return Answer(**json.loads(stream.readline()))
    except (FileNotFoundError, ConnectionRefusedError):
        raise ColoError(f"no colo runs with the state folder {state_dir}") from None
    except (OSError, ValueError) as error:
        raise ColoError(f"{path}: {error}") from error
