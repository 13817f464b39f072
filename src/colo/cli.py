"""The command line.  Exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, ParamSpec

import click

from colo import __version__
from colo.errors import ColoError, UsageError

__all__ = ["main"]

_FAILED: Final = 1
_WRONG_USAGE: Final = 2

P = ParamSpec("P")

_state_dir = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder with this VM's status, sockets and log.",
)


def _reporting(command: Callable[P, int]) -> Callable[P, None]:
    """Report an error once, here, as one line, and turn results into exit codes."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except UsageError as error:
            click.echo(f"colo: {error}", err=True)
            code = _WRONG_USAGE
        except ColoError as error:
            click.echo(f"colo: {error}", err=True)
            code = _FAILED
        sys.exit(code)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Fault tolerance for QEMU virtual machines.

    When the host under a VM dies, the VM goes on on another one, from its last checkpoint.
    """


@main.command()
@click.argument("vm_file", type=click.Path(path_type=Path))
@click.option("--listen", required=True, metavar="ADDR", help="unix:PATH or tcp:HOST:PORT")
@_state_dir
@click.option(
    "--on-loss",
    type=click.Choice(["takeover", "hold"]),
    default="takeover",
    show_default=True,
    help="Run the VM here when the primary is lost, or wait for `colo failover`.",
)
@click.option("--trace", is_flag=True, help="Log every message and every change of state.")
@_reporting
def secondary(vm_file: Path, listen: str, state_dir: Path, on_loss: str, trace: bool) -> int:
    """Keep the last checkpoint of a VM, and run the VM when its primary is lost."""
    from colo.config import load
    from colo.guest.qemu import plan
    from colo.node.address import parse_address
    from colo.node.secondary import OnLoss, SecondaryNode
    from colo.node.statefolder import StateFolder

    config, address = load(vm_file), parse_address(listen)
    folder = StateFolder(state_dir)
    _log_to(folder.path / "colo.log", trace)
    try:

        async def run() -> int:
            node = SecondaryNode(config, plan(config), address, folder, OnLoss(on_loss), _say)
            return await node.run()

        return _run(run())
    finally:
        folder.close()


@main.command()
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="The same for scripts.")
@_reporting
def status(state_dir: Path, as_json: bool) -> int:
    """Show what a colo does, and its figures.  Exits with 1 where it does not run."""
    from colo.node.report import is_alive, read_status, render

    content = read_status(state_dir)
    if as_json:
        click.echo(json.dumps({**content, "alive": is_alive(content)}, indent=1))
    else:
        render(content)
    return 0 if is_alive(content) else _FAILED


@main.command()
@_state_dir
@click.option("--force", is_flag=True, help="Also while the primary is connected: see the manual.")
@_reporting
def failover(state_dir: Path, force: bool) -> int:
    """Run the VM here, from its last checkpoint."""
    from colo.node.control import give_order

    answer = give_order(state_dir, "failover", force)
    click.echo(answer.text, err=not answer.ok)
    return 0 if answer.ok else _FAILED


@main.command()
@_reporting
def demo() -> int:
    """Show the whole story on this machine: protect a VM, kill it, see it go on."""
    from colo.demo.story import tell

    return asyncio.run(tell())


def _run(coroutine: Coroutine[Any, Any, int]) -> int:
    """Run until it ends, or until SIGINT or SIGTERM ends it in good order."""

    async def supervise() -> int:
        task = asyncio.ensure_future(coroutine)
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            return 0

    return asyncio.run(supervise())


def _say(line: str) -> None:
    click.echo(line, err=True)
    logging.getLogger("colo").info("%s", line)


def _log_to(path: Path, trace: bool) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(
        logging.Formatter("%(asctime)s.%(msecs)03d %(name)s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    logger = logging.getLogger("colo")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logging.getLogger("colo.trace").setLevel(logging.DEBUG if trace else logging.INFO)
