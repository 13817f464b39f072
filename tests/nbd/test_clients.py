"""NBD clients that others wrote: libnbd's tools and library, QEMU's tools, QEMU, fio.

They run against exports in memory; one kind answers out of order.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colo.nbd.listener import Server, listen
from colo.transport.address import Address
from tests.nbd.memory import MemoryExport

pytestmark = pytest.mark.e2e

MIB = 1 << 20
LIMIT_S = 60
#: The library is a package of the system's Python.
PYTHON = "/usr/bin/python3"


class LateExport(MemoryExport):
    """Answers out of order: everything takes a while that is drawn."""

    rng = random.Random(5)

    async def wait(self) -> None:
        for _ in range(self.rng.choice([0, 1, 1, 2, 5, 20])):
            await asyncio.sleep(0)

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        await self.wait()
        return await super().read(offset, length)

    async def write(self, offset: int, data: memoryview | bytes, *, fua: bool) -> None:
        await self.wait()
        await super().write(offset, data, fua=fua)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool, fua: bool) -> None:
        await self.wait()
        await super().write_zeroes(offset, length, may_trim=may_trim, fua=fua)


KINDS = pytest.mark.parametrize("kind", [MemoryExport, LateExport])


@dataclass
class Place:
    """Where the server is, and a folder for the clients' files."""

    folder: Path
    socket: Path

    def uri(self, name: str = "disk") -> str:
        return f"nbd+unix:///{name}?socket={self.socket}"

    async def run(self, *command: str, status: int = 0) -> str:
        """Run a client; return what it printed."""
        if shutil.which(command[0]) is None:
            pytest.skip(f"no {command[0]}: see scripts/setup")
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self.folder,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        text = output.decode()
        assert process.returncode == status, f"{command}: {process.returncode}\n{text}"
        return text

    async def io(self, *commands: str, status: int = 0, name: str = "disk") -> str:
        """Run commands of qemu-io."""
        given = [part for command in commands for part in ("-c", command)]
        return await self.run("qemu-io", "-f", "raw", *given, self.uri(name), status=status)

    async def library(self, script: str) -> Any:
        """Run a script with ``nbd`` and a handle ``h``; return what it printed as JSON."""
        text = f"import json, nbd\nh = nbd.NBD()\nuri = {self.uri()!r}\n{script}"
        probe = await asyncio.create_subprocess_exec(
            PYTHON, "-c", "import nbd", stderr=asyncio.subprocess.DEVNULL
        )
        if await probe.wait():
            pytest.skip("no python3-libnbd: see scripts/setup")
        return json.loads(await self.run(PYTHON, "-c", text))


def play(
    folder: Path, exports: list[MemoryExport], scene: Callable[[Place], Awaitable[None]]
) -> None:
    """Play a scene with a server; no connection may end in an error."""
    errors: list[Exception] = []

    async def run() -> None:
        place = Place(folder, folder / "nbd.sock")
        server = Server(listen(Address(path=str(place.socket))), exports, errors.append)
        serving = asyncio.create_task(server.serve())
        async with asyncio.timeout(LIMIT_S):
            await scene(place)
        serving.cancel()
        await asyncio.wait({serving})

    asyncio.run(run())
    assert errors == []


