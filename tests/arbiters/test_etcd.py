"""A register in etcd: members that are killed, paused, cut off and restarted, and old backups."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from colo.arbiters.arbiter import Arbiter
from colo.arbiters.etcd import EtcdRegister
from colo.arbiters.named import make_arbiter
from colo.arbiters.register import Seen
from colo.config import VmConfig
from colo.config.vm import EtcdAccess, Failover
from colo.errors import LocalError, NoAnswer, UsageError
from colo.membership.grant import Grant
from tests.arbiters.etcd import Cluster, Member, running
from tests.certificates import Authority

needs_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason="no etcd-server")
keys = (f"test/{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("etcd"), 3) as cluster:
        yield cluster


@pytest.fixture
def host() -> Iterator[Callable[..., EtcdRegister]]:
    """Makes registers, as each host has its own, and closes them."""
    made: list[EtcdRegister] = []

    def make(urls: tuple[str, ...], key: str, *access: Any) -> EtcdRegister:
        made.append(EtcdRegister(urls, key, *access))
        return made[-1]

    yield make
    for each in made:
        each.close()


def until_answered(ask: Callable[[], Any]) -> Any:
    """What callers do: ask again, as while a leader is elected nobody answers."""
    until = time.monotonic() + 20
    while True:
        try:
            return ask()
        except LocalError:
            assert time.monotonic() < until
            time.sleep(0.05)


@contextlib.contextmanager
def killed(cluster: Cluster, member: Member) -> Iterator[None]:
    member.kill()
    try:
        yield
    finally:
        cluster.restart(member)
        cluster.wait_up()


@contextlib.contextmanager
def paused(cluster: Cluster, member: Member) -> Iterator[None]:
    member.pause()
    try:
        yield
    finally:
        member.go_on()
        cluster.wait_up()


@contextlib.contextmanager
def cut_off(cluster: Cluster, member: Member) -> Iterator[None]:
    member.forwarder.cut.set()
    try:
        yield
    finally:
        member.forwarder.cut.clear()


@needs_etcd
@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("trouble", [killed, paused, cut_off])
def test_any_member_may_be_away(
    three: Cluster, host: Callable[..., EtcdRegister], trouble: Any, index: int
) -> None:
    key = next(keys)
    a, b = Arbiter(host(three.urls, key)), Arbiter(host(three.urls, key))
    assert until_answered(lambda: a.claim("a", force=False)) == Grant(1, "a")
    with trouble(three, three.members[index]):
        assert until_answered(lambda: b.take(1, "b")) == Grant(2, "b")
        assert until_answered(lambda: a.take(1, "a")) is None
    assert until_answered(a.current).grant == Grant(2, "b")


@needs_etcd
@pytest.mark.parametrize("trouble", [killed, paused])
def test_without_a_majority_nobody_is_granted_and_with_one_again_one(
    three: Cluster, host: Callable[..., EtcdRegister], trouble: Any
) -> None:
    key = next(keys)
    a, b = Arbiter(host(three.urls, key)), Arbiter(host(three.urls, key))
    until_answered(lambda: a.claim("a", force=False))
    with trouble(three, three.members[0]):
        two = three.members[1]
        two.pause()
        try:
            for arbiter, name in ((a, "a"), (b, "b")):
                with pytest.raises(LocalError, match="no answer"):
                    arbiter.take(1, name)
        finally:
            two.go_on()
    answers = [until_answered(lambda: b.take(1, "b")), until_answered(lambda: a.take(1, "a"))]
    now = a.current().grant
    assert now.number == 2 and sorted(answers, key=bool) == [None, now]


@needs_etcd
def test_an_answer_that_does_not_come_is_found_by_reading(
    three: Cluster, host: Callable[..., EtcdRegister]
) -> None:
    """The member is cut off when it has the transaction, and another one is asked what stands."""
    key = next(keys)
    a = Arbiter(host(three.urls, key))
    until_answered(lambda: a.claim("a", force=False))
    first = three.members[0]
    register = host((first.url, *three.urls[1:]), key)
    post = register._http.post
    cut: list[str] = []

    def cutting(url: str, **rest: Any) -> Any:
        if url.startswith(first.url) and url.endswith("txn") and not cut:
            cut.append(url)
            post(url.replace(first.url, first.own_url), **rest)  # it is done,
            raise httpx.ReadTimeout("timed out")  # and nobody hears of it
        return post(url, **rest)

    register._http.post = cutting  # type: ignore[assignment,method-assign]
    assert until_answered(lambda: Arbiter(register).take(1, "b")) == Grant(2, "b")
    assert cut and a.current().grant == Grant(2, "b")


@needs_etcd
def test_nobody_is_granted_by_an_etcd_restored_from_an_old_backup(
    tmp_path: Path, host: Callable[..., EtcdRegister]
) -> None:
    """Whoever saw more notices it, and so does whoever never saw it before."""
    with running(tmp_path, 1) as cluster:
        a, b = Arbiter(host(cluster.urls, "k")), Arbiter(host(cluster.urls, "k"))
        for number in range(20):  # a cluster that is in use
            cluster.control("put", "another", str(number))
        assert a.claim("a", force=False) == Grant(1, "a")
        cluster.control("snapshot", "save", str(tmp_path / "backup"))
        assert b.take(1, "b") == Grant(2, "b")

        cluster.restore(tmp_path / "backup")
        for arbiter in (a, b):
            with pytest.raises(LocalError, match=r"restored from an old copy.* nobody is granted"):
                arbiter.take(1, "a")

        cluster.restore(tmp_path / "backup", token="another")
        for register in (host(cluster.urls, "k"), host(cluster.urls, "k")):
            with pytest.raises(LocalError, match="holds what was written in cluster"):
                Arbiter(register).take(1, "a")

        cluster.control("del", "k")
        assert Arbiter(host(cluster.urls, "k")).claim("a", force=False) == Grant(1, "a")


@needs_etcd
def test_tls_knows_the_members_and_the_hosts_and_a_user_has_a_password(
    tmp_path: Path, host: Callable[..., EtcdRegister]
) -> None:
    authority = Authority.make(tmp_path / "ca")
    server, ours = authority.issue("m0", "localhost"), authority.issue("host", subject="/O=colo")
    flags = (
        "--cert-file", str(server.certificate), "--key-file", str(server.key),
        "--trusted-ca-file", str(server.ca), "--client-cert-auth",
    )  # fmt: skip
    tls = ssl.create_default_context(cafile=ours.ca)
    tls.load_cert_chain(ours.certificate, ours.key)
    with contextlib.ExitStack() as closing:
        cluster = closing.enter_context(running(tmp_path, 1, flags))
        access = ("--cacert", str(ours.ca), "--cert", str(ours.certificate), "--key", str(ours.key))
        where = ("--endpoints", cluster.members[0].own_url.replace("127.0.0.1", "localhost"))
        until_answered(lambda: host(cluster.urls, "colo/x", tls).read())
        for order in (
            ("user", "add", "root:top"), ("user", "grant-role", "root", "root"),
            ("user", "add", "colo:secret"), ("role", "add", "colo"),
            ("role", "grant-permission", "colo", "--prefix=true", "readwrite", "colo/"),
            ("user", "grant-role", "colo", "colo"), ("auth", "enable"),
        ):  # fmt: skip
            cluster.control(*access, *where, *order)

        given = EtcdAccess("colo/", ours.ca, ours.certificate, ours.key, "colo", "secret")
        text = f"etcd:{cluster.urls[0]}"
        arbiter = make_arbiter(VmConfig("x", failover=Failover(arbiter=text, etcd=given)))
        register = arbiter._register
        assert isinstance(register, EtcdRegister)
        closing.callback(register.close)
        assert Arbiter(register).claim("a", force=False) == Grant(1, "a")
        register._tokens = dict.fromkeys(register._tokens, "as after a restart of the member")
        assert Arbiter(register).take(1, "a") == Grant(2, "a"), "it logs in again"
        cluster.control(*access, *where, "--user", "root:top", "user", "add", "more:x")
        assert Arbiter(register).take(2, "a") == Grant(3, "a"), "and where the users have changed"

        for wrong, told in (
            (("colo/x", tls, "colo", "guess"), "authentication failed"),
            (("colo/x", tls), "user name is empty"),
            (("other", tls, "colo", "secret"), "permission denied"),
            (("colo/x", ssl.create_default_context(cafile=ours.ca)), "no answer"),
            (("colo/x", None), "CERTIFICATE_VERIFY_FAILED"),
        ):
            with pytest.raises(LocalError, match=told):
                host(cluster.urls, *wrong).read()


class Script:
    """Stands in for a member, and gives the answers that it is told to."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.log: Any = {"raftIndex": "7", "raftAppliedIndex": "6"}
        self.asked: list[str] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                script.asked.append(self.path)
                if self.path.endswith("status"):
                    status, content = 200, script.log
                else:
                    status, content = script.answers.pop(0)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    yield script
    script.close()


