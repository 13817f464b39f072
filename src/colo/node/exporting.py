"""The last checkpoint as streams for ``colo export`` and ``colo inspect``: memory, and its disks.

The first is a migration stream.  Each disk is one more: its first piece is a line of JSON with its
name and its size in bytes, the others are a u64 offset and what lies there; the rest is zeroes.
All are of one checkpoint: they are begun in one step, where memory and disks are applied to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

from colo.disks.blockfile import RealFile
from colo.disks.replica import Replica
from colo.disks.view import DiskView
from colo.errors import DiskError, LocalError, StoreError
from colo.node.kept import Kept
from colo.node.orders import Answer, fetch_streams
from colo.progress import shown
from colo.store.export import export_stream, new_file
from colo.store.view import View

__all__ = ["exported", "write_export"]

_SETTLE_S: Final = 30.0
_LOOK_S: Final = 0.005
_OFFSET: Final = struct.Struct(">Q")


async def exported(kept: Kept, folder: Path, with_disks: bool) -> Answer:
    """Answer with the last whole checkpoint, or why not.

    ``folder``: where what the next checkpoints overwrite of the disks is set aside.
    """
    try:
        await kept.settled()
        if with_disks:
            await _settled_together(kept)
        with contextlib.ExitStack() as opened:
            view = opened.enter_context(contextlib.closing(View(kept.store)))
            streams = [export_stream(view)]
            if with_disks:
                for replica in kept.disks.replicas:
                    streams.append(_disk_stream(opened.enter_context(_viewed(replica, folder))))
            close = opened.pop_all().close
    except LocalError as error:
        return Answer(False, str(error))
    return Answer(True, "", tuple(streams), close)


async def _settled_together(kept: Kept) -> None:
    """Return where memory and disks are applied to one checkpoint.  Raises LocalError."""
    try:
        async with asyncio.timeout(_SETTLE_S):
            while kept.number >= 0 and not (
                kept.store.is_applied and kept.disks.is_merged_at(kept.number)
            ):
                await asyncio.sleep(_LOOK_S)
                await kept.settled()
    except TimeoutError:
        raise StoreError(
            f"in {_SETTLE_S:.0f} s the disks were never written up to a checkpoint: try again when "
            "the guest writes less"
        ) from None


@contextlib.contextmanager
def _viewed(replica: Replica, folder: Path) -> Iterator[DiskView]:
    path = folder / f"{replica.disk}.aside-{uuid4().hex}"
    with contextlib.ExitStack() as opened:
        try:
            with path.open("xb") as file:
                file.truncate(replica.size)
            aside = RealFile(path, replica.disk)
        except OSError as error:
            raise DiskError(replica.disk, f"{error.strerror}", str(path)) from error
        finally:
            path.unlink(missing_ok=True)  # it lives as long as it is open
        opened.callback(aside.close)
        view = replica.view(aside)
        opened.pop_all()
    try:
        yield view
    finally:
        replica.end_view(view)


def _disk_stream(view: DiskView) -> Iterator[bytes]:
    yield json.dumps({"disk": view.disk, "size": view.size}).encode()
    for offset, data in view.content():
        yield _OFFSET.pack(offset) + data


def write_export(state_dir: Path, file: Path) -> list[tuple[Path, int]]:
    """Write what a running ``colo secondary`` exports: to ``file``, its disks to others beside it.

    Returns the files with their sizes.  They are there once all are whole.  Raises ColoError.
    """
    written: list[tuple[Path, int]] = []
    with contextlib.ExitStack() as files:
        for stream in fetch_streams(state_dir, "export"):
            if not written:
                out, size = files.enter_context(new_file(file)), 0
                for piece in shown(stream, "exporting"):
                    size += out.write(piece)
                written.append((file, size))
            elif (head := next(stream, None)) is not None:
                content = json.loads(head)
                path = file.with_name(f"{file.name}.{content['disk']}.raw")
                out = files.enter_context(new_file(path))
                out.truncate(content["size"])
                for piece in shown(stream, f"exporting {content['disk']}"):
                    out.seek(_OFFSET.unpack_from(piece)[0])
                    out.write(memoryview(piece)[_OFFSET.size :])
                written.append((path, content["size"]))
    return written
