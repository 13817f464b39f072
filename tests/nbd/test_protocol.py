"""NBD's numbers are those of the protocol's document."""

from __future__ import annotations

import errno

import pytest

from colo.nbd.protocol import (
    REQUEST,
    Command,
    ErrorCode,
    ExportInfo,
    Option,
    Request,
    error_code,
    transmission_flags,
)

DISK = ExportInfo("disk", 0x123456)


def test_an_export_says_what_it_can_do() -> None:
    flags = {
        "plain": transmission_flags(DISK, False),
        "structured": transmission_flags(DISK, True),
        "read-only": transmission_flags(ExportInfo("d", 1, read_only=True), True),
        "shared": transmission_flags(ExportInfo("d", 1, multi_conn=True), False),
    }
    # HAS_FLAGS 1, READ_ONLY 2, FLUSH 4, FUA 8, TRIM 0x20, WRITE_ZEROES 0x40, DF 0x80,
    # CAN_MULTI_CONN 0x100, FAST_ZERO 0x800
    assert flags == {"plain": 0x86D, "structured": 0x8ED, "read-only": 0x8F, "shared": 0x96D}


@pytest.mark.parametrize(
    ("number", "code"),
    [
        *((code, code) for code in ErrorCode),
        (errno.EACCES, ErrorCode.EPERM),
        (errno.EROFS, ErrorCode.EPERM),
        (errno.EDQUOT, ErrorCode.ENOSPC),
        (errno.EFBIG, ErrorCode.ENOSPC),
        (errno.EPIPE, ErrorCode.EIO),
        (0, ErrorCode.EIO),
        (-1, ErrorCode.EIO),
    ],
)
def test_every_errno_becomes_one_that_nbd_has(number: int, code: ErrorCode) -> None:
    assert error_code(number) is code


def test_the_errors_are_those_of_linux() -> None:
    assert {code.name: int(code) for code in ErrorCode} == {
        code.name: getattr(errno, code.name) for code in ErrorCode
    }


def test_a_request_shows_its_flags() -> None:
    names = ("fua", "no_hole", "whole", "only_one", "fast_zero")
    for bit, name in enumerate(names):
        request = Request(Command.READ, 1 << bit, 1, 0, 1)
        assert [each for each in names if getattr(request, each)] == [name]


def test_the_numbers_are_those_of_the_document() -> None:
    assert {each.name: int(each) for each in Option} == {
        "EXPORT_NAME": 1, "ABORT": 2, "LIST": 3, "INFO": 6, "GO": 7, "STRUCTURED_REPLY": 8,
        "LIST_META_CONTEXT": 9, "SET_META_CONTEXT": 10,
    }  # fmt: skip
    assert [each.name for each in Command] == [
        "READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS",
    ]  # fmt: skip
    assert REQUEST.size == 28
