"""How the package is laid out: what is pure stays pure, and every module can be read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import colo

SOURCE = Path(colo.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
NAMES = [path.relative_to(SOURCE).as_posix() for path in MODULES]
#: What of the importer asks processes and QEMUs, or reads files.
READING = ("importing/sources.py", "importing/process.py", "importing/running.py")
PURE = [
    path
    for path, name in zip(MODULES, NAMES, strict=True)
    if name.startswith(("protocol/", "migration/", "membership/", "wire/"))
    or name in ("qemu/command_line.py", "qemu/options.py", "qemu/argument_obstacles.py")
    or name in ("qemu/drives.py", "findings.py", "packets/gate.py")
    or (name.startswith("importing/") and name not in READING)
    or name in ("nbd/protocol.py", "nbd/replies.py", "nbd/negotiation.py", "nbd/connection.py")
    or name in ("disks/words.py", "disks/extents.py", "disks/epochs.py", "disks/digests.py")
    or name in ("status/figures.py",)
]
#: What does I/O, tells the time or throws dice.
BANNED = {
    "asyncio", "concurrent", "ctypes", "datetime", "fcntl", "http", "io", "mmap", "multiprocessing",
    "os", "pathlib", "pty", "qemu", "random", "secrets", "select", "selectors", "shutil", "signal",
    "socket", "socketserver", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib",
}  # fmt: skip
#: What of colo itself a pure module may build upon.
ALLOWED = (
    "colo.errors", "colo.protocol", "colo.migration", "colo.membership", "colo.nbd",
    "colo.config",  # what a hello says of a VM file
    "colo.disks", "colo.wire", "colo.findings", "colo.importing", "colo.terminal",
    "colo.qemu.options", "colo.qemu.command_line", "colo.qemu.argument_obstacles",
    "colo.qemu.drives",
    "colo.status.figures",  # which count, and do no more
)  # fmt: skip


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """All that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module or "")
    return found


def test_there_are_modules_to_look_at() -> None:
    assert {path.name for path in PURE} >= {"tables.py", "machine.py", "reader.py", "ram.py"}
    assert len(MODULES) > len(PURE)


@pytest.mark.parametrize("path", PURE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_protocol_and_stream_do_no_io_and_know_no_time(path: Path) -> None:
    found = imports(path)
    assert not {name.split(".")[0] for name in found} & BANNED
    assert {
        name for name in found if name.startswith("colo") and not name.startswith(ALLOWED)
    } == set()
    calls = {
        node.func.id
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"open", "input", "print", "exec", "eval", "__import__"}


def test_the_protocol_does_not_know_the_stream_and_the_stream_not_the_protocol() -> None:
    for path in PURE:
        if path.parts[-2] not in ("protocol", "migration"):
            continue
        other = "migration" if "protocol" in path.parts[-2] else "protocol"
        assert not {name for name in imports(path) if name.startswith(f"colo.{other}")}


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_module_says_what_it_is_and_what_it_offers(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
    if path.name in ("__init__.py", "__main__.py"):
        return
    offered = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and [target.id for target in node.targets if isinstance(target, ast.Name)] == ["__all__"]
    ]
    assert len(offered) == 1, "one __all__"
    (names,) = offered
    assert len(names) == len(set(names))
    defined = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
    assert set(names) <= defined, "all that is offered is defined here"


def test_the_package_says_that_it_is_typed() -> None:
    assert (SOURCE / "py.typed").exists()
