"""Each reply byte by byte, as the protocol's document lays it out."""

from __future__ import annotations

import pytest

from colo.nbd.protocol import ErrorCode, ExportInfo, Extent, OptionReply
from colo.nbd.replies import (
    GREETING,
    pack_block_status,
    pack_chunk_done,
    pack_chunk_error,
    pack_data_header,
    pack_export,
    pack_hole,
    pack_info_block_size,
    pack_info_export,
    pack_info_name,
    pack_meta_context,
    pack_option_reply,
    pack_server,
    pack_simple,
)

DISK = ExportInfo("disk", 0x123456)
COOKIE = 0x0102030405060708


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        pytest.param(GREETING, "4e42444d41474943 49484156454f5054 0003", id="greeting"),
        pytest.param(pack_export(DISK, False, False), "0000000000123456 086d", id="export"),
        pytest.param(
            pack_export(DISK, True, True), "0000000000123456 08ed" + "00" * 124, id="zeroes"
        ),
        pytest.param(
            pack_option_reply(99, OptionReply.ERR_UNSUP, b"no"),
            "0003e889045565a9 00000063 80000001 00000002 6e6f",
            id="option reply",
        ),
        pytest.param(pack_server("é"), "00000002 c3a9", id="server"),
        pytest.param(pack_info_export(DISK, False), "0000 0000000000123456 086d", id="info"),
        pytest.param(pack_info_name("d"), "0001 64", id="name"),
        pytest.param(pack_info_block_size(), "0003 00000001 00001000 02000000", id="block size"),
        pytest.param(pack_meta_context(True), "00000001" + b"base:allocation".hex(), id="selected"),
        pytest.param(pack_meta_context(False), "00000000" + b"base:allocation".hex(), id="listed"),
        pytest.param(pack_simple(COOKIE), "67446698 00000000 0102030405060708", id="simple"),
        pytest.param(
            pack_simple(COOKIE, ErrorCode.ENOSPC), "67446698 0000001c 0102030405060708", id="error"
        ),
        pytest.param(
            pack_chunk_done(COOKIE), "668e33ef 0001 0000 0102030405060708 00000000", id="done"
        ),
        pytest.param(
            pack_data_header(COOKIE, 0x1000, 0x200),
            "668e33ef 0001 0001 0102030405060708 00000208 0000000000001000",
            id="data",
        ),
        pytest.param(
            pack_hole(COOKIE, 0x1000, 0x200),
            "668e33ef 0001 0002 0102030405060708 0000000c 0000000000001000 00000200",
            id="hole",
        ),
        pytest.param(
            pack_chunk_error(COOKIE, ErrorCode.EIO, "no"),
            "668e33ef 0001 8001 0102030405060708 00000008 00000005 0002 6e6f",
            id="chunk error",
        ),
        pytest.param(
            pack_block_status(COOKIE, [Extent(512), Extent(512, False, True)], 1024, False) or b"",
            "668e33ef 0001 0005 0102030405060708 00000014 00000001 00000200 00000000 "
            "00000200 00000003",
            id="status",
        ),
    ],
)
def test_a_reply_has_its_layout(packed: bytes, expected: str) -> None:
    assert packed.hex() == expected.replace(" ", "")


A, H, Z, HZ = Extent(10), Extent(10, False), Extent(10, True, True), Extent(10, False, True)


@pytest.mark.parametrize(
    ("extents", "length", "only_one", "expected"),
    [
        ([A], 10, False, [(10, 0)]),
        ([A, H, Z, HZ], 40, False, [(10, 0), (10, 1), (10, 2), (10, 3)]),
        ([A, A, H], 30, False, [(20, 0), (10, 1)]),
        ([A, A, H], 30, True, [(20, 0)]),
        ([A, H], 15, False, [(10, 0), (5, 1)]),
        ([A, H], 10, False, [(10, 0)]),
        ([A], 4, True, [(4, 0)]),
        ([Extent(0, False), A], 10, False, [(10, 0)]),
        ([Extent(1 << 40)], 0xFFFFFFFF, False, [(0xFFFFFFFF, 0)]),
        ([], 10, False, None),
        ([Extent(0)], 10, False, None),
    ],
)
def test_extents_are_cut_and_joined(
    extents: list[Extent], length: int, only_one: bool, expected: list[tuple[int, int]] | None
) -> None:
    packed = pack_block_status(1, extents, length, only_one)
    if expected is None:
        assert packed is None
    else:
        values = b"".join(part.to_bytes(4, "big") for pair in expected for part in pair)
        assert packed is not None and packed[24:] == values


def test_a_status_is_no_longer_than_a_client_has_to_take() -> None:
    packed = pack_block_status(1, [A, H] * (1 << 20), 1 << 31, False)
    assert packed is not None and len(packed) == 24 + 8 * (1 << 16)


@pytest.mark.parametrize("text", ["a\0b", "x" * 5000, "é" * 5000, "\ud800"])
def test_an_errors_text_is_a_string_as_nbd_has_them(text: str) -> None:
    message = pack_chunk_error(1, 5, text)[26:]
    assert len(message) <= 4096 and b"\0" not in message and message.decode()
