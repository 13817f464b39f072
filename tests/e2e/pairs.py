"""The two roles of a pair, each played by a QEMU or by ours, under the same few handles.

A primary that is ours is a ``colo secondary --forward``; the QEMU behind it runs the guest.  It
hands on to whatever ``onward`` in the scene's folder points to just then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Final, Protocol

from colo.config import load
from colo.qemu.process import Qemu, plan
from tests.e2e.basics import Console, counts, wait
from tests.e2e.harness import Host, Scene
from tests.e2e.vm import PrimaryVm, VmFile
from tests.e2e.wire import Phase, Wire

__all__ = [
    "OurPrimary",
    "OurSecondary",
    "Pair",
    "Primary",
    "QemuPrimary",
    "Secondary",
    "StockSecondary",
    "lose",
    "on",
]

#: Both QEMUs have it, so a VM can go from one to the other.
MACHINE: Final = "pc-i440fx-7.2"
DELAY_MS: Final = 100
#: A checkpoint that is handed on is one of the last so many that had come.
RECENT: Final = 4


class Primary(Protocol):
    """What a scenario asks of a primary."""

    @property
    def console(self) -> Console:
        """The guest's."""

    def protect(self, socket: Path) -> None:
        """Checkpoint the guest to the secondary that listens there."""

    def said(self) -> list[int]:
        """How much the guest may have said by the checkpoint that is just being sent."""

    def kill(self) -> None:
        """End it as a host's loss ends it."""

    def check_goes_on(self) -> None:
        """The secondary is lost, and the guest goes on all the same."""


class Secondary(Protocol):
    """What a scenario asks of a secondary."""

    socket: Path
    console: Console

    def start(self) -> None:
        """Start it, or start it again after it was killed; it listens then."""

    def take_over(self) -> None:
        """The primary is lost: see the VM run here."""

    def kill(self) -> None:
        """End it as a host's loss ends it."""


class QemuPrimary:
    """A stock QEMU as the primary."""

    def __init__(self, scene: Scene, binary: str) -> None:
        self.vm = scene.primary(on(binary))

    @property
    def console(self) -> Console:
        return self.vm.console

    def protect(self, socket: Path) -> None:
        self.vm.protect(f"unix:{socket}", DELAY_MS)

    def said(self) -> list[int]:
        return [len(self.console.text())]

    def kill(self) -> None:
        self.vm.kill()

    def check_goes_on(self) -> None:
        reason = self.vm.ended()
        assert reason.startswith("QEMU left COLO, reason: error"), reason
        self.vm.run_alone()
        self.console.wait_progress()
        assert self.vm.is_running()


class OurPrimary:
    """Ours as the primary: it hands on what a QEMU with ``vm`` sends it."""

    def __init__(self, scene: Scene, vm: VmFile, forward_as: str = "same") -> None:
        self.vm, self.host = scene.primary(vm), scene.host(vm)
        self._onward = scene.folder / "onward"
        self.host.start("--on-loss", "hold", "--forward", self.to, "--forward-as", forward_as)
        self.console.wait_count(3)
        self._wire = scene.wire(self.host, self.vm)
        self._said = scene.said_at
        self.vm.protect(f"unix:{self._wire.path}", DELAY_MS)

    @property
    def to(self) -> str:
        """The address that it hands on to."""
        return f"unix:{self._onward}"

    @property
    def console(self) -> Console:
        return self.vm.console

    def protect(self, socket: Path) -> None:
        before = len(self.host.said("are handed on"))
        self.point_to(socket)
        wait(lambda: len(self.host.said("are handed on")) > before, "checkpoints to be handed on")

    def point_to(self, socket: Path) -> None:
        """Hand on to the secondary that listens at ``socket``, from the next session on."""
        new = self._onward.with_suffix(".new")
        new.symlink_to(socket)
        new.rename(self._onward)

    def pause(self) -> int:
        """Stop the VM where its next checkpoint is whole, and return that one's number."""
        number = self._wire.stop_at(Phase.LOADED)
        self._wire.wait_stopped()
        return number

    def go_on(self) -> None:
        """Have the VM run again."""
        self._wire.go_on()

    def said(self) -> list[int]:
        newest = self._wire.checkpoint
        numbers = range(max(0, newest - RECENT), newest + 1)
        return [self._said[number] for number in numbers if number in self._said]

    def kill(self) -> None:
        lose(self.host)

    def check_goes_on(self) -> None:
        self._onward.unlink()  # whoever is to be handed on to next comes through a wire of its own
        wait(lambda: self.host.file()["forward"]["error"], "the loss to be noticed")
        self.host.wait_checkpoint(self.host.file()["checkpoint"] + 5)
        self.console.wait_progress()
        assert self.host.file()["state"] not in ("CUT_OFF", "ORPHANED", "TAKING_OVER", "RUNNING")
        assert self.host.file()["error"] is None


