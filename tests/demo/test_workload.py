"""The workload of the memory guest: it finds every page that is not as it has to be."""

from __future__ import annotations

import asyncio

import pytest

from colo.demo.workload import Outlet, Workload
from colo.errors import GuestError
from colo.guest.memory import MemoryGuest


def after(steps: int, pages: int = 64, seed: int = 5) -> tuple[Workload, MemoryGuest, list[bytes]]:
    guest, said = MemoryGuest(pages), list[bytes]()
    workload = Workload(guest, said.append, seed)
    for _ in range(steps):
        workload.step()
    return workload, guest, said


@pytest.mark.parametrize("steps", [0, 1, 3, 200])
def test_its_memory_is_as_the_steps_have_left_it(steps: int) -> None:
    workload, guest, said = after(steps)
    workload.verify()
    assert said == [b"%d\n" % number for number in range(steps)]
    assert guest.memory.any() == (steps > 0)


def test_it_goes_on_from_the_guest_alone() -> None:
    _, guest, _ = after(20)
    for seed in (6, 7):
        said = list[bytes]()
        again = Workload(guest, said.append, seed)
        again.verify()
        for _ in range(20):
            again.step()
        again.verify()
        assert said[0] == b"%d\n" % (again.steps - 20)
    assert again.steps == 60
    _, through, _ = after(60)
    assert guest.memory.tobytes() != through.memory.tobytes()


def test_a_step_marks_all_that_it_writes() -> None:
    workload, guest, _ = after(10)
    asyncio.run(guest.save(everything=True))
    before = guest.memory.copy()
    workload.step()
    changed = {int(page) for page in (guest.memory != before).any(axis=1).nonzero()[0]}
    saved = asyncio.run(guest.save(everything=False))
    marked = {int(offset) // 4096 for run in saved.pages for offset in run.offsets}
    assert changed == marked and changed


@pytest.mark.parametrize("wrong", ["stale", "future", "damaged", "swapped", "count"])
def test_a_wrong_page_is_found(wrong: str) -> None:
    workload, guest, _ = after(200)
    _, earlier, _ = after(190)
    _, later, _ = after(210)
    before = guest.memory.copy()
    if wrong == "stale":
        page = int((earlier.memory != before).any(axis=1).argmax())
        guest.memory[page] = earlier.memory[page]
    elif wrong == "future":
        page = int((later.memory != before).any(axis=1).argmax())
        guest.memory[page] = later.memory[page]
    elif wrong == "damaged":
        page = 63
        guest.memory[page, 4095] ^= 1
    elif wrong == "swapped":
        page = 10
        guest.memory[[10, 11]] = guest.memory[[11, 10]]
    else:
        guest.blob = earlier.blob
        workload = Workload(guest, lambda line: None, 6)
        page = int((earlier.memory != before).any(axis=1).argmax())
    with pytest.raises(GuestError, match=f"page {page} is not"):
        workload.verify()


def test_it_stops_while_the_guest_is_suspended() -> None:
    workload, guest, said = after(0)

    async def run() -> None:
        running = asyncio.create_task(workload.run())
        await asyncio.sleep(0)
        assert said == []
        for _ in range(3):
            steps = workload.steps
            await guest.resume()
            while workload.steps < steps + 2:
                await asyncio.sleep(0.001)
            await guest.suspend()
            steps = workload.steps
            for _ in range(10):
                await asyncio.sleep(0)
            assert workload.steps == steps
        running.cancel()

    asyncio.run(run())


def test_the_outlet_holds_until_release() -> None:
    sent = list[bytes]()
    outlet = Outlet(sent.append)
    outlet.say(b"0\n")
    outlet.holding = True
    outlet.say(b"1\n")
    outlet.say(b"2\n")
    assert sent == [b"0\n"]
    outlet.release()
    outlet.release()
    assert sent == [b"0\n", b"1\n2\n"]
