"""The command: what it prints, what it says as JSON, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from colo.cli import main
from tests.inspection.conftest import Written
from tests.streams import (
    QEMU_11,
    QEMU_72,
    RAM,
    Stream,
    array,
    device,
    devices,
    fill,
    full,
    plain,
    struct,
)


def inspect(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def shown(*arguments: str | Path) -> list[str]:
    """The lines of a run that succeeds."""
    done = inspect(*arguments)
    assert (done.exit_code, done.stderr) == (0, ""), done.stderr
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def as_json(*arguments: str | Path) -> Any:
    done = inspect(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def odd_devices(seed: int) -> Stream:
    """Devices whose fields are long, and whose names look like markup."""
    long = bytes(range(seed, seed + 100))
    parts = (
        plain("[bold]x[/bold]", b"\1"),
        plain("cr[0]", b"\2"),
        plain("long", long),
        plain("zeros", bytes(20)),
        plain("text", b"prelaunch" + bytes(11 + seed)),
        array("many", 1, bytes([seed % 7]) * 40),
        array("mixed", 1, bytes(range(seed, seed + 40))),
        *(plain(f"field {n}", bytes([seed])) for n in range(20)),
    )
    data, description = devices(device(1, "pci/[red]odd", 1, *parts), device(2, "b", 1))
    return Stream("odd", before=(), devices=data, description=description)


def test_a_summary(written: Written) -> None:
    path = written("vm.mig", QEMU_72)
    lines = shown(path)
    assert lines[0] == f"{path} pc-i440fx-7.2, 3 devices"
    assert "capabilities none" in lines
    assert f"stream {len(QEMU_72.data):,} bytes, 17 pages in it for 17 of memory" in lines
    assert "block size pages zero fill equal unique zlib -1 sampled" in lines
    assert "pc.ram 64 KiB 16 15 0 0 1 1% 1" in lines
    assert "/rom@etc/acpi/rsdp 4 KiB 1 0 0 0 1 1% 1" in lines
    assert "all 68 KiB 17 15 0 0 2 1% 2" in lines
    assert "device instance version bytes fields" in lines
    assert "pckbd 0 3 64 8" in lines


def test_a_summary_says_what_is_odd(tmp_path: Path, written: Written) -> None:
    stream = Stream("odd", parts=((fill(RAM, [1, 1], 4),),), before=())
    path = written("vm.mig", stream)
    path.write_bytes(stream.data + b"!" * 1234)
    (line,) = [line for line in shown(path) if line.startswith("stream")]
    assert line.endswith("bytes, 2 pages in it for 17 of memory; 1,234 bytes follow")


def test_the_fields_of_some_devices(written: Written) -> None:
    path = written("vm.mig", QEMU_11)
    lines = shown(path, "--device", "pc*", "--device", "globalstate")
    assert lines == [
        f"{path} pc-i440fx-11.1, 3 devices",
        "",
        "pckbd 0, version 3",
        "kbd.write_cmd 0",
        "kbd.status 24 (0x18)",
        "kbd.mode 3",
        "kbd.pending_tmp 0",
        "kbd.pckbd/extended_state.migration_flags 0",
        "kbd.pckbd/extended_state.obsrc 0",
        "kbd.pckbd/extended_state.obdata 0",
        "kbd.pckbd/extended_state.cbdata 0",
        "",
        "globalstate 0, version 1",
        "size 10 (0xa)",
        'runstate "prelaunch" (32 bytes)',
        "has_vm_was_suspended 1",
        "vm_was_suspended 0",
        "unused zeros (66 bytes)",
    ]
    assert "irq_count [4 × 0]" in shown(path, "--device", "PCIBUS")


def test_values_of_every_kind(written: Written) -> None:
    lines = shown(written("vm.mig", odd_devices(0)), "--device", "pci*")
    assert "pci/[red]odd 0, version 1" in lines
    assert "[bold]x[/bold] 01" in lines
    assert "cr[0] 02" in lines
    assert "long 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f … (100 bytes)" in lines
    assert "zeros zeros (20 bytes)" in lines
    assert 'text "prelaunch" (20 bytes)' in lines
    assert "many [40 × 00]" in lines
    assert any(
        line.startswith("mixed [00, 01, ") and line.endswith("0f, … of 40]") for line in lines
    )


def test_a_summary_shows_names_as_they_are(written: Written) -> None:
    lines = shown(written("[bold]vm.mig", odd_devices(0)))
    assert "[bold]vm.mig" in lines[0]
    assert any(line.startswith("pci/[red]odd 0 1 ") for line in lines)


def test_what_would_steer_a_terminal_is_shown_escaped(written: Written) -> None:
    parts = (plain("\x1b[2J", b"\1"), plain("\ud800", b"\2"), plain("é", b"\3"))
    data, description = devices(device(1, "d\n", 1, *parts))
    path = written("vm.mig", Stream("odd", devices=data, description=description))
    assert any(r"d\n 0 1" in line for line in shown(path))
    lines = shown(path, "--device", "d*")
    assert any(r"\x1b[2J" in line for line in lines)
    assert any(r"\ud800" in line for line in lines)
    assert "é 03" in [" ".join(line.split()) for line in lines]


def test_all_as_json(written: Written) -> None:
    path = written("vm.mig", QEMU_72)
    found = as_json(path)
    assert (found["source"], found["bytes"]) == (str(path), len(QEMU_72.data))
    assert (found["machine"], found["capabilities"]) == ("pc-i440fx-7.2", [])
    ram = found["blocks"][0]
    assert {key: ram[key] for key in ("name", "bytes", "pages", "zero", "unique", "sampled")} == {
        "name": "pc.ram",
        "bytes": 65536,
        "pages": 16,
        "zero": 15,
        "unique": 1,
        "sampled": 1,
    }
    assert 0 < ram["sampled_ratio"] < 0.05
    names = ["timer", "pckbd", "globalstate"]
    assert [each["name"] for each in found["devices"]] == names
    assert found["devices"][1]["fields"]["kbd"]["status"] == 0x18
    assert found["devices"][2]["fields"]["runstate"] == (b"prelaunch" + bytes(91)).hex()
    (only,) = as_json(path, "--device", "timer")["devices"]
    assert only == found["devices"][0]


def test_a_difference(written: Written) -> None:
    old, new = written("old.mig", QEMU_72), written("new.mig", QEMU_11)
    lines = shown(old, new)
    assert lines[0] == f"old {old} pc-i440fx-7.2, 3 devices"
    assert lines[1] == f"new {new} pc-i440fx-11.1, 3 devices"
    assert "pc.ram 16 16 1 1 0x3000–0x3fff" in lines
    assert not any(line.startswith("/rom") for line in lines)
    assert "timer 0: only in the old one" in lines
    assert "PCIBUS 0: only in the new one" in lines
    assert 'runstate "prelaunch" (100 bytes) → "prelaunch" (32 bytes)' in lines
    assert "vm_was_suspended – → 0" in lines
    assert not any("pckbd" in line for line in lines)


def test_a_difference_as_json(written: Written) -> None:
    old, new = written("old.mig", QEMU_72), written("new.mig", QEMU_11)
    found = as_json(old, new)
    assert (found["old"]["machine"], found["new"]["source"]) == ("pc-i440fx-7.2", str(new))
    assert found["blocks"] == [
        {"name": "pc.ram", "old_pages": 16, "new_pages": 16, "changed": 1, "ranges": [[3, 1]]}
    ]
    changed = {each["name"]: each for each in found["devices"]}
    assert list(changed) == ["timer", "globalstate", "PCIBUS"]
    assert changed["globalstate"]["fields"][1] == {
        "path": "has_vm_was_suspended",
        "old": None,
        "new": 1,
    }
    assert list(as_json(old, new, "--device", "g*")["devices"]) == [changed["globalstate"]]


def test_a_long_difference_is_cut_and_device_shows_all(written: Written) -> None:
    old, new = written("old.mig", odd_devices(0)), written("new.mig", odd_devices(60))
    lines = shown(old, new)
    assert "pci/[red]odd 0: 102 differ" in lines
    assert "… 90 more: --device pci/[red]odd" in lines
    assert len([line for line in lines if "→" in line]) == 12
    assert len([line for line in shown(old, new, "--device", "pci*") if "→" in line]) == 102


def test_long_bytes_are_compared_from_where_they_differ(written: Written) -> None:
    def stream(data: bytes) -> Stream:
        sections, description = devices(device(1, "d", 1, struct("s", plain("rom", data))))
        return Stream("d", devices=sections, description=description)

    one, two = bytearray(100), bytearray(100)
    two[10], two[12] = 5, 6
    old, new = written("old.mig", stream(bytes(one))), written("new.mig", stream(bytes(two)))
    expected = "s.rom from byte 10 on 00 00 00 → 05 00 06; 2 of 100 bytes differ"
    assert expected in shown(old, new)
    two[99] = 1
    new = written("new.mig", stream(bytes(two)))
    assert any(line.endswith(" 00 …; 3 of 100 bytes differ") for line in shown(old, new))


def test_many_ranges_are_cut(written: Written) -> None:
    old = written("old.mig", Stream("old"))
    new = written("new.mig", Stream("new", parts=((full(RAM, range(0, 16, 2)),),)))
    (line,) = [line for line in shown(old, new) if line.startswith("pc.ram")]
    assert line.startswith("pc.ram 16 16 8 8 0x0–0xfff, 0x2000–0x2fff,")
    assert line.endswith(" …")


def test_no_difference(written: Written) -> None:
    path = written("vm.mig", QEMU_72)
    assert shown(path, path)[2:] == [
        "",
        "no difference in memory",
        "",
        "no difference in the devices",
    ]


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_a_device_that_is_not_there_is_wrong_usage(
    option: tuple[str, ...], written: Written
) -> None:
    done = inspect(written("vm.mig", QEMU_72), "--device", "e1000*", *option)
    assert done.exit_code == 2
    assert done.stderr == (
        "colo: --device e1000*: no such device; there are timer, pckbd, globalstate\n"
    )


def test_failures_are_one_line(tmp_path: Path, written: Written) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "garbage").write_bytes(b"garbage " * 100)
    cut = tmp_path / "cut"
    cut.write_bytes(QEMU_72.data[:-1])
    good = written("vm.mig", QEMU_72)
    for path in (tmp_path / "empty", tmp_path / "garbage", cut, tmp_path, tmp_path / "absent"):
        for arguments in ((path,), (good, path), (path, good)):
            done = inspect(*arguments)
            assert (done.exit_code, done.stdout) == (1, "")
            assert done.stderr.startswith(f"colo: {path}")
            assert done.stderr.count("\n") == 1


def test_a_state_folder_without_a_colo(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    done = inspect(tmp_path)
    assert done.exit_code == 1
    assert done.stderr == f"colo: no colo runs with the state folder {tmp_path}\n"


def test_help_says_what_it_reads() -> None:
    done = inspect("--help")
    assert done.exit_code == 0
    assert "FILE|DIR [OTHER]" in done.stdout
