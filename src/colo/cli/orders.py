"""An operator's orders to a colo that runs."""

from __future__ import annotations

from pathlib import Path

import click

from colo.cli.base import FAILED, main, reporting, state_dir_option
from colo.node.orders import GRACE_S, Order, give_order
from colo.terminal import printable

__all__ = ["failover", "stop", "switchover"]


@main.command()
@state_dir_option
@click.option("--force", is_flag=True, help="Also while the primary is connected: see the manual.")
@reporting
def failover(state_dir: Path, force: bool) -> int:
    """Run the VM here, from its last checkpoint."""
    return _give(state_dir, Order("failover", force))


@main.command()
@state_dir_option
@reporting
def switchover(state_dir: Path) -> int:
    """Have the VM go over to the other host, at a checkpoint of its own."""
    return _give(state_dir, Order("switchover"))


@main.command()
@state_dir_option
@click.option(
    "--grace",
    type=click.FloatRange(0, 86_400, max_open=True),
    default=GRACE_S,
    show_default=True,
    metavar="SECONDS",
    help="How long the guest may take; then it is ended.",
)
@reporting
def stop(state_dir: Path, grace: float) -> int:
    """Have the guest power down, and end it where it does not."""
    return _give(state_dir, Order("stop", grace_s=grace))


def _give(state_dir: Path, order: Order) -> int:
    answer = give_order(state_dir, order)
    click.echo(printable(answer.text), err=not answer.ok)
    return 0 if answer.ok else FAILED
