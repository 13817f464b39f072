"""``etcd:URL[,URL…]``: the register is a key in etcd, reached by the JSON gateway of its v3 API.

The URLs are members of one cluster, of which any may be down: the one that answered last is asked
first, and each gets its share of the time.  etcd answers a read, and makes a transaction, only with
a majority of its members; so what one of them says holds for all.

The key's value is the text, and beside it the cluster in which it was written.  An etcd that was
restored from a backup may have forgotten grants: it is another cluster then, by its id, or its
revision or its raft index went back.  That is noticed by what this colo has seen and by what the
value says, and nobody is granted anything until an operator has removed the key.  (The raft term is
no sign: a member that just lost its leader may say a higher one than the others ever reach.)

Source: https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/ and etcd's ``rpc.proto``: keys and
values are base64, 64-bit numbers are texts, and what is 0 or empty is left out.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx

from colo.arbiters.asking import about_to_write
from colo.arbiters.register import Seen
from colo.errors import LocalError, NoAnswer, UsageError

__all__ = ["EtcdRegister"]

#: What all members together get; less than whoever asks an arbiter waits.
_LIMIT_S: Final = 2.4
#: What the member that answered gets besides, to say how long its raft log is.
_STATUS_S: Final = 0.4
#: How much of a member's share it may take to connect.
_CONNECTING: Final = 0.3

#: How etcd says that a token is none (any more), by gRPC's code or by its text.
_UNAUTHENTICATED: Final = 16
_OLD_TOKEN: Final = "etcdserver: revision of auth store is old"
_HOST: Final = r"[0-9A-Za-z][0-9A-Za-z.-]*$|[0-9A-Fa-f:.]+$"
_SAID_MAX: Final = 160
_ADVICE: Final = (
    "nobody is granted anything: see to it that one host alone runs the VM, remove the key, and "
    "begin anew"
)


@dataclass(frozen=True)
class _Cluster:
    """How far a cluster has come: by the header of its answers, and its raft log."""

    id: int = 0
    revision: int = 0
    index: int = 0


class _Silent(Exception):
    """A member did not answer; ``may_be_done``: it may have done as asked."""

    def __init__(self, why: str, may_be_done: bool) -> None:
        super().__init__(why)
        self.may_be_done = may_be_done


class _Refused(Exception):
    """A member answered with an error that another would give too."""

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        self.code = code


class EtcdRegister:
    """The key ``key`` in the cluster that has ``urls`` as members.

    ``tls``: how the members are known, and this host to them.  ``user`` has ``password``; "" where
    the cluster asks for none.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        key: str,
        tls: ssl.SSLContext | None = None,
        user: str = "",
        password: str = "",
    ) -> None:
        for url in urls:
            try:
                parsed = httpx.URL(url)
                is_address = parsed.scheme in ("http", "https") and re.match(_HOST, parsed.host)
            except httpx.InvalidURL:
                is_address = None
            if not is_address:
                raise UsageError(
                    f"[failover] arbiter: etcd's address {url!r}: http://HOST:PORT or https://"
                )
        self.name = f"etcd's key {key}"
        self._urls = [url.rstrip("/") for url in urls]
        self._key = base64.b64encode(key.encode()).decode()
        self._user, self._password = user, password
        # A proxy that the environment names is not on the way to a cluster of one's own.
        self._http = httpx.Client(verify=tls or ssl.create_default_context(), trust_env=False)
        self._lock = threading.Lock()
        self._tokens: dict[str, str] = {}
        self._known = _Cluster()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def read(self) -> Seen:
        """Return what it holds.  Raises LocalError where no majority answers."""
        known = self._known
        answer, url = self._ask("kv/range", {"key": self._key}, writes=False)
        cluster = self._follow(answer, known, self._log_of(url))
        try:
            pairs = answer.get("kvs", [])
            if not pairs:
                return Seen(None, "0")
            version = str(int(pairs[0]["mod_revision"]))
            content = json.loads(base64.b64decode(pairs[0].get("value", "")))
            text = content["text"]
            written = _Cluster(int(content["cluster"]), 0, int(content["index"]))
            if type(text) is not str:
                raise ValueError
        except (ValueError, KeyError, TypeError, LookupError) as error:
            raise LocalError(f"{self.name} does not hold a grant") from error
        self._compare(written, cluster)
        return Seen(text, version)

    def compare_and_set(self, expected: Seen, new: str) -> bool:
        """Hold ``new``, where the key has not been written since ``expected`` was read."""
        known = self._known
        value = {"text": new, "cluster": str(known.id), "index": known.index}
        coded = base64.b64encode(json.dumps(value).encode()).decode()
        compare = {
            "key": self._key, "target": "MOD", "result": "EQUAL", "mod_revision": expected.version
        }  # fmt: skip
        put = {"request_put": {"key": self._key, "value": coded}}
        answer, _ = self._ask("kv/txn", {"compare": [compare], "success": [put]}, writes=True)
        self._follow(answer, known, (known.index, known.index))
        return answer.get("succeeded") is True

    # -- has it gone back? ----------------------------------------------------------------

    def _log_of(self, url: str) -> tuple[int, int]:
        """How long the raft log of a member is, and how much of it is decided.

        Once the member has answered a read, its log has all that was decided before.
        """
        try:
            status = self._post(url, "maintenance/status", {}, _STATUS_S, self._tokens.get(url))
            return int(status["raftIndex"]), int(status.get("raftAppliedIndex", 0))
        except (_Silent, _Refused, KeyError, ValueError, TypeError) as error:
            raise LocalError(f"{self.name}: {url} does not say how it is: {error}") from error

    def _follow(self, answer: dict[str, Any], known: _Cluster, log: tuple[int, int]) -> _Cluster:
        """Note how far the cluster is, which was ``known`` before it was asked."""
        index, applied = log
        try:
            header = answer["header"]
            cluster = _Cluster(int(header["cluster_id"]), int(header["revision"]), index)
        except (ValueError, KeyError, TypeError) as error:
            raise LocalError(f"{self.name}: what answers there is not etcd") from error
        if known.id:
            self._compare(known, cluster)
        with self._lock:  # answers to calls of several threads may overtake each other
            if self._known.id in (0, cluster.id):
                self._known = _Cluster(
                    cluster.id,
                    max(cluster.revision, self._known.revision),
                    max(applied, self._known.index),
                )
        return cluster

    def _compare(self, before: _Cluster, now: _Cluster) -> None:
        """Raise LocalError where ``now`` cannot have come after ``before``."""
        if before.id != now.id:
            what = f"cluster {now.id:x} holds what was written in cluster {before.id:x}"
        elif now.revision < before.revision:
            what = f"its revision went back from {before.revision} to {now.revision}"
        elif now.index < before.index:
            what = f"its raft index went back from {before.index} to {now.index}"
        else:
            return
        raise LocalError(f"{self.name}: etcd was restored from an old copy ({what}); {_ADVICE}")

    # -- asking the members ---------------------------------------------------------------

    def _ask(self, call: str, request: dict[str, Any], writes: bool) -> tuple[dict[str, Any], str]:
        """Ask one member after the other; return the answer, and whose it is.

        Raises LocalError, or NoAnswer where it may be done.
        """
        failures, may_be_done = [], False
        for url, share_s in self._shares():
            try:
                answer = self._ask_member(url, call, request, share_s, writes)
            except _Silent as error:
                failures.append(f"{url}: {error}")
                may_be_done |= writes and error.may_be_done
            except _Refused as error:
                if may_be_done:
                    break
                raise LocalError(f"{self.name}: {url}: {error}") from error
            else:
                self._prefer(url)
                return answer, url
        text = f"{self.name}: no answer ({'; '.join(failures)})"
        raise NoAnswer(text, True) if may_be_done else LocalError(text)

    def _shares(self) -> Iterator[tuple[str, float]]:
        """The members in their order, and what of the time that is left each one gets."""
        urls, until = list(self._urls), time.monotonic() + _LIMIT_S
        for index, url in enumerate(urls):
            yield url, max(0.01, (until - time.monotonic()) / (len(urls) - index))

    def _prefer(self, url: str) -> None:
        """Ask this member first from now on."""
        with self._lock:
            self._urls.remove(url)
            self._urls.insert(0, url)

    def _ask_member(
        self, url: str, call: str, request: dict[str, Any], share_s: float, writes: bool
    ) -> dict[str, Any]:
        until = time.monotonic() + share_s
        token = self._tokens.get(url)
        if self._user and token is None:
            token = self._log_in(url, share_s)
        if writes:
            about_to_write()
        try:
            return self._post(url, call, request, until - time.monotonic(), token)
        except _Refused as error:
            is_old = error.code == _UNAUTHENTICATED or str(error) == _OLD_TOKEN
            if not self._user or not is_old:
                raise
        # The token is as old as it may be, or the member has restarted: nothing was done.
        token = self._log_in(url, until - time.monotonic())
        return self._post(url, call, request, until - time.monotonic(), token)

    def _log_in(self, url: str, limit_s: float) -> str:
        self._tokens.pop(url, None)
        who = {"name": self._user, "password": self._password}
        try:
            token = self._post(url, "auth/authenticate", who, limit_s, None).get("token")
        except _Silent as error:
            raise _Silent(str(error), False) from error
        if not isinstance(token, str):
            raise _Refused(f"it has no token for user {self._user}", 0)
        self._tokens[url] = token
        return token

    def _post(
        self, url: str, call: str, request: dict[str, Any], limit_s: float, token: str | None
    ) -> dict[str, Any]:
        """Raises _Silent or _Refused."""
        limit_s = max(0.01, limit_s)
        try:
            response = self._http.post(
                f"{url}/v3/{call}",
                json=request,
                headers={"Authorization": token} if token else {},
                timeout=httpx.Timeout(limit_s * (1 - _CONNECTING), connect=limit_s * _CONNECTING),
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise _Silent(str(error) or "it cannot be reached", False) from error
        except httpx.HTTPError as error:
            raise _Silent(str(error) or "it did not answer in time", True) from error
        try:
            content = response.json()
            if not isinstance(content, dict):
                raise ValueError
        except ValueError as error:
            said = " ".join(response.text.split())[:_SAID_MAX]
            raise _Refused(f"HTTP {response.status_code} is not etcd's v3: {said}", 0) from error
        if response.status_code == httpx.codes.OK:
            return content
        why = str(content.get("error") or content.get("message") or response.status_code)
        if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise _Silent(why, True)  # no leader, too slow: another member may know more
        raise _Refused(why, content.get("code", 0))
