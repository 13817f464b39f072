"""A QMP connection as a monitor: what is heard, what is kept, what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener

from colo.errors import GuestError, QemuRefusal
from colo.qemu.monitor import AttachedQemu

GREETING = {"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}


class FakeQmp:
    """A QMP server: every command is answered; ``checkpoint`` has the events of one before that."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(what: dict[str, Any]) -> None:
            writer.write(json.dumps(what).encode() + b"\r\n")

        say(GREETING)
        while line := await reader.read(1 << 16):  # the client waits for each answer
            order = json.loads(line)
            self.asked.append(order)
            name = order.get("execute") or order["exec-oob"]
            number = {"id": order["id"]} if "id" in order else {}
            if name == "checkpoint":
                for event in ("STOP", "COLO_EXIT", "RESUME"):
                    say({"event": event, "data": {}, "timestamp": {"seconds": 1}})
            if name == "bad":
                say({**number, "error": {"class": "GenericError", "desc": "no"}})
            else:
                say({**number, "return": {}})
        writer.close()


def play(scene: Any, folder: Path) -> FakeQmp:
    """Have a scene with a QEMU at a socket, which is this very process."""
    qmp = FakeQmp()

    async def run() -> None:
        async with await asyncio.start_unix_server(qmp.serve, folder / "qmp"):
            qemu = AttachedQemu(folder / "qmp")
            await qemu.attach()
            try:
                await asyncio.wait_for(scene(qemu), 20)
            finally:
                await qemu.detach()

    asyncio.run(run())
    return qmp


def test_who_listens_hears_and_nothing_else_is_kept(tmp_path: Path) -> None:
    """A protected VM stops and goes on for each of its checkpoints, for weeks."""

    async def scene(qemu: AttachedQemu) -> None:
        heard = EventListener("COLO_EXIT")
        qemu.listen(heard)
        await qemu.execute("checkpoint")
        assert [each["event"] for each in heard.clear()] == ["COLO_EXIT"]
        qemu.unlisten(heard)
        await qemu.execute("checkpoint")
        assert heard.empty()
        assert qemu.qmp.events.empty() and not qemu.qmp.events.history

    play(scene, tmp_path)


def test_one_that_is_given_up_is_told_nothing_that_it_might_do_later(tmp_path: Path) -> None:
    async def scene(qemu: AttachedQemu) -> None:
        await qemu.execute("good")
        qemu.give_up()
        with pytest.raises(GuestError, match="is not asked for object-del any more"):
            await qemu.execute("object-del", id="gate")

    asked = [each["execute"] for each in play(scene, tmp_path).asked]
    assert asked == ["qmp_capabilities", "good"]


def test_names_and_refusals(tmp_path: Path) -> None:
    async def scene(qemu: AttachedQemu) -> None:
        await qemu.execute("good", node_name=1, vnet_hdr_support=True)
        await qemu.execute("urgent", oob=True)
        with pytest.raises(QemuRefusal, match="QEMU refuses bad: no"):
            await qemu.execute("bad")
        await qemu.detach()
        with pytest.raises(GuestError, match="QEMU died at good"):
            await qemu.execute("good")

    _, good, urgent, _ = play(scene, tmp_path).asked
    assert good["arguments"] == {"node-name": 1, "vnet_hdr_support": True}
    assert urgent["exec-oob"] == "urgent"
