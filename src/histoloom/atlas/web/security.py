"""Who may ask what: checked before any of the application sees a request.

The atlas has no accounts. On this computer it answers only requests that were addressed to this computer by name
(against DNS rebinding) and whose origin is the atlas itself (against other pages in the same browser); on any other
address it also wants a token with every request, pictures and files included.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from histoloom.errors import UserError

MAX_BODY = 1_000_000
"""Bytes of a request's body."""

HEADERS = {
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
_ANY = frozenset({"0.0.0.0", "::"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_SECONDS = 30.0  # that a body may take to arrive
_SHORTEST = 16  # characters of a token


@dataclass(frozen=True)
class Access:
    """Where the atlas listens and what it asks of a visitor; ``token`` is None only on this computer itself."""

    host: str = "127.0.0.1"
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is None and not self.local:
            raise UserError(
                f"--host {self.host} lets other computers in, which needs a token: "
                f"histoloom atlas RUN --host {self.host} --token {secrets.token_urlsafe(24)}"
            )
        if self.token is not None and (len(self.token) < _SHORTEST or not self.token.isascii()):
            raise UserError(
                f"the token must have at least {_SHORTEST} letters, digits or signs; "
                f"such as --token {secrets.token_urlsafe(24)}"
            )

    @property
    def local(self) -> bool:
        """Whether it listens on this computer alone."""
        return self.host in _LOOPBACK

    def addressed(self, name: str) -> bool:
        """Whether a request's Host names this place. Numbers cannot be rebound by a name server; names can."""
        if name in _LOOPBACK or name == self.host.lower():
            return True
        if self.host not in _ANY:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name == socket.gethostname().lower()
        return True

    @property
    def cookie(self) -> str:
        """The name of the cookie that stands for the token; several atlases on one computer keep theirs apart."""
        return f"histoloom-{_digest(self.token or '', 'name')[:8]}"

    @property
    def secret(self) -> str:
        """What the cookie holds: the token cannot be read from it."""
        return _digest(self.token or "", "secret")

    def proven(self, headers: Headers) -> bool:
        """Whether a request carries the token, as a cookie or as ``Authorization: Bearer``."""
        assert self.token is not None, "called only where there is one"
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(credentials.strip(), self.token):
            return True
        cookies: dict[str, str] = {}
        for line in headers.getlist("cookie"):
            with suppress(CookieError):
                cookies |= {name: morsel.value for name, morsel in SimpleCookie(line).items()}
        return _equal(cookies.get(self.cookie, ""), self.secret)


class Guard:
    """ASGI middleware: Host, token, Origin, type and size of the body; and the headers of every answer."""

    def __init__(self, app: ASGIApp, *, access: Access, failed: Callable[[Request], Response]) -> None:
        """``failed`` is the answer where the application fails unexpectedly; the error then goes on to the server."""
        self.app = app
        self.access = access
        self.failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: nothing here uses them
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer[name] = value
                answer.setdefault("Cache-Control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        location = self._location_without_token(scope)
        refusal = self._refusal(scope, headers=headers, has_token=location is not None)
        if refusal is not None:
            await _refuse(send_with_headers, *refusal)
        elif location is not None:
            await _redirect(send_with_headers, location, cookie=f"{self.access.cookie}={self.access.secret}")
        else:
            await self._pass_on(scope, receive, send_with_headers, headers=headers)

    def _refusal(self, scope: Scope, *, headers: Headers, has_token: bool) -> tuple[int, str] | None:
        """The status and the line with which a request is refused, None where it is allowed."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.addressed(_host_name(hosts[0])):
            return 421, "this address is not the atlas's; open the one that the terminal shows"
        if self.access.token is not None and not has_token and not self.access.proven(headers):
            return 401, "a token is needed: open the whole address that the terminal shows"
        if scope["method"] in _READING:
            return None

        # Changes come from the atlas's own pages, or from no page at all (a program).
        origin = headers.get("origin")
        if origin is None:
            is_own = headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
        else:
            is_own = origin.lower() in (f"http://{hosts[0].lower()}", f"https://{hosts[0].lower()}")
        return None if is_own else (403, "another page asked for this; only the atlas itself may")

    def _location_without_token(self, scope: Scope) -> str | None:
        """Where a page that is opened with the right token in its address is redirected to; None for other requests."""
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
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or len(declared) > 18 or int(declared) > MAX_BODY:
            await _refuse(send, 413, f"the request is too large; at most {MAX_BODY:,} bytes are taken")
            return
        try:
            body = await asyncio.wait_for(_body(receive), _SECONDS)
        except TimeoutError:
            await _refuse(send, 408, "the request did not arrive in time")
            return
        if body is None:
            await _refuse(send, 413, f"the request is too large; at most {MAX_BODY:,} bytes are taken")
            return
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if body and scope["method"] not in _READING and content_type != "application/json":
            await _refuse(send, 415, "only application/json is taken")
            return
        if body and not _is_text(body):
            await _refuse(send, 422, "the request is not text in UTF-8")
            return

        waiting = [body]

        async def receive_again() -> Message:
            if waiting:
                return {"type": "http.request", "body": waiting.pop(), "more_body": False}
            return await receive()

        await self._answer(scope, receive_again, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception:
            if not started:
                await self.failed(Request(scope))(scope, receive, send)
            raise


async def _body(receive: Receive) -> bytes | None:
    """The whole body, however it is cut into pieces; None where it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
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
    """Go on without the token in the address, so that neither history nor screenshots hold it."""
    headers = [
        (b"location", location.encode("latin-1", "replace")),
        (b"set-cookie", f"{cookie}; Path=/; HttpOnly; SameSite=Lax".encode()),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 303, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _is_text(body: bytes) -> bool:
    """Whether JSON holds only text that can be written again: half a surrogate pair cannot, escaped or not."""
    try:
        if b"\0" in body:  # another encoding, which JSON's reader would guess
            return False
        text = body.decode()
        if "\\u" in text:
            json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeError:
        return False
    except (ValueError, RecursionError):
        return True  # not JSON, which the application says better
    return True


def _host_name(host: str) -> str:
    """The name in a Host header, without its port and without brackets; empty where it makes no sense."""
    try:
        parts = urlsplit(f"//{host}")
        return "" if "@" in host or parts.path or parts.query or parts.fragment else (parts.hostname or "")
    except ValueError:
        return ""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(("histoloom", *parts)).encode()).hexdigest()


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def address(access: Access, *, port: int) -> str:
    """What to type into a browser; of an atlas that listens everywhere, the number under which others find it."""
    host = access.host
    if host in _ANY:
        # This computer's number in its network; nothing is sent to find it. Loopback where there is no network.
        family, remote, host = socket.AF_INET, "192.0.2.1", "127.0.0.1"
        if ":" in access.host:
            family, remote, host = socket.AF_INET6, "2001:db8::1", "::1"
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((remote, 9))
            host = str(probe.getsockname()[0])
    token = "" if access.token is None else "?" + urlencode({"token": access.token})
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{token}"
