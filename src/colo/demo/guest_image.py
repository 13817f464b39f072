"""Build the guest of the demonstration: a Debian kernel and an initramfs with our workload.

Everything comes from Debian packages that are downloaded and unpacked, never installed, so no
root is needed. The result lies in a folder named after what it was made from: the workload's
source, the init script and this recipe. A folder that is there is complete (it is built beside
and renamed), and is used as it is: a newer kernel in the archive does not replace it, so that
measurements stay comparable. Its versions stand in `packages.txt`.

The initramfs is the "newc" cpio format of the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from colo.errors import LocalError

__all__ = ["KERNEL_WORDS", "GuestImage", "GuestImageError", "build", "missing_tools"]

# Of the kernel's command line, what each use of this guest has.  no_timer_check: under TCG on a
# busy machine the kernel counts too few timer interrupts at boot and panics in setup_IO_APIC.
KERNEL_WORDS = (
    "console=ttyS0 quiet panic=-1 nokaslr mitigations=off cryptomgr.notests no_timer_check"
)
SOURCES = Path(__file__).with_name("guest")
WORKLOAD = ("workload.c", "serve.c", "disk.c")  # compiled together, with HEADERS beside them
HEADERS = ("guest.h",)
RECIPE_VERSION = 1  # raise it when what this file builds changes
KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"
APPLETS = ("cat", "grep", "insmod", "ip", "mount", "sh", "switch_root")
#: By the name of the list that the first process finds them in.
MODULES = {
    "order": ("virtio_pci", "virtio_net", "virtio_blk", "virtio_rng"),
    "order-vmware": ("vmxnet3",),
    "order-ext4": ("crc32c_generic", "ext4"),
}
TOOL_PACKAGES = {
    "apt-get": "apt",
    "apt-cache": "apt",
    "dpkg-deb": "dpkg",
    "cc": "gcc libc6-dev",
}
COMMAND_SECONDS_MAX = 600
LINE_CHARS_MAX = 300


class GuestImageError(LocalError):
    """The guest cannot be built here; the message says what is missing and what to do."""


@dataclass(frozen=True)
class GuestImage:
    """What QEMU's -kernel and -initrd take."""

    kernel: Path
    initrd: Path


@dataclass(frozen=True)
class CpioEntry:
    """One file of the initramfs; `device` is (major, minor) of a device node."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def missing_tools() -> list[str]:
    """Return the programs that `build` needs and that this machine does not have."""
    return [tool for tool in TOOL_PACKAGES if shutil.which(tool) is None]


def build(cache_dir: Path, progress: Callable[[str], None]) -> GuestImage:
    """Return the guest image in `cache_dir`, which is built there if it is not there yet.

    A cached image costs neither network nor tools. `progress` gets one line per step.
    Raises GuestImageError.
    """
    folder = cache_dir / f"guest-{_recipe()}"
    image = GuestImage(kernel=folder / "vmlinuz", initrd=folder / "initrd.gz")
    if image.kernel.is_file() and image.initrd.is_file():
        return image
    _require_tools()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="guest-build-", dir=cache_dir) as scratch:
            _build_into(Path(scratch), progress)
            _rename_into_place(Path(scratch, "image"), folder)
    except OSError as error:
        raise GuestImageError(f"cannot build the guest in {cache_dir}: {error}") from error
    return image


def _recipe() -> str:
    digest = hashlib.sha256(f"{RECIPE_VERSION} {APPLETS} {MODULES}".encode())
    for name in (*WORKLOAD, *HEADERS, "init"):
        content = (SOURCES / name).read_bytes()
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def _require_tools() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        raise GuestImageError(
            f"the demo's guest is built on x86-64 only, this machine is {platform.machine()}"
        )
    missing = missing_tools()
    if not missing:
        return
    if set(missing) == {"cc"}:
        raise GuestImageError(
            "the demo's guest needs a C compiler: run 'apt-get install gcc libc6-dev'"
        )
    raise GuestImageError(
        f"the demo's guest is built from Debian packages, but {', '.join(missing)} "
        "is not on this machine: run this on Debian"
    )


def _build_into(scratch: Path, progress: Callable[[str], None]) -> None:
    packages = (_kernel_package(), BUSYBOX_PACKAGE)
    root = scratch / "root"
    for package in packages:
        progress(f"downloading {package}")
        archive = _download(package, scratch)
        progress(f"unpacking {archive.name}")
        _run(["dpkg-deb", "-x", archive.name, root.name], scratch, f"cannot unpack {archive.name}")

    progress("compiling the workload")
    workload = scratch / "workload"
    _compile([SOURCES / name for name in WORKLOAD], workload)

    progress("packing the initramfs")
    image = scratch / "image"
    image.mkdir()
    shutil.copyfile(_find(root, "boot/vmlinuz-*"), image / "vmlinuz")
    busybox = _find(root, "bin/busybox", "usr/bin/busybox")
    initramfs = write_cpio(
        _initramfs(busybox.read_bytes(), workload.read_bytes(), _kernel_modules(root))
    )
    (image / "initrd.gz").write_bytes(gzip.compress(initramfs, compresslevel=1, mtime=0))
    names = sorted(archive.name for archive in scratch.glob("*.deb"))
    (image / "packages.txt").write_text("".join(f"{name}\n" for name in names))


def _rename_into_place(image: Path, folder: Path) -> None:
    try:
        image.rename(folder)
    except OSError:  # it is there: someone else's, just now, or one that has lost files
        if (folder / "vmlinuz").is_file() and (folder / "initrd.gz").is_file():
            return
        shutil.rmtree(folder)
        image.rename(folder)


# Packages


def _kernel_package() -> str:
    """Return the kernel package that the archive's cloud kernel stands for today."""
    hint = f"apt knows no {KERNEL_META_PACKAGE}: run 'apt-get update' (on Debian, amd64)"
    output = _run(["apt-cache", "depends", KERNEL_META_PACKAGE], None, hint, only_hint=True)
    found = re.search(r"Depends: (linux-image-\d\S*)", output)
    if found is None:
        raise GuestImageError(hint)
    return found[1]


