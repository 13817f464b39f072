"""Who may see the page, and who may give orders.

State folders are their owner's alone, and the page shows what is in them.  On loopback it is for
whoever is on this host; anywhere else, and wherever orders are taken, for who has the token.  The
browser of such a user visits other pages as well, and those get nothing: a name of theirs that
leads here is refused, a cookie goes to our own page only, and an order needs a field that no form
of another page can set.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Final

from colo.errors import UsageError
from colo.http.server import Request, Response, refusal
from colo.transport.address import Address, parse_address

__all__ = ["Guard", "address_of", "is_loopback", "page_at", "read_token"]

_DEFAULT: Final = "127.0.0.1:9634"
_COOKIE: Final = "colo-token"
_TOKEN_LEAST: Final = 16
_TOKEN_MOST: Final = 256
_ORDER_FIELD: Final = "x-colo-order"


def address_of(text: str | None) -> Address:
    """HOST:PORT, or where the page is by default.  Raises UsageError."""
    try:
        return parse_address(f"tcp:{_DEFAULT if text is None else text}")
    except UsageError:
        raise UsageError(f"--listen {text}: HOST:PORT") from None


def page_at(address: Address, token: str | None, is_new: bool) -> str:
    """What a user is told: where the page is; a token that he knows is not told again."""
    at = f"http://{f'{address}'.removeprefix('tcp:')}/"
    if token is None:
        return f"colo web: {at}"
    return f"colo web: {at}?token={token if is_new else '…'}"


def is_loopback(address: Address) -> bool:
    """Whether only this host reaches it."""
    if address.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.host).is_loopback
    except ValueError:
        return False


def read_token(path: Path | None) -> str:
    """The token in a file, or a new one.  Raises UsageError."""
    if path is None:
        return secrets.token_urlsafe(24)
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"--token-file {path}: {why}") from error
    is_one = token.isascii() and token.isprintable() and not set(token) & set(' ",;\\')
    if not is_one or not _TOKEN_LEAST <= len(token) <= _TOKEN_MOST:
        raise UsageError(
            f"--token-file {path}: one line of {_TOKEN_LEAST} to {_TOKEN_MOST} letters, digits or "
            "signs"
        )
    return token


class Guard:
    """Lets requests in; without a ``token``, those that name this host as it is named here."""

    def __init__(self, address: Address, token: str | None) -> None:
        self._token = token
        names = {"localhost", "127.0.0.1", "[::1]", address.host, f"[{address.host}]"}
        self._names = {f"{name}{port}" for name in names for port in ("", f":{address.port}")}

    def refuse(self, request: Request) -> Response | None:
        """Why a request is not answered, or None where it is."""
        if self._token is None:
            if request.fields.get("host", "").lower() not in self._names:
                return refusal(HTTPStatus.FORBIDDEN, "this page is known by another name")
            return None
        told = request.query.get("token")
        if told is not None and self._is(told):
            cookie = f"{_COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/; Max-Age=31536000"
            fields = {"Location": "/", "Set-Cookie": cookie}
            return Response(status=HTTPStatus.SEE_OTHER, fields=fields)
        if self._is(_cookie(request)) or self._is(_bearer(request)):
            return None
        return refusal(
            HTTPStatus.UNAUTHORIZED, "a token is needed: `colo web` says how it is given"
        )

    def refuse_order(self, request: Request) -> Response | None:
        """Why an order is not taken, or None where it is."""
        if self._token is None or request.fields.get(_ORDER_FIELD) != "1":
            return refusal(HTTPStatus.FORBIDDEN, "orders come from the page itself")
        return None

    def _is(self, told: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(told.encode("utf-8", "replace"), self._token.encode())


def _cookie(request: Request) -> str:
    try:
        morsel = SimpleCookie(request.fields.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def _bearer(request: Request) -> str:
    kind, _, value = request.fields.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else ""
