"""What QEMU's arguments say, as both versions of QEMU take them."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from colo.errors import UsageError
from colo.migration.ram import RamBlock
from colo.qemu.command_line import (
    Backend,
    largest_first,
    main_memory,
    named_accelerators,
    parse_size,
    with_files,
)

MIB = 1 << 20

NAMED: list[tuple[list[str], tuple[str, ...]]] = [
    ([], ()),
    (["-m", "512"], ()),
    (["-machine", "pc"], ()),
    (["-machine", "pc,usb=off"], ()),
    (["-enable-kvm"], ("kvm",)),
    (["--enable-kvm", "-m", "1G"], ("kvm",)),
    (["-accel", "tcg"], ("tcg",)),
    (["--accel", "tcg,thread=multi"], ("tcg",)),
    (["-accel", "accel=kvm,kernel-irqchip=split"], ("kvm",)),
    (["-accel", "hvf"], ("hvf",)),
    (["-machine", "pc,accel=tcg"], ("tcg",)),
    (["-M", "accel=kvm:tcg,type=q35"], ("kvm", "tcg")),
    (["--machine", "q35,accel=kvm"], ("kvm",)),
    (["-machine", "pc,accel=kvm", "-machine", "accel=tcg"], ("tcg",)),
    (["-machine", "pc", "-accel", "tcg", "-accel", "kvm"], ("tcg", "kvm")),
    (["-machine", "pc,accel=tcg", "-accel", "kvm"], ("kvm",)),
    (["-name", "kvm", "-append", "accel=kvm"], ()),
    (["-accel"], ("",)),
]


@pytest.mark.parametrize(("args", "expected"), NAMED)
def test_the_arguments_name_accelerators(args: list[str], expected: tuple[str, ...]) -> None:
    assert named_accelerators(args) == expected


#: Each was given to QEMU 7.2 and 11.1, as the size of an object.
SIZES = [
    ("1", 1),
    ("010", 10),
    ("+512", 512),
    (" 512", 512),
    ("1b", 1),
    ("4K", 4096),
    ("4k", 4096),
    ("64M", 64 * MIB),
    ("2g", 2 << 30),
    ("1T", 1 << 40),
    ("1P", 1 << 50),
    ("1e", 1 << 60),
    ("15E", 15 << 60),
    ("1.5K", 1536),
    ("1.5G", 3 << 29),
    ("5.G", 5 << 30),
    (".5G", 1 << 29),
    ("0.3G", 322122547),
    ("12.34M", 12939428),
    ("1.0", 1),
    ("0x100000", MIB),
    ("0X1b", 27),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_a_size_is_what_qemu_makes_of_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", ".", ".G", "G", "lots", "1.5", "0.1b", "-5", "512MB", "512 ", "1e6", "1.5e2M", "1_0",
     "٣", "0x", "0x10M", "0x1.8", "16E", "18446744073709551616", "1 G", "²"],
)  # fmt: skip
def test_what_is_no_size_for_qemu_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


#: Each was given to QEMU 7.2 and 11.1, which said how long their memory is.
MEMORY = [
    ([], 128 * MIB),
    (["-cpu", "qemu64"], 128 * MIB),
    (["-m", "512"], 512 * MIB),
    (["--m", "512"], 512 * MIB),
    (["-m", "512M"], 512 * MIB),
    (["-m", "2G"], 2 << 30),
    (["-m", "0.25G"], 256 * MIB),
    (["-m", "1.5G"], 1536 * MIB),
    (["-m", "0.3G"], 322125824),
    (["-m", "1k"], 8192),
    (["-m", "4097b"], 8192),
    (["-m", "131072k"], 128 * MIB),
    (["-m", "0"], 128 * MIB),
    (["-m", "0x8000000B"], 2147491840),
    (["-m", "size=1G"], 1 << 30),
    (["-m", "size=256M,"], 256 * MIB),
    (["-m", "size=512,size=256"], 256 * MIB),
    (["-m", "512", "-cpu", "qemu64", "-m", "1G"], 1 << 30),
    (["-m", "256M,slots=2,maxmem=1G"], 256 * MIB),
    (["-m", "maxmem=1G,size=512M"], 512 * MIB),
    (["-m", "slots=2,maxmem=1G"], 128 * MIB),
    (["-m", "1G", "-m", "slots=2,maxmem=4G"], 1 << 30),
]


@pytest.mark.parametrize(("args", "size"), MEMORY)
def test_m_says_how_much_memory_there_is(args: list[str], size: int) -> None:
    assert main_memory(args) == (Backend("pc.ram", RamBlock("pc.ram", size)),)


@pytest.mark.parametrize(
    "text", ["lots", "-512", "1.5", "0x200", "0x200M", "512MB", "size=", "1e3", "512 "]
)
def test_a_size_of_memory_that_cannot_be_is_told(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        main_memory(["-m", text])
    assert str(caught.value) == (
        f"-m {text.removeprefix('size=')}: not a size that QEMU 7.2 and 11 take alike, such as "
        "512, 1.5G or 0.25G"
    )


@pytest.mark.parametrize("machine", ["microvm", "microvm,pit=off", "type=microvm"])
def test_the_memory_of_a_microvm_has_its_own_name(machine: str) -> None:
    (backend,) = main_memory(["-M", machine, "-m", "64"])
    assert backend == Backend("microvm.ram", RamBlock("microvm.ram", 64 * MIB))


LIBVIRT = [
    ["-machine", "pc,usb=off,memory-backend=pc.ram", "-m", "size=65536k",
     "-object", '{"qom-type":"memory-backend-ram","id":"pc.ram","size":67108864}'],
    ["-machine", "pc,memory-backend=pc.ram",
     "-object", "memory-backend-memfd,id=pc.ram,share=yes,hugetlb=yes,hugetlbsize=2M,size=64M"],
    ["--object", "qom-type=memory-backend-file,size=0x4000000,id=pc.ram,mem-path=/dev/huge,,pages",
     "--machine", "pc", "--machine", "memory-backend=pc.ram"],
]  # fmt: skip


@pytest.mark.parametrize("args", LIBVIRT)
def test_a_named_backend_is_the_memory(args: list[str]) -> None:
    assert main_memory(args) == (Backend("pc.ram", RamBlock("pc.ram", 64 * MIB)),)


@pytest.mark.parametrize("args", LIBVIRT)
def test_a_named_backend_gives_its_place_to_a_file(args: list[str]) -> None:
    changed = with_files([*args, "-S"], {"pc.ram": "/dev/shm/a,b"})
    ours = "memory-backend-file,id=pc.ram,share=on,size=67108864,mem-path=/dev/shm/a,,b"
    at = next(n for n, word in enumerate(args) if word in ("-object", "--object")) + 1
    assert changed == [*args[:at], ours, *args[at + 1 :], "-S"]


def test_the_memory_that_qemu_makes_by_itself_is_named_and_made_a_file() -> None:
    assert with_files(["-machine", "q35", "-m", "64"], {"pc.ram": "/f"}) == [
        "-machine", "q35", "-m", "64",
        "-object", "memory-backend-file,id=pc.ram,share=on,size=67108864,mem-path=/f",
        "-machine", "memory-backend=pc.ram",
    ]  # fmt: skip


NUMA = [
    "-m", "128", "-object", "memory-backend-ram,id=a,size=96M",
    "-object", "memory-backend-memfd,id=b,size=32M,share=on",
    "-object", "rng-random,id=r,filename=/dev/urandom",
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "order"),
    [
        (["node,memdev=a", "node,memdev=b"], "ab"),
        (["node,nodeid=1,memdev=a", "node,nodeid=0,memdev=b"], "ba"),
        (["node,nodeid=0", "node,memdev=b", "node,nodeid=7,memdev=a", "dist,src=0,dst=1"], "ba"),
    ],
)
def test_each_numa_node_has_a_block_and_lies_where_its_number_says(
    nodes: list[str], order: str
) -> None:
    sizes = {"a": 96 * MIB, "b": 32 * MIB}
    args = [*NUMA, *(word for node in nodes for word in ("-numa", node))]
    first, second = main_memory(args)
    assert first == Backend(order[0], RamBlock(order[0], sizes[order[0]]), 0)
    assert second == Backend(order[1], RamBlock(order[1], sizes[order[1]]), first.block.length)
    changed = with_files(args, {"a": "/a", "b": "/b"})
    assert changed[3] == f"memory-backend-file,id=a,share=on,size={96 * MIB},mem-path=/a"
    assert changed[5] == f"memory-backend-file,id=b,share=on,size={32 * MIB},mem-path=/b"
    assert changed[:3] + changed[4:5] + changed[6:] == args[:3] + args[4:5] + args[6:]


@pytest.mark.parametrize(
    ("sizes", "first"),
    [("", None), ("96", None), ("96 32", None), ("64 64", None), ("32 96", "m1"), ("1 3 2", "m1")],
)
def test_the_largest_backend_has_to_be_named_first(sizes: str, first: str | None) -> None:
    args = ["-object", "rng-random,id=r,filename=/dev/urandom", "-m", "128"]
    for number, size in enumerate(sizes.split()):
        args += ["-object", f"memory-backend-ram,id=m{number},size={size}M"]
        args += ["-numa", f"node,memdev=m{number}"]
    assert largest_first(args) == first


def test_a_block_may_be_named_after_its_whole_path() -> None:
    option = "memory-backend-ram,id=m,size=1M,x-use-canonical-path-for-ramblock-id=on"
    args = ["-object", option, "-machine", "memory-backend=m"]
    (backend,) = main_memory(args)
    assert (backend.id, backend.block.name) == ("m", "/objects/m")
    _, changed, *_ = with_files(args, {"/objects/m": "/f"})
    assert changed.endswith(",mem-path=/f,x-use-canonical-path-for-ramblock-id=on")


M = "memory-backend-ram,id=m"
WRONG = [
    (["-machine", "memory-backend=m"], "the memory backend 'm' is used, and no -object"),
    (["-numa", "node,memdev=m"], "the memory backend 'm' is used, and no -object"),
    (["-object", "rng-random,id=m", "-numa", "node,memdev=m"], "'m' is used, and no -object"),
    (["-object", M, "-machine", "memory-backend=m"], "'m' needs a size= that QEMU knows"),
    (["-object", f"{M},size=x", "-machine", "memory-backend=m"], "'m' needs a size="),
    (["-object", f"{M},size=5000", "-machine", "memory-backend=m"], "'m' of 5000 bytes: not a"),
    (["-object", f"{M},size=0", "-machine", "memory-backend=m"], "'m' of 0 bytes: not a"),
    (["-object", '{"qom-type', "-machine", "memory-backend=m"], "'m' is used, and no -object"),
    (["-object", f"{M},size=1M", "-numa", "node,nodeid=x,memdev=m"], "nodeid has to be a number"),
    *(
        (["-m", "64", "-object", f"{M},size=1M", "-device", device], f"take out the device {name} ")
        for name, device in (
            ("pc-dimm", "pc-dimm,id=d,memdev=m"),
            ("ivshmem-plain", "ivshmem-plain,memdev=m,master=on"),
            ("nvdimm", '{"driver":"nvdimm","memdev":"m"}'),
        )
    ),
]


@pytest.mark.parametrize(("args", "told"), WRONG)
def test_memory_that_cannot_be_protected_is_told(args: list[str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        main_memory(args)
    assert told in str(caught.value)


OPTIONS = ["-m", "-machine", "-M", "-object", "--object", "-numa", "-device", "-accel"]
GIVEN = [word for args in (*LIBVIRT, NUMA, *(args for args, _ in WRONG)) for word in args]
PARTS = r"(node|memory-backend-ram|id=m|memdev=m|size=[0-9.]{0,3}[a-z]?|,|=|){1,5}"
KEYS = st.sampled_from(["qom-type", "id", "size", "memdev"])
VALUES = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists)
WORDS = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(GIVEN),
    st.from_regex(PARTS, fullmatch=True),
    st.builds(json.dumps, st.dictionaries(KEYS, VALUES)),
    st.text(),
)


@given(st.lists(WORDS))
@example(["-numa", "node,nodeid=²,memdev=m"])
@example(["-m", "٣"])
@example(["-device", '{"memdev": []}'])
@example(["-object", "[" * 10_000])
@example(["-object", '{"a":' * 10_000])
def test_whatever_is_given_is_read_or_told_in_words(args: list[str]) -> None:
    try:
        backends = main_memory(args)
    except UsageError:
        return
    assert all(backend.block.length > 0 for backend in backends)
    changed = with_files(args, {backend.block.name: "/f" for backend in backends})
    assert main_memory(changed) == backends, "host B has the same memory"
    named_accelerators(args)
    largest_first(args)