def patterned(size: int = 8 * MIB) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Content with holes: data, zeros, data, zeros to the end."""
    content = np.zeros(size, np.uint8)
    drawn = np.random.default_rng(3)
    for start, end in ((0, MIB), (3 * MIB, 3 * MIB + 12288), (5 * MIB, 6 * MIB)):
        content[start:end] = drawn.integers(1, 256, end - start, np.uint8)
    return content


# --- libnbd -----------------------------------------------------------------------------------


def test_nbdinfo_is_told_what_an_export_can_do(tmp_path: Path) -> None:
    async def scene(place: Place) -> None:
        told = json.loads(await place.run("nbdinfo", "--json", place.uri()))
        (disk,) = told["exports"]
        assert told["protocol"] == "newstyle-fixed" and told["structured"] is True
        assert disk["contexts"] == ["base:allocation"]
        expected = {
            "export-name": "disk",
            "export-size": 8 * MIB,
            "is_read_only": False,
            "can_cache": False,
            "can_df": True,
            "can_fast_zero": True,
            "can_flush": True,
            "can_fua": True,
            "can_multi_conn": True,
            "can_trim": True,
            "can_zero": True,
            "block_size_minimum": 1,
            "block_size_preferred": 4096,
            "block_size_maximum": 32 * MIB,
        }
        assert {key: disk.get(key) for key in expected} == expected
        (iso,) = json.loads(await place.run("nbdinfo", "--json", place.uri("iso")))["exports"]
        assert iso["is_read_only"] is True and iso["can_trim"] is False

    disk = MemoryExport(size=8 * MIB)
    play(tmp_path, [disk, MemoryExport("iso", read_only=True)], scene)


def test_nbdinfo_lists_the_exports(tmp_path: Path) -> None:
    async def scene(place: Place) -> None:
        told = json.loads(await place.run("nbdinfo", "--list", "--json", place.uri("")))
        assert [each["export-name"] for each in told["exports"]] == ["disk", "other"]
        assert "export" in await place.run("nbdinfo", place.uri("none"), status=1)

    play(tmp_path, [MemoryExport(), MemoryExport("other")], scene)


def test_nbdinfo_draws_the_map(tmp_path: Path) -> None:
    disk = MemoryExport(size=8 * MIB)
    disk.allocated[256:512] = True

    async def scene(place: Place) -> None:
        told = json.loads(await place.run("nbdinfo", "--map", "--json", place.uri()))
        assert [(each["offset"], each["length"], each["type"]) for each in told] == [
            (0, MIB, 3),
            (MIB, MIB, 0),
            (2 * MIB, 6 * MIB, 3),
        ]

    play(tmp_path, [disk], scene)


@KINDS
def test_nbdcopy_copies_there_and_back(tmp_path: Path, kind: type[MemoryExport]) -> None:
    disk, other = kind(size=8 * MIB), kind("other", size=8 * MIB)
    content = patterned()
    (tmp_path / "source").write_bytes(content.tobytes())

    async def scene(place: Place) -> None:
        many = ("--connections=4", "--requests=32", "--request-size=65536")
        await place.run("nbdcopy", *many, "--flush", "source", place.uri())
        assert (disk.content == content).all()
        await place.run("nbdcopy", *many, place.uri(), place.uri("other"))
        assert (other.content == content).all()
        assert not other.allocated[1536:2048].any(), "a hole stays one"
        await place.run("nbdcopy", *many, place.uri("other"), "target")

    play(tmp_path, [disk, other], scene)
    assert "flush" in disk.calls
    assert (tmp_path / "target").read_bytes() == content.tobytes()


OPTIONS = """
h.set_opt_mode(True)
h.connect_uri(uri)
said = {"structured": h.get_structured_replies_negotiated(), "tls": h.get_tls_negotiated()}
names = []
h.opt_list(lambda name, text: names.append(name) or 0)
said["names"] = names
h.add_meta_context("base:allocation")
found = []
h.opt_list_meta_context(lambda name: found.append(name) or 0)
said["contexts"] = found
h.set_export_name("none")
try:
    h.opt_info()
except nbd.Error as error:
    said["none"] = error.errno
h.set_export_name("disk")
h.opt_info()
said["size"] = h.get_size()
h.opt_go()
said["context"] = h.can_meta_context("base:allocation")
h.pwrite(b"x", 0)
h.shutdown()
other = nbd.NBD()
other.set_opt_mode(True)
other.connect_uri(uri)
other.opt_abort()
print(json.dumps(said))
"""


def test_the_library_haggles(tmp_path: Path) -> None:
    async def scene(place: Place) -> None:
        assert await place.library(OPTIONS) == {
            "structured": True,
            "tls": False,
            "names": ["disk", "other"],
            "contexts": ["base:allocation"],
            "none": "ENOENT",
            "size": MIB,
            "context": True,
        }

    play(tmp_path, [MemoryExport(), MemoryExport("other")], scene)


COMMANDS = """
h.add_meta_context("base:allocation")
h.set_strict_mode(0)
h.connect_uri(uri)
size = h.get_size()
said = {}

