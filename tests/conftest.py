"""What `--e2e` means for tests marked e2e, the ones on real QEMU.

auto (the default) skips them where no QEMU is found; require runs them and counts a skipped one
as failed, so that a green run proves that they ran; off leaves them out.
"""

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

# colo is started hundreds of times: its modules are compiled once, whatever this shell has set.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes is the machine's affair.
settings.register_profile("colo", deadline=None)
settings.load_profile("colo")

QEMU = "qemu-system-x86_64"
ROOT = Path(__file__).parent.parent
E2E_FOLDER = ROOT / "tests" / "e2e"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--e2e",
        choices=("auto", "require", "off"),
        default="auto",
        help="tests on real QEMU: where there is one, in any case (a skip fails), not at all",
    )
    parser.addoption(
        "--rounds",
        type=int,
        default=1,
        help="how often each test that draws its moments at random is run, each time drawn anew",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    rounds = metafunc.config.getoption("--rounds")
    if rounds > 1 and "draw" in metafunc.fixturenames:
        metafunc.fixturenames.append("round_number")
        metafunc.parametrize("round_number", range(1, rounds + 1), ids=lambda n: f"round {n}")


def has_qemu() -> bool:
    return shutil.which(QEMU) is not None or (ROOT / "build" / "qemu11" / QEMU).exists()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mode = config.getoption("--e2e")
    e2e = [item for item in items if item.get_closest_marker("e2e")]
    if mode == "off":
        config.hook.pytest_deselected(items=e2e)
        items[:] = [item for item in items if not item.get_closest_marker("e2e")]
    elif mode == "auto" and not has_qemu():
        for item in e2e:
            item.add_marker(pytest.mark.skip(reason=f"no {QEMU}: install it, or `make qemu11`"))


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why the test did not run. pytest reports a skip as (file, line, reason)."""
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail)
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def count_as_failed(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = skip_reason(report)
    report.outcome = "failed"
    vars(report).pop("wasxfail", None)
    report.longrepr = f"skipped under --e2e=require: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # An expected failure has run, unless it was marked xfail(run=False).
    ran = not report.skipped or not getattr(report, "wasxfail", "[NOTRUN]").startswith("[NOTRUN]")
    if not ran and item.get_closest_marker("e2e") and item.config.getoption("--e2e") == "require":
        count_as_failed(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    required = collector.config.getoption("--e2e") == "require"
    if report.skipped and required and collector.path.is_relative_to(E2E_FOLDER):
        count_as_failed(report)
    return report
