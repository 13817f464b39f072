"""A checkpoint taken away as a file: a stock QEMU loads it and its guest goes on from there."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo.config import load
from colo.qemu.process import Qemu, plan
from tests.e2e.basics import Console, wait
from tests.e2e.harness import Scene
from tests.e2e.vm import PrimaryVm, VmFile

pytestmark = pytest.mark.e2e


class Loaded(PrimaryVm):
    """A stock QEMU that loads a file."""

    file: Path

    async def _start(self) -> None:
        launch = plan(self._config)
        command = [*launch.primary(), "-incoming", f"exec:cat {self.file}"]
        self._qemu = Qemu(command, self._folder, launch.environment)
        await self._qemu.start()


def loaded(scene: Scene, file: Path) -> Loaded:
    """A QEMU of its own that loads the file."""
    console = Console(scene.folder, "c")
    vm_file = scene.folder / "c.toml"
    VmFile().write(vm_file, scene.name, scene.binary, console, Console(scene.folder, "unused"))
    vm = Loaded(load(vm_file), scene.folder / "c", console)
    scene.primaries.append(vm)
    vm.file = file
    vm.start()
    return vm


def test_a_stock_qemu_goes_on_from_an_exported_checkpoint(scene: Scene) -> None:
    primary, _, host = scene.protected()
    early = primary.console.last()
    host.wait_checkpoint(host.status()["checkpoint"] + 5)
    file = scene.folder / "vm.mig"
    done = host.run("export", str(file))
    assert done.returncode == 0, done.stderr
    number = host.status()["checkpoint"]
    host.wait_checkpoint(number + 3)  # the protection has gone on

    vm = loaded(scene, file)
    wait(lambda: vm.execute("query-status")["status"] != "inmigrate", "the file to be loaded")
    if not vm.is_running():
        vm.execute("cont")
    vm.console.wait_progress()
    assert vm.console.lines()[0][0] > early
    vm.console.verify()
    host.wait_checkpoint(host.status()["checkpoint"] + 3)


@pytest.mark.parametrize("qemu", ["7.2"], indirect=True)  # decided above QEMU
def test_there_is_nothing_to_export_before_the_first_copy_and_after_the_takeover(
    scene: Scene,
) -> None:
    host = scene.host()
    host.start()
    done = host.run("export", str(scene.folder / "none.mig"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no whole checkpoint yet" in done.stderr
    primary = scene.primary()
    primary.console.wait_count(3)
    primary.protect(f"unix:{host.socket}")
    host.wait_said("PROTECTED")
    primary.kill()
    host.wait_state("RUNNING")
    done = host.run("export", str(scene.folder / "none.mig"))
    assert done.returncode == 1
    assert "the VM runs here" in done.stderr
    assert not list(scene.folder.glob("*none.mig*"))
