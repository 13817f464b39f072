"""The commands before a protection: does the VM fit, and what is its VM file."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from colo.cli.base import FAILED, main, reporting
from colo.cli.hosts import qmp_path, running_qemu
from colo.errors import UsageError
from colo.terminal import printable

if TYPE_CHECKING:
    from colo.checking.host import Part
    from colo.config import VmConfig
    from colo.findings import Finding
    from colo.importing.draft import Draft
    from colo.qemu.running import Running

__all__ = ["check", "import_command", "preload"]


@main.command()
@click.argument("vm_file", type=click.Path(path_type=Path))
@click.option("--qmp", metavar="unix:PATH", help="Ask this running QEMU, too, and change nothing.")
@click.option("--libvirt", metavar="DOMAIN", help="Or this domain of libvirt's, which runs.")
@click.option(
    "--start",
    is_flag=True,
    help="Start QEMU, its VM standing still, ask it, and end it: nobody may have its disks open.",
)
@click.option(
    "--other",
    metavar="OTHER.toml",
    type=click.Path(path_type=Path),
    help="The other host's VM file: what has to be the same, and is not.",
)
@click.option("--host", metavar="NAME", help="This host's name in [hosts]; else its own name.")
@click.option(
    "--role",
    type=click.Choice(["primary", "secondary"]),
    help="For single steps, without [hosts]: which part this host has.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The state folder that is to be used.",
)
@click.option("--unprotected-disks", is_flag=True, help="Also with disks that nobody replicates.")
@click.option("--json", "as_json", is_flag=True, help="The same for scripts.")
@reporting
def check(
    vm_file: Path,
    qmp: str | None,
    libvirt: str | None,
    start: bool,
    other: Path | None,
    host: str | None,
    role: str | None,
    state_dir: Path | None,
    unprotected_disks: bool,
    as_json: bool,
) -> int:
    """Find what would refuse a VM later: a line each, what to do, and where to read on.

    Nothing is changed, and no VM runs.  Exits with 0 where the VM can be protected, with 1
    where something has to be mended; notes alone are no reason.  docs/refused.md has an entry for
    each line.
    """
    from colo.checking import report

    where = running_qemu(qmp, libvirt)
    name, found = _found(vm_file, where, start, other, host, role, state_dir, unprotected_disks)
    if as_json:
        click.echo(json.dumps(report.as_json(name, found), indent=1))
    else:
        for line in report.lines(name, found):
            click.echo(printable(line))
    return 0 if report.is_fit(found) else FAILED


def _found(
    vm_file: Path,
    where: Running | None,
    start: bool,
    other: Path | None,
    host: str | None,
    role: str | None,
    state_dir: Path | None,
    allow_disks: bool,
) -> tuple[str, list[Finding]]:
    """The VM's name, and all that was found."""
    from colo.arbiters.named import check_failover
    from colo.checking.host import check_arbiter, check_host
    from colo.checking.pair import differences
    from colo.checking.running import check_running, check_started
    from colo.config import load
    from colo.findings import Finding, Topic

    try:
        config = load(vm_file, check_failover)
        part = _part(config, host, role)
    except UsageError as error:
        topic = Topic.HOSTS if "[hosts]" in str(error) else Topic.VM_FILE
        return vm_file.name, [Finding(topic, str(error))]
    found = list(check_host(config, part, state_dir))
    found += asyncio.run(check_arbiter(config, part))
    if where is not None:
        found += asyncio.run(check_running(config, where, allow_disks))
    if start and part.first:
        found += asyncio.run(check_started(config, allow_disks))
    elif start:
        raise UsageError("--start is for the first host: the second one's QEMU waits for a copy")
    if other is not None:
        try:
            found += differences(config, load(other))
        except UsageError as error:
            found.append(Finding(Topic.TWO_FILES, str(error)))
    if allow_disks:
        found = [each for each in found if each.topic is not Topic.DISK_NOT_NAMED]
    return config.name, list(dict.fromkeys(found))


