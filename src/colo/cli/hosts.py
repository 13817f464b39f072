"""The commands that run on a host: a VM's secondary, its primary, or both in turn."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from colo.errors import UsageError

if TYPE_CHECKING:
    from colo.config import VmConfig
    from colo.node.first_start import Start
    from colo.node.state_folder import StateFolder
    from colo.qemu.monitor import Monitor
    from colo.qemu.running import Running

from colo.cli.base import in_folder, main, on_signal, reporting, say, state_dir_option, trace_option

__all__ = ["node", "primary", "qmp_path", "run_command", "running_qemu", "secondary"]

P = ParamSpec("P")


@main.command()
@click.argument("vm_file", type=click.Path(path_type=Path))
@click.option("--listen", required=True, metavar="ADDR", help="unix:PATH or tcp:HOST:PORT")
@state_dir_option
@click.option(
    "--on-loss",
    type=click.Choice(["takeover", "hold"]),
    default="takeover",
    show_default=True,
    help="Run the VM here when the primary is lost, or wait for `colo failover`.",
)
@click.option(
    "--forward",
    metavar="ADDR",
    help="Hand each checkpoint on to a further secondary: a QEMU in COLO mode, or a colo.",
)
@click.option(
    "--forward-as",
    type=click.Choice(["same", "7", "11"]),
    default="same",
    show_default=True,
    help="Which QEMU to be towards it: 7 to 10, or 11 and later. Default: the primary's.",
)
@trace_option
@reporting
def secondary(
    vm_file: Path,
    listen: str,
    state_dir: Path,
    on_loss: str,
    forward: str | None,
    forward_as: str,
    trace: bool,
) -> int:
    """Keep the last checkpoint of a VM, and run the VM when its primary is lost."""
    from colo.arbiters.named import check_failover, make_arbiter
    from colo.config import load
    from colo.membership.member import OnLoss
    from colo.metrics.service import measured
    from colo.node.keeping import SecondaryNode
    from colo.qemu.process import plan
    from colo.session.chain import Destination
    from colo.transport.address import parse_address
    from colo.transport.tls import make_tls

    config = load(vm_file, check_failover)
    tls = make_tls(config)
    address = parse_address(listen, tls)
    destination = None
    if forward is not None and config.disks:
        raise UsageError(
            "--forward and [[disks]]: memory alone is handed on, and goes with no disk there: take "
            "[[disks]] out"
        )
    if forward is not None:
        return_path = None if forward_as == "same" else forward_as == "11"
        destination = Destination(parse_address(forward, tls), return_path)
    arbiter = make_arbiter(config)

    async def run(folder: StateFolder) -> int:
        folder.clean(folder.store(config.store.folder, config.name))
        node = SecondaryNode(
            config, plan(config, say), address, folder, arbiter, OnLoss(on_loss), say, destination
        )
        on_signal(node.stop)
        return await node.run()

    return in_folder(state_dir, trace, measured(config, arbiter, run))


_to = click.option("--to", required=True, metavar="ADDR", help="The secondary's address.")
_stock = click.option("--stock", is_flag=True, help="The secondary is a stock QEMU.")
_disks = click.option(
    "--unprotected-disks", is_flag=True, help="Also with disks that nobody replicates."
)
_broken = click.option(
    "--allow-broken-qemu", is_flag=True, help="Also on QEMU 10.0 and 10.1, which may be mended."
)
_claim = click.option(
    "--claim", is_flag=True, help="Take the right to run the VM: its holder is certainly dead."
)


def _protection(command: Callable[P, None]) -> Callable[P, None]:
    """The options that `colo primary` and `colo run` share."""
    for option in (_claim, _broken, _disks, _stock, trace_option, state_dir_option, _to):
        command = option(command)
    return command


@main.command()
@click.argument("vm_file", type=click.Path(path_type=Path))
@click.option("--qmp", metavar="unix:PATH", help="A QMP socket of the running QEMU.")
@click.option("--libvirt", metavar="DOMAIN", help="Or the domain of libvirt's that it is.")
@_protection
@reporting
def primary(vm_file: Path, qmp: str | None, libvirt: str | None, **options: Any) -> int:
    """Protect a QEMU that runs already.

    Ctrl-C ends the protection; the VM goes on, and nothing is left behind in QEMU.
    """
    found = running_qemu(qmp, libvirt)
    if found is None:
        raise UsageError("which QEMU? say its --qmp, or its --libvirt domain")

    async def attach(config: VmConfig, folder: StateFolder) -> tuple[Monitor, None]:
        return await found.attach(say), None

    return _protect(vm_file, attach, options)


@main.command("run")
@click.argument("vm_file", type=click.Path(path_type=Path))
@_protection
@reporting
def run_command(vm_file: Path, **options: Any) -> int:
    """Start the VM's QEMU, then protect it.

    The VM starts only where it may run; where it may not, no QEMU is left.
    """
    from colo.node.first_start import Start
    from colo.node.replicas import run_on
    from colo.qemu.process import Qemu, plan

    async def start(config: VmConfig, folder: StateFolder) -> tuple[Monitor, Start]:
        folder.clean_start()
        run_on(config, folder.path)
        launch = plan(config, say)
        qemu = Qemu(launch.unstarted(), folder.path, launch.environment)
        await qemu.start()
        return qemu, Start(qemu)

    return _protect(vm_file, start, options)


def _print_unit(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the unit, and do no more."""
    if wanted and not ctx.resilient_parsing:
        from colo.service.unit import unit

        click.echo(unit(Path(sys.argv[0]).absolute()), nl=False)
        ctx.exit()


