"""What a QEMU has in the way of its protection: it is asked, and nothing in it is changed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from colo.config import VmConfig
from colo.errors import ColoError, GuestError
from colo.findings import Finding, Topic, note
from colo.qemu.argument_obstacles import is_versioned
from colo.qemu.colo_mode import never_enters
from colo.qemu.mirrors import find_disks
from colo.qemu.monitor import Monitor
from colo.qemu.obstacles import obstacles
from colo.qemu.options import machine_keys
from colo.qemu.packet_filters import cards
from colo.qemu.process import Qemu, plan
from colo.qemu.running import Running

__all__ = ["check_qemu", "check_running", "check_started", "machine_of"]

_MACHINE: Final = "-machine"


async def check_running(config: VmConfig, where: Running, allow_disks: bool) -> list[Finding]:
    """What stands in the way in this QEMU."""
    told: list[str] = []
    try:
        qemu = await where.attach(told.append)
    except ColoError as error:
        return [Finding(where.topic, str(error))]
    try:
        found = await check_qemu(config, qemu, allow_disks)
    except ColoError as error:
        found = [Finding(where.topic, str(error))]
    finally:
        await qemu.detach()
    return [*found, *(note(where.topic, line) for line in told)]


async def check_started(config: VmConfig, allow_disks: bool) -> list[Finding]:
    """The same in a QEMU that is started for it, and ended; its VM stands still meanwhile."""
    try:
        launch = plan(config, lambda line: None)
    except GuestError:
        return []  # it was found already
    with tempfile.TemporaryDirectory(prefix="colo-check-") as folder:
        qemu = Qemu(launch.unstarted(), Path(folder), launch.environment)
        try:
            await qemu.start()
        except GuestError as error:
            return [Finding(Topic.QEMU_ARGUMENTS, f"with these arguments {error}")]
        try:
            return await check_qemu(config, qemu, allow_disks, started=False)
        except ColoError as error:
            return [Finding(Topic.QMP, str(error))]
        finally:
            await qemu.kill()


async def check_qemu(
    config: VmConfig, qemu: Monitor, allow_disks: bool, started: bool = True
) -> list[Finding]:
    """The same of one whose QMP is at hand.  Raises GuestError where it does not answer."""
    found = []
    version = (await qemu.execute("query-version"))["qemu"]
    if (broken := never_enters((version["major"], version["minor"]))) is not None:
        found.append(Finding(Topic.QEMU_VERSION, broken))
    if (await qemu.execute("query-migrate")).get("status") == "colo":
        text = (
            "it is in COLO: it is protected, or a colo was killed there, which the next one mends"
        )
        return [*found, note(Topic.MIGRATION, text)]
    found += await obstacles(qemu, config, await cards(qemu), allow_disks, started)
    for disk in config.disks:
        try:
            await find_disks(qemu, [disk.id])
        except GuestError as error:
            found.append(Finding(Topic.DISK_NOT_USED, str(error)))
    runs = await machine_of(qemu)
    says = str(machine_keys(config.qemu.args).get("type", ""))
    if runs is not None and is_versioned(says) and says != runs:
        text = f"it is a {runs}, and the VM file says -machine {says}: make them the same"
        found.append(Finding(Topic.MACHINE, text))
    return found


async def machine_of(qemu: Monitor) -> str | None:
    """The machine's name, with its version; None where QEMU does not say."""
    try:
        kind = str(await qemu.execute("qom-get", path="/machine", property="type"))
    except GuestError:
        return None
    return kind.removesuffix(_MACHINE) if kind.endswith(_MACHINE) else None