class StockSecondary(PrimaryVm):
    """A QEMU in COLO mode that waits at ``socket``; between checkpoints its VM runs."""

    def __init__(self, scene: Scene, vm: VmFile, return_path: bool) -> None:
        name = f"s{len(scene.primaries)}"
        console = Console(scene.folder, name)
        vm_file = scene.folder / f"{name}.toml"
        vm.write(vm_file, scene.name, scene.binary, console, Console(scene.folder, "unused"))
        super().__init__(load(vm_file), scene.folder / name, console)
        scene.primaries.append(self)
        self.socket = scene.folder / f"{name}.listen"
        self._capabilities = ["x-colo", *(["return-path"] if return_path else [])]

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self.socket.unlink(missing_ok=True)
        self._do(self._start())
        self.set_capabilities(*self._capabilities)
        self.execute("migrate-incoming", uri=f"unix:{self.socket}")

    def take_over(self) -> None:
        said = self.console.text()
        self.execute("x-colo-lost-heartbeat")
        assert counts(said), "its VM has run between checkpoints"
        wait(self.is_running, "the VM to run on the stock secondary")

    def words(self) -> str:
        """The end of what QEMU wrote."""
        assert self._qemu is not None
        return self._qemu.last_words()

    def wait_exit(self) -> str:
        """Wait for its end and return the end of what it wrote."""
        assert self._qemu is not None
        self._do(self._qemu.wait())
        return self.words()

    async def _start(self) -> None:
        launch = plan(self._config)
        command = [*launch.primary(), "-incoming", "defer"]
        self._qemu = Qemu(command, self._folder, launch.environment)
        await self._qemu.start()


class OurSecondary:
    """Ours as the secondary; the VM that it takes over runs on ``binary``."""

    def __init__(self, scene: Scene, binary: str) -> None:
        self.host = scene.host(on(binary))
        self.socket, self.console = self.host.socket, self.host.console

    def start(self) -> None:
        self.host.start()

    def take_over(self) -> None:
        self.host.wait_state("RUNNING")

    def kill(self) -> None:
        lose(self.host)


class Pair:
    """A primary, a secondary, and the wire between them when there is one."""

    def __init__(self, scene: Scene, primary: Primary, secondary: Secondary) -> None:
        self.primary = primary
        self.secondary = secondary
        self._scene = scene
        #: By checkpoint: what either guest had said when both were stopped for it.
        self._said_at: dict[int, tuple[list[int], int]] = {}

    def join(self) -> Wire:
        """Protect the guest through a new wire."""

        def on_stopped(number: int) -> None:
            self._said_at[number] = self.primary.said(), len(self.secondary.console.text())

        self._said_at = {}
        path = self._scene.folder / f"w{len(self._scene.wires)}"
        wire = Wire(path, self.secondary.socket, on_stopped)
        self._scene.wires.append(wire)
        self.primary.protect(path)
        return wire

    def check_took_over(self, *checkpoints: int) -> None:
        """The guest goes on at the secondary from one of these checkpoints; its memory is right.

        What the primary's guest had said by then and what the secondary's has said since are one
        text, to the byte.
        """
        console, said = self.secondary.console, self.primary.console.text()
        console.wait_progress(3)
        text = console.text()
        joined = {
            (number, before): [count for count, _ in counts(said[:before] + text[after:])]
            for number in checkpoints
            for befores, after in [self._said_at.get(number, ([], 0))]
            for before in befores
        }
        assert any(is_counting(each) for each in joined.values()), (
            f"numbers are missing or twice: {said[-200:]!r}, then {text[-600:]!r}; "
            f"tried {list(joined)} of {sorted(self._said_at)[-6:]}"
        )
        # Only now: where a client leaves a console, QEMU may drop the character it is writing.
        console.verify()
        assert "CORRUPT" not in said + text


def on(binary: str) -> VmFile:
    """The VM of all pairs, on this QEMU."""
    return VmFile(machine=MACHINE, binary=binary)


def lose(host: Host) -> None:
    """End colo and its QEMU; its store goes, as a host's memory does."""
    store, qemu = host.file()["store"], host.qemu_pid()
    host.signal(signal.SIGKILL)
    host.wait_exit()
    with contextlib.suppress(ProcessLookupError):
        os.kill(qemu, signal.SIGKILL)
    shutil.rmtree(store, ignore_errors=True)


def is_counting(numbers: list[int]) -> bool:
    """Whether each number is the one before and one more, and there are some."""
    return bool(numbers) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
