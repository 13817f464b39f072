"""Who gets what from `colo web`, and who does not."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from colo.cli import main
from colo.errors import UsageError
from colo.http.server import Request
from colo.transport.address import Address
from colo.web.guard import Guard, address_of, is_loopback, page_at, read_token
from tests.web.scene import Scene

ORDER = {"id": "web1", "order": "switchover"}
OURS = {"X-Colo-Order": "1"}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "s")
    yield scene
    scene.close()


@pytest.fixture
def ordering(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "s", "--allow-orders")
    yield scene
    scene.close()


def test_the_page_and_what_there_is(scene: Scene) -> None:
    assert scene.told == f"colo web: {scene.base}\n"
    page = httpx.get(scene.base)
    assert "<title>colo</title>" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("page.js", "page.css"):
        assert httpx.get(scene.base + name).status_code == 200
    for name in ("../cli.py", "%2e%2e/app.py", "page", "order/"):
        assert httpx.get(scene.base + name).status_code == 404
    assert httpx.post(scene.base).status_code == 405
    found = httpx.get(scene.base + "vms").json()
    assert {vm["id"]: vm["health"] for vm in found["vms"]} == {
        "build": "OVER",
        "db1": "WELL",
        "files": "BAD",
        "mail": "WATCH",
        "web1": "WELL",
    }
    mail = next(vm for vm in found["vms"] if vm["id"] == "mail")
    assert [line["state"] for line in mail["history"]] == ["KEEPING", "RUNNING", "UNPROTECTED"]
    assert mail["trouble"] == "tcp:10.0.0.3:9000 is out of reach: no answer"
    assert not found["orders"]


def events(scene: Scene, count: int) -> list[dict[str, Any]]:
    with httpx.stream("GET", scene.base + "events", timeout=20) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        found = []
        for line in answer.iter_lines():
            if line:
                assert line.startswith("data: ")
                found.append(json.loads(line[6:]))
            if len(found) == count:
                break
    return found


def test_events_have_what_is_new(scene: Scene) -> None:
    first, second = events(scene, 2)
    assert all("history" in vm for vm in first["vms"])
    assert not any("history" in vm for vm in second["vms"])
    assert second["at"] > first["at"]


def test_what_lies_there_may_be_anything(scene: Scene) -> None:
    (scene.folders["web1"].path / "status.json").write_text("[]")
    (scene.folders["web1"].path / "history.jsonl").write_text("nonsense\n")
    web1 = next(vm for vm in httpx.get(scene.base + "vms").json()["vms"] if vm["id"] == "web1")
    assert (web1["state"], web1["health"], web1["history"]) == ("UNKNOWN", "BAD", [])


def test_another_name_of_this_host_is_refused(scene: Scene) -> None:
    """A page of somebody else's whose name leads here would be read by that one."""
    answer = httpx.get(scene.base + "vms", headers={"Host": "evil.example"})
    assert answer.status_code == 403
    port = httpx.URL(scene.base).port
    assert httpx.get(scene.base, headers={"Host": f"localhost:{port}"}).status_code == 200


def test_it_is_read_only(scene: Scene) -> None:
    answer = httpx.post(scene.base + "order", json=ORDER, headers=OURS)
    assert (answer.status_code, answer.text) == (403, "it is read-only: see --allow-orders\n")


def test_with_orders_it_takes_the_token(ordering: Scene) -> None:
    assert "?token=" in ordering.url
    for name in ("", "vms", "events", "page.js"):
        assert httpx.get(ordering.base + name).status_code == 401
    assert httpx.get(ordering.base + "?token=wrong").status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert httpx.get(ordering.base + "vms", headers=wrong).status_code == 401
    with httpx.Client() as client:
        led = client.get(ordering.url)
        assert (led.status_code, led.headers["location"]) == (303, "/")
        cookie = led.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert client.get(ordering.base + "vms").json()["orders"]
    token = ordering.url.partition("token=")[2]
    right = {"Authorization": f"Bearer {token}"}
    assert httpx.get(ordering.base + "vms", headers=right).status_code == 200