def _part(config: VmConfig, host: str | None, role: str | None) -> Part:
    """Which part this host has.  Raises UsageError where [hosts] does not name it."""
    import socket

    from colo.checking.host import Part

    if role is not None or (not config.hosts and host is None):
        return Part(first=role != "secondary")
    us = host or socket.gethostname()
    config.seen_from(us)
    return Part(first=next(iter(config.hosts)) == us, host=us)


@main.command("import")
@click.option("--qmp", metavar="unix:PATH", help="From the running QEMU with this QMP socket.")
@click.option(
    "--pid", type=click.IntRange(1), help="From this process; with --qmp where it is not the peer."
)
@click.option("--libvirt", metavar="DOMAIN", help="From a domain of libvirt's, asked by virsh.")
@click.option(
    "--libvirt-argv",
    metavar="FILE",
    help="From the output of `virsh domxml-to-native qemu-argv`; - is standard input.",
)
@click.option(
    "--proxmox", metavar="FILE", help="From the output of `qm showcmd ID --pretty`; - as above."
)
@click.option("--name", metavar="NAME", help="The VM's name; else the one that QEMU has.")
@click.option(
    "-o",
    "output",
    metavar="VM.toml",
    type=click.Path(path_type=Path),
    help="Write the VM file there, where none is; else to standard output.",
)
@reporting
def import_command(
    qmp: str | None,
    pid: int | None,
    libvirt: str | None,
    libvirt_argv: str | None,
    proxmox: str | None,
    name: str | None,
    output: Path | None,
) -> int:
    """Write the VM file of a VM that there is: one that runs, or of libvirt or Proxmox.

    On standard error it says what was changed, what was left out and what is to be done; then
    `colo check` finds the rest.  The VM is not touched.
    """
    from colo.config.vm import parse
    from colo.importing.draft import vm_file

    draft = _draft(qmp, pid, {"libvirt": libvirt, "argv": libvirt_argv, "proxmox": proxmox}, name)
    text = vm_file(draft)
    try:
        parse(text)
    except UsageError as error:
        raise UsageError(f"{draft.source} makes no VM file: {error}") from error
    if output is None:
        click.echo(text, nl=False)
    else:
        _write(output, text)
    for line in draft.told():
        click.echo(printable(f"{draft.name}: {line}"), err=True)
    return 0


@main.command()
@click.option(
    "--tcg", is_flag=True, help="For a QEMU under TCG: the library that it needs as well."
)
@click.option(
    "--to",
    "folder",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Copy them there first, under names that stay, for every user to read.",
)
@reporting
def preload(tcg: bool, folder: Path | None) -> int:
    """Print the LD_PRELOAD with which to start a QEMU that colo is to protect later.

    Its guest's clock is kept right then.  What colo starts has it by itself.  A library is built
    where colo came without it, which takes a C compiler.
    """
    from colo.qemu.preload import CLOCK_LIBRARY, TCG_LIBRARY

    libraries = [TCG_LIBRARY, CLOCK_LIBRARY] if tcg else [CLOCK_LIBRARY]
    paths = [each.built() if folder is None else each.copied(folder) for each in libraries]
    click.echo(":".join(map(str, paths)))
    return 0


def _draft(
    qmp: str | None, pid: int | None, given: dict[str, str | None], name: str | None
) -> Draft:
    """Import from the one source that was given.  Raises ColoError."""
    from colo.importing import running, sources

    texts = {kind: value for kind, value in given.items() if value is not None}
    if len(texts) + (qmp is not None or pid is not None) != 1:
        raise UsageError("say one source: --qmp, --pid, --libvirt, --libvirt-argv or --proxmox")
    if qmp is not None:
        return asyncio.run(running.import_running(qmp_path(qmp), pid, name))
    if pid is not None:
        return running.import_process(pid, name)
    ((kind, value),) = texts.items()
    if kind == "libvirt":
        return sources.from_libvirt(value, name)
    return sources.from_text(sources.read_text(value), value, name)


def _write(path: Path, text: str) -> None:
    """Write a file that is not there yet, for its owner alone: arguments may hold secrets."""
    import os

    try:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already: it is not touched") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