def _print_agent(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the resource agent, and do no more."""
    if wanted and not ctx.resilient_parsing:
        from colo.pacemaker.agent import agent_file

        click.echo(agent_file(sys.executable), nl=False)
        ctx.exit()


@main.command()
@click.argument("vm_file", type=click.Path(path_type=Path))
@click.option(
    "--print-agent",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_agent,
    help="Print Pacemaker's resource agent, ocf:colo:vm, and exit.",
)
@click.option(
    "--print-unit",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_unit,
    help="Print a systemd unit, colo@.service, and exit.",
)
@click.option("--host", metavar="NAME", help="This host's name in [hosts]; else its own name.")
@click.option("--qmp", metavar="unix:PATH", help="A QMP socket of a QEMU that runs the VM already.")
@click.option("--libvirt", metavar="DOMAIN", help="The domain of libvirt's that the VM is here.")
@trace_option
@state_dir_option
@reporting
def node(
    vm_file: Path,
    host: str | None,
    qmp: str | None,
    libvirt: str | None,
    trace: bool,
    state_dir: Path,
) -> int:
    """Keep a VM alive with the other host of its VM file, for good.

    The same command runs on both hosts, in any order and after any crash.  Ctrl-C leaves the VM
    running, and the next `colo node` goes on with it.
    """
    import socket

    from colo.arbiters.named import check_failover, make_arbiter
    from colo.config import load
    from colo.metrics.service import measured
    from colo.node.daemon import Daemon
    from colo.qemu.process import plan
    from colo.service.notify import Notifier
    from colo.transport.address import parse_address
    from colo.transport.tls import make_tls

    adopted = running_qemu(qmp, libvirt)
    us = host or socket.gethostname()
    config = load(vm_file, check_failover).seen_from(us)
    tls = make_tls(config)
    addresses = {name: parse_address(text, tls) for name, text in config.hosts.items()}
    arbiter = make_arbiter(config)

    async def run(folder: StateFolder) -> int:
        launch = plan(config, say)
        daemon = Daemon(config, us, addresses, launch, folder, arbiter, adopted, say, Notifier())
        on_signal(daemon.stop)
        return await daemon.run()

    return in_folder(state_dir, trace, measured(config, arbiter, run))


def running_qemu(qmp: str | None, libvirt: str | None) -> Running | None:
    """What --qmp or --libvirt names; None without either.  Raises UsageError."""
    from colo.qemu.running import Domain, Socket

    if qmp is not None and libvirt is not None:
        raise UsageError("--qmp and --libvirt: the VM is in one QEMU: say one of them")
    if libvirt is not None:
        return Domain(libvirt)
    return None if qmp is None else Socket(qmp_path(qmp))


def qmp_path(text: str) -> Path:
    """The socket of a --qmp.  Raises UsageError."""
    from colo.transport.address import parse_address

    path = parse_address(text).path
    if not path:
        raise UsageError(f"--qmp {text}: QMP is reached by unix:PATH")
    return Path(path)


def _protect(
    vm_file: Path,
    get_qemu: Callable[[VmConfig, StateFolder], Awaitable[tuple[Monitor, Start | None]]],
    options: dict[str, Any],
) -> int:
    from colo.arbiters.named import check_failover, make_arbiter
    from colo.config import load
    from colo.metrics.service import measured
    from colo.node.protecting import PrimaryNode
    from colo.transport.address import parse_address
    from colo.transport.tls import make_tls

    config = load(vm_file, check_failover)
    to = parse_address(options["to"], make_tls(config))
    if options["stock"] and to.tls is not None:
        raise UsageError("--stock and [tls]: a stock QEMU has a TLS of its own: take [tls] out")
    if options["stock"] and config.disks:
        raise UsageError("--stock and [[disks]]: a stock QEMU keeps no replica: take [[disks]] out")
    arbiter = make_arbiter(config)

    async def protect(folder: StateFolder) -> int:
        qemu, start = await get_qemu(config, folder)
        try:
            node = PrimaryNode(
                config,
                qemu,
                to,
                folder,
                arbiter,
                say,
                stock=options["stock"],
                allow_disks=options["unprotected_disks"],
                allow_broken=options["allow_broken_qemu"],
                claim=options["claim"],
                start=start,
            )
            on_signal(node.stop)
            return await node.run()
        finally:
            await qemu.detach()

    async def run(folder: StateFolder) -> int:
        task = asyncio.ensure_future(protect(folder))
        on_signal(task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            say(f"{config.name}: ended at its very beginning: nothing is left behind")
            return 0

    return in_folder(options["state_dir"], options["trace"], measured(config, arbiter, run))
