"""Which differences between two machines are told, and which are none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colo.errors import Misfit
from colo.migration.fitting import Machine, Memory, check_blocks, check_devices
from colo.migration.ram import RamBlock
from colo.migration.reader import Header, Migration
from colo.migration.vmdesc import walk
from tests.streams import Part, array, device, devices, plain, struct, subsection

MIB = 1 << 20
ADVICE = ": make [qemu] args the same as what the running QEMU was started with"
VIRTIO_ROM = "0000:00:02.0/virtio-net-pci.rom"

#: A ``pc`` of one processor with a virtio-net card, as QEMU 7.2 and 11.1 tell it.
MACHINE = Machine(
    blocks={
        "": Memory(MIB, MIB),
        "pc.ram": Memory(128 * MIB, 128 * MIB),
        "/rom@etc/acpi/tables": Memory(0x20000, 0x200000),
        "/rom@etc/acpi/rsdp": Memory(0x1000, 0x1000),
        VIRTIO_ROM: Memory(0x40000, 0x40000),
        "0000:00:03.0/vga.vram": Memory(16 * MIB, 16 * MIB),
    },
    cpus=frozenset({0}),
    cpus_most=1,
    pci={"01.3": (0x8086, 0x7113), "02.0": (0x1AF4, 0x1000), "03.0": (0x1B36, 0x0001)},
)
BLOCKS = {
    "pc.ram": 128 * MIB,
    "/rom@etc/acpi/tables": 0x20000,
    "/rom@etc/acpi/rsdp": 0x1000,
    VIRTIO_ROM: 0x40000,
    "0000:00:03.0/vga.vram": 16 * MIB,
}


def blocks(**changed: int) -> list[RamBlock]:
    return [RamBlock(name, length) for name, length in {**BLOCKS, **changed}.items()]


def config(vendor: int, number: int) -> bytes:
    return vendor.to_bytes(2, "little") + number.to_bytes(2, "little") + bytes(252)


def pci(name: str, vendor: int, number: int, *more: Part) -> Part:
    """A PCI device that saves its fields one by one."""
    part = plain("config[0]", config(vendor, number))
    part.described["type"] = "pci config"
    version = plain("version_id", b"\2\0\0\0")
    return device(5, name, 3, struct("parent_obj", version, part), *more)


def virtio(name: str, vendor: int, number: int) -> Part:
    """A virtio device, which saves all that it has as one field."""
    part = plain("virtio", b"\2\0\0\0" + config(vendor, number) + bytes(90))
    part.described["type"] = "virtio"
    return device(6, name, 11, part)


def hotplug(most: int) -> Part:
    """The newer CPU hotplug's state."""
    part = struct("cpuhp_state", plain("selector", bytes(4)), array("devs", 10, bytes(10 * most)))
    part.described["struct"]["vmsd_name"] = "CPU hotplug state"
    return subsection("piix4_pm/cpuhp", 1, part)


def cpus(*numbers: int) -> list[Part]:
    return [device(2, "cpu_common", 1, plain("halted", b"\0"), instance=each) for each in numbers]


def migration(*parts: Part) -> Migration:
    state, description = devices(*parts)
    found = tuple(walk(description, memoryview(state)))
    return Migration(Header("pc"), 2, (), state, found, description)


CARD = virtio("0000:00:02.0/virtio-net", 0x1AF4, 0x1000)
PM = pci("0000:00:01.3/piix4_pm", 0x8086, 0x7113, hotplug(1))
OLD_PM = pci("0000:00:01.3/piix4_pm", 0x8086, 0x7113)
TIMER = device(1, "timer", 2, plain("ticks", bytes(8)))


def told(machine: Machine, stream: list[RamBlock] | Migration) -> str:
    """What the difference is, without the advice."""
    with pytest.raises(Misfit) as caught:
        if isinstance(stream, Migration):
            check_devices(machine, stream)
        else:
            check_blocks(machine, stream)
    text = str(caught.value)
    assert text.startswith("the primary's VM has ")
    assert text.endswith(ADVICE)
    return text.removeprefix("the primary's VM has ").removesuffix(ADVICE)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"/rom@etc/acpi/tables": 0x200000},
        {"/rom@etc/acpi/tables": 0x1000},
    ],
    ids=["the same", "tables that have grown", "tables that were smaller"],
)
def test_memory_that_fits(changed: dict[str, int]) -> None:
    check_blocks(MACHINE, blocks(**changed))


def test_memory_that_only_the_waiting_qemu_has_is_no_difference() -> None:
    check_blocks(MACHINE, blocks()[:2])


