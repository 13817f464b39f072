"""What a waiting QEMU says of itself, as QEMU 7.2 and 11.1 say it, and what else one may say."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from colo.errors import GuestError
from colo.migration.fitting import Machine, Memory
from colo.qemu.hardware import ask_machine, parse_blocks, parse_cpus, parse_pci
from colo.qemu.monitor import Monitor

RAMBLOCK_72 = """\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000
    /rom@etc/acpi/tables    4 KiB  0x00000000080c0000 0x0000000000020000 0x0000000000200000
                 pc.bios    4 KiB  0x0000000008000000 0x0000000000040000 0x0000000000040000
0000:00:02.0/virtio-net-pci.rom    4 KiB  0x0000000008080000 0x0000000000040000 0x0000000000040000
                  pc.rom    4 KiB  0x0000000008040000 0x0000000000020000 0x0000000000020000
   /rom@etc/table-loader    4 KiB  0x00000000082c0000 0x0000000000001000 0x0000000000010000
      /rom@etc/acpi/rsdp    4 KiB  0x0000000008300000 0x0000000000001000 0x0000000000001000
""".replace("\n", "\r\n")
RAMBLOCK_11 = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 0x00007f3193e00000  rw
    /rom@etc/acpi/tables    4 KiB  0x00000000080c0000 0x0000000000020000 0x0000000000200000 0x00007f31e6800000  ro
                 pc.bios    4 KiB  0x0000000008000000 0x0000000000040000 0x0000000000040000 0x00007f31e7000000  ro
0000:00:02.0/virtio-net-pci.rom    4 KiB  0x0000000008080000 0x0000000000040000 0x0000000000040000 0x00007f31e6c00000  ro
                  pc.rom    4 KiB  0x0000000008040000 0x0000000000020000 0x0000000000020000 0x00007f31e6e00000  ro
   /rom@etc/table-loader    4 KiB  0x00000000082c0000 0x0000000000001000 0x0000000000010000 0x00007f31e6600000  ro
      /rom@etc/acpi/rsdp    4 KiB  0x0000000008300000 0x0000000000001000 0x0000000000001000 0x00007f31e6400000  ro
""".replace("\n", "\r\n")  # noqa: E501
BLOCKS = {
    "pc.ram": Memory(128 << 20, 128 << 20),
    "/rom@etc/acpi/tables": Memory(0x20000, 0x200000),
    "pc.bios": Memory(0x40000, 0x40000),
    "0000:00:02.0/virtio-net-pci.rom": Memory(0x40000, 0x40000),
    "pc.rom": Memory(0x20000, 0x20000),
    "/rom@etc/table-loader": Memory(0x1000, 0x10000),
    "/rom@etc/acpi/rsdp": Memory(0x1000, 0x1000),
}
_PROPS = {"core-id": 0, "thread-id": 0, "socket-id": 0}
CPU_72 = {
    "thread-id": 17758,
    "props": _PROPS,
    "qom-path": "/machine/unattached/device[0]",
    "cpu-index": 0,
    "target": "x86_64",
}
CPU_11 = {**CPU_72, "qom-type": "qemu64-x86_64-cpu"}
#: Both versions say the same: a host bridge, a bridge whose bus has no number yet, and a card.
PCI: list[dict[str, Any]] = [
    {
        "bus": 0,
        "devices": [
            {
                "irq_pin": 0,
                "bus": 0,
                "qdev_id": "",
                "slot": 0,
                "class_info": {"class": 1536, "desc": "Host bridge"},
                "id": {
                    "device": 4663,
                    "subsystem-vendor": 6900,
                    "vendor": 32902,
                    "subsystem": 4352,
                },
                "function": 0,
                "regions": [],
            },
            {
                "irq_pin": 1,
                "bus": 0,
                "pci_bridge": {"bus": {"secondary": 0, "number": 0, "subordinate": 0}},
                "qdev_id": "rp",
                "irq": 0,
                "slot": 29,
                "class_info": {"class": 1540, "desc": "PCI bridge"},
                "id": {"device": 12, "vendor": 6966},
                "function": 7,
                "regions": [],
            },
        ],
    }
]
ANSWERS: dict[str, Any] = {
    "human-monitor-command": RAMBLOCK_72,
    "query-cpus-fast": [CPU_72],
    "query-hotpluggable-cpus": [{"vcpus-count": 1}] * 3,
    "query-pci": PCI,
    "query-kvm": {"enabled": False, "present": True},
}
PLACES = {"00.0": (0x8086, 0x1237), "1d.7": (0x1B36, 12)}
WHOLE = Machine(BLOCKS, frozenset({0}), 3, PLACES, kvm=False)


