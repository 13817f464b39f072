"""The guest of the demonstration, as far as it can be tested without network and without QEMU."""

from __future__ import annotations

import lzma
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from colo.demo import guest_image
from colo.demo.guest_image import CpioEntry, GuestImageError
from tests.demo.workload import OUTPUT_SECONDS_MAX, running

COUNT = re.compile(r"colo-guest: count=(\d+) updates=(\d+) sweeps=(\d+)")


# The initramfs


def parse_cpio(archive: bytes) -> Iterator[tuple[CpioEntry, int]]:
    """Yield the entries of a "newc" archive, each with its number of links."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, links, mtime, size, _, _, major, minor, name_size, _ = fields
        assert (uid, gid, mtime) == (0, 0, 0)
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        data_at = at + 110 + name_size
        data_at += -data_at % 4
        data = archive[data_at : data_at + size]
        at = data_at + size
        at += -at % 4
        if name == b"TRAILER!!!\0":
            assert at == len(archive)
            return
        yield CpioEntry(name[:-1].decode(), mode, data, (major, minor)), links


ENTRIES = [
    CpioEntry("dev", stat.S_IFDIR | 0o755),
    CpioEntry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
    CpioEntry("init", stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
    CpioEntry("bin/sh", stat.S_IFLNK | 0o777, b"busybox"),
    *(CpioEntry("n" * n, stat.S_IFREG | 0o644, b"d" * d) for n in range(1, 6) for d in range(5)),
]


def test_cpio_holds_what_was_written() -> None:
    parsed = list(parse_cpio(guest_image.write_cpio(ENTRIES)))
    assert [entry for entry, _ in parsed] == ENTRIES
    assert [links for _, links in parsed[:3]] == [2, 1, 1]


def test_cpio_depends_on_nothing_but_its_entries() -> None:
    assert guest_image.write_cpio(ENTRIES) == guest_image.write_cpio(iter(ENTRIES))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")
def test_cpio_is_what_cpio_reads() -> None:
    listed = subprocess.run(
        ["cpio", "--list", "--quiet"],
        input=guest_image.write_cpio(ENTRIES),
        capture_output=True,
        check=True,
    )
    assert listed.stdout.decode().split() == [entry.name for entry in ENTRIES]


# Kernel modules


def module(*depends: str) -> bytes:
    """Return as much of a kernel module as we read of one."""
    modinfo = f"license=GPL\0depends={','.join(depends)}\0retpoline=Y\0name=some\0"
    return b"\x7fELF\x02\0 code \0" + modinfo.encode() + b"\0 symbols"


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (module(), []),
        (module("virtio"), ["virtio"]),
        (module("virtio_ring", "rng-core"), ["virtio_ring", "rng_core"]),
        (b"\x7fELF without modinfo", []),
        (b"\0softdep=pre: x depends=y\0", []),
    ],
)
def test_module_dependencies(content: bytes, names: list[str]) -> None:
    assert guest_image.module_dependencies(content) == names


def test_load_order_puts_each_after_its_needs() -> None:
    needs = {"net": ["ring", "core", "failover"], "ring": ["core"], "failover": ["net_core"]}
    order = guest_image.load_order(["net", "ring"], lambda name: needs.get(name, []))
    assert order == ["core", "ring", "net_core", "failover", "net"]


def test_load_order_ends_on_a_circle() -> None:
    needs = {"a": ["b"], "b": ["a"]}
    assert guest_image.load_order(["a"], lambda name: needs[name]) == ["b", "a"]


@pytest.mark.parametrize("prefix", ["lib", "usr/lib"])
def test_kernel_modules_are_found_plain_and_compressed(tmp_path: Path, prefix: str) -> None:
    kernel = tmp_path / prefix / "modules/6.1.0/kernel"
    kernel.mkdir(parents=True)
    (kernel / "virtio.ko").write_bytes(module("built_in"))
    (kernel / "virtio_pci.ko.xz").write_bytes(lzma.compress(module("virtio")))
    (kernel / "virtio-rng.ko").write_bytes(module("virtio"))
    (kernel / "unrelated.ko").write_bytes(module())
    (kernel / "ext4.ko").write_bytes(module("jbd2"))
    (kernel / "jbd2.ko").write_bytes(module())
    lists = guest_image._kernel_modules(tmp_path)
    assert list(lists["order-ext4"]) == ["jbd2", "ext4"]
    found = lists["order"]
    assert list(found) == ["virtio", "virtio_pci", "virtio_rng"]
    assert found["virtio_pci"] == module("virtio")


# The cache and the steps, with programs that we put in the place of Debian's

Programs = Callable[[str, str | None], None]
FAKE_PROGRAMS = {
    "apt-cache": 'echo "$2"; echo "  Depends: linux-image-6.1.0-9-cloud-amd64"',
    "apt-get": 'touch "${2}_1.0_amd64.deb"',
    "dpkg-deb": """\
