"""What the VM file names is made, or refused in a line that says what to do."""

from __future__ import annotations

import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.command import CommandRegister
from colo.arbiters.etcd import EtcdRegister
from colo.arbiters.file import FileRegister
from colo.arbiters.manual import ManualArbiter, NoArbiter
from colo.arbiters.named import check_failover, make_arbiter, make_fence
from colo.arbiters.pacemaker import CibRegister, PacemakerArbiter
from colo.config import VmConfig
from colo.config.vm import EtcdAccess, Failover
from colo.errors import UsageError


def named(arbiter: str, etcd: EtcdAccess | None = None) -> VmConfig:
    return VmConfig("web1", failover=Failover(arbiter=arbiter, etcd=etcd))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("file:/x/grant", FileRegister),
        ("exec:/bin/x y", CommandRegister),
        ("etcd:http://a:1,http://b:2", EtcdRegister),
    ],
)
def test_an_arbiter_over_a_register(text: str, kind: type) -> None:
    arbiter = make_arbiter(named(text))
    assert type(arbiter) is Arbiter and type(arbiter._register) is kind


@pytest.mark.parametrize(("text", "kind"), [("manual", ManualArbiter), ("none", NoArbiter)])
def test_an_arbiter_of_one_host(text: str, kind: type) -> None:
    assert type(make_arbiter(named(text))) is kind


def test_pacemaker_is_for_two_hosts_that_have_names() -> None:
    hosts = {"a": "tcp:a:1", "b": "tcp:b:1"}
    config = VmConfig("web1", failover=Failover(arbiter="pacemaker"), hosts=hosts)
    arbiter = make_arbiter(config)
    assert type(arbiter) is PacemakerArbiter and type(arbiter._register) is CibRegister
    with pytest.raises(UsageError, match=r"\[hosts\] has to have both hosts"):
        check_failover(named("pacemaker"))


@pytest.mark.parametrize("text", ["", "file:", "etcd", "etcd:", "manual:x", "x"])
def test_another_name_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"etcd:URL.*, file:PATH, exec:COMMAND, pacemaker, manual or none"
    ):
        check_failover(named(text))


def test_the_key_in_etcd_has_the_vms_name_behind_the_prefix() -> None:
    arbiter = make_arbiter(named("etcd:http://a:1", EtcdAccess(prefix="site/")))
    assert arbiter._register.name == "etcd's key site/web1"


def test_access_to_an_etcd_that_nobody_names_is_a_mistake() -> None:
    with pytest.raises(UsageError, match=r"\[failover.etcd\] and arbiter = 'file:/x'"):
        check_failover(named("file:/x", EtcdAccess()))


def test_a_fence_is_a_command_or_there_is_none() -> None:
    assert make_fence(named("none")) is None
    assert make_fence(VmConfig("a", failover=Failover(fence="exec:/bin/x"))) is not None
    with pytest.raises(UsageError, match=r"\[failover\] fence = '/bin/x': exec:COMMAND"):
        check_failover(VmConfig("a", failover=Failover(fence="/bin/x")))
