"""TLS behind plain sockets: every byte, both ways, and what is told where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colo.config import TlsFiles, VmConfig
from colo.errors import ChannelLost, UsageError
from colo.transport import tls
from colo.transport.tls import Tls, make_tls
from tests.certificates import Authority

LIMIT_S = 60.0
BULK = 64 << 20
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets

Ends = tuple[socket.socket, socket.socket]
Wrap = Callable[[socket.socket], Coroutine[Any, Any, socket.socket]]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    for thread in [each for each in threading.enumerate() if each.name == "colo-tls"]:
        thread.join(LIMIT_S)
        assert not thread.is_alive()


@pytest.fixture
def files(authority: Authority) -> TlsFiles:
    return authority.files("a")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Who has a certificate of a CA of their own."""
    return Authority.make(tmp_path_factory.mktemp("other") / "ca").issue("c")


def tcp_pair() -> Ends:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def joined(files: TlsFiles, under: Callable[[], Ends] = tcp_pair) -> Ends:
    """A connection over TLS, as two plain sockets: who connected, who accepted."""

    async def join() -> Ends:
        one, other = under()
        first, second = await asyncio.gather(Tls(files).connect(one), Tls(files).accept(other))
        return first, second

    ends = asyncio.run(join())
    for end in ends:
        assert end.gettimeout() == 0
        end.settimeout(LIMIT_S)
    return ends


def receive(sock: socket.socket, most: int = sys.maxsize) -> tuple[int, str]:
    """Receive to the end, or so much; return how much it was, and its digest."""
    digest, count = hashlib.sha256(), 0
    while count < most and (data := sock.recv(min(most - count, 1 << 20))):
        digest.update(data)
        count += len(data)
    return count, digest.hexdigest()


# -- bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("under", [tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def test_bulk_goes_both_ways_at_once(files: TlsFiles, under: Callable[[], Ends]) -> None:
    one, other = joined(files, under)
    first, second = os.urandom(1 << 20) * (BULK >> 20), os.urandom(1 << 20) * (BULK >> 20)
    with one, other, ThreadPoolExecutor(4) as pool:
        there, back = pool.submit(receive, other, BULK), pool.submit(receive, one, BULK)
        pool.submit(one.sendall, first)
        pool.submit(other.sendall, second)
        assert there.result(LIMIT_S) == (BULK, hashlib.sha256(first).hexdigest())
        assert back.result(LIMIT_S) == (BULK, hashlib.sha256(second).hexdigest())


def test_small_messages_go_to_and_fro(files: TlsFiles) -> None:
    one, other = joined(files)
    with one, other:
        for number in range(1000):
            for sender, receiver in ((one, other), (other, one)):
                sender.sendall(b"%d" % number)
                assert receiver.recv(100) == b"%d" % number


def test_it_can_be_looked_at_first(files: TlsFiles) -> None:
    one, other = joined(files)
    with one, other:
        one.sendall(b"QEVM and more")
        assert other.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL) == b"QEVM"
        assert other.recv(4, socket.MSG_WAITALL) == b"QEVM"


@pytest.mark.parametrize("side", [0, 1], ids=["who connected", "who accepted"])
def test_what_was_sent_before_the_end_arrives(files: TlsFiles, side: int) -> None:
    ends = joined(files)
    content = os.urandom(8 << 20)
    with ends[0], ends[1], ThreadPoolExecutor(1) as pool:
        received = pool.submit(receive, ends[1 - side])
        ends[side].sendall(content)
        ends[side].close()
        assert received.result(LIMIT_S) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_cut_connection_ends_behind_what_came(files: TlsFiles) -> None:
    """The other side's host resets it, in the middle of what this side sends."""
    one, other = tcp_pair()

    async def join() -> tuple[socket.socket, ssl.SSLSocket]:
        context = tls._context(files, server_side=True)
        loop = asyncio.get_running_loop()
        accepting = loop.run_in_executor(None, accept, context)
        return await Tls(files).connect(one), await accepting

    def accept(context: ssl.SSLContext) -> ssl.SSLSocket:
        accepted = context.wrap_socket(other, server_side=True)
        accepted.sendall(tls._WELCOME + b"all of it")
        return accepted

    inner, accepted = asyncio.run(join())
    inner.settimeout(LIMIT_S)
    with inner:
        assert inner.recv(9, socket.MSG_WAITALL) == b"all of it"
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        accepted.close()
        with contextlib.suppress(ConnectionError):
            assert inner.recv(1) == b""
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            while True:
                inner.sendall(bytes(1 << 16))


