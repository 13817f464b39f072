"""Handing checkpoints on: the further store is exact, and nothing there disturbs the protection."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.e2e.basics import wait
from tests.e2e.harness import Host, Scene
from tests.e2e.memory import Pages, differing, primary_memory, store_memory, wait_equal
from tests.e2e.pairs import OurPrimary, OurSecondary, StockSecondary, on

pytestmark = pytest.mark.e2e

OLD, NEW = "7.2", "11.1"
ROUNDS = 10


def test_the_further_store_is_equal_page_by_page(both: Scene, qemus: dict[str, str]) -> None:
    """Where the VM stands still, in a checkpoint, it and both stores have the same memory."""
    vm = on(qemus[OLD])
    ours, further = OurPrimary(both, vm), OurSecondary(both, qemus[NEW])
    further.host.start("--on-loss", "hold")
    ours.protect(further.socket)
    previous: Pages | None = None
    for _ in range(ROUNDS):
        ours.console.wait_progress(3)
        number = ours.pause()
        wait(lambda: handed_on(ours.host) == number, f"checkpoint {number} to be handed on")  # noqa: B023
        truth = primary_memory(ours.vm, both.folder, vm)
        wait_equal(truth, ours.host, f"checkpoint {number} in the first store")
        wait_equal(truth, further.host, f"checkpoint {number} in the further store")
        check_other_blocks_equal(ours.host, further.host)
        if previous is not None:
            assert len(differing(truth, previous)) > 100, "hardly anything has changed"
        previous = truth
        ours.go_on()

    number = ours.pause()
    wait(lambda: handed_on(ours.host) == number, "the last one to be handed on")
    ours.vm.kill()
    ours.host.wait_said(f"holding checkpoint {number}")
    kept = store_memory(ours.host)
    ours.kill()
    further.host.wait_said("holding checkpoint")
    assert differing(kept, store_memory(further.host)) == []


def test_nobody_there_and_then_somebody(both: Scene, qemus: dict[str, str]) -> None:
    ours, further = OurPrimary(both, on(qemus[OLD])), OurSecondary(both, qemus[NEW])
    line = ours.host.wait_said("nothing is handed on")
    assert f"to {ours.to}: " in line and "trying again every 1 s" in line
    check_undisturbed(ours)
    assert len(ours.host.said("nothing is handed on")) == 1
    shown = ours.host.run("status").stdout
    assert f"handed on    to {ours.to}: no whole checkpoint is there" in shown
    assert "; not now: " in shown

    further.host.start("--on-loss", "hold")
    ours.protect(further.socket)
    wait(lambda: (handed_on(ours.host) or 0) > 5, "checkpoints to be handed on")
    shown = ours.host.run("status").stdout
    assert " is there, " in shown and "not now" not in shown


@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_stock_one_with_other_memory_refuses(
    both: Scene, qemus: dict[str, str], version: str
) -> None:
    vm = on(qemus[version])
    ours = OurPrimary(both, vm)
    other = StockSecondary(both, replace(vm, memory_mib=160), return_path=version == NEW)
    other.start()
    ours.point_to(other.socket)
    words = other.wait_exit()
    assert "pc.ram" in words
    check_refusal_is_told(ours)


def test_one_of_ours_with_other_memory_refuses(both: Scene, qemus: dict[str, str]) -> None:
    vm = on(qemus[OLD])
    ours, further = OurPrimary(both, vm), both.host(replace(vm, memory_mib=160))
    further.start()
    ours.point_to(further.socket)
    assert "make -m the same on both sides" in further.wait_said("no first copy")
    check_refusal_is_told(ours)


def test_a_stock_one_that_stands_still_is_given_up(both: Scene, qemus: dict[str, str]) -> None:
    vm = replace(on(qemus[NEW]), silence_s=1.5)
    ours, other = OurPrimary(both, vm), StockSecondary(both, vm, return_path=True)
    other.start()
    ours.protect(other.socket)
    other.signal(signal.SIGSTOP)
    ours.host.wait_said(f"nothing is handed on to {ours.to}: the secondary was silent for 1.5 s")
    check_undisturbed(ours)
    other.signal(signal.SIGCONT)


def handed_on(host: Host) -> int | None:
    """Which checkpoint the further secondary has."""
    number = host.file()["forward"]["checkpoint"]
    assert number is None or isinstance(number, int)
    return number


def check_refusal_is_told(ours: OurPrimary) -> None:
    """In one line, however often it is tried; and it does nothing to the protection."""
    ours.host.wait_said("did not take the first copy")
    check_undisturbed(ours)
    (line,) = ours.host.said("did not take the first copy")
    assert line.endswith(
        f"nothing is handed on to {ours.to}: it did not take the first copy: the secondary ended "
        "the connection; its own log may say why; trying again ever later, every 60 s at last"
    )
    assert handed_on(ours.host) is None


def check_undisturbed(ours: OurPrimary) -> None:
    """The protection goes on, and the guest."""
    ours.host.wait_checkpoint(ours.host.file()["checkpoint"] + 10)
    ours.console.wait_progress()
    assert ours.host.file()["error"] is None
    assert ours.host.said("the primary is lost") == []


def check_other_blocks_equal(one: Host, other: Host) -> None:
    """Both stores have the same blocks, and the small ones are the same."""
    names = sorted(path.name for path in (one.state / "store").iterdir())
    assert names == sorted(path.name for path in (other.state / "store").iterdir())
    for name in (name for name in names if name != "pc.ram"):
        ours, theirs = ((host.state / "store" / name).read_bytes() for host in (one, other))
        assert ours == theirs, name
