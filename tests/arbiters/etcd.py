"""A cluster of the distribution's etcd on loopback: members can be killed, paused and cut off.

A member is reached through a forwarder of ours, so that it can be cut off from whoever asks it
while its connections stay open: nothing passes any more, as behind a firewall that drops.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Cluster", "Member", "free_port", "running"]

_UP_S = 30.0
_ports = random.SystemRandom()


def free_port() -> int:
    """A port of loopback that nobody has, and that no connection gets while a member is down.

    Those that the system gives to connections begin at 32768.
    """
    while True:
        port = _ports.randrange(10_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class Forwarder:
    """Forwards connections to ``port`` of loopback, unless it is ``cut``."""

    def __init__(self, port: int) -> None:
        self.cut = threading.Event()
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def stop(self) -> None:
        """Close everything."""
        self._stopped.set()
        for thread in list(self._threads):
            thread.join(5)
        self._server.close()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            if select.select([self._server], [], [], 0.05)[0]:
                client, _ = self._server.accept()
                self._threads.append(threading.Thread(target=self._pass, args=(client,)))
                self._threads[-1].start()

    def _pass(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.socket() as server:
            server.connect(("127.0.0.1", self._to))
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self._stopped.is_set():
                if self.cut.is_set():
                    self._stopped.wait(0.01)
                    continue
                for one in select.select([client, server], [], [], 0.05)[0]:
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    (server if one is client else client).sendall(data)


class Member:
    """One etcd.  ``url``: where clients reach it."""

    def __init__(self, folder: Path, name: str, tls: tuple[str, ...] = ()) -> None:
        self.name, self.folder = name, folder / name
        self._scheme = "https" if tls else "http"
        self._tls = tls
        self._client, peer = free_port(), free_port()
        self.peer_url = f"http://127.0.0.1:{peer}"
        self.forwarder = Forwarder(self._client)
        host = "localhost" if tls else "127.0.0.1"  # as its certificate has it
        self.url = f"{self._scheme}://{host}:{self.forwarder.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def own_url(self) -> str:
        """Where it is reached beside the forwarder."""
        return f"{self._scheme}://127.0.0.1:{self._client}"

    def start(self, cluster: str, token: str = "colo", new: bool = True) -> None:
        """Start it, or start it again."""
        with (self.folder.parent / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "etcd", "--name", self.name, "--data-dir", str(self.folder),
                    "--listen-client-urls", self.own_url, "--advertise-client-urls", self.own_url,
                    "--listen-peer-urls", self.peer_url,
                    "--initial-advertise-peer-urls", self.peer_url,
                    "--initial-cluster", cluster, "--initial-cluster-token", token,
                    "--initial-cluster-state", "new" if new else "existing",
                    "--heartbeat-interval", "50", "--election-timeout", "500",
                    "--unsafe-no-fsync", *self._tls,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "ETCDCTL_API": "3"},
            )  # fmt: skip

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Have it stand still, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it run again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


class Cluster:
    """Several members."""

    def __init__(self, folder: Path, size: int, tls: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.members = [Member(folder, f"m{n}", tls) for n in range(size)]
        self._initial = ",".join(f"{each.name}={each.peer_url}" for each in self.members)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients reach the members."""
        return tuple(each.url for each in self.members)

    def start(self, token: str = "colo") -> None:
        """Start all members and wait until they answer."""
        for each in self.members:
            each.start(self._initial, token)
        self.wait_up()

    def restart(self, member: Member) -> None:
        """Start a member again that was killed."""
        member.start(self._initial, new=False)

    def wait_up(self) -> None:
        """Wait until every member answers for a majority."""
        until = time.monotonic() + _UP_S
        for each in self.members:
            while not self._is_up(each):
                assert time.monotonic() < until, (self.folder / f"{each.name}.log").read_text()
                time.sleep(0.05)

    def _is_up(self, member: Member) -> bool:
        if member.own_url.startswith("https"):
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", member._client)) == 0
        try:
            with urllib.request.urlopen(f"{member.own_url}/health", timeout=1) as answer:
                return b'"true"' in answer.read()
        except (urllib.error.URLError, OSError):
            return False

    def control(self, *args: str) -> str:
        """Run etcdctl with the first member."""
        return subprocess.run(
            ["etcdctl", "--endpoints", self.members[0].own_url, *args],
            env={**os.environ, "ETCDCTL_API": "3"}, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    def restore(self, backup: Path, token: str = "colo") -> None:
        """Have all members begin anew with a backup that ``etcdctl snapshot save`` made."""
        for each in self.members:
            each.kill()
            shutil.rmtree(each.folder)
            self.control(
                "snapshot", "restore", str(backup), "--name", each.name,
                "--data-dir", str(each.folder), "--initial-cluster", self._initial,
                "--initial-cluster-token", token, "--initial-advertise-peer-urls", each.peer_url,
            )  # fmt: skip
        self.start(token)

    def stop(self) -> None:
        """End all members."""
        for each in self.members:
            each.kill()
            each.forwarder.stop()


@contextlib.contextmanager
def running(folder: Path, size: int, tls: tuple[str, ...] = ()) -> Iterator[Cluster]:
    """A cluster that runs, and is ended with this."""
    cluster = Cluster(folder, size, tls)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