def test_a_full_table_may_be_a_resizable_one() -> None:
    assert MACHINE.blocks is not None
    ours = {**MACHINE.blocks, "/rom@etc/acpi/rsdp": Memory(0x2000, 0x2000)}
    check_blocks(replace(MACHINE, blocks=ours), blocks())


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"0000:00:09.0/e1000.rom": 0x40000},
            "memory 0000:00:09.0/e1000.rom, the waiting QEMU has none",
        ),
        (
            {"0000:00:03.0/vga.vram": 8 * MIB},
            "8 MiB of memory 0000:00:03.0/vga.vram, the waiting QEMU has 16 MiB",
        ),
        (
            {"/rom@etc/acpi/tables": 0x201000},
            "2052 KiB of memory /rom@etc/acpi/tables, the waiting QEMU has 2 MiB",
        ),
        (
            {"a": 4096, "b": 4096, "c": 4096, "d": 4096},
            "memory a, the waiting QEMU has none; memory b, the waiting QEMU has none; "
            "memory c, the waiting QEMU has none; and 1 more",
        ),
    ],
)
def test_memory_that_does_not_fit(changed: dict[str, int], text: str) -> None:
    assert told(MACHINE, blocks(**changed)) == text


def test_another_card_at_the_same_place_is_told_as_one_difference() -> None:
    theirs = [each for each in blocks() if each.name != VIRTIO_ROM]
    theirs.append(RamBlock("0000:00:02.0/e1000.rom", 0x40000))
    assert told(MACHINE, theirs) == (
        f"memory 0000:00:02.0/e1000.rom, the waiting QEMU has {VIRTIO_ROM} instead"
    )


@pytest.mark.parametrize(
    "stream",
    [
        migration(TIMER, *cpus(0), PM, CARD),
        migration(TIMER, *cpus(0), OLD_PM, CARD),
        migration(TIMER, OLD_PM),
        migration(TIMER, virtio("0000:40:02.0/virtio-net", 1, 2), pci("1/2/usb-ptr", 1, 2)),
        migration(pci("0000:00:03.0:07.0/e1000e", 1, 2), virtio("0000:00:03.0:08.0/blk", 1, 2)),
        migration(device(3, "0000:00:02.0/1/usb-ptr", 1, plain("x", b"\0"))),
    ],
    ids=["all", "before ACPI", "fewer devices", "other buses", "behind a bridge", "no PCI state"],
)
def test_devices_that_fit(stream: Migration) -> None:
    check_devices(MACHINE, stream)


@pytest.mark.parametrize("numbers", [(0,), (0, 1), (1, 2)])
def test_processors_may_have_been_taken_out_where_that_can_be(numbers: tuple[int, ...]) -> None:
    pm = pci("0000:00:01.3/piix4_pm", 0x8086, 0x7113, hotplug(4))
    machine = replace(MACHINE, cpus=frozenset(range(3)), cpus_most=4)
    check_devices(machine, migration(*cpus(*numbers), pm))


MORE = replace(MACHINE, cpus=frozenset({0, 1}), cpus_most=2)


@pytest.mark.parametrize(
    ("machine", "stream", "text"),
    [
        (MACHINE, migration(*cpus(0, 1), PM), "2 processors, the waiting QEMU has 1"),
        (MACHINE, migration(*cpus(0, 1)), "2 processors, the waiting QEMU has 1"),
        (MORE, migration(*cpus(0), PM), "room for 1 processor, the waiting QEMU for 2"),
        (MORE, migration(*cpus(0), OLD_PM), "1 processor, the waiting QEMU has 2"),
        (
            replace(MORE, cpus_most=4),
            migration(*cpus(0, 3), PM),
            "2 processors, the waiting QEMU has 2; processors of the numbers [0, 3], not [0, 1]",
        ),
    ],
)
def test_processors_that_do_not_fit(machine: Machine, stream: Migration, text: str) -> None:
    assert told(machine, stream) == text


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (
            virtio("0000:00:09.0/virtio-rng", 0x1AF4, 0x1005),
            "virtio-rng at PCI address 09.0, the waiting QEMU has nothing there",
        ),
        (
            virtio("0000:00:05.0:01.0/virtio-rng", 0x1AF4, 0x1005),
            "a bridge at PCI address 05.0, the waiting QEMU has nothing there",
        ),
        (
            pci("0000:00:02.0/e1000", 0x8086, 0x100E),
            "e1000 (PCI 8086:100e) at PCI address 02.0, the waiting QEMU has 1af4:1000 there",
        ),
        (
            virtio("0000:00:02.0/virtio-net", 0x1AF4, 0x1041),
            "virtio-net (PCI 1af4:1041) at PCI address 02.0, the waiting QEMU has 1af4:1000 there",
        ),
    ],
)
def test_pci_devices_that_do_not_fit(part: Part, text: str) -> None:
    assert told(MACHINE, migration(*cpus(0), PM, part)) == text


def test_a_vm_under_kvm_cannot_go_on_without_it() -> None:
    clock = device(1, "kvmclock", 1, plain("clock", bytes(8)))
    stream = migration(*cpus(0), PM, clock)
    with pytest.raises(Misfit, match="runs under KVM, the waiting QEMU does not"):
        check_devices(replace(MACHINE, kvm=False), stream)
    check_devices(replace(MACHINE, kvm=True), stream)
    check_devices(MACHINE, stream)


def test_what_is_not_known_is_not_compared() -> None:
    other = migration(*cpus(0, 1, 2), pci("0000:00:1f.0/x", 1, 2, hotplug(9)))
    check_devices(Machine(), other)
    check_devices(replace(MACHINE, cpus_most=None, pci=None), migration(*cpus(0), PM))
    check_blocks(Machine(), blocks(x=4096))
