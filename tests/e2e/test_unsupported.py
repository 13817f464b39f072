"""A primary that colo does not carry is refused by name; its VM goes on, and colo listens on."""

from __future__ import annotations

import contextlib
import socket

import pytest

from colo.errors import GuestError
from tests.e2e.basics import wait
from tests.e2e.harness import Host, Scene
from tests.e2e.vm import PrimaryVm, VmFile

pytestmark = pytest.mark.e2e

PLAIN = VmFile(guest=False)
QUICK = VmFile(guest=False, silence_s=1.0)


def refused(host: Host, primary: PrimaryVm) -> str:
    """Try to protect ``primary``, see that its VM can go on; return what the secondary said."""
    try:
        primary.protect(host.listen)
    except GuestError:
        primary.execute("cont")
    else:  # QEMU is in COLO before the secondary has accepted it
        assert primary.ended().startswith("QEMU left COLO, reason: error")
        primary.run_alone()
    wait(primary.is_running, "the primary's VM to run")
    return check_listens(host)


def refused_with(host: Host, primary: PrimaryVm, capability: str) -> str:
    """The same for a capability, which ``colo primary`` would switch off."""
    primary.protect_by_hand(host.listen, capability)
    said = check_listens(host)
    primary.run_alone()
    wait(primary.is_running, "the primary's VM to run")
    return said


def check_listens(host: Host) -> str:
    """The secondary has nothing and listens; return what it said."""
    host.wait_said("no first copy")
    assert "Traceback" not in host.text()
    wait(lambda: host.file()["state"] == "LISTENING", "the secondary to listen again")
    return "\n".join((*host.said("no first copy"), *host.said("was refused")))


def check_protects(scene: Scene, host: Host) -> None:
    """A primary without that gets its protection."""
    primary = scene.primary(PLAIN)
    primary.protect(host.listen)
    host.wait_said("PROTECTED")


def test_multifd(scene: Scene) -> None:
    host, primary = scene.host(QUICK), scene.primary(PLAIN)
    host.start()
    said = refused_with(host, primary, "multifd")
    assert "multifd" in said
    assert "switch the capability multifd off" in said
    check_protects(scene, host)


def test_postcopy(scene: Scene) -> None:
    host, primary = scene.host(PLAIN), scene.primary(PLAIN)
    host.start()
    said = refused_with(host, primary, "postcopy-ram")
    assert "The primary uses postcopy, which colo does not carry" in said
    assert "switch the capability postcopy-ram off" in said
    check_protects(scene, host)


def test_migration_without_colo(scene: Scene) -> None:
    host, primary = scene.host(PLAIN), scene.primary(PLAIN)
    host.start()
    primary.execute("migrate", uri=host.listen)

    def ended() -> object:
        return primary.execute("query-migrate").get("status") in ("failed", "completed")

    wait(ended, "the primary's migration to end")
    if not primary.is_running():  # so small a VM may be in the socket before that is closed
        primary.execute("cont")
    wait(primary.is_running, "the primary's VM to run")
    said = check_listens(host)
    assert "a plain migration without COLO" in said
    assert "x-colo" in said
    check_protects(scene, host)


def test_no_description(scene: Scene) -> None:
    host = scene.host(QUICK)
    primary = scene.primary(VmFile(guest=False, machine="pc,suppress-vmdesc=on"))
    host.start()
    assert "without -machine suppress-vmdesc=on" in refused(host, primary)
    check_protects(scene, host)


def test_another_machine(scene: Scene) -> None:
    host, primary = scene.host(PLAIN), scene.primary(VmFile(guest=False, machine="q35"))
    host.start()
    said = refused(host, primary)
    assert "the primary's machine is pc-q35-" in said
    assert "the waiting QEMU's is pc-i440fx-" in said
    check_protects(scene, host)


def test_another_size_of_memory(scene: Scene) -> None:
    host, primary = scene.host(PLAIN), scene.primary(VmFile(guest=False, memory_mib=160))
    host.start()
    said = refused(host, primary)
    assert "160 MiB" in said
    assert "128 MiB: make -m the same on both sides" in said
    check_protects(scene, host)


def test_no_migration_at_all(scene: Scene) -> None:
    host = scene.host(PLAIN)
    host.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(host.socket))
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    assert "neither a QEMU migration nor a colo" in host.wait_said("it begins with 'GET '")
    assert host.status()["state"] == "LISTENING"
    check_protects(scene, host)


def test_xbzrle_shows_only_in_a_checkpoint(scene: Scene) -> None:
    """Then the pages cannot be taken any more: the VM goes on here, and not there as well."""
    host, primary = scene.host(), scene.primary()
    host.start()
    primary.console.wait_count(3)
    primary.protect_by_hand(host.listen, "xbzrle")

    status = host.wait_state("RUNNING")
    assert "XBZRLE pages" in status["error"]
    assert "switch the capability xbzrle off" in status["error"]
    assert primary.ended().startswith("QEMU left COLO, reason: error")
    assert not primary.is_running(), "two VMs run"
    host.console.wait_progress()
    host.console.verify()
