"""Every action of the resource agent, and its exit code, beside a colo that says what it is to."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from colo.cli import main as colo_command
from colo.errors import LocalError
from colo.membership.roles import Turn
from colo.membership.states import State
from colo.pacemaker import agent
from colo.pacemaker.agent import Ocf, agent_file, main, metadata, score
from colo.pacemaker.cluster import Cluster
from colo.pacemaker.here import Here, Seen
from colo.pacemaker.permit import PERMITS, Permit

FAKE = Path(__file__).with_name("fake_colo.py")
VM_FILE = """name = "web1"
[qemu]
args = ["-m", "64"]
[failover]
arbiter = "pacemaker"
[hosts]
a = "tcp:127.0.0.1:1"
b = "tcp:127.0.0.1:2"
"""
DTD = Path("/usr/share/resource-agents/ra-api-1.dtd")
RUNNING = ("UNPROTECTED", "BEGINNING", "COPYING", "PROTECTED")
SILENT = ("STARTING", "RUNNING", "GOING_OVER", "LOST", "RESUMING")
WHOLE = ("KEEPING", "CUT_OFF", "ORPHANED")
NOTHING = ("LISTENING", "GREETED", "RECEIVING")

_DEMOTE = """
import os, sys
from pathlib import Path
from tests.pacemaker.test_agent import Scores
from colo.pacemaker.agent import main
sys.exit(main(["demote"], os.environ, Scores(), Path(sys.argv[1])))
"""


class Scores(Cluster):
    """Remembers the promotion scores that it is told."""

    def __init__(self) -> None:
        self.told: list[int | None] = []
        self.answers = True

    def score(self, number: int | None) -> None:
        if not self.answers:
            raise LocalError("Pacemaker does not take the promotion score")
        self.told.append(number)

    def this_node(self) -> str:
        return "a"


class Host:
    """A host with the agent, whose colo is the fake."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.state.mkdir()
        self.permits = folder / "permits"
        self.file = folder / "web1.toml"
        self.file.write_text(VM_FILE)
        self.cluster = Scores()
        self.here = Here(self.state)
        self.environment = {
            **os.environ,
            "OCF_RESKEY_config": str(self.file),
            "OCF_RESKEY_state_dir": str(self.state),
            "OCF_RESKEY_colo": f"{sys.executable} {FAKE}",
            "OCF_RESKEY_CRM_meta_clone_max": "2",
            "OCF_RESKEY_CRM_meta_notify": "true",
            "OCF_RESKEY_CRM_meta_timeout": "40000",
        }

    @property
    def promoted(self) -> bool:
        return (self.permits / "web1.promoted").exists()

    @promoted.setter
    def promoted(self, is_so: bool) -> None:
        self.permits.mkdir(exist_ok=True)
        path = self.permits / "web1.promoted"
        path.touch() if is_so else path.unlink(missing_ok=True)

    def will_say(self, state: str, **more: Any) -> None:
        """Have colo say so, at once; what comes of it may already be when this returns."""
        self._put("fake", {"state": state, **more})

    def says(self, state: str, **more: Any) -> None:
        """Have colo say so, and wait until it has, where one runs."""
        self.will_say(state, **more)
        if self.here.colo() is not None:
            _wait(lambda: (seen := self.here.look()) is not None and seen.state == state)

    def next_says(self, state: str, **more: Any) -> None:
        """Have the next colo say so."""
        self._put("next", {"state": state, **more})

    def on(self, order: str, state: str, answer: dict[str, Any] | None = None) -> None:
        """Have colo be in that state once it gets that order."""
        self._put(f"on-{order}", {"state": state})
        if answer is not None:
            self._put(f"answer-{order}", answer)

    def follows_its_permit(self) -> None:
        """Have colo run the VM while this host is promoted."""
        (self.state / "permit").write_text(str(self.permits / "web1.promoted"))

    def orders(self) -> list[dict[str, Any]]:
        path = self.state / "orders"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def runs(self, state: str, **more: Any) -> Host:
        self.says(state, **more)
        assert self.do("start") == Ocf.SUCCESS
        return self

    def do(self, action: str, **meta: str) -> int:
        more = {f"OCF_RESKEY_CRM_meta_{name}": value for name, value in meta.items()}
        return main([action], {**self.environment, **more}, self.cluster, self.permits)

    def demotes_to(self, other: str) -> subprocess.Popen[bytes]:
        """The agent that demotes this host, where another one is to be promoted."""
        more = {"OCF_RESKEY_CRM_meta_notify_promote_uname": other}
        command = [sys.executable, "-c", _DEMOTE, str(self.permits)]
        return subprocess.Popen(command, env={**self.environment, **more})

    def left_qemu(self) -> subprocess.Popen[bytes]:
        """A process that looks like this VM's QEMU."""
        qemu = subprocess.Popen(
            [sys.executable, "-c", "input()", "-qmp", f"unix:{self.state}/colo-qmp.sock"],
            stdin=subprocess.PIPE,
        )
        _wait(lambda: self.here.qemus() == [qemu.pid])  # its words are there a moment later
        return qemu

    def _put(self, name: str, content: dict[str, Any]) -> None:
        half = self.state / f".{name}"
        half.write_text(json.dumps(content))
        half.rename(self.state / name)

    def close(self) -> None:
        pid = self.here.colo()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)