def header(revision: int = 5, cluster: int = 9) -> dict[str, str]:
    return {"cluster_id": str(cluster), "revision": str(revision)}


def value(cluster: int = 9, index: int = 6) -> dict[str, str]:
    stored = {"text": "one", "cluster": str(cluster), "index": index}
    content = json.dumps(stored)
    return {"mod_revision": "4", "value": base64.b64encode(content.encode()).decode()}


@pytest.mark.parametrize(
    ("then", "told"),
    [
        ({"header": header(revision=4)}, "its revision went back from 5 to 4"),
        ({"header": header(cluster=8)}, "cluster 8 holds what was written in cluster 9"),
        ({"header": header(), "kvs": [value(cluster=8)]}, "cluster 9 holds .* in cluster 8"),
        ({"header": header(), "kvs": [value(index=8)]}, "its raft index went back from 8 to 7"),
    ],
)
def test_a_cluster_that_goes_back_is_noticed(
    script: Script, host: Callable[..., EtcdRegister], then: Any, told: str
) -> None:
    register = host((script.url,), "k")
    script.answers = [(200, {"header": header(), "kvs": [value()]}), (200, then), (200, then)]
    assert register.read() == Seen("one", "4")
    for _ in range(2):  # it is not believed the second time either
        with pytest.raises(LocalError, match=told):
            register.read()


