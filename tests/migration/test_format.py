"""The numbers of the format, against QEMU's headers."""

from __future__ import annotations

from colo.migration import format as numbers
from colo.migration.format import Command, RamFlag, ReturnPath, Section


def test_the_numbers_are_those_of_qemu() -> None:
    assert numbers.FILE_MAGIC.to_bytes(4, "big") == b"QEVM"
    assert (numbers.FILE_VERSION, numbers.RAM_VERSION, numbers.PAGE_SIZE) == (3, 4, 4096)
    assert numbers.MULTIFD_MAGIC == 0x11223344
    assert [(item.name, int(item)) for item in Section] == [
        ("EOF", 0),
        ("START", 1),
        ("PART", 2),
        ("END", 3),
        ("FULL", 4),
        ("SUBSECTION", 5),
        ("DESCRIPTION", 6),
        ("CONFIGURATION", 7),
        ("COMMAND", 8),
        ("FOOTER", 0x7E),
    ]
    assert (Command.OPEN_RETURN_PATH, Command.PING, Command.ENABLE_COLO) == (1, 2, 8)
    assert (Command.PACKAGED, Command.SWITCHOVER_START) == (7, 11)
    assert (ReturnPath.SHUT, ReturnPath.PONG) == (1, 2)


def test_the_flags_of_a_page_fit_below_its_offset() -> None:
    assert sum(RamFlag) == 0x02 + 0x04 + 0x08 + 0x10 + 0x20 + 0x40 + 0x80 + 0x100 + 0x200
    assert all(flag < numbers.PAGE_SIZE for flag in RamFlag)
