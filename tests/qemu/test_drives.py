"""Which drives arguments make, and how QEMU calls them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.qemu.drives import drives, users
from colo.qemu.options import options

#: The names are those of QEMU 7.2's query-block, less those of a node.
NAMED = [
    (["-hda", "/a"], "ide0-hd0"),
    (["/a"], "ide0-hd0"),
    (["-hdc", "/a"], "ide1-hd0"),
    (["-cdrom", "/a"], "ide1-cd0"),
    (["-machine", "q35", "-hdc", "/a"], "ide2-hd0"),
    (["-drive", "file=/a"], "ide0-hd0"),
    (["-drive", "file=/a,if=virtio"], "virtio0"),
    (["-drive", "file=/a,if=virtio,index=3"], "virtio3"),
    (["-drive", "file=/a,if=ide,bus=1,unit=1"], "ide1-hd1"),
    (["-drive", "file=/a,if=pflash,unit=1"], "pflash1"),
    (["-pflash", "/a"], "pflash0"),
    (["-drive", "file=/a,if=none,id=x"], "x"),
    (["-drive", "file=/a,if=scsi,unit=2"], "scsi0-hd2"),
]


@pytest.mark.parametrize(("args", "name"), NAMED)
def test_a_drive_is_called_as_qemu_calls_it(args: list[str], name: str) -> None:
    (drive,) = drives(options(args))
    assert (drive.id, drive.path) == (name, "/a")


def test_places_are_taken_one_after_the_other() -> None:
    args = ["-drive", "file=/a", "-drive", "file=/b", "-drive", "file=/c,if=virtio", "-hdb", "/d"]
    assert [each.id for each in drives(options(args))] == [
        "ide0-hd0", "ide0-hd1", "virtio0", "ide0-hd1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/a/b:c", "/a/b:c"), ("a.img", "a.img"), ("file:/a", "/a"), ("./a:b", "./a:b"),
        ("host_device:/dev/b", "/dev/b"), ("rbd:pool/x", None), ("nbd://h/x", None),
        ("json:{}", None), ("", None),
    ],
)  # fmt: skip
def test_what_is_a_file_and_what_is_none(text: str, path: str | None) -> None:
    (drive,) = drives(options(["-drive", f"file={text},if=virtio"]))
    assert drive.path == path
    assert drive.written is bool(text)


@pytest.mark.parametrize("more", ["readonly=on", "read-only=on", "media=cdrom"])
def test_what_is_only_read_is_not_written(more: str) -> None:
    (drive,) = drives(options(["-drive", f"file=/a,if=ide,{more}"]))
    assert not drive.written


def test_a_drive_without_a_device_is_not_attached() -> None:
    args = ["-drive", "file=/a,if=none,id=x,cache=none,size=512"]
    (drive,) = drives(options(args))
    assert (drive.attached, drive.lost, drive.twisted) == (False, ("cache",), ("size",))
    (drive,) = drives(options([*args, "-device", "virtio-blk-pci,drive=x"]))
    assert drive.attached


def test_what_is_thrown_away_at_the_end_has_no_place_in_a_vm_file() -> None:
    for args in (["-snapshot", "-hda", "/a"], ["-drive", "file=/a,snapshot=on"]):
        (drive,) = drives(options(args))
        assert drive.twisted == ("snapshot",)


def node(**content: object) -> list[str]:
    return [
        "-blockdev",
        json.dumps({key.replace("_", "-"): value for key, value in content.items()}),
    ]


def test_a_tree_of_nodes_is_one_drive() -> None:
    args = [
        *node(driver="file", filename="/base", node_name="s2"),
        *node(driver="qcow2", file="s2", node_name="f2", read_only=True),
        *node(driver="file", filename="/top", node_name="s1", aio="native"),
        *node(driver="qcow2", file="s1", backing="f2", node_name="f1"),
        *node(driver="copy-on-read", file="f1", node_name="root"),
        *node(driver="file", filename="/not/used", node_name="u"),
        "-device", '{"driver":"virtio-blk-pci","drive":"root"}',
    ]  # fmt: skip
    (drive,) = drives(options(args))
    assert (drive.id, drive.path, drive.format) == ("root", "/top", "qcow2")
    assert drive.at == (0, 1, 2, 3, 4)
    assert set(drive.lost) == {"copy-on-read", "aio"} and drive.written and not drive.twisted


def test_nodes_with_dots_and_firmware_by_the_machine() -> None:
    args = ["-blockdev", "driver=raw,node-name=v,file.driver=file,file.filename=/v"]
    args += ["-machine", "q35,pflash1=v"]
    (drive,) = drives(options(args))
    assert (drive.id, drive.path, drive.format) == ("v", "/v", "raw")
    assert users(options(args)) == {"v": "pflash1"}


@pytest.mark.parametrize(
    ("content", "twisted"),
    [
        ({"driver": "rbd", "pool": "p", "image": "i"}, "driver rbd"),
        ({"driver": "luks", "file": {"driver": "file", "filename": "/a"}}, "driver luks"),
        ({"driver": "raw", "size": 512, "file": {"driver": "file", "filename": "/a"}}, "size"),
    ],
)
def test_what_has_no_place_in_a_vm_file_is_said(content: dict[str, object], twisted: str) -> None:
    args = [*node(node_name="d", **content), "-device", "scsi-hd,drive=d"]
    (drive,) = drives(options(args))
    assert drive.twisted == (twisted,)


def test_nodes_in_a_ring_come_to_an_end() -> None:
    args = [
        *node(driver="raw", file="b", node_name="a"),
        *node(driver="raw", file="a", node_name="b"),
    ]
    (drive,) = drives(options([*args, "-device", "scsi-hd,drive=a"]))
    assert drive.path is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["a", "file", "raw", "/x"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["driver", "file", "filename", "node-name", "backing"]), inner
        )
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["driver", "file", "node-name", "backing", "id", "if", "index", "drive", "size"]
)
WORDS = st.one_of(
    st.sampled_from(["-blockdev", "-drive", "-device", "-hda", "-machine", "-cdrom"]),
    st.builds(json.dumps, st.dictionaries(KEYS, VALUES)),
    st.from_regex(
        r"((if|file|index|unit|bus|id|drive|format)=[a-z0-9:/]{0,4},?){0,4}", fullmatch=True
    ),
    st.text(max_size=8),
)


@given(st.lists(WORDS, max_size=12))
def test_whatever_is_given_there_are_drives_or_none(words: list[str]) -> None:
    found = options(words)
    for drive in drives(found):
        assert all(0 <= at < len(found) for at in drive.at)