def test_who_does_not_read_holds_the_sender_up(files: TlsFiles) -> None:
    one, other = joined(files, socket.socketpair)
    with one, other:
        sent = fill(one)
        assert receive(other, sent)[0] == sent
        assert select.select([], [one], [], LIMIT_S)[1]


def test_what_still_waits_at_the_end_arrives(files: TlsFiles) -> None:
    one, other = joined(files, socket.socketpair)
    with other:
        sent = fill(one)
        one.close()
        assert receive(other)[0] == sent


def test_a_side_that_has_ended_waits_only_so_long_for_who_does_not_read(
    files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_LINGER_S", 0.05)
    one, other = joined(files, socket.socketpair)
    with other:
        sent = fill(one)
        one.close()
        pumps = [each for each in threading.enumerate() if each.name == "colo-tls"]
        while sum(pump.is_alive() for pump in pumps) > 1:
            pumps[0].join(0.01)
        assert receive(other)[0] < sent


def fill(sock: socket.socket) -> int:
    """Send until nothing more is taken, as nobody reads; return how much that was.

    Not until poll says so: to it a unix socket of which a quarter is taken is full already.
    """
    sock.setblocking(False)
    sent, refused = 0, 0
    while refused < 3:  # pumps that got no turn for a while may still have room
        try:
            sent += sock.send(bytes(1 << 16))
            refused = 0
        except BlockingIOError:
            refused += 1
            select.select([], [], [], 0.3)
        assert sent < 32 << 20, "nothing holds it up"
    return sent


LAST_WORDS = """
import asyncio, socket, sys
from pathlib import Path
from colo.config import TlsFiles
from colo.transport.tls import Tls, let_go

async def say() -> None:
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    inner = await Tls(TlsFiles(*map(Path, sys.argv[2:]))).connect(sock)
    inner.setblocking(True)
    inner.sendall(b"bye" * (1 << 20))
    inner.close()

asyncio.run(say())
let_go()
"""


def test_the_last_words_of_a_process_arrive(files: TlsFiles) -> None:
    paths = [str(path) for path in (files.ca, files.certificate, files.key)]

    async def hear() -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as server:
            command = [sys.executable, "-c", LAST_WORDS, str(server.getsockname()[1]), *paths]
            with subprocess.Popen(command) as process:
                sock = await asyncio.to_thread(server.accept)
                inner = await Tls(files).accept(sock[0])
                inner.settimeout(LIMIT_S)
                assert (await asyncio.to_thread(receive, inner))[0] == 3 << 20
                assert await asyncio.to_thread(process.wait, LIMIT_S) == 0
                return inner

    asyncio.run(hear()).close()


# -- handshakes ---------------------------------------------------------------------------


def refused(connects: Tls | None, accepts: Tls | None) -> tuple[str, str]:
    """What each side tells; one without TLS says something plain, hears the end and tells that."""

    async def attempt(wrap: Wrap | None, sock: socket.socket) -> str:
        if wrap is None:
            return await speak_plainly(sock)
        try:
            (await wrap(sock)).close()
        except ChannelLost as error:
            assert sock.fileno() < 0
            return str(error)
        return "nothing"

    async def both() -> tuple[str, str]:
        one, other = tcp_pair()
        first, second = await asyncio.gather(
            attempt(connects.connect if connects else None, one),
            attempt(accepts.accept if accepts else None, other),
        )
        return first, second

    return asyncio.run(both())


async def speak_plainly(sock: socket.socket) -> str:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    with sock, contextlib.suppress(ConnectionError):
        await loop.sock_sendall(sock, b'COLO{"word": "hello"}\n')
        while await loop.sock_recv(sock, 4096):
            pass
    return "the end"


def test_a_certificate_of_another_ca_is_refused_by_both(
    files: TlsFiles, stranger: TlsFiles
) -> None:
    told = refused(Tls(stranger), Tls(files))
    assert told[0].startswith("its certificate is not accepted: ")
    assert told[1].startswith("it does not accept our certificate: ")


def test_a_client_hears_that_its_certificate_is_refused(
    files: TlsFiles, stranger: TlsFiles
) -> None:
    """It trusts the server's CA, and has its own certificate of another."""
    told = refused(Tls(replace(stranger, ca=files.ca)), Tls(files))
    assert told[0].startswith("it does not accept our certificate: ")
    assert told[1].startswith("its certificate is not accepted: ")


def test_a_client_without_a_certificate_is_refused(files: TlsFiles) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(files.ca)
    context.check_hostname = False
    with pytest.MonkeyPatch.context() as patch:
        real = tls._context
        patch.setattr(
            tls, "_context", lambda f, server_side: real(f, True) if server_side else context
        )
        told = refused(Tls(files), Tls(files))
    assert told[0].startswith("it does not accept our certificate: ")
    assert told[1] == "it shows no certificate"


@pytest.mark.parametrize("side", [0, 1], ids=["who connects", "who accepts"])
def test_a_side_without_tls_is_told(files: TlsFiles, side: int) -> None:
    sides: list[Tls | None] = [Tls(files), Tls(files)]
    sides[side] = None
    told = refused(*sides)
    assert told[side] == "the end"
    assert told[1 - side] == "it does not speak TLS: both VM files need [tls]"


def test_the_name_is_compared_by_both_where_one_is_given(authority: Authority) -> None:
    ours, theirs = replace(authority.files("a"), name="colo.test"), authority.issue("d", "other")
    assert refused(Tls(ours), Tls(ours)) == ("nothing", "nothing")
    words = "its certificate is issued for other, not for colo.test"
    other_words = "it does not accept our certificate: it may be issued for another [tls] name"
    assert refused(Tls(ours), Tls(theirs)) == (words, other_words)
    assert refused(Tls(theirs), Tls(ours)) == (other_words, words)


def test_older_tls_is_refused(files: TlsFiles) -> None:
    context = tls._context(files, server_side=False)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.MonkeyPatch.context() as patch:
        real = tls._context
        patch.setattr(
            tls, "_context", lambda f, server_side: real(f, True) if server_side else context
        )
        told = refused(Tls(files), Tls(files))
    assert "protocol" in told[1]


def test_one_who_says_nothing_is_waited_for_only_so_long(
    files: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_HANDSHAKE_S", 0.05)
    one, other = tcp_pair()
    with one, pytest.raises(ChannelLost, match="no TLS handshake within"):
        asyncio.run(Tls(files).accept(other))
    assert other.fileno() < 0


def test_one_who_ends_at_once_is_told(files: TlsFiles) -> None:
    one, other = tcp_pair()
    one.close()
    with pytest.raises(ChannelLost, match="it ended the connection within the TLS handshake"):
        asyncio.run(Tls(files).accept(other))


# -- files --------------------------------------------------------------------------------


def test_a_vm_file_without_tls_has_none() -> None:
    assert make_tls(VmConfig(name="web1")) is None


@pytest.mark.parametrize("which", ["ca", "certificate", "key"])
@pytest.mark.parametrize(
    "content", [None, b"", b"no certificate\n"], ids=["missing", "empty", "text"]
)
def test_a_file_that_is_of_no_use_is_named(
    files: TlsFiles, which: str, content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    paths = {"ca": files.ca, "certificate": files.certificate, "key": files.key, which: path}
    with pytest.raises(UsageError, match=rf"\[tls\] .*{which} = {path}") as caught:
        make_tls(
            VmConfig(name="web1", tls=TlsFiles(paths["ca"], paths["certificate"], paths["key"]))
        )
    assert str(caught.value).isprintable()


def test_a_key_that_is_not_the_certificates_is_told(authority: Authority) -> None:
    files = replace(authority.files("a"), key=authority.files("b").key)
    with pytest.raises(UsageError, match="key values mismatch"):
        Tls(files)


def test_a_key_with_a_password_is_told(files: TlsFiles, tmp_path: Path) -> None:
    """Nobody is there to be asked for it."""
    key = tmp_path / "key"
    command = ["openssl", "pkey", "-in", str(files.key), "-aes256", "-passout", "pass:secret"]
    subprocess.run([*command, "-out", str(key)], check=True, timeout=LIMIT_S)
    with pytest.raises(UsageError, match=rf"^\[tls\] key = {key}: it has a password") as caught:
        Tls(replace(files, key=key))
    assert str(caught.value).isprintable()


def test_a_certificate_that_was_renewed_is_used(authority: Authority) -> None:
    made = Tls(authority.issue("e"))
    authority.issue("e", "renewed")
    named = Tls(replace(authority.files("a"), name="renewed"))
    assert refused(made, named)[1] == "nothing"


def test_files_are_tried_with_themselves(tmp_path: Path) -> None:
    ours, stranger = (Authority.make(tmp_path / name).issue("a") for name in ("one", "two"))
    Tls(ours).check()
    with pytest.raises(UsageError, match=r"\[tls\] certificate = .*not accepted"):
        Tls(TlsFiles(stranger.ca, ours.certificate, ours.key)).check()
    with pytest.raises(UsageError, match=r"\[tls\] name: its certificate is issued for"):
        Tls(TlsFiles(ours.ca, ours.certificate, ours.key, "nobody.example")).check()
