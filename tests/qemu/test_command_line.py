"""What QEMU's arguments say."""

from __future__ import annotations

import pytest

from colo.errors import UsageError
from colo.qemu.command_line import memory_size, named_accelerator

NAMED = [
    ([], None),
    (["-m", "512"], None),
    (["-machine", "pc"], None),
    (["-machine", "pc,usb=off"], None),
    (["-enable-kvm"], "kvm"),
    (["--enable-kvm", "-m", "1G"], "kvm"),
    (["-accel", "tcg"], "tcg"),
    (["--accel", "tcg,thread=multi"], "tcg"),
    (["-accel", "accel=kvm,kernel-irqchip=split"], "kvm"),
    (["-accel", "hvf"], "hvf"),
    (["-machine", "pc,accel=tcg"], "tcg"),
    (["-M", "accel=kvm:tcg,type=q35"], "kvm"),
    (["--machine", "q35,accel=kvm"], "kvm"),
    (["-machine", "pc", "-accel", "tcg", "-accel", "kvm"], "tcg"),
    (["-name", "kvm", "-append", "accel=kvm"], None),
    (["-accel"], ""),
]


@pytest.mark.parametrize(("args", "expected"), NAMED)
def test_the_arguments_name_an_accelerator(args: list[str], expected: str | None) -> None:
    assert named_accelerator(args) == expected


SIZES = [
    ([], 128 << 20),
    (["-m", "512"], 512 << 20),
    (["--m", "512"], 512 << 20),
    (["-m", "512M"], 512 << 20),
    (["-m", "512m"], 512 << 20),
    (["-m", "2G"], 2 << 30),
    (["-m", "1t"], 1 << 40),
    (["-m", "131072k"], 128 << 20),
    (["-m", "134217728b"], 128 << 20),
    (["-m", "size=1G"], 1 << 30),
    (["-m", "512", "-cpu", "qemu64", "-m", "1G"], 1 << 30),
    (["-cpu", "qemu64"], 128 << 20),
]


@pytest.mark.parametrize(("args", "size"), SIZES)
def test_the_last_m_says_how_much_memory_there_is(args: list[str], size: int) -> None:
    assert memory_size(args) == size


BAD_SIZES = [
    ("", "not a size that QEMU knows, such as 512 or 2G"),
    ("lots", "not a size"),
    ("1.5G", "not a size"),
    ("-512", "not a size"),
    ("0x200", "not a size"),
    ("512MB", "not a size"),
    ("size=", "not a size"),
    ("0", "not a multiple of 4096 bytes"),
    ("1k", "not a multiple of 4096 bytes"),
    ("4097b", "not a multiple of 4096 bytes"),
    ("512,slots=2,maxmem=1G", "memory that is plugged in later cannot be protected"),
    ("maxmem=1G,size=512M", "memory that is plugged in later cannot be protected"),
]


@pytest.mark.parametrize(("text", "told"), BAD_SIZES)
def test_a_size_that_cannot_be_is_told(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        memory_size(["-m", text])
    assert str(caught.value).startswith(f"-m {text}: ")
    assert told in str(caught.value)