class Answering(Monitor):
    """Gives these answers; refuses what it has none for."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self.answers = answers

    async def execute(self, command: str, *, oob: bool = False, **arguments: Any) -> Any:
        if command not in self.answers:
            raise GuestError(f"QEMU refuses {command}: it is not known")
        if self.answers[command] is None:
            await asyncio.sleep(3600)
        return self.answers[command]


def ask(**changed: Any) -> tuple[Machine, list[str]]:
    answers = ANSWERS | {name.replace("_", "-"): answer for name, answer in changed.items()}
    told: list[str] = []
    return asyncio.run(ask_machine(Answering(answers), told.append)), told


@pytest.mark.parametrize("answer", [RAMBLOCK_72, RAMBLOCK_11], ids=["7.2", "11.1"])
def test_memory(answer: str) -> None:
    assert parse_blocks(answer) == BLOCKS


def test_memory_without_a_name_and_with_large_pages() -> None:
    head = RAMBLOCK_72.splitlines()[0]
    lengths = "0x0000000000000000 0x0000000000200000 0x0000000000400000"
    blank, named = f"{'':>24} {'4 KiB':>8}  {lengths}", f"{'a b':>24} {'1.5 MiB':>8}  {lengths}"
    memory = Memory(0x200000, 0x400000)
    assert parse_blocks("\r\n".join([head, blank, named])) == {"": memory, "a b": memory}


@pytest.mark.parametrize(
    "answer",
    ["", "unknown command: 'info ramblock'\r\n", RAMBLOCK_72.replace("0x", ""), "a\nb", "\n\n"],
)
def test_memory_told_otherwise(answer: str) -> None:
    with pytest.raises(ValueError):
        parse_blocks(answer)


def test_processors() -> None:
    assert parse_cpus([CPU_72, {**CPU_11, "cpu-index": 3}]) == frozenset({0, 3})
    assert parse_cpus([{**CPU_11, "target": "ppc64"}]) is None


def test_pci_devices() -> None:
    assert parse_pci(PCI) == WHOLE.pci
    assert parse_pci([]) is None
    assert parse_pci([{"bus": 64, "devices": []}]) is None


def test_all_is_asked() -> None:
    assert ask() == (WHOLE, [])
    assert ask(human_monitor_command=RAMBLOCK_11, query_cpus_fast=[CPU_11]) == (WHOLE, [])


@pytest.mark.parametrize("answer", [[{}], {"a": 1}, 7, "no", [7], [{"bus": 0, "devices": [{}]}]])
def test_answers_in_an_unknown_form_are_told_and_nothing_else(answer: Any) -> None:
    machine, told = ask(
        human_monitor_command=answer,
        query_cpus_fast=answer,
        query_hotpluggable_cpus=7,
        query_pci=answer,
        query_kvm=answer,
    )
    assert machine == Machine()
    assert [line.partition(" will not be compared")[0] for line in told] == [
        "memory",
        "the processors",
        "PCI devices",
        "the accelerator",
    ]


def test_a_machine_without_cpu_hotplug_is_no_matter() -> None:
    qemu = Answering({k: v for k, v in ANSWERS.items() if k != "query-hotpluggable-cpus"})
    told: list[str] = []
    machine = asyncio.run(ask_machine(qemu, told.append))
    assert (machine.cpus_most, machine.cpus, told) == (None, frozenset({0}), [])


def test_a_qemu_that_refuses() -> None:
    told: list[str] = []
    assert asyncio.run(ask_machine(Answering({}), told.append)) == Machine()
    assert told[0] == (
        "memory will not be compared with the primary's: QEMU refuses human-monitor-command: it is "
        "not known"
    )


def test_a_qemu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colo.qemu.hardware._ASK_S", 0.01)
    machine, told = ask(query_pci=None)
    assert machine == Machine()
    assert told == ["nothing will be compared with the primary's: QEMU did not answer in 0 s"]
