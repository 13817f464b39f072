"""The commands that show something: how a VM stands, what a checkpoint holds, the story."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import click

from colo.cli.base import (
    FAILED,
    main,
    on_signal,
    reporting,
    say,
    state_dir_option,
    under_option,
)
from colo.errors import ColoError, UsageError

__all__ = ["demo", "export", "inspect", "metrics", "status", "top", "web"]


@main.command()
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder with this VM's status, sockets and log.",
)
@click.option("--all", "of_all", is_flag=True, help="All VMs of this host, a line for each.")
@under_option
@click.option("--json", "as_json", is_flag=True, help="The same for scripts.")
@reporting
def status(state_dir: Path | None, of_all: bool, under: Path | None, as_json: bool) -> int:
    """Show what a colo does, and its figures.  Exits with 1 where it does not run.

    With --all: where one of them does not run, or its VM is not protected.
    """
    from colo.status.report import is_alive, read_status, render

    if of_all and state_dir is not None:
        raise UsageError("--all and --state-dir: one or the other; --under DIR says where they are")
    if of_all:
        return _status_of_all(under, as_json)
    if under is not None:
        raise UsageError("--under is of --all: `colo status --all --under DIR`")
    if state_dir is None:
        context = click.get_current_context()
        raise click.UsageError("Missing option '--state-dir', or --all", context)
    content = read_status(state_dir)
    if as_json:
        click.echo(json.dumps({**content, "alive": is_alive(content)}, indent=1))
    else:
        render(content)
    return 0 if is_alive(content) else FAILED


def _status_of_all(under: Path | None, as_json: bool) -> int:
    from colo.status.overview import STATE_FOLDERS, Health, find, look, show

    folders = find(under or STATE_FOLDERS)
    views = [look(folder) for folder in folders]
    if as_json:
        click.echo(json.dumps([view.as_json() for view in views], indent=1))
    elif views:
        show(views)
    if not views:
        raise ColoError(f"no VM has a state folder in {under or STATE_FOLDERS}")
    return 0 if all(view.health in (Health.WELL, Health.OVER) for view in views) else FAILED


@main.command()
@state_dir_option
@click.argument("file", type=click.Path(path_type=Path))
@reporting
def export(state_dir: Path, file: Path) -> int:
    """Write the last checkpoint of a VM to FILE, as an ordinary QEMU migration.

    Each of its [[disks]] at that checkpoint goes to FILE.ID.raw.  The protection goes on meanwhile.
    `qemu-system-x86_64 … -incoming "exec:cat FILE"` loads it.
    """
    from colo.node.exporting import write_export

    for path, size in write_export(state_dir, file):
        click.echo(f"{path}: {size:,} bytes", err=True)
    return 0


@main.command()
@click.argument("source", metavar="FILE|DIR", type=click.Path(path_type=Path))
@click.argument("other", metavar="[OTHER]", required=False, type=click.Path(path_type=Path))
@click.option("--device", "patterns", metavar="NAME", multiple=True, help="Show its fields (*, ?).")
@click.option("--json", "as_json", is_flag=True, help="All of it, for scripts.")
@reporting
def inspect(source: Path, other: Path | None, patterns: tuple[str, ...], as_json: bool) -> int:
    """Show what a migration file, the store of a state folder, or a disk's journal holds.

    With OTHER, how that differs from the first one.  QEMU makes such a file by `migrate` to
    file:PATH or exec:'cat > PATH'.
    """
    from colo.inspection.as_json import difference_json, source_json
    from colo.inspection.difference import compare
    from colo.inspection.journal import journal_facts, load_journal
    from colo.inspection.report import matching, render_difference, render_facts, render_source
    from colo.inspection.source import load_source
    from colo.node.orders import fetch_checkpoint
    from colo.progress import shown
    from colo.status.report import disks, read_status

    head = load_journal(source) if other is None else None
    if head is not None and as_json:
        click.echo(json.dumps(journal_facts(head), indent=1))
        return 0
    if head is not None:
        render_facts(str(source), journal_facts(head))
        return 0

    def fetch(state_dir: Path) -> Iterator[bytes]:
        return shown(fetch_checkpoint(state_dir), "reading")

    sources = [load_source(path, fetch) for path in (source, other) if path is not None]
    wanted = matching(patterns, *sources) if patterns else None
    if other is None and as_json:
        click.echo(json.dumps(source_json(sources[0], wanted), indent=1))
    elif other is None:
        render_source(sources[0], wanted)
        if source.is_dir():
            render_facts("disks", dict(disks(read_status(source))))
    elif as_json:
        click.echo(json.dumps(difference_json(compare(*sources), wanted), indent=1))
    else:
        render_difference(compare(*sources), wanted)
    return 0


@main.command()
@under_option
@reporting
def top(under: Path | None) -> int:
    """Show all VMs of this host in the terminal, as they are now.

    q ends it, arrows select, s has the selected VM go over to the other host, after a question.
    """
    from colo.status.overview import STATE_FOLDERS
    from colo.top.app import Top
    from colo.top.terminal import Terminal

    terminal = Terminal()

    async def run() -> int:
        return await Top(under or STATE_FOLDERS, terminal).run()

    return asyncio.run(run())


@main.command()
@under_option
@click.option("--listen", metavar="HOST:PORT", help="Where.  Default: 127.0.0.1:9634")
@click.option("--allow-orders", is_flag=True, help="A VM may be told to go over; with a token.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What a browser has to know, where it has to.  Default: a new one each time.",
)
@reporting
def web(under: Path | None, listen: str | None, allow_orders: bool, token_file: Path | None) -> int:
    """Show all VMs of this host as a web page.

    It is for this host alone, and read-only.  Elsewhere, and with orders, it takes a token, which
    is in the address that is printed.
    """
    from colo.status.overview import STATE_FOLDERS, find
    from colo.web.app import Web
    from colo.web.guard import Guard, address_of, is_loopback, page_at, read_token

    address = address_of(listen)
    folder = under or STATE_FOLDERS
    find(folder)
    is_open = is_loopback(address) and not allow_orders and token_file is None
    token = None if is_open else read_token(token_file)

    async def run() -> int:
        page = Web(folder, Guard(address, token), allow_orders)
        on_signal(page.stop)
        return await page.run(address, lambda: say(page_at(address, token, token_file is None)))

    return asyncio.run(run())


@main.command()
@click.argument("what", type=click.Choice(["rules", "dashboard"]))
@reporting
def metrics(what: str) -> int:
    """Print what goes with colo's figures: Prometheus's alert rules, or a Grafana dashboard.

    The figures themselves are told by a colo that runs: [metrics] listen in the VM file.
    """
    from colo.metrics.shared import shared

    click.echo(shared(what), nl=False)
    return 0


@main.command()
@click.option(
    "--embedded", is_flag=True, help="Without QEMU: the guest is memory in a process of colo's."
)
@reporting
def demo(embedded: bool) -> int:
    """Show the whole story on this machine: protect a VM, kill it, see it go on."""
    if embedded:
        from colo.demo.embedded import tell as tell_embedded

        return asyncio.run(tell_embedded())
    from colo.demo.lab import LabError, enter
    from colo.demo.story import tell

    try:
        enter()
    except LabError as error:
        raise LabError(f"{error}; `colo demo --embedded` needs only Python") from error
    return asyncio.run(tell())
