"""libvirt's client library, as much of it as colo needs, called as it is.

It is there wherever virsh is, and no Python package has to be built for it: the functions are few,
and what they are called with is fixed for good.  ``Domain``'s methods may wait: call them in a
thread.  Callbacks come in a thread of the library's own, which ends with the process.

Source: libvirt's API reference, its modules libvirt-host, -domain, -event and -qemu.
"""

from __future__ import annotations

import ctypes
import functools
import json
import threading
from collections.abc import Callable, Sequence
from ctypes import (
    CFUNCTYPE,
    POINTER,
    byref,
    c_char_p,
    c_int,
    c_longlong,
    c_uint,
    c_void_p,
)
from typing import Any, Final

from colo.errors import GuestError, UsageError

__all__ = ["Domain", "LibvirtError", "NoDomain"]

_NAMES: Final = ("libvirt.so.0", "libvirt-qemu.so.0")
_REGEX: Final = 1  # VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX
_LIFECYCLE: Final = 0  # VIR_DOMAIN_EVENT_ID_LIFECYCLE
_STOPPED: Final = 5  # VIR_DOMAIN_EVENT_STOPPED
_NO_DOMAIN: Final = 42  # VIR_ERR_NO_DOMAIN

_ERROR: Final = CFUNCTYPE(None, c_void_p, c_void_p)
_CLOSE: Final = CFUNCTYPE(None, c_void_p, c_int, c_void_p)
_LIFE: Final = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int, c_void_p)
_EVENT: Final = CFUNCTYPE(
    None, c_void_p, c_void_p, c_char_p, c_longlong, c_uint, c_char_p, c_void_p
)

#: Each function's result and arguments.  Text that is to be freed is a plain pointer.
_FUNCTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "virInitialize": (c_int,),
    "virSetErrorFunc": (None, c_void_p, _ERROR),
    "virGetLastErrorMessage": (c_char_p,),
    "virGetLastErrorCode": (c_int,),
    "virEventRegisterDefaultImpl": (c_int,),
    "virEventRunDefaultImpl": (c_int,),
    "virConnectOpen": (c_void_p, c_char_p),
    "virConnectClose": (c_int, c_void_p),
    "virConnectIsAlive": (c_int, c_void_p),
    "virConnectRegisterCloseCallback": (c_int, c_void_p, _CLOSE, c_void_p, c_void_p),
    "virConnectUnregisterCloseCallback": (c_int, c_void_p, _CLOSE),
    "virConnectDomainEventRegisterAny": (
        *(c_int, c_void_p, c_void_p, c_int),
        *(_LIFE, c_void_p, c_void_p),
    ),
    "virConnectDomainEventDeregisterAny": (c_int, c_void_p, c_int),
    "virConnectDomainQemuMonitorEventRegister": (
        *(c_int, c_void_p, c_void_p, c_char_p),
        *(_EVENT, c_void_p, c_void_p, c_uint),
    ),
    "virConnectDomainQemuMonitorEventDeregister": (c_int, c_void_p, c_int),
    "virDomainLookupByName": (c_void_p, c_void_p, c_char_p),
    "virDomainIsActive": (c_int, c_void_p),
    "virDomainGetAutostart": (c_int, c_void_p, POINTER(c_int)),
    "virDomainRef": (c_int, c_void_p),
    "virDomainFree": (c_int, c_void_p),
    "virDomainQemuMonitorCommand": (c_int, c_void_p, c_char_p, POINTER(c_void_p), c_uint),
    "virDomainQemuMonitorCommandWithFiles": (
        *(c_int, c_void_p, c_char_p, c_uint, POINTER(c_int)),
        *(POINTER(c_uint), POINTER(POINTER(c_int)), POINTER(c_void_p), c_uint),
    ),
}

#: Callbacks, which the library may call as long as there is a process.
_kept: Final[list[Any]] = []


class LibvirtError(GuestError):
    """libvirt refuses something, or is gone, in its own words."""


class NoDomain(LibvirtError):
    """libvirt has no domain of that name."""


