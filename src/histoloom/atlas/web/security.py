"""Access control: every request is checked before the application sees it.

The atlas has no accounts. A request must name this computer in its header Host (against DNS rebinding). A request that
changes something must come from the atlas's own pages (against other pages in the same browser). Where other computers
can reach the atlas, every request also needs a token, those for pictures and files included.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from histoloom.errors import UserError

MAX_BODY = 1_000_000
"""Bytes of a request's body."""

UPLOADS, LAYOUTS = "/api/draw/own", "/api/paint/import"
"""The addresses that accept files: pictures, and layouts of tissues."""
UPLOAD_TYPES = {
    UPLOADS: frozenset({"image/png", "image/jpeg"}),
    LAYOUTS: frozenset({"image/png", "application/geo+json"}),
}
MAX_UPLOAD = 60_000_000
"""Bytes of a file."""

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_ALL_INTERFACES = frozenset({"0.0.0.0", "::"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_BODY_TIMEOUT = 30.0  # seconds
_MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class Access:
    """Where the atlas listens, and the token that each request needs; None only if it listens on this computer."""

    host: str = "127.0.0.1"
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is None and not self.is_local:
            raise UserError(
                f"--host {self.host} lets other computers in, which needs a token: "
                f"histoloom atlas RUN --host {self.host} --token {secrets.token_urlsafe(24)}"
            )
        if self.token is not None and (len(self.token) < _MIN_TOKEN_LENGTH or not self.token.isascii()):
            raise UserError(
                f"the token must have at least {_MIN_TOKEN_LENGTH} letters, digits or signs; "
                f"such as --token {secrets.token_urlsafe(24)}"
            )

    @property
    def is_local(self) -> bool:
        """Whether it listens on this computer alone."""
        return self.host in _LOOPBACK

    def accepts_host(self, name: str) -> bool:
        """Whether ``name`` in the header Host is the atlas's. A name server can rebind names, not IP addresses."""
        if name in _LOOPBACK or name == self.host.lower():
            return True
        if self.host not in _ALL_INTERFACES:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name == socket.gethostname().lower()
        return True

    @property
    def cookie_name(self) -> str:
        """The name of the cookie that stands for the token; it differs between several atlases on one computer."""
        return f"histoloom-{_digest(self.token or '', 'name')[:8]}"

    @property
    def cookie_value(self) -> str:
        """A hash of the token, from which the token cannot be read."""
        return _digest(self.token or "", "secret")

    def is_authenticated(self, headers: Headers) -> bool:
        """Whether a request carries the token, as a cookie or as ``Authorization: Bearer``."""
        assert self.token is not None, "called only where there is one"
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(credentials.strip(), self.token):
            return True
        cookies: dict[str, str] = {}
        for line in headers.getlist("cookie"):
            with suppress(CookieError):
                cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return _equal(cookies.get(self.cookie_name, ""), self.cookie_value)


class Guard:
    """ASGI middleware: Host, token, Origin, type and size of the body; and the headers of every response."""

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self.app = app
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, redirect it, or pass it on to the application."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: nothing here uses them
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    answer.setdefault(name, value)  # the report has a policy of its own
                answer.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        location = self._location_without_token(scope)
        refusal = self._refusal(scope, headers=headers, has_token=location is not None)
        if refusal is not None:
            await _refuse(send_with_headers, *refusal)
        elif location is not None:
            await _redirect(send_with_headers, location, cookie=f"{self.access.cookie_name}={self.access.cookie_value}")
        else:
            await self._pass_on(scope, receive, send_with_headers, headers=headers)

    def _refusal(self, scope: Scope, *, headers: Headers, has_token: bool) -> tuple[int, str] | None:
        """Status and message if the request is refused; None if it is allowed."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.accepts_host(_host_name(hosts[0])):
            return 421, "this address is not the atlas's; open the one that the terminal shows"
        if self.access.token is not None and not has_token and not self.access.is_authenticated(headers):
            return 401, "a token is needed: open the whole address that the terminal shows"
        if scope["method"] in _SAFE_METHODS:
            return None

        # Changes may come from the atlas's own pages, or from a program that is no browser.
        origin = headers.get("origin")
        if origin is None:
            is_own = headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
        else:
            is_own = origin.lower() in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}")
        return (
            None
            if is_own
            else (403, "this request comes from another page; only the atlas's own pages may change anything")
        )

    def _location_without_token(self, scope: Scope) -> str | None:
        """Where to redirect a page whose address has the correct token; None for other requests."""
        if self.access.token is None or scope["method"] != "GET":
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if not any(key == "token" and _equal(value, self.access.token) for key, value in query):
            return None
        rest = urlencode([(key, value) for key, value in query if key != "token"])
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0]
        # Two slashes at the beginning would lead to another computer.
        return "/" + path.lstrip("/\\") + (f"?{rest}" if rest else "")

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, *, headers: Headers) -> None:
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_file = scope["method"] == "POST" and content_type in UPLOAD_TYPES.get(scope["path"], ())
        most = MAX_UPLOAD if is_file else MAX_BODY
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or len(declared) > 18 or int(declared) > most:
            await _refuse(send, 413, f"the request is too large; at most {most:,} bytes are accepted")
            return
        try:
            body = await asyncio.wait_for(_body(receive, most=most), _BODY_TIMEOUT)
        except TimeoutError:
            await _refuse(send, 408, "the request did not arrive in time")
            return
        if body is None:
            await _refuse(send, 413, f"the request is too large; at most {most:,} bytes are accepted")
            return
        if body and scope["method"] not in _SAFE_METHODS and content_type != "application/json" and not is_file:
            await _refuse(send, 415, "only application/json is accepted")
            return
        if body and not is_file and not _is_text(body):
            await _refuse(send, 422, "the request is not text in UTF-8")
            return

        waiting = [body]

        async def receive_again() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await receive()

        await self.app(scope, receive_again, send)


async def _body(receive: Receive, *, most: int) -> bytes | None:
    """The whole body, read piece by piece; None if it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


async def _refuse(send: Send, status: int, line: str) -> None:
    body = json.dumps({"detail": line}).encode()
    headers: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
    ]
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _redirect(send: Send, location: str, *, cookie: str) -> None:
    """Redirect to the address without the token, so that neither the browser's history nor a screenshot shows it."""
    headers = [
        (b"location", location.encode("latin-1", "replace")),
        (b"set-cookie", f"{cookie}; Path=/; HttpOnly; SameSite=Lax".encode()),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _is_text(body: bytes) -> bool:
    """Whether all text in the JSON can be encoded as UTF-8; half of a surrogate pair cannot, escaped or not."""
    try:
        if b"\0" in body:  # UTF-16 or UTF-32, which the JSON parser would detect
            return False
        text = body.decode()
        if "\\u" in text:
            json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeError:
        return False
    except (ValueError, RecursionError):
        return True  # not JSON: the application has a better message for that
    return True


def _host_name(host: str) -> str:
    """The name in a Host header, without its port and without brackets; empty if it is not valid."""
    try:
        parts = urlsplit(f"//{host}")
        return "" if "@" in host or parts.path or parts.query or parts.fragment else (parts.hostname or "")
    except ValueError:
        return ""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(("histoloom", *parts)).encode()).hexdigest()


def _equal(value: str, expected: str) -> bool:
    return hmac.compare_digest(value.encode("utf-8", "replace"), expected.encode())


def browser_url(access: Access, *, port: int) -> str:
    """The URL to open in a browser; if the atlas listens on all interfaces, with this computer's IP address."""
    host = access.host
    if host in _ALL_INTERFACES:
        # This computer's IP address in its network. Nothing is sent to find it. Loopback if there is no network.
        family, remote, host = socket.AF_INET, "192.0.2.1", "127.0.0.1"
        if ":" in access.host:
            family, remote, host = socket.AF_INET6, "2001:db8::1", "::1"
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((remote, 9))
            host = str(probe.getsockname()[0])
    token = "" if access.token is None else "?" + urlencode({"token": access.token})
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{token}"
