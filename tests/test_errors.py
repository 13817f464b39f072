"""The tree of errors: as its docstring draws it, one line of text each, facts as fields."""

from __future__ import annotations

import inspect
import re

import pytest

from colo import errors
from colo.errors import (
    ChannelLost,
    ColoError,
    DiskError,
    DiskFull,
    GuestError,
    InvalidMessage,
    LimitExceeded,
    LocalError,
    PeerError,
    ShortRead,
    StreamError,
    UnexpectedMessage,
    UnsupportedFeature,
    UsageError,
)
from colo.protocol.messages import COLOMessage

CLASSES = {
    name: each for name, each in vars(errors).items() if inspect.isclass(each) and name != "IntEnum"
}


def test_the_tree_is_the_one_drawn() -> None:
    assert errors.__doc__ is not None
    drawn, stem = {}, ["Exception"]
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+)( .*)?$", line)
        if match:
            depth = len(match[1]) // 4
            stem = [*stem[: depth + 1], match[2]]
            drawn[match[2]] = stem[-2]
    assert {name: each.__mro__[1].__name__ for name, each in CLASSES.items()} == drawn
    assert sorted(errors.__all__) == sorted(drawn)


def test_whose_fault_it_is_shows_in_the_class() -> None:
    for each in CLASSES.values():
        if each is not ColoError:
            assert sum(issubclass(each, kind) for kind in (UsageError, LocalError, PeerError)) == 1


TEXTS = [
    (
        DiskError("vda", "cannot sync: Input/output error", "/vm/vda.raw"),
        "disk vda: /vm/vda.raw: cannot sync: Input/output error",
        {"disk": "vda", "path": "/vm/vda.raw"},
    ),
    (DiskFull("vda", "the journal is full"), "disk vda: the journal is full", {"path": ""}),
    (
        UnexpectedMessage(COLOMessage.VMSTATE_SEND, COLOMessage.CHECKPOINT_REQUEST, "READY"),
        "Unexpected COLO message 3, expected 1 (got vmstate-send, expected checkpoint-request, "
        "in state READY)",
        {
            "message": COLOMessage.VMSTATE_SEND,
            "expected": COLOMessage.CHECKPOINT_REQUEST,
            "state": "READY",
        },
    ),
    (
        UnexpectedMessage(COLOMessage.CHECKPOINT_READY, None, "SOLO"),
        "Unexpected COLO message 0, expected none (got checkpoint-ready, expected nothing, in "
        "state SOLO)",
        {"message": COLOMessage.CHECKPOINT_READY, "expected": None, "state": "SOLO"},
    ),
    (InvalidMessage(7), "Invalid COLO message 7: there are only 0 to 6", {"value": 7}),
    (
        ShortRead("a COLO message", 3),
        "The channel ended inside a COLO message, 3 bytes into it",
        {"what": "a COLO message", "got": 3},
    ),
    (
        LimitExceeded("device state", 5, 4),
        "device state: 5 bytes, over the limit of 4",
        {"what": "device state", "value": 5, "limit": 4},
    ),
    (LimitExceeded("blocks", 5, 4, "blocks"), "blocks: 5 blocks, over the limit of 4", {}),
    (StreamError("no footer", 99), "Migration stream, byte 99: no footer", {"position": 99}),
    (
        UnsupportedFeature("multifd", "switch it off"),
        "The primary uses multifd, which colo does not carry: switch it off",
        {"feature": "multifd", "advice": "switch it off"},
    ),
    (GuestError("QEMU died", "no such cpu"), "QEMU died: no such cpu", {}),
    (GuestError("QEMU died"), "QEMU died", {"last_words": ""}),
    (ChannelLost("gone"), "gone", {}),
]


@pytest.mark.parametrize(("error", "text", "fields"), TEXTS)
def test_an_error_has_one_line_and_its_facts(
    error: ColoError, text: str, fields: dict[str, object]
) -> None:
    assert str(error) == text
    assert {name: getattr(error, name) for name in fields} == fields
