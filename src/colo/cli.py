"""The command line.  Exit codes: 0 done, 1 failed, 2 wrong usage."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec

import click

from colo import __version__
from colo.errors import ColoError, UsageError
from colo.terminal import printable

if TYPE_CHECKING:
    from colo.config import VmConfig
    from colo.node.first_start import Start
    from colo.node.state_folder import StateFolder
    from colo.qemu.monitor import Monitor

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
        except ColoError as error:
            text = "; ".join((str(error), *getattr(error, "__notes__", ())))
            click.echo(f"colo: {printable(text)}", err=True)
            code = _WRONG_USAGE if isinstance(error, UsageError) else _FAILED
        except BrokenPipeError:  # whoever reads our output has enough of it
            raise
        except (OSError, MemoryError) as error:  # what nobody foresaw; the log says where
            logging.getLogger("colo").info("it ends by an error", exc_info=True)
            click.echo(f"colo: {printable(_what(error))}", err=True)
            code = _FAILED
        sys.exit(code)

    return run


def _what(error: OSError | MemoryError) -> str:
    """What the system says went wrong, and with which file."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    file = getattr(error, "filename", None)
    return text if file is None else f"{os.fsdecode(file)}: {text}"


class _Commands(click.Group):
    """Commands whose wrong usage is one line, as any other error."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line():
            return super().invoke(ctx)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        text = " ".join(error.format_message().split()).removesuffix(".")
        of = error.ctx.command_path if error.ctx is not None else "colo"
        click.echo(f"colo: {printable(text)}: see `{of} --help`", err=True)
        sys.exit(_WRONG_USAGE)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
@click.option("--trace", is_flag=True, help="Log every message and every change of state.")
@_reporting
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
    from colo.membership.decision import OnLoss
    from colo.node.keeping import SecondaryNode
    from colo.qemu.process import plan
    from colo.session.chain import Destination
    from colo.transport.address import parse_address
    from colo.transport.tls import make_tls

    config = load(vm_file, check_failover)
    tls = make_tls(config)
    address = parse_address(listen, tls)
    destination = None
    if forward is not None:
        return_path = None if forward_as == "same" else forward_as == "11"
        destination = Destination(parse_address(forward, tls), return_path)
    arbiter = make_arbiter(config)

    async def run(folder: StateFolder) -> int:
        node = SecondaryNode(
            config, plan(config), address, folder, arbiter, OnLoss(on_loss), _say, destination
        )
        task = asyncio.ensure_future(node.run())
        _on_signal(task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            return 0

    return _in_folder(state_dir, trace, run)


_to = click.option("--to", required=True, metavar="ADDR", help="The secondary's address.")
_trace = click.option("--trace", is_flag=True, help="Log every message and change of state.")
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
    for option in (_claim, _broken, _disks, _stock, _trace, _state_dir, _to):
        command = option(command)
    return command


@main.command()
@click.argument("vm_file", type=click.Path(path_type=Path))
@click.option("--qmp", required=True, metavar="unix:PATH", help="A QMP socket of the running QEMU.")
@_protection
@_reporting
def primary(vm_file: Path, qmp: str, **options: Any) -> int:
    """Protect a QEMU that runs already.

    Ctrl-C ends the protection; the VM goes on, and nothing is left behind in QEMU.
    """
    from colo.qemu.monitor import AttachedQemu
    from colo.transport.address import parse_address

    socket_path = parse_address(qmp).path
    if not socket_path:
        raise UsageError(f"--qmp {qmp}: QMP is reached by unix:PATH")

    async def attach(config: VmConfig, folder: StateFolder) -> tuple[Monitor, None]:
        qemu = AttachedQemu(Path(socket_path))
        await qemu.attach()
        return qemu, None

    return _protect(vm_file, attach, options)


@main.command("run")
@click.argument("vm_file", type=click.Path(path_type=Path))
@_protection
@_reporting
def run_command(vm_file: Path, **options: Any) -> int:
    """Start the VM's QEMU, then protect it.

    The VM starts only where it may run; where it may not, no QEMU is left.
    """
    from colo.node.first_start import Start
    from colo.qemu.process import Qemu, plan

    async def start(config: VmConfig, folder: StateFolder) -> tuple[Monitor, Start]:
        folder.clean_start()
        launch = plan(config)
        qemu = Qemu(launch.unstarted(), folder.path, launch.environment)
        await qemu.start()
        return qemu, Start(qemu)

    return _protect(vm_file, start, options)


def _protect(
    vm_file: Path,
    get_qemu: Callable[[VmConfig, StateFolder], Awaitable[tuple[Monitor, Start | None]]],
    options: dict[str, Any],
) -> int:
    from colo.arbiters.named import check_failover, make_arbiter
    from colo.config import load
    from colo.node.protecting import PrimaryNode
    from colo.transport.address import parse_address
    from colo.transport.tls import make_tls

    config = load(vm_file, check_failover)
    to = parse_address(options["to"], make_tls(config))
    if options["stock"] and to.tls is not None:
        raise UsageError("--stock and [tls]: a stock QEMU has a TLS of its own: take [tls] out")
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
                _say,
                stock=options["stock"],
                allow_disks=options["unprotected_disks"],
                allow_broken=options["allow_broken_qemu"],
                claim=options["claim"],
                start=start,
            )
            _on_signal(node.stop)
            return await node.run()
        finally:
            await qemu.detach()

    async def run(folder: StateFolder) -> int:
        task = asyncio.ensure_future(protect(folder))
        _on_signal(task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            _say(f"{config.name}: ended at its very beginning: nothing is left behind")
            return 0

    return _in_folder(options["state_dir"], options["trace"], run)


@main.command()
@_state_dir
@click.option("--json", "as_json", is_flag=True, help="The same for scripts.")
@_reporting
def status(state_dir: Path, as_json: bool) -> int:
    """Show what a colo does, and its figures.  Exits with 1 where it does not run."""
    from colo.status.report import is_alive, read_status, render

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
    return _order(state_dir, "failover", force)


@main.command()
@_state_dir
@_reporting
def switchover(state_dir: Path) -> int:
    """Have the VM go over to the other host, at a checkpoint of its own."""
    return _order(state_dir, "switchover")


@main.command()
@_state_dir
@_reporting
def stop(state_dir: Path) -> int:
    """Have the guest power down; after a minute it is ended."""
    return _order(state_dir, "stop")


def _order(state_dir: Path, order: str, force: bool = False) -> int:
    from colo.node.orders import give_order

    answer = give_order(state_dir, order, force)
    click.echo(printable(answer.text), err=not answer.ok)
    return 0 if answer.ok else _FAILED


@main.command()
@_state_dir
@click.argument("file", type=click.Path(path_type=Path))
@_reporting
def export(state_dir: Path, file: Path) -> int:
    """Write the last checkpoint of a VM to FILE, as an ordinary QEMU migration.

    The protection goes on meanwhile.  `qemu-system-x86_64 … -incoming "exec:cat FILE"` loads it.
    """
    from colo.node.orders import fetch_checkpoint
    from colo.progress import shown
    from colo.store.export import write_file

    size = write_file(file, shown(fetch_checkpoint(state_dir), "exporting"))
    click.echo(f"{file}: {size:,} bytes", err=True)
    return 0


@main.command()
@click.argument("source", metavar="FILE|DIR", type=click.Path(path_type=Path))
@click.argument("other", metavar="[OTHER]", required=False, type=click.Path(path_type=Path))
@click.option("--device", "patterns", metavar="NAME", multiple=True, help="Show its fields (*, ?).")
@click.option("--json", "as_json", is_flag=True, help="All of it, for scripts.")
@_reporting
def inspect(source: Path, other: Path | None, patterns: tuple[str, ...], as_json: bool) -> int:
    """Show what a migration file, or the store of a state folder, holds.

    With OTHER, how that differs from the first one.  QEMU makes such a file by `migrate` to
    file:PATH or exec:'cat > PATH'.
    """
    from colo.inspection.as_json import difference_json, source_json
    from colo.inspection.difference import compare
    from colo.inspection.report import matching, render_difference, render_source
    from colo.inspection.source import load_source
    from colo.node.orders import fetch_checkpoint
    from colo.progress import shown

    def fetch(state_dir: Path) -> Iterator[bytes]:
        return shown(fetch_checkpoint(state_dir), "reading")

    sources = [load_source(path, fetch) for path in (source, other) if path is not None]
    wanted = matching(patterns, *sources) if patterns else None
    if other is None and as_json:
        click.echo(json.dumps(source_json(sources[0], wanted), indent=1))
    elif other is None:
        render_source(sources[0], wanted)
    elif as_json:
        click.echo(json.dumps(difference_json(compare(*sources), wanted), indent=1))
    else:
        render_difference(compare(*sources), wanted)
    return 0


@main.command()
@click.option(
    "--embedded", is_flag=True, help="Without QEMU: the guest is memory in a process of colo's."
)
@_reporting
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


def _in_folder(
    state_dir: Path, trace: bool, run: Callable[[StateFolder], Coroutine[Any, Any, int]]
) -> int:
    """Run with a state folder of our own, and a log in it."""
    from colo.node.state_folder import StateFolder
    from colo.transport.tls import let_go

    folder = StateFolder(state_dir)
    try:
        _log_to(folder.path / "colo.log", trace)
        gc.freeze()  # a full collection over all that is imported would take tens of milliseconds
        return asyncio.run(run(folder))
    finally:
        let_go()
        folder.close()


def _on_signal(stop: Callable[[], object]) -> None:
    """Have SIGINT and SIGTERM end the work in good order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def _say(line: str) -> None:
    """Tell the user, and the log, which remains where nobody reads the other any more."""
    line = printable(line)
    with contextlib.suppress(OSError):
        click.echo(line, err=True)
    logging.getLogger("colo").info("%s", line)


def _log_to(path: Path, trace: bool) -> None:
    from colo.log import LogFile

    log = LogFile(path)
    logging.getLogger("asyncio").addHandler(log)  # what a callback raises that nobody foresaw
    logger = logging.getLogger("colo")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logging.getLogger("colo.trace").setLevel(logging.DEBUG if trace else logging.INFO)
