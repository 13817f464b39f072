"""What all commands share: how they report, where they run, what they say and log."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec

import click

from colo import __version__
from colo.errors import ColoError, UsageError
from colo.terminal import printable

if TYPE_CHECKING:
    from colo.node.state_folder import StateFolder

__all__ = [
    "FAILED",
    "in_folder",
    "log_to",
    "main",
    "on_signal",
    "reporting",
    "say",
    "state_dir_option",
    "trace_option",
    "under_option",
]

FAILED: Final = 1
WRONG_USAGE: Final = 2

P = ParamSpec("P")

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder with this VM's status, sockets and log.",
)

under_option = click.option(
    "--under",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the state folders of this host's VMs are.  Default: /var/lib/colo",
)

trace_option = click.option("--trace", is_flag=True, help="Log every message and change of state.")


def reporting(command: Callable[P, int]) -> Callable[P, None]:
    """Report an error once, here, as one line, and turn results into exit codes."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = command(*args, **kwargs)
        except ColoError as error:
            text = "; ".join((str(error), *getattr(error, "__notes__", ())))
            click.echo(f"colo: {printable(text)}", err=True)
            code = WRONG_USAGE if isinstance(error, UsageError) else FAILED
        except BrokenPipeError:  # whoever reads our output has enough of it
            raise
        except (OSError, MemoryError) as error:  # what nobody foresaw; the log says where
            logging.getLogger("colo").info("it ends by an error", exc_info=True)
            click.echo(f"colo: {printable(_what(error))}", err=True)
            code = FAILED
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
        sys.exit(WRONG_USAGE)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Fault tolerance for QEMU virtual machines.

    When the host under a VM dies, the VM goes on on another one, from its last checkpoint.
    """


def in_folder(
    state_dir: Path, trace: bool, run: Callable[[StateFolder], Coroutine[Any, Any, int]]
) -> int:
    """Run with a state folder of our own, and a log in it."""
    from colo.node.state_folder import StateFolder
    from colo.transport.tls import let_go

    folder = StateFolder(state_dir)
    try:
        log_to(folder.path / "colo.log", trace)
        gc.freeze()  # a full collection over all that is imported would take tens of milliseconds
        return asyncio.run(run(folder))
    finally:
        let_go()
        folder.close()


def on_signal(stop: Callable[[], object]) -> None:
    """Have SIGINT and SIGTERM end the work in good order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def say(line: str) -> None:
    """Tell the user, and the log, which remains where nobody reads the other any more."""
    line = printable(line)
    with contextlib.suppress(OSError):
        click.echo(line, err=True)
    logging.getLogger("colo").info("%s", line)


def log_to(path: Path, trace: bool) -> None:
    from colo.log import LogFile

    log = LogFile(path)
    logging.getLogger("asyncio").addHandler(log)  # what a callback raises that nobody foresaw
    logger = logging.getLogger("colo")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    logging.getLogger("colo.trace").setLevel(logging.DEBUG if trace else logging.INFO)