def test_a_log_that_is_shorter_than_what_was_decided_is_noticed(
    script: Script, host: Callable[..., EtcdRegister]
) -> None:
    register = host((script.url,), "k")
    script.answers = [(200, {"header": header(), "kvs": [value()]})] * 3
    register.read()
    script.log = {"raftIndex": "5", "raftAppliedIndex": "5"}
    for _ in range(2):
        with pytest.raises(LocalError, match="its raft index went back from 6 to 5"):
            register.read()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((200, b"<html>"), "HTTP 200 is not etcd's v3: <html>"),
        ((404, b"Not Found"), "HTTP 404 is not etcd's v3: Not Found"),
        ((200, {}), "what answers there is not etcd"),
        ((200, {"header": header(), "kvs": [{"value": "aGk="}]}), "does not hold a grant"),
        ((200, {"header": header(), "kvs": [{**value(), "value": "aGk="}]}), "does not hold a"),
        ((400, {"error": "etcdserver: no such thing", "code": 3}), "no such thing"),
        ((503, {"error": "etcdserver: no leader", "code": 14}), "no answer .*no leader"),
    ],
)
def test_what_is_no_answer_is_told(
    script: Script, host: Callable[..., EtcdRegister], answer: Any, told: str
) -> None:
    script.answers = [answer]
    with pytest.raises(LocalError, match=told) as caught:
        host((script.url,), "k").read()
    assert not isinstance(caught.value, NoAnswer), "to read changes nothing"


def test_a_transaction_without_an_answer_may_be_done_and_one_that_never_went_out_is_not(
    script: Script, host: Callable[..., EtcdRegister]
) -> None:
    register = host((script.url,), "k")
    script.answers = [(503, {"error": "etcdserver: request timed out", "code": 14})]
    with pytest.raises(NoAnswer) as caught:
        register.compare_and_set(Seen(None, "0"), "one")
    assert caught.value.may_be_done
    nobody = host(("http://127.0.0.1:1",), "k")
    with pytest.raises(LocalError, match="Connection refused") as refused:
        nobody.compare_and_set(Seen(None, "0"), "one")
    assert not isinstance(refused.value, NoAnswer)


def test_the_member_that_answered_last_is_asked_first(
    script: Script, host: Callable[..., EtcdRegister]
) -> None:
    register = host(("http://127.0.0.1:1", script.url), "k")
    script.answers = [(200, {"header": header()})] * 2
    register.read()
    assert register._urls[0] == script.url
    register.read()


@pytest.mark.parametrize("url", ["", "e1", "e1:2379", "ftp://e1", "http://", "http://[x"])
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(UsageError, match=r"etcd's address"):
        EtcdRegister((url,), "k")