mkdir -p "$3/boot" "$3/bin" "$3/lib/modules/6.1.0"
echo kernel > "$3/boot/vmlinuz-6.1.0"
echo busybox > "$3/bin/busybox"
printf '\\0depends=\\0' > "$3/lib/modules/6.1.0/virtio_pci.ko"
""",
    "cc": 'for last; do :; done; while [ "$1" != -o ]; do shift; done; cp "$last" "$2"',
}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Put fakes first on PATH; the result replaces one of them, or with None removes it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("sh", "mkdir", "touch", "cp"):
        (folder / name).symlink_to(str(shutil.which(name)))

    def put(name: str, script: str | None) -> None:
        path = folder / name
        path.unlink(missing_ok=True)
        if script is not None:
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)

    for name, script in FAKE_PROGRAMS.items():
        put(name, script)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return put


def fail_on_progress(line: str) -> None:
    raise AssertionError(f"nothing should be done: {line}")


def test_build_makes_an_image_and_leaves_nothing_else(tmp_path: Path, programs: Programs) -> None:
    steps: list[str] = []
    image = guest_image.build(tmp_path / "cache", steps.append)
    assert image.kernel.read_text() == "kernel\n"
    assert len(image.initrd.read_bytes()) > 100
    assert (image.kernel.parent / "packages.txt").read_text().split() == [
        "busybox-static_1.0_amd64.deb",
        "linux-image-6.1.0-9-cloud-amd64_1.0_amd64.deb",
    ]
    assert list((tmp_path / "cache").iterdir()) == [image.kernel.parent]
    assert "downloading linux-image-6.1.0-9-cloud-amd64" in steps


def test_equal_sources_give_equal_bytes(tmp_path: Path, programs: Programs) -> None:
    images = [guest_image.build(tmp_path / name, lambda line: None) for name in ("a", "b")]
    assert images[0].initrd.read_bytes() == images[1].initrd.read_bytes()


def test_cached_image_needs_no_program(tmp_path: Path, programs: Programs) -> None:
    image = guest_image.build(tmp_path / "cache", lambda line: None)
    for name in FAKE_PROGRAMS:
        programs(name, None)
    assert guest_image.build(tmp_path / "cache", fail_on_progress) == image


def test_image_that_has_lost_a_file_is_built_again(tmp_path: Path, programs: Programs) -> None:
    image = guest_image.build(tmp_path / "cache", lambda line: None)
    image.initrd.unlink()
    assert guest_image.build(tmp_path / "cache", lambda line: None) == image
    assert image.initrd.is_file()


@pytest.mark.parametrize("name", [*guest_image.WORKLOAD, *guest_image.HEADERS, "init"])
def test_another_workload_is_another_image(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    image = guest_image.build(tmp_path / "cache", lambda line: None)
    changed = tmp_path / "sources"
    shutil.copytree(guest_image.SOURCES, changed)
    with (changed / name).open("a") as source:
        source.write("/* changed */\n")
    monkeypatch.setattr(guest_image, "SOURCES", changed)
    assert guest_image.build(tmp_path / "cache", lambda line: None) != image
    assert image.kernel.is_file()


@pytest.mark.parametrize(
    ("program", "script", "expected"),
    [
        ("apt-get", None, "apt-get is not on this machine: run this on Debian"),
        ("cc", None, "run 'apt-get install gcc libc6-dev'"),
        ("apt-cache", "echo 'E: No packages found' >&2; exit 100", "run 'apt-get update'"),
        ("apt-cache", "echo linux-image-cloud-amd64", "run 'apt-get update'"),
        (
            "apt-get",
            "echo 'W: noise' >&2; echo 'E: Failed to fetch it' >&2; exit 100",
            "run 'apt-get update'): E: Failed to fetch it",
        ),
        ("apt-get", "exit 0", "hold no linux-image-6.1.0-9-cloud-amd64"),
        ("dpkg-deb", "echo 'dpkg-deb: error: no space' >&2; exit 2", "error: no space"),
        ("dpkg-deb", "mkdir $3 || exit 0", "hold no boot/vmlinuz-*"),
        ("cc", "echo '/usr/bin/ld: cannot find -lc' >&2; exit 1", "install libc6-dev"),
        ("cc", "echo 'w.c:1: fatal error: stdio.h: No such file' >&2; exit 1", "libc6-dev"),
        ("cc", "echo 'w.c:1:2: error: expected ;' >&2; exit 1", "w.c:1:2: error: expected ;"),
        ("cc", "exit 3", "it gave no reason"),
    ],
)
def test_failure_is_one_line_that_says_what_to_do(
    tmp_path: Path, programs: Programs, program: str, script: str | None, expected: str
) -> None:
    programs(program, script)
    with pytest.raises(GuestImageError) as caught:
        guest_image.build(tmp_path / "cache", lambda line: None)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("cache/*"))


def test_other_processors_are_refused(
    tmp_path: Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(GuestImageError, match="x86-64 only, this machine is aarch64"):
        guest_image.build(tmp_path / "cache", fail_on_progress)


def test_cache_folder_that_cannot_be_made(tmp_path: Path, programs: Programs) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(GuestImageError, match="cannot build the guest in"):
        guest_image.build(tmp_path / "cache", lambda line: None)


def test_missing_tools(programs: Programs) -> None:
    assert guest_image.missing_tools() == []
    programs("dpkg-deb", None)
    programs("cc", None)
    assert guest_image.missing_tools() == ["dpkg-deb", "cc"]


# The workload, on this host, with a pseudo-terminal in the place of the serial port


SMALL_TABLE = ("--mode=table", "--mib=4", "--tick=1")  # 1024 records: two ticks make a sweep


def test_table_counts_by_one_and_sweeps(workload: Path) -> None:
    with running(workload, *SMALL_TABLE, "--pace=100") as console:
        assert console.line() == "colo-guest: ready mode=table records=1024 mib=4"
        for count in range(1, 101):
            found = COUNT.fullmatch(console.line())
            assert found is not None
            assert [int(group) for group in found.groups()] == [count, 100 * count, count // 2]


def test_verify_sweeps_at_once(workload: Path) -> None:
    with running(workload, *SMALL_TABLE) as console:
        console.line_with("count=3 ")
        console.send(b"\nunknown\nver\nverify\r\n")
        found = re.fullmatch(
            r"colo-guest: verified records=1024 ledger=(\d+)", console.line_with("verified")
        )
        assert found is not None
        assert int(found[1]) % 200 == 0
        assert COUNT.fullmatch(console.line())


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("--corrupt-after=7", r"CORRUPT record=\d+: a word of its body is "),
        ("--stale-after=7", r"CORRUPT record=any: each is whole, but they hold "),
    ],
)
def test_fault_is_found_within_a_sweep(workload: Path, fault: str, finding: str) -> None:
    with running(workload, *SMALL_TABLE, "--pace=1", fault) as console:
        console.line_with("count=7 ")
        line = console.line()
        while COUNT.fullmatch(line):
            assert "count=12 " not in line
            line = console.line()
        assert re.match("colo-guest: " + finding, line)
        assert console.line() == "colo-guest: HALTED, powering off"
        assert console.process.wait(OUTPUT_SECONDS_MAX) == 1


def test_idle_says_little(workload: Path) -> None:
    with running(workload, "--mode=idle") as console:
        assert console.line() == "colo-guest: ready mode=idle"
        assert console.line() == "colo-guest: count=1"


def test_unknown_mode_halts(workload: Path) -> None:
    with running(workload, "--mode=other") as console:
        assert console.line() == "colo-guest: unknown mode other"
        assert console.line() == "colo-guest: HALTED, powering off"
        assert console.process.wait(OUTPUT_SECONDS_MAX) == 1