def test_an_order_is_carried_out_for_the_page_alone(ordering: Scene) -> None:
    orders = ordering.take_orders({"ok": False, "text": "the VM is COPYING"})
    with httpx.Client(base_url=ordering.base) as client:
        assert client.post("order", json=ORDER, headers=OURS).status_code == 401
        client.get(ordering.url)
        assert client.post("order", json=ORDER).status_code == 403, "another page's form"
        assert client.get("order", headers=OURS).status_code == 405
        bad: list[Any] = [[], {}, {**ORDER, "id": "../x"}, {**ORDER, "order": "stop"}]
        for content in [*bad, {**ORDER, "id": ["web1"]}]:
            assert client.post("order", json=content, headers=OURS).status_code == 400
        assert client.post("order", content=b"{", headers=OURS).status_code == 400
        assert orders == []
        answer = client.post("order", json=ORDER, headers=OURS)
        assert answer.json() == {"ok": False, "text": "the VM is COPYING"}
        assert [order["order"] for order in orders] == ["switchover"]
        answer = client.post("order", json={**ORDER, "id": "mail"}, headers=OURS)
        assert answer.json()["text"].startswith("no colo runs with the state folder")


def test_a_folder_that_goes_away_is_told(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    scene = Scene(tmp_path / "s")
    try:
        (tmp_path / "s").rename(tmp_path / "t")
        assert httpx.get(scene.base + "vms").json()["error"].endswith("say --under DIR")
    finally:
        scene.close()


def test_a_token_of_ones_own_is_not_told_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    scene = Scene(tmp_path / "s", "--token-file", str(file))
    try:
        assert scene.told == f"colo web: {scene.base}?token=…\n"
        assert httpx.get(scene.base).status_code == 401
        right = httpx.get(f"{scene.base}?token=0123456789abcdef", follow_redirects=True)
        assert right.status_code == 200
    finally:
        scene.close()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--under", "DIR/none"], "DIR/none: No such file or directory; say --under DIR"),
        (["--listen", "x"], "--listen x: HOST:PORT"),
        (["--listen", "unix:/x"], "--listen unix:/x: HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "--listen 127.0.0.1:99999: HOST:PORT"),
        (["--listen", "TAKEN"], "cannot listen on tcp:TAKEN: Address already in use"),
        (["--token-file", "DIR/none"], "--token-file DIR/none: No such file or directory"),
        (["--token-file", "DIR/short"], "--token-file DIR/short: one line of 16 to 256"),
        (["--token-file", "DIR/cookie"], "--token-file DIR/cookie: one line of 16 to 256"),
        (["--token-file", "DIR/binary"], "--token-file DIR/binary: it is no text"),
    ],
)
def test_what_cannot_be_is_one_line(options: list[str], line: str, tmp_path: Path) -> None:
    (tmp_path / "short").write_text("0123456789")
    (tmp_path / "cookie").write_text("0123456789abcdef; Path=/")
    (tmp_path / "binary").write_bytes(b"\xff" * 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"

        def meant(text: str) -> str:
            return text.replace("DIR/", f"{tmp_path}/").replace("TAKEN", taken)

        given = ["--under", str(tmp_path), *map(meant, options)]
        result = CliRunner().invoke(main, ["web", *given])
    (told,) = result.output.splitlines()
    assert result.exit_code == 2
    assert told.startswith(f"colo: {meant(line)}")


@pytest.mark.parametrize(
    ("address", "only_here"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
    ],
)
def test_what_only_this_host_reaches(address: str, only_here: bool) -> None:
    assert is_loopback(address_of(address)) is only_here
    assert page_at(address_of(address), None, False) == f"colo web: http://{address}/"


def test_without_a_file_each_token_is_another() -> None:
    assert len({read_token(None) for _ in range(20)}) == 20


@pytest.mark.parametrize(
    "cookie", ["", "colo-token", "colo-token=", "a=b; c", "colo-token=x\0", "é"]
)
def test_a_cookie_may_be_anything(cookie: str) -> None:
    guard = Guard(Address(host="10.0.0.1", port=1), "0123456789abcdef")
    refused = guard.refuse(Request("GET", "/", fields={"cookie": cookie}))
    assert refused is not None and refused.status == 401
    bearer = guard.refuse(Request("GET", "/", fields={"authorization": f"Bearer {cookie}"}))
    assert bearer is not None and bearer.status == 401
    query = guard.refuse(Request("GET", "/", {"token": cookie + "\udcff"}))
    assert query is not None and query.status == 401


def test_an_address_by_default_is_this_hosts() -> None:
    assert is_loopback(address_of(None))
    with pytest.raises(UsageError):
        address_of("")
