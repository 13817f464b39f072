"""TLS between the hosts, behind plain sockets.

``wrap`` makes a connection secure and returns one end of a socket pair; a thread pumps between
the other end and the TLS connection.  So whoever uses a connection, by readers, by peeking or by
threads of its own, need not know of TLS, and an SSL object is never used by two threads at once.

Both sides show a certificate, and each verifies the other's against the operator's own CA.  Hosts
are mostly known by addresses, so names are not compared, unless a name is given that both
certificates have to be issued for.  In TLS 1.3 a client's handshake ends before the server has
looked at its certificate; so the server then says one byte more, and what was refused is known
where it can be told.  The client answers with one, as it may have refused the server's name.

Each direction holds no more than one buffer.  What was sent before one side ended arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

from colo.config import TlsFiles, VmConfig
from colo.errors import ChannelLost, UsageError
from colo.transport.sockets import quick_acks, readable, tune, writable

__all__ = ["Tls", "let_go", "make_tls", "wrap"]

_HANDSHAKE_S: Final = 3.0
#: So long what one side of colo sent before it closed may take to be gone.
_LINGER_S: Final = 5.0
_EXIT_S: Final = 1.0
_CHUNK: Final = 256 << 10
_WELCOME: Final = b"\n"
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNEXPECTED_MESSAGE")

_T = TypeVar("_T")

_pumps: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


class Tls:
    """Makes connections secure by the files of a VM file's ``[tls]``.  Raises UsageError.

    They are read again for each connection: a certificate that was renewed needs no restart.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        _context(files, server_side=True)

    def check(self) -> None:
        """Have the two sides of a connection of our own accept each other.

        So what the other host would refuse is seen here: a certificate that is of another CA, has
        expired, or is issued for another name.  Raises UsageError.
        """
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = _context(self._files, False).wrap_bio(back, there)
        server = _context(self._files, True).wrap_bio(there, back, server_side=True)
        try:
            for side in (client, server, client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
            _check_name(client, self._files.name)
        except ssl.SSLError as error:
            raise UsageError(
                f"[tls] certificate = {self._files.certificate}: {_why(error)}"
            ) from error
        except ChannelLost as error:
            raise UsageError(f"[tls] name: {error}") from error

    async def connect(self, sock: socket.socket) -> socket.socket:
        """Secure a connection that we made.  Raises ChannelLost; ``sock`` is closed then."""
        return await self._wrap(sock, server_side=False)

    async def accept(self, sock: socket.socket) -> socket.socket:
        """Secure a connection that we accepted.  Raises ChannelLost; ``sock`` is closed then."""
        return await self._wrap(sock, server_side=True)

    async def _wrap(self, sock: socket.socket, server_side: bool) -> socket.socket:
        try:
            context = _context(self._files, server_side)
        except UsageError as error:
            sock.close()
            raise ChannelLost(f"no TLS just now: {error}") from error
        return await wrap(sock, context, server_side, self._files.name)


def make_tls(config: VmConfig) -> Tls | None:
    """The TLS of a VM file, or None where it has no ``[tls]``.  Raises UsageError."""
    return Tls(config.tls) if config.tls is not None else None


async def wrap(
    sock: socket.socket, context: ssl.SSLContext, server_side: bool, name: str | None
) -> socket.socket:
    """Do the handshake; return a plain socket for what goes over ``sock``, which it owns.

    ``name``: what the other side's certificate has to be issued for.  Raises ChannelLost.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(sock.close)
        try:
            tune(sock)
            tls = context.wrap_socket(sock, server_side, do_handshake_on_connect=False)
            stack.callback(tls.close)
            async with asyncio.timeout(_HANDSHAKE_S):
                await _finish(tls, tls.do_handshake)
                _check_name(tls, name)
                await _welcome(tls, server_side)
        except TimeoutError:
            raise ChannelLost(f"no TLS handshake within {_HANDSHAKE_S:.0f} s") from None
        except OSError as error:
            raise ChannelLost(_why(error)) from error
        stack.pop_all()
    outer, inner = socket.socketpair()
    for end in (outer, inner):
        tune(end)
    thread = threading.Thread(target=_pump, args=(tls, outer), name="colo-tls", daemon=True)
    _pumps.add(thread)
    thread.start()
    return inner


def let_go() -> None:
    """Let what was said last arrive; for a process that ends right after it."""
    deadline = time.monotonic() + _EXIT_S
    for thread in list(_pumps):
        thread.join(max(0.0, deadline - time.monotonic()))


# -- the handshake ------------------------------------------------------------------------


def _context(files: TlsFiles, server_side: bool) -> ssl.SSLContext:
    """Raises UsageError with the file that cannot be used."""
    kind = ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if server_side:
        context.num_tickets = 0
    try:
        context.load_verify_locations(files.ca)
    except OSError as error:
        raise UsageError(f"[tls] ca = {files.ca}: {_reason(error)}") from error
    asked = []

    def no_password() -> str:
        """Of a key that is encrypted: nobody is there to be asked."""
        asked.append(True)
        return ""

    try:
        context.load_cert_chain(files.certificate, files.key, password=no_password)
    except OSError as error:
        if asked:
            raise UsageError(
                f"[tls] key = {files.key}: it has a password, and nobody is there to be asked: "
                f"`openssl pkey -in {files.key} -out NEW` takes it off"
            ) from error
        which = f"[tls] certificate = {files.certificate}, key = {files.key}"
        raise UsageError(f"{which}: {_reason(error)}") from error
    return context


def _check_name(tls: ssl.SSLSocket | ssl.SSLObject, name: str | None) -> None:
    if name is None:
        return
    certificate: dict[str, Any] = tls.getpeercert() or {}
    names = [str(value) for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
    if name not in names:
        issued = ", ".join(names) or "no name"
        raise ChannelLost(f"its certificate is issued for {issued}, not for {name}")


async def _welcome(tls: ssl.SSLSocket, server_side: bool) -> None:
    """Hear that our certificate is accepted, and say so of the other one, the server first."""
    try:
        if server_side:
            await _finish(tls, lambda: tls.send(_WELCOME))
        heard = await _finish(tls, lambda: tls.recv(len(_WELCOME)))
        if heard and not server_side:
            await _finish(tls, lambda: tls.send(_WELCOME))
    except (ssl.SSLEOFError, ConnectionError):
        heard = b""
    if not heard:
        raise ChannelLost(
            "it does not accept our certificate: it may be issued for another [tls] name"
        )


async def _finish(tls: ssl.SSLSocket, step: Callable[[], _T]) -> _T:
    """Repeat a step of a connection that does not block, until it is done."""
    while True:
        try:
            return step()
        except ssl.SSLWantReadError:
            await readable(tls)
        except ssl.SSLWantWriteError:
            await writable(tls)


def _why(error: OSError) -> str:
    """What went wrong in a handshake, in words for the side that reports it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    reason = getattr(error, "reason", None) or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it shows no certificate"
    if reason in _NO_TLS:
        return "it does not speak TLS: both VM files need [tls]"
    if "ALERT" in reason:
        return f"it does not accept our certificate: {_reason(error)}"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return "it ended the connection within the TLS handshake"
    return f"the TLS handshake failed: {_reason(error)}"


def _reason(error: OSError) -> str:
    """The reason alone, without OpenSSL's places in its source."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it is not in PEM form").lower().replace("_", " ")
    return error.strerror or str(error)


# -- the pump -----------------------------------------------------------------------------


class _Way:
    """One direction: reads from ``source`` and writes to ``sink``, neither of which blocks.

    ``waits`` is what it waits for: a file descriptor and poll's events.  Where the sink is
    broken, what comes is dropped, and the other direction tells the end.
    """

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source = source
        self._sink = sink
        self._acknowledge = quick_acks(source)
        self._room = memoryview(bytearray(_CHUNK))
        self._left = self._room[:0]
        self.ended = False
        self.waits = (-1, 0)

    def move(self) -> bool:
        """Move what can be moved; return whether the source has ended and all is written."""
        while self._write():
            if self.ended:
                return True
            if not self._read():
                return False
        return False

    def _write(self) -> bool:
        """Write what is left; False where that has to wait."""
        try:
            while self._left:
                self._left = self._left[self._sink.send(self._left) :]
        except OSError as error:
            events = _events(error, select.POLLOUT)
            if events:
                self.waits = (self._sink.fileno(), events)
                return False
            self._left = self._room[:0]
        return True

    def _read(self) -> bool:
        """Read until it would block, or the buffer is full; False where nothing came."""
        count = 0
        try:
            while count < _CHUNK:
                got = self._source.recv_into(self._room[count:])
                if not got:
                    self.ended = True
                    break
                count += got
        except OSError as error:
            events = _events(error, select.POLLIN)
            self.ended = not events
            self.waits = (self._source.fileno(), events)
        self._left = self._room[:count]
        if count:
            self._acknowledge()
        return self.ended or count > 0


def _pump(tls: ssl.SSLSocket, outer: socket.socket) -> None:
    """Pump both ways until one of them has ended, then close both ends.

    That our side has closed is seen also while nothing can be written: a deadline begins then.
    """
    inward, outward = _Way(tls, outer), _Way(outer, tls)
    deadline: float | None = None
    with tls, outer:
        while not (inward.move() | outward.move()):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            events = {outer.fileno(): 0} if deadline is None else {}
            for number, wanted in (inward.waits, outward.waits):
                events[number] = events.get(number, 0) | wanted
            poll = select.poll()
            for number, wanted in events.items():
                poll.register(number, wanted)
            seen = dict(poll.poll(None if left is None else left * 1e3))
            if deadline is None and seen.get(outer.fileno(), 0) & select.POLLHUP:
                deadline = time.monotonic() + _LINGER_S
        with contextlib.suppress(OSError):
            tls.unwrap()  # says that this is the end, and does not wait for the answer


def _events(error: OSError, otherwise: int) -> int:
    """What to wait for after this error; 0 where it is the end."""
    if isinstance(error, ssl.SSLWantReadError):
        return select.POLLIN
    if isinstance(error, ssl.SSLWantWriteError):
        return select.POLLOUT
    return otherwise if isinstance(error, BlockingIOError) else 0