def _download(package: str, folder: Path) -> Path:
    _run(
        ["apt-get", "download", package],
        folder,
        f"cannot download {package} (is there a network? are apt's lists old? "
        "run 'apt-get update')",
    )
    return _find(folder, f"{package}_*.deb")


def _compile(sources: Iterable[Path], target: Path) -> None:
    command = ["cc", "-static", "-O2", "-Wall", "-Wextra", "-o", str(target), *map(str, sources)]
    try:
        _run(command, None, "cannot compile the guest's workload")
    except GuestImageError as error:
        # The linker misses -lc, the compiler misses stdio.h: the same package has both.
        if re.search(r"-lc\b|\.h: No such file", str(error)):
            raise GuestImageError(
                "the demo's guest needs the static C library: run 'apt-get install libc6-dev'"
            ) from error
        raise


def _run(command: list[str], folder: Path | None, failure: str, only_hint: bool = False) -> str:
    """Run a program and return its output; its failure is `failure` and its first error line."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestImageError(f"{failure}: {error}") from error
    if done.returncode == 0:
        return done.stdout
    raise GuestImageError(failure if only_hint else f"{failure}: {_first_error(done.stderr)}")


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [
        line for line in lines if line.startswith("E: ") or "error:" in line or "cannot" in line
    ]
    return (errors or lines or ["it gave no reason"])[0][:LINE_CHARS_MAX]


def _find(root: Path, *patterns: str) -> Path:
    for pattern in patterns:
        for path in sorted(root.glob(pattern)):
            return path
    raise GuestImageError(f"the Debian packages hold no {patterns[0]}: the guest cannot be built")


# Kernel modules


def _kernel_modules(root: Path) -> dict[str, dict[str, bytes]]:
    """Return the content of MODULES and of what they depend on, list by list, in their order."""
    paths = {
        _module_name(path.name): path
        for folder in ("lib/modules", "usr/lib/modules")
        for path in (root / folder).rglob("*.ko*")
        if path.name.endswith((".ko", ".ko.xz"))
    }
    contents: dict[str, bytes] = {}

    def depends(name: str) -> list[str]:
        if name not in paths:
            return []  # built into the kernel
        contents[name] = _read_module(paths[name])
        return module_dependencies(contents[name])

    return {
        list_name: {
            name: contents[name] for name in load_order(wanted, depends) if name in contents
        }
        for list_name, wanted in MODULES.items()
    }


def _module_name(file_name: str) -> str:
    # The kernel takes both for the same name: virtio-rng.ko is the module virtio_rng.
    return file_name.split(".ko", 1)[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def module_dependencies(module: bytes) -> list[str]:
    """Return the names in a module's .modinfo, a row of `key=value` strings that end with NUL."""
    found = re.search(rb"\0depends=([\w,-]*)\0", module)
    names = found[1].decode().split(",") if found else []
    return [_module_name(name) for name in names if name]


def load_order(wanted: Iterable[str], depends: Callable[[str], list[str]]) -> list[str]:
    """Return `wanted` and all that it depends on, each after what it needs."""
    order: list[str] = []
    entered: set[str] = set()

    def enter(name: str) -> None:
        if name in entered:
            return
        entered.add(name)
        for needed in depends(name):
            enter(needed)
        order.append(name)

    for name in wanted:
        enter(name)
    return order


# Initramfs


def _initramfs(
    busybox: bytes, workload: bytes, lists: Mapping[str, Mapping[str, bytes]]
) -> Iterator[CpioEntry]:
    for name in ("bin", "data", "dev", "lib", "lib/modules", "proc", "sys", "tmp"):
        yield CpioEntry(name, stat.S_IFDIR | 0o755)
    # The kernel opens it for the first process, before there is a devtmpfs.
    yield CpioEntry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    yield CpioEntry("init", stat.S_IFREG | 0o755, (SOURCES / "init").read_bytes())
    yield CpioEntry("bin/workload", stat.S_IFREG | 0o755, workload)
    yield CpioEntry("bin/busybox", stat.S_IFREG | 0o755, busybox)
    for applet in APPLETS:
        yield CpioEntry(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")
    for list_name, modules in lists.items():
        for name, content in modules.items():
            yield CpioEntry(f"lib/modules/{name}.ko", stat.S_IFREG | 0o644, content)
        order = "".join(f"{name}.ko\n" for name in modules)
        yield CpioEntry(f"lib/modules/{list_name}", stat.S_IFREG | 0o644, order.encode())


def write_cpio(entries: Iterable[CpioEntry]) -> bytes:
    """Return a "newc" archive; owner root, times 0, so that equal entries give equal bytes."""
    archive = bytearray()
    for inode, entry in enumerate([*entries, CpioEntry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        is_directory = stat.S_ISDIR(entry.mode)
        fields = (
            *(inode, entry.mode, 0, 0, 2 if is_directory else 1, 0, len(entry.data)),
            *(0, 0, *entry.device, len(name), 0),
        )
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
