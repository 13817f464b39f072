"""Addresses: the same text as QEMU's, in and out, and sockets that listen there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from pathlib import Path

import pytest

from colo.errors import UsageError
from colo.transport.address import Address, parse_address

GOOD = [
    ("unix:/run/colo.s", Address(path="/run/colo.s"), "unix:/run/colo.s"),
    ("unix:relative:with:colons", Address(path="relative:with:colons"), None),
    ("tcp:host:4444", Address(host="host", port=4444), "tcp:host:4444"),
    ("tcp:10.0.0.2:0", Address(host="10.0.0.2", port=0), None),
    ("tcp:0.0.0.0:65535", Address(host="0.0.0.0", port=65535), None),
    ("tcp:[fe80::1]:4444", Address(host="fe80::1", port=4444), "tcp:[fe80::1]:4444"),
    ("tcp:host.example.:4444", Address(host="host.example.", port=4444), None),
    ("tcp:hôst:4444", Address(host="hôst", port=4444), None),
    ("tcp:[fe80::1%eth0]:4444", Address(host="fe80::1%eth0", port=4444), None),
    ("tcp:::1:4444", Address(host="::1", port=4444), "tcp:[::1]:4444"),
]
BAD = [
    "",
    "unix",
    "unix:",
    "tcp",
    "tcp:",
    "tcp:host",
    "tcp:host:",
    "tcp::4444",
    "tcp:[]:4444",
    "tcp:host:port",
    "tcp:host:-1",
    "tcp:host:+1",
    "tcp:host: 1",
    "tcp:host:65536",
    "tcp:host:٤٤",
    "host:4444",
    "udp:host:4444",
    "UNIX:/run/colo.s",
    "/run/colo.s",
]


@pytest.mark.parametrize(("text", "address", "shown"), GOOD)
def test_an_address_is_parsed_and_shown(text: str, address: Address, shown: str | None) -> None:
    assert parse_address(text) == address
    assert str(address) == (shown or text)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_address_is_told_with_the_two_forms(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert str(caught.value) == f"{text!r} is no address: unix:PATH or tcp:HOST:PORT"


@pytest.mark.parametrize(
    "host", ["c..example", ".example", f"{'a' * 64}.example", "ä.xn--ü", "\udcff"]
)
def test_a_host_that_can_be_no_name_is_told_at_once(host: str) -> None:
    text = f"tcp:{host}:9000"
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert str(caught.value) == (
        f"{text!r} is no address: {host!r} can be no host's name: its parts, between the dots, "
        "have 1 to 63 characters each"
    )


@pytest.mark.parametrize("host", ["c..example", "\udcff"])
def test_who_made_an_address_of_it_gets_the_error_of_a_host_that_is_not_there(host: str) -> None:
    with pytest.raises(OSError, match="can be no host's name"):
        asyncio.run(Address(host=host, port=9000).connect())


def test_a_unix_socket_is_open_to_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Address(path=str(path)).listen():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "s"))
    address.listen().close()
    assert (tmp_path / "s").exists()
    with address.listen(), socket.socket(socket.AF_UNIX) as client:
        client.connect(address.path)


def test_a_socket_in_use_or_another_file_is_left_alone(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "s"))
    with address.listen(), pytest.raises(UsageError, match=r"cannot listen on unix:.*in use"):
        address.listen()
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(UsageError, match="in use"):
        Address(path=str(tmp_path / "file")).listen()
    assert (tmp_path / "file").read_text() == "theirs"


@pytest.mark.parametrize("path", ["x" * 200, "missing/folder/s"])
def test_a_path_that_can_be_no_socket_is_told(path: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot listen on unix:"):
        Address(path=str(tmp_path / path)).listen()


def test_a_tcp_socket_listens_and_says_when_its_port_is_taken() -> None:
    with contextlib.closing(Address(host="127.0.0.1", port=0).listen()) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass
        with pytest.raises(UsageError, match=f"cannot listen on tcp:127.0.0.1:{port}: .*in use"):
            Address(host="127.0.0.1", port=port).listen()