def chunks(count, offset, flags=0):
    seen = []
    def chunk(data, at, status, error):
        seen.append([at, len(data), status])
        return 0
    data = h.pread_structured(count, offset, chunk, flags)
    return [seen, len(set(data))]

def fails(name, *args, **kwargs):
    try:
        getattr(h, name)(*args, **kwargs)
    except nbd.Error as error:
        return error.errno
    return "no error"

h.pwrite(b"\\x01\\x02" * 2048, 8192, nbd.CMD_FLAG_FUA)
said["data"] = chunks(4096, 8192)
said["hole"] = chunks(4096, 0)
said["whole"] = chunks(4096, 0, nbd.CMD_FLAG_DF)
said["mixed"] = chunks(8192, 4096)

def status(count, offset, flags=0):
    seen = []
    h.block_status(count, offset, lambda name, at, found, error: seen.append(found) or 0, flags)
    return seen

said["status"] = status(size, 0)
said["one"] = status(size, 0, nbd.CMD_FLAG_REQ_ONE)
h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
h.zero(4096, 12288, nbd.CMD_FLAG_FUA)
h.trim(4096, 0, nbd.CMD_FLAG_FUA)
h.flush()
said["zeroed"] = status(size, 0)
said["read beyond"] = fails("pread", 2, size - 1)
said["write beyond"] = fails("pwrite", b"xx", size - 1)
said["zero beyond"] = fails("zero", 2, size - 1)
said["trim beyond"] = fails("trim", 2, size - 1)
said["status beyond"] = fails("block_status", 2, size - 1, lambda *_: 0)
said["cache"] = fails("cache", 1, 0)
said["flag"] = fails("flush", 16)
said["nothing"] = [fails("pwrite", b"", 0), fails("zero", 0, 0), fails("trim", 0, 0)]
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([n] * 512)), n * 512)
           for n in range(200)]
waiting = set(cookies)
while waiting:
    waiting -= {cookie for cookie in waiting if h.aio_command_completed(cookie)}
    if waiting:
        h.poll(-1)
said["many"] = all(h.pread(512, n * 512) == bytes([n] * 512) for n in range(200))
h.shutdown()
print(json.dumps(said))
"""


@KINDS
def test_the_librarys_commands(tmp_path: Path, kind: type[MemoryExport]) -> None:
    disk = kind()

    async def scene(place: Place) -> None:
        assert await place.library(COMMANDS) == {
            "data": [[[8192, 4096, 1]], 2],
            "hole": [[[0, 4096, 2]], 1],
            "whole": [[[0, 4096, 1]], 1],
            "mixed": [[[4096, 8192, 1]], 3],
            "status": [[8192, 3, 4096, 0, MIB - 12288, 3]],
            "one": [[8192, 3]],
            "zeroed": [[8192, 3, 4096, 0, MIB - 12288, 3]],
            "read beyond": "EINVAL",
            "write beyond": "ENOSPC",
            "zero beyond": "ENOSPC",
            "trim beyond": "EINVAL",
            "status beyond": "EINVAL",
            "cache": "EINVAL",
            "flag": "EINVAL",
            "nothing": ["no error"] * 3,
            "many": True,
        }

    play(tmp_path, [disk], scene)
    assert disk.calls.count("flush") == 2, "one for the trim that has to be stable"
    assert disk.calls[0] == "write 8192 4096 fua"


SIMPLE = """
h.set_request_structured_replies(False)
h.connect_uri(uri)
h.pwrite(b"abc" * 1000, 5)
said = [h.get_structured_replies_negotiated(), h.can_df(), h.pread(3000, 5) == b"abc" * 1000]
h.set_strict_mode(0)
try:
    h.pread(2, h.get_size() - 1)
