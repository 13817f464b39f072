"""An operator's orders to a colo that runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from colo.terminal import printable

if TYPE_CHECKING:
    pass

from colo.cli.base import FAILED, main, reporting, state_dir_option

__all__ = ["failover", "stop", "switchover"]


@main.command()
@state_dir_option
@click.option("--force", is_flag=True, help="Also while the primary is connected: see the manual.")
@reporting
def failover(state_dir: Path, force: bool) -> int:
    """Run the VM here, from its last checkpoint."""
    return _order(state_dir, "failover", force)


@main.command()
@state_dir_option
@reporting
def switchover(state_dir: Path) -> int:
    """Have the VM go over to the other host, at a checkpoint of its own."""
    return _order(state_dir, "switchover")


@main.command()
@state_dir_option
@reporting
def stop(state_dir: Path) -> int:
    """Have the guest power down; after a minute it is ended."""
    return _order(state_dir, "stop")


def _order(state_dir: Path, order: str, force: bool = False) -> int:
    from colo.node.orders import give_order

    answer = give_order(state_dir, order, force)
    click.echo(printable(answer.text), err=not answer.ok)
    return 0 if answer.ok else FAILED
