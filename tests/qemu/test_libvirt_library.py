"""libvirt's functions: called in their order, and undone once, against a library that notes it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from colo.errors import UsageError
from colo.qemu import libvirt_library
from colo.qemu.libvirt_library import Domain, LibvirtError, NoDomain, _Library

CONNECTION, DOMAIN = 0x1000, 0x2000


class FakeLibrary:
    """The functions: each notes its name and first argument, and returns what ``results`` say."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.callbacks: dict[str, Any] = {}
        self.fails: str | None = None
        self.sent: list[tuple[bytes, list[int]]] = []
        self.kept: list[Any] = []
        self.answer = b'{"return": {"running": true}}'

    def call(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, arguments[0]))
        if name == self.fails:
            raise LibvirtError(f"{name} failed")
        if name.endswith(("Register", "RegisterAny", "RegisterCloseCallback")):
            self.callbacks[name] = arguments
            return len(self.callbacks)
        if name.startswith("virDomainQemuMonitorCommand"):
            files = list(arguments[3]) if name.endswith("Files") else []
            self.sent.append((arguments[1], files))
            _put(arguments[-2], self.answer)
        found = {"virConnectOpen": CONNECTION, "virDomainLookupByName": DOMAIN}
        return found.get(name, 1)

    quietly = call

    def count(self, *names: str) -> list[int]:
        """How often each was called."""
        called = [name for name, _ in self.calls]
        return [called.count(name) for name in names]


def _put(at: Any, text: bytes) -> None:
    """Have a pointer point to a text that is to be freed."""
    allocate = ctypes.CDLL(None).strdup
    allocate.restype = ctypes.c_void_p
    at._obj.value = allocate(text)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibrary]:
    made = FakeLibrary()
    monkeypatch.setattr(libvirt_library, "_library", lambda: made)
    yield made


def domain(told: list[Any] | None = None) -> Domain:
    told = [] if told is None else told
    return Domain(
        "web1", ("SHUTDOWN", "COLO_EXIT"), told.append,
        lambda: told.append("stopped"), lambda: told.append("closed"),
    )  # fmt: skip


def test_a_command_and_its_answer(library: FakeLibrary) -> None:
    found = domain()
    assert found.command("{}") == {"return": {"running": True}}
    found.command('{"execute": "getfd"}', [7, 8])
    assert library.sent == [(b"{}", []), (b'{"execute": "getfd"}', [7, 8])]
    assert library.count("virDomainRef", "virDomainFree") == [2, 2]
    found.close()


def test_callbacks_are_told_apart(library: FakeLibrary) -> None:
    told: list[Any] = []
    found = domain(told)
    regex, event, *_ = library.callbacks["virConnectDomainQemuMonitorEventRegister"][2:]
    assert regex == b"^(SHUTDOWN|COLO_EXIT)$"
    event(CONNECTION, DOMAIN, b"SHUTDOWN", 1, 2, b'{"guest": true}', None)
    event(CONNECTION, DOMAIN, b"COLO_EXIT", 1, 2, None, None)
    kind, life, *_ = library.callbacks["virConnectDomainEventRegisterAny"][2:]
    assert kind == 0
    for what in (2, 5):  # it was started, it has stopped
        assert life(CONNECTION, DOMAIN, what, 0, None) == 0
    library.callbacks["virConnectRegisterCloseCallback"][1](CONNECTION, 1, None)
    assert told == [
        {"event": "SHUTDOWN", "data": {"guest": True}}, {"event": "COLO_EXIT", "data": {}},
        "stopped", "closed",
    ]  # fmt: skip
    found.close()


def test_all_is_undone_once(library: FakeLibrary) -> None:
    found = domain()
    assert found.is_reached() and found.is_active()
    found.close()
    found.close()
    undone = [name for name, _ in library.calls if "regist" in name.lower()][3:]
    assert undone == [
        "virConnectDomainEventDeregisterAny",
        "virConnectDomainQemuMonitorEventDeregister",
        "virConnectUnregisterCloseCallback",
    ]
    assert library.calls[-2:] == [("virDomainFree", DOMAIN), ("virConnectClose", CONNECTION)]
    assert library.count("virDomainFree", "virConnectClose") == [1, 1]
    assert not found.is_reached()
    with pytest.raises(LibvirtError, match="libvirt was left"):
        found.command("{}")


@pytest.mark.parametrize(
    ("fails", "freed"),
    [("virConnectOpen", [0, 0]), ("virDomainLookupByName", [0, 1]),
     ("virConnectDomainQemuMonitorEventRegister", [1, 1])],
)  # fmt: skip
def test_what_fails_leaves_nothing(fails: str, freed: list[int], library: FakeLibrary) -> None:
    library.fails = fails
    with pytest.raises(LibvirtError, match=fails):
        domain()
    assert library.count("virDomainFree", "virConnectClose") == freed


def test_a_command_that_fails_lets_go_of_the_domain(library: FakeLibrary) -> None:
    found = domain()
    library.fails = "virDomainQemuMonitorCommand"
    with pytest.raises(LibvirtError):
        found.command("{}")
    assert library.count("virDomainRef", "virDomainFree") == [1, 1]
    library.fails = "virDomainGetAutostart"  # a transient domain has none
    assert not found.is_autostarted()
    found.close()


def test_no_library_and_an_old_one_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(UsageError, match=r"^libvirt's client library is not here \(libvirt.so.0:"):
        _Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with pytest.raises(UsageError, match=r"has no virInitialize: it takes 8\.2 or newer"):
        _Library()


def test_what_a_function_says(monkeypatch: pytest.MonkeyPatch) -> None:
    results: dict[str, Any] = {
        "virConnectOpen": None, "virInitialize": -1, "virDomainRef": 0,
        "virGetLastErrorMessage": b"no such\n thing", "virGetLastErrorCode": 1,
    }  # fmt: skip

    class Functions:
        def __getattr__(self, name: str) -> Any:
            def function() -> Any:
                return results[name]

            return function

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Functions())
    library = _Library()
    for name in ("virConnectOpen", "virInitialize"):
        with pytest.raises(LibvirtError, match=r"^no such thing$") as found:
            library.call(name)
        assert not isinstance(found.value, NoDomain)
    results["virGetLastErrorCode"] = 42
    with pytest.raises(NoDomain):
        library.call("virConnectOpen")
    assert library.call("virDomainRef") == 0