except nbd.Error as error:
    said.append(error.errno)
said.append(set(h.pread(100, 100_000)) == {0})
h.shutdown()
print(json.dumps(said))
"""


def test_the_library_without_structured_replies(tmp_path: Path) -> None:
    async def scene(place: Place) -> None:
        assert await place.library(SIMPLE) == [False, False, True, "EINVAL", True]

    play(tmp_path, [MemoryExport()], scene)


OLD = """
h.set_handshake_flags(flags)
h.connect_uri(uri)
h.pwrite(b"abc", 5)
said = [h.get_protocol(), h.pread(3, 5) == b"abc"]
h.shutdown()
print(json.dumps(said))
"""


@pytest.mark.parametrize("flags", [0, 1, 2])
def test_the_library_as_it_was_of_old(tmp_path: Path, flags: int) -> None:
    async def scene(place: Place) -> None:
        protocol = "newstyle-fixed" if flags & 1 else "newstyle"
        assert await place.library(f"flags = {flags}\n{OLD}") == [protocol, True]

    play(tmp_path, [MemoryExport()], scene)


# --- QEMU and fio -----------------------------------------------------------------------------


@KINDS
def test_qemu_img_converts_compares_and_maps(tmp_path: Path, kind: type[MemoryExport]) -> None:
    disk = kind(size=8 * MIB)
    content = patterned()
    (tmp_path / "source").write_bytes(content.tobytes())

    async def scene(place: Place) -> None:
        raw = ("-f", "raw", "-O", "raw")
        await place.run("qemu-img", "convert", "-n", "-W", *raw, "source", place.uri())
        assert (disk.content == content).all()
        assert disk.allocated.sum() == 256 + 3 + 256, "zeros take no room"
        both = ("-f", "raw", "-F", "raw")
        assert "identical" in await place.run("qemu-img", "compare", *both, "source", place.uri())
        found = json.loads(
            await place.run("qemu-img", "map", "--output=json", "-f", "raw", place.uri())
        )
        assert [each["start"] for each in found if each["data"]] == [0, 3 * MIB, 5 * MIB]
        assert all(each["zero"] != each["data"] for each in found)
        await place.run("qemu-img", "convert", *raw, place.uri(), "target")
        disk.content[-1] = 1
        disk.allocated[-1] = True
        differ = ("qemu-img", "compare", *both, "source", place.uri())
        assert "mismatch" in await place.run(*differ, status=1)

    play(tmp_path, [disk], scene)
    assert (tmp_path / "target").read_bytes() == content.tobytes()


@KINDS
def test_qemu_io_reads_what_it_wrote(tmp_path: Path, kind: type[MemoryExport]) -> None:
    disk = kind(size=64 * MIB)

    async def scene(place: Place) -> None:
        said = await place.io(
            "write -P 0x5a 0 1M",
            "write -P 0xa5 4k 4k",
            "write -f -P 0x11 33M 512",
            "aio_write -P 0x33 40M 1M",
            "aio_write -P 0x44 41M 1M",
            "aio_flush",
            "write -z 512k 64k",
            "write -z -u 768k 64k",
            "discard 48M 1M",
            "flush",
            "read -P 0x5a 0 4k",
            "read -P 0xa5 4k 4k",
            "read -P 0x5a 8k 504k",
            "read -P 0 512k 64k",
            "read -P 0x5a 576k 192k",
            "read -P 0 768k 64k",
            "read -P 0x11 33M 512",
            "read -P 0x33 40M 1M",
            "read -P 0x44 41M 1M",
            "write -P 0x66 1M 31M",
            "read -P 0x66 1M 31M",
        )
        assert "failed" not in said
        assert "Pattern verification failed" in await place.io("read -P 1 0 4k", status=1)
        assert "Permission denied" in await place.io("write 0 4k", status=1, name="iso")

    play(tmp_path, [disk, MemoryExport("iso", read_only=True)], scene)
    assert any(call.startswith("trim") for call in disk.calls)
    assert {"flush", f"write {33 * MIB} 512 fua"} <= set(disk.calls)
    assert disk.allocated[128] and not disk.allocated[192], "only -u may leave a hole"


MACHINE = ("-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio")


class Qemu:
    """A QEMU with a disk and no machine, spoken to over its stdio."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[str] = []

    async def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = b"what qemu-io says"
        while not line.startswith(b"{"):
            line = await self._process.stdout.readline()
            assert line, "QEMU has ended"
        said: dict[str, Any] = json.loads(line)
        if "event" in said:
            self.events.append(said["event"])
        return said

    async def do(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        message = {"execute": command, "arguments": arguments}
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        while True:
            said = await self.read()
            assert "error" not in said, said
            if "return" in said:
                return said["return"]

    async def event(self, name: str) -> None:
        while name not in self.events:
            await self.read()


@KINDS
def test_qemu_mirrors_a_disk_while_it_is_written(tmp_path: Path, kind: type[MemoryExport]) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no qemu-system-x86_64: see scripts/setup")
    disk = kind(size=8 * MIB)
    content = patterned()
    (tmp_path / "source").write_bytes(content.tobytes())

    async def scene(place: Place) -> None:
        process = await asyncio.create_subprocess_exec(
            "qemu-system-x86_64",
            *MACHINE,
            "-drive",
            "file=source,format=raw,if=none,id=drive0,node-name=node0,discard=unmap",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=tmp_path,
        )
        qemu = Qemu(process)
        try:
            await qemu.read()
            await qemu.do("qmp_capabilities")
            await qemu.do(
                "blockdev-add",
                driver="nbd",
                **{"node-name": "copy"},
                server={"type": "unix", "path": str(place.socket)},
                export="disk",
            )
            await qemu.do(
                "blockdev-mirror",
                device="node0",
                target="copy",
                sync="full",
                **{"job-id": "mirror", "copy-mode": "write-blocking"},
            )
            await qemu.event("BLOCK_JOB_READY")
            for command in ("write -P 0x77 2M 64k", "write -z -u 0 1M", "write -P 0x88 100 1"):
                await qemu.do(
                    "human-monitor-command", **{"command-line": f'qemu-io drive0 "{command}"'}
                )
            content[2 * MIB : 2 * MIB + 65536] = 0x77
            content[:MIB] = 0
            content[100] = 0x88
            assert (disk.content == content).all(), "it is there as soon as it was written"
            await qemu.do("block-job-cancel", device="mirror")
            await qemu.event("BLOCK_JOB_COMPLETED")
            await qemu.do("blockdev-del", **{"node-name": "copy"})
            await qemu.do("quit")
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    play(tmp_path, [disk], scene)
    assert (tmp_path / "source").read_bytes() == content.tobytes()


@KINDS
@pytest.mark.parametrize("rw", ["randwrite", "write", "randrw"])
def test_fio_verifies_what_it_wrote(tmp_path: Path, kind: type[MemoryExport], rw: str) -> None:
    disk = kind(size=16 * MIB, told=False)

    async def scene(place: Place) -> None:
        if shutil.which("fio") and "nbd" not in await place.run("fio", "--enghelp"):
            pytest.skip("this fio has no engine for NBD")
        said = await place.run(
            "fio",
            "--name=verified",
            "--ioengine=nbd",
            f"--uri={place.uri()}",
            f"--rw={rw}",
            "--bsrange=512-128k",
            "--blockalign=512",
            "--size=16m",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randseed=7",
            "--output-format=json",
        )
        (job,) = json.loads(said[said.index("{") :])["jobs"]
        assert job["error"] == 0
        assert job["read"]["io_bytes"] > 4 * MIB and job["write"]["io_bytes"] > 4 * MIB

    play(tmp_path, [disk], scene)