def _wait(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that everybody may read."""
    with tempfile.TemporaryDirectory(prefix="colo-agent-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


# -- start, stop --------------------------------------------------------------------------


def test_start_has_colo_node_run_for_this_host_and_says_who_may_be_promoted(host: Host) -> None:
    host.says("KEEPING")
    assert host.do("start") == Ocf.SUCCESS
    argv = json.loads((host.state / "argv").read_text())
    assert argv == ["node", str(host.file), "--host", "a", "--state-dir", str(host.state)]
    assert host.cluster.told == [50]


def test_start_takes_the_name_of_the_host_from_pacemaker(host: Host) -> None:
    host.says("LISTENING")
    assert host.do("start", on_node="b") == Ocf.SUCCESS
    assert json.loads((host.state / "argv").read_text())[3] == "b"


def test_what_was_promoted_before_a_start_is_not_any_more(host: Host) -> None:
    host.promoted = True
    host.runs("LISTENING")
    assert not host.promoted


def test_a_colo_that_runs_is_not_started_again(host: Host) -> None:
    pid = host.runs("KEEPING").here.colo()
    assert host.do("start") == Ocf.SUCCESS
    assert host.here.colo() == pid


def test_start_fails_with_what_colo_said_last(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    (host.state / "refuses").touch()
    assert host.do("start") == Ocf.GENERIC
    why = "colo node ended, exit 2: the VM file is wrong: mend it"
    assert capsys.readouterr().err == f"ocf-exit-reason:{why}\n"


def test_start_waits_until_the_host_knows_its_part(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.says("LOOKING")
    assert host.do("start", timeout="1000") == Ocf.GENERIC
    assert "not know yet what this host is to do; colo is LOOKING" in capsys.readouterr().err
    host.says("WAITING", turn="START")
    assert host.do("start") == Ocf.SUCCESS
    assert host.cluster.told == [10]


def test_stop_leaves_no_colo_no_qemu_no_permit_and_no_score(host: Host) -> None:
    host.runs("KEEPING")
    host.promoted = True
    with host.left_qemu() as qemu:
        assert host.do("stop") == Ocf.SUCCESS
        assert qemu.wait(10) == -signal.SIGKILL
    assert (host.here.colo(), host.promoted, host.cluster.told[-1]) == (None, False, None)
    assert host.do("monitor") == Ocf.NOT_RUNNING


def test_stop_of_what_runs_not_is_done(host: Host) -> None:
    assert host.do("stop") == Ocf.SUCCESS


def test_stop_has_a_guest_power_down_that_nobody_takes_over(host: Host) -> None:
    host.runs("UNPROTECTED").on("stop", "gone")
    assert host.do("stop") == Ocf.SUCCESS
    assert [order["order"] for order in host.orders()] == ["stop"]
    assert 10 < host.orders()[0]["grace_s"] < 30


def test_stop_does_not_wait_for_the_other_host_to_take_what_was_handed_over(host: Host) -> None:
    (host.state / "stays").touch()
    host.runs("PROTECTED").on("switchover", "GOING_OVER")
    assert host.do("stop", notify_promote_uname="b") == Ocf.SUCCESS
    assert [order["order"] for order in host.orders()] == ["switchover"]
    assert host.here.colo() is None
    assert not (host.state / "asked-to-end").exists()


def test_stop_ends_a_colo_that_hangs(host: Host) -> None:
    pid = host.runs("KEEPING").here.colo()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert host.do("stop", timeout="2000") == Ocf.SUCCESS
    assert host.here.colo() is None


def test_the_vm_is_ended_also_where_its_file_is_gone(host: Host) -> None:
    host.runs("UNPROTECTED").on("stop", "gone")
    host.file.unlink()
    assert host.do("monitor") == Ocf.RUNNING_PROMOTED
    assert host.do("stop") == Ocf.SUCCESS
    assert host.here.colo() is None


def test_a_host_without_the_file_runs_nothing(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.file.unlink()
    assert (host.do("monitor"), host.do("stop")) == (Ocf.NOT_RUNNING, Ocf.SUCCESS)
    assert host.do("start") == Ocf.INSTALLED
    assert f"config={host.file}: no VM file" in capsys.readouterr().err


# -- monitor ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "turn", "promoted", "code", "told"),
    [
        *((state, "", promoted, 8, 100) for state in RUNNING for promoted in (True, False)),
        *((state, "", True, 8, 100) for state in SILENT),
        *((state, "", False, 0, 20) for state in SILENT),
        *((state, "", False, 0, 50) for state in WHOLE),
        *((state, "", True, 9, 50) for state in WHOLE),
        *((state, "", False, 0, None) for state in NOTHING),
        *((state, "", True, 9, None) for state in NOTHING),
        ("WAITING", "START", False, 0, 10),
        ("WAITING", "ASK", False, 0, 10),
        ("WAITING", "", False, 0, None),
        ("WAITING", "ASK", True, 9, 10),
        ("DEAD", "", True, 9, None),
    ],
)
def test_monitor_says_how_the_vm_stands(
    host: Host, state: str, turn: str, promoted: bool, code: int, told: int | None
) -> None:
    host.runs(state, turn=turn)
    host.promoted = promoted
    assert host.do("monitor") == code
    assert host.cluster.told[-1] == told


def test_monitor_of_nothing(host: Host) -> None:
    assert host.do("monitor") == Ocf.NOT_RUNNING
    host.promoted = True
    assert host.do("monitor") == Ocf.FAILED_PROMOTED


def test_a_qemu_that_colo_has_left_is_not_nothing(host: Host) -> None:
    with host.left_qemu() as qemu:
        assert host.do("monitor") == Ocf.GENERIC
        host.promoted = True
        assert host.do("monitor") == Ocf.FAILED_PROMOTED
        qemu.kill()


def test_a_colo_that_hangs_is_not_running_well(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = host.runs("PROTECTED").here.colo()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 11)
    assert host.do("monitor") == Ocf.GENERIC
    host.promoted = True
    assert host.do("monitor") == Ocf.FAILED_PROMOTED


def test_a_score_that_cannot_be_told_is_no_failure_of_the_vm(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.runs("PROTECTED").cluster.answers = False
    assert host.do("monitor") == Ocf.RUNNING_PROMOTED
    assert "does not take the promotion score" in capsys.readouterr().err


def test_nobody_is_wanted_where_no_colo_runs() -> None:
    assert (score(None, promoted=True), score(Seen(1, "KEEPING"), promoted=False)) == (None, 50)


# -- promote, demote ----------------------------------------------------------------------


def test_promote_lets_colo_have_the_grant_and_waits_until_the_vm_runs(host: Host) -> None:
    host.runs("ORPHANED").follows_its_permit()
    assert host.do("promote") == Ocf.SUCCESS
    assert host.promoted and host.cluster.told[-1] == 100


@pytest.mark.parametrize("state", NOTHING)
def test_a_host_without_a_whole_checkpoint_is_not_promoted(
    host: Host, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    host.runs(state)
    assert host.do("promote") == Ocf.GENERIC
    why = "this host has no whole checkpoint of web1, and did not run it last: it may not be "
    assert capsys.readouterr().err == f"ocf-exit-reason:{why}promoted\n"
    assert not host.promoted and host.cluster.told[-1] is None


def test_promote_that_comes_to_nothing_takes_the_permit_away(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.runs("ORPHANED", error="host b is lost, and Pacemaker has not fenced it yet")
    assert host.do("promote", timeout="1000") == Ocf.GENERIC
    assert "the VM does not run here yet; colo is ORPHANED host b is lost" in (
        capsys.readouterr().err
    )
    assert not host.promoted


def test_promote_needs_a_colo(host: Host) -> None:
    assert host.do("promote") == Ocf.GENERIC
    assert not host.promoted


def test_demote_hands_the_vm_over_where_another_host_is_to_be_promoted(host: Host) -> None:
    host.runs("PROTECTED").on("switchover", "GOING_OVER")
    host.promoted = True
    assert host.do("demote", notify_promote_uname="b") == Ocf.SUCCESS
    assert [order["order"] for order in host.orders()] == ["switchover"]
    assert not host.promoted and host.cluster.told[-1] == 20


@pytest.mark.parametrize("state", ["UNPROTECTED", "COPYING"])
def test_demote_waits_for_a_first_copy_before_it_hands_over(host: Host, state: str) -> None:
    host.runs(state).on("switchover", "GOING_OVER")
    host.promoted = True
    agent = host.demotes_to("b")
    _wait(lambda: not host.promoted)
    host.will_say("PROTECTED")
    assert agent.wait(30) == Ocf.SUCCESS
    assert [order["order"] for order in host.orders()] == ["switchover"]


@pytest.mark.parametrize("promoted", [" ", "a"])
def test_demote_powers_the_guest_down_where_nobody_is_to_be_promoted(
    host: Host, promoted: str
) -> None:
    host.runs("PROTECTED").on("stop", "gone")
    host.on("switchover", "PROTECTED", {"ok": False, "text": "the VM stays"})
    host.promoted = True
    before = host.here.colo()
    host.next_says("WAITING", turn="START")
    assert host.do("demote", notify_promote_uname=promoted) == Ocf.SUCCESS
    assert [order["order"] for order in host.orders()] == ["stop"]
    assert host.here.colo() not in (None, before), "a colo waits here anew"
    assert host.do("monitor") == Ocf.SUCCESS


def test_a_vm_that_is_not_handed_over_is_powered_down(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.runs("PROTECTED").on("switchover", "PROTECTED", {"ok": False, "text": "the VM stays"})
    host.on("stop", "gone", {"ok": True, "text": "the guest has shut down"})
    host.next_says("LISTENING")
    assert host.do("demote", notify_promote_uname="b") == Ocf.SUCCESS
    assert [order["order"] for order in host.orders()] == ["switchover", "stop"]
    assert "the VM is not handed over: the VM stays" in capsys.readouterr().err


def test_a_start_that_is_under_way_is_waited_for_and_undone(host: Host) -> None:
    host.runs("RESUMING").on("switchover", "GOING_OVER")
    host.promoted = True
    agent = host.demotes_to("b")
    _wait(lambda: not host.promoted)
    host.will_say("PROTECTED")
    assert agent.wait(30) == Ocf.SUCCESS
    assert [order["order"] for order in host.orders()] == ["switchover"]


def test_demote_ends_what_a_colo_has_left_that_died(host: Host) -> None:
    with host.left_qemu() as qemu:
        assert host.do("demote") == Ocf.SUCCESS
        assert qemu.wait(10) == -signal.SIGKILL


def test_demote_of_what_does_not_run_here_is_done_at_once(host: Host) -> None:
    host.runs("KEEPING")
    assert host.do("demote", notify_promote_uname="b") == Ocf.SUCCESS
    assert host.orders() == []


def test_the_states_and_turns_that_it_names_are_a_hosts() -> None:
    """It takes them from a status file, as words: nobody else would notice another name."""
    states = {each.name for each in State}
    for named in (agent._RUNS, agent._COMES, agent._SILENT, agent._WHOLE, agent._NOTHING):
        assert set(named) <= states
    assert set(agent._TURNS) <= {each.name for each in Turn}


# -- validate-all, meta-data, notify ------------------------------------------------------


def test_a_good_configuration_is_good(host: Host) -> None:
    assert host.do("validate-all") == Ocf.SUCCESS


@pytest.mark.parametrize(
    ("change", "meta", "why"),
    [
        (('"pacemaker"', '"file:/g"'), {}, "'file:/g': has to be \"pacemaker\" here"),
        (("[hosts]", "[hosted]"), {}, "hosted"),
        (("b = ", "c = "), {"on_node": "b"}, "this host is b, and [hosts] has a and c"),
        (("", ""), {"notify": "false"}, "needs the option notify=true"),
    ],
)
def test_a_bad_configuration_is_refused_before_anything_is_started(
    host: Host,
    change: tuple[str, str],
    meta: dict[str, str],
    why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host.file.write_text(VM_FILE.replace(*change))
    host.says("KEEPING")
    for action in ("validate-all", "start"):
        assert host.do(action, **meta) == Ocf.CONFIGURED
        assert why in capsys.readouterr().err
    assert host.here.colo() is None


def test_a_parameter_that_is_missing_is_named(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    del host.environment["OCF_RESKEY_state_dir"]
    assert host.do("monitor") == Ocf.CONFIGURED
    assert capsys.readouterr().err == "ocf-exit-reason:the parameter state_dir is missing\n"


def test_notify_needs_nothing_and_another_action_is_unknown() -> None:
    assert main(["notify"], {}) == Ocf.SUCCESS
    assert main(["reload"], {}) == main([], {}) == Ocf.UNIMPLEMENTED


@pytest.mark.skipif(
    not DTD.exists() or shutil.which("xmllint") is None,
    reason="no resource-agents, or no libxml2-utils",
)
def test_its_metadata_is_that_of_a_resource_agent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["meta-data"], {}) == Ocf.SUCCESS
    (tmp_path / DTD.name).symlink_to(DTD)
    (tmp_path / "vm.xml").write_text(capsys.readouterr().out)
    rules = DTD.with_name("metadata.rng")
    for command in (["--valid"], ["--relaxng", str(rules)]):
        done = subprocess.run(
            ["xmllint", "--noout", *command, "vm.xml"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_every_action_is_in_the_metadata(host: Host) -> None:
    for action in ("start", "stop", "monitor", "promote", "demote", "notify", "validate-all"):
        assert f'<action name="{action}"' in metadata()


def test_the_command_prints_the_agent() -> None:
    result = CliRunner().invoke(colo_command, ["node", "--print-agent"])
    assert (result.exit_code, result.output) == (0, agent_file(sys.executable))
    assert result.output.startswith(f"#!{sys.executable}\n")


@pytest.mark.skipif(
    shutil.which("ocf-tester", path="/usr/sbin:/usr/bin") is None or os.geteuid() != 0,
    reason="no resource-agents, or not root",
)
def test_ocf_tester_is_content(host: Host, readable: Path) -> None:
    agent = readable / "vm"
    agent.write_text(agent_file(sys.executable))
    agent.chmod(0o755)
    name = readable.name
    host.file.write_text(VM_FILE.replace("web1", name))
    (host.state / "permit").write_text(f"/run/colo/{name}.promoted")
    host.next_says("WAITING", turn="START")
    host.on("stop", "gone")
    # Whether everybody may read where colo is installed is not the agent's affair.
    (readable / "su").write_text("#!/bin/sh\n")
    (readable / "su").chmod(0o755)
    options = {
        "config": host.file,
        "state_dir": host.state,
        "colo": f"{sys.executable} {FAKE}",
        "CRM_meta_on_node": "a",
    }
    given = [word for each in options.items() for word in ("-o", "{}={}".format(*each))]
    done = subprocess.run(
        ["ocf-tester", "-n", "vm", *given, str(agent)],
        env={**os.environ, "PATH": f"{readable}:{os.environ['PATH']}:/usr/sbin"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.endswith(f"{agent} passed all tests\n"), done.stdout + done.stderr
    assert not Permit(name).is_there
    with contextlib.suppress(OSError):  # another test, or a VM, has its permit there
        PERMITS.rmdir()
