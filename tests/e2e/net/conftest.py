"""One lab for all, and a stage for each test whose logs are in the report where it fails."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from colo.demo.lab import Lab, needs
from tests.e2e.net.stage import Stage, Vm


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    """Two hosts, a client and the switch between them."""
    missing = needs()
    if missing is not None:
        pytest.skip(missing)
    with Lab(("tap0", "tap1")) as lab:
        yield lab


@pytest.fixture
def stage(lab: Lab, qemu: str, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage, for the Vm that the test is marked with: ``@pytest.mark.parametrize("vm", …)``."""
    vm = request.node.callspec.params.get("vm", Vm()) if hasattr(request.node, "callspec") else Vm()
    stage = Stage(lab, qemu, vm)
    request.node.stash[_STAGE] = stage
    yield stage
    stage.close()


#: Its disk takes minutes to build: `make server` does that, and has it played.
collect_ignore = [] if os.environ.get("COLO_SERVER") else ["test_server.py"]

_STAGE = pytest.StashKey[Stage]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    stage = item.stash.get(_STAGE, None)
    if report.failed and stage is not None and stage.folder.exists():
        report.sections.append(("logs", stage.tails()))
    return report