class _Library:
    """The functions, by their names."""

    def __init__(self) -> None:
        try:
            libraries = [ctypes.CDLL(name) for name in _NAMES]
        except OSError as error:
            raise UsageError(
                f"libvirt's client library is not here ({error}): install libvirt's clients (virsh)"
            ) from error
        self._functions: dict[str, Any] = {}
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = next(
                (getattr(each, name) for each in libraries if hasattr(each, name)), None
            )
            if function is None:
                raise UsageError(f"this libvirt has no {name}: it takes 8.2 or newer")
            function.restype, function.argtypes = result, arguments
            self._functions[name] = function

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function; return its result.  Raises LibvirtError where that says so."""
        result = self._functions[name](*arguments)
        if result is None or result < 0:
            words = self._functions["virGetLastErrorMessage"]() or b"it failed"
            is_none = self._functions["virGetLastErrorCode"]() == _NO_DOMAIN
            kind = NoDomain if is_none else LibvirtError
            raise kind(" ".join(words.decode(errors="replace").split()))
        return result

    def quietly(self, name: str, *arguments: Any) -> None:
        """Call a function whose failure is of no interest."""
        self._functions[name](*arguments)


@functools.cache
def _library() -> _Library:
    """The library, and its events running.  Raises UsageError, LibvirtError."""
    library = _Library()
    silent = _ERROR(lambda of, error: None)  # it would print each error, which we get anyway
    _kept.append(silent)
    library.quietly("virSetErrorFunc", None, silent)
    library.call("virInitialize")
    library.call("virEventRegisterDefaultImpl")
    threading.Thread(target=_run_events, args=(library,), name="libvirt", daemon=True).start()
    return library


def _run_events(library: _Library) -> None:
    while True:
        library.call("virEventRunDefaultImpl")


def _free(pointer: c_void_p) -> None:
    """Give back what the library has allocated for us."""
    free = ctypes.CDLL(None).free
    free.restype, free.argtypes = None, (c_void_p,)
    free(pointer)


class Domain:
    """A domain of the libvirt that virsh would ask, over a connection of its own.

    The callbacks: ``on_event`` with an event of QEMU's, of those ``names``; ``on_stopped`` when the
    domain runs no more, behind all of them; ``on_closed`` when libvirt is gone.

    Raises UsageError without the library, NoDomain without the domain, LibvirtError.
    """

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        on_event: Callable[[dict[str, Any]], None],
        on_stopped: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._library = library = _library()
        self._lock = threading.Lock()  # nothing is freed between a look at it and its use
        self._undo: list[tuple[Any, ...]] = []
        self._event = _EVENT(lambda c, d, event, s, us, data, o: on_event(_event(event, data)))
        self._life = _LIFE(lambda c, d, kind, why, o: _life(kind, on_stopped))
        self._close = _CLOSE(lambda c, why, o: on_closed())
        _kept.extend((self._event, self._life, self._close))
        self._connection = library.call("virConnectOpen", None)
        self._undo.append(("virConnectClose", self._connection))
        try:
            find = "virDomainLookupByName"
            self._domain = library.call(find, self._connection, name.encode())
            self._undo.append(("virDomainFree", self._domain))
            self._register(f"^({'|'.join(names)})$")
        except BaseException:
            self.close()
            raise

    def _register(self, regex: str) -> None:
        call, us, where = self._library.call, self._connection, (self._connection, self._domain)
        call("virConnectRegisterCloseCallback", us, self._close, None, None)
        self._undo.append(("virConnectUnregisterCloseCallback", us, self._close))
        what: tuple[Any, ...] = (regex.encode(), self._event, None, None, _REGEX)
        number = call("virConnectDomainQemuMonitorEventRegister", *where, *what)
        self._undo.append(("virConnectDomainQemuMonitorEventDeregister", us, number))
        what = (_LIFECYCLE, self._life, None, None)
        number = call("virConnectDomainEventRegisterAny", *where, *what)
        self._undo.append(("virConnectDomainEventDeregisterAny", us, number))

    def is_active(self) -> bool:
        """Whether it runs, or is paused.  Raises LibvirtError."""
        return bool(self._library.call("virDomainIsActive", self._domain))

    def is_autostarted(self) -> bool:
        """Whether libvirt starts it when it starts itself; a transient one it cannot."""
        is_on = c_int(0)
        try:
            self._library.call("virDomainGetAutostart", self._domain, byref(is_on))
        except LibvirtError:
            return False
        return bool(is_on.value)

    def is_reached(self) -> bool:
        """Whether the connection stands."""
        with self._lock:
            if not self._undo:
                return False
            try:
                return bool(self._library.call("virConnectIsAlive", self._connection))
            except LibvirtError:
                return False

    def command(self, text: str, files: Sequence[int] = ()) -> dict[str, Any]:
        """QEMU's answer to a QMP command, in JSON, which gets copies of ``files``.

        Raises LibvirtError.
        """
        call, domain, answer = self._library.call, self._domain, c_void_p()
        with self._lock:
            if not self._undo:
                raise LibvirtError("libvirt was left")
            call("virDomainRef", domain)
        try:
            if files:
                given: tuple[Any, ...] = (len(files), (c_int * len(files))(*files), None, None)
                name = "virDomainQemuMonitorCommandWithFiles"
            else:
                given, name = (), "virDomainQemuMonitorCommand"
            call(name, domain, text.encode(), *given, byref(answer), 0)
        finally:
            self._library.quietly("virDomainFree", domain)
        try:
            found = json.loads(ctypes.string_at(answer.value or 0))
        finally:
            _free(answer)
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        """Leave libvirt; a command that is under way is seen to its end."""
        with self._lock:
            undo, self._undo = self._undo, []
        for name, *arguments in reversed(undo):
            self._library.quietly(name, *arguments)


def _event(name: bytes, data: bytes | None) -> dict[str, Any]:
    """An event as QMP has it."""
    return {"event": name.decode(), "data": json.loads(data) if data else {}}


def _life(kind: int, on_stopped: Callable[[], None]) -> int:
    """What happens to a domain as a whole; what this returns means nothing."""
    if kind == _STOPPED:
        on_stopped()
    return 0
