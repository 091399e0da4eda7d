"""Access control: which requests are accepted, which are refused, and what no response contains."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.websockets import WebSocketDisconnect

from histoloom.atlas.web.app import create_app
from histoloom.atlas.web.errors import Conflict
from histoloom.atlas.web.security import MAX_BODY, SECURITY_HEADERS, Access, browser_url
from histoloom.atlas.web.serve import listening
from histoloom.errors import UserError
from histoloom.run.directory import Run

TOKEN = "a-token-of-some-length"


class Note(BaseModel):
    """What the routes of these tests take."""

    text: str


def noting(run: Path, *, access: Access | None = None) -> FastAPI:
    """The atlas with routes that take something, fail, and say what a user did wrong."""
    app = create_app(run, access=access or Access())

    @app.post("/api/notes")
    def post(note: Note) -> Note:
        return note

    @app.get("/api/broken")
    def broken() -> None:
        raise KeyError("a secret of the program")

    @app.get("/api/wrong")
    def wrong() -> None:
        raise UserError("two\nlines with half a pair: \ud83d")

    @app.get("/api/conflict")
    def conflict() -> None:
        raise Conflict("someone was faster")

    return app


@pytest.fixture
def notes(published: Run) -> TestClient:
    return TestClient(noting(published.path), base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture
def guarded(published: Run) -> TestClient:
    """An atlas for other computers."""
    app = noting(published.path, access=Access("0.0.0.0", TOKEN))
    return TestClient(app, base_url="http://192.168.1.7:8765", follow_redirects=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8765", "localhost:80", "[::1]:8765", "LOCALHOST"])
def test_this_computer_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8765", "192.168.1.7", "", "0x7f000001"),
        *("127.0.0.1@evil.example", "evil.example#127.0.0.1", "[::1", "127.0.0.1/..", "localhost."),
    ],
)
def test_another_name_for_this_computer_is_not(client: TestClient, host: str) -> None:
    for path in ("/", "/api/map", "/static/common.js", "/openapi.json"):
        response = client.get(path, headers={"Host": host})
        assert response.status_code == 421
        assert "the one that the terminal shows" in response.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_only_the_atlas_itself_may_change_something(notes: TestClient, headers: dict[str, str], status: int) -> None:
    assert notes.post("/api/notes", json={"text": "a"}, headers=headers).status_code == status


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_only_json_is_accepted(notes: TestClient, kind: str) -> None:
    response = notes.post("/api/notes", content=b'{"text": "a"}', headers={"Content-Type": kind})
    assert (response.status_code, response.json()) == (415, {"detail": "only application/json is accepted"})


def test_a_large_request_is_refused(notes: TestClient) -> None:
    text = "a" * MAX_BODY
    assert notes.post("/api/notes", json={"text": text[:-100]}).status_code == 200
    assert notes.post("/api/notes", json={"text": text}).status_code == 413
    for length in ("-1", "1e3", "9" * 40, "²"):
        headers = {b"Content-Length": length.encode(), b"Content-Type": b"application/json"}
        assert notes.post("/api/notes", content=b"{}", headers=headers).status_code == 413


def test_a_large_request_in_pieces_is_refused_before_it_has_all_arrived(notes: TestClient) -> None:
    sent = []

    def pieces() -> Iterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield b'"' + b"a" * 65_535

    headers = {"Content-Type": "application/json"}
    assert notes.post("/api/notes", content=pieces(), headers=headers).status_code == 413


def test_a_large_request_in_pieces_over_a_real_socket(own_address: str) -> None:
    where = urlsplit(own_address)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=20)
    pieces = (b"a" * 65_536 for _ in range(64))
    try:
        connection.request("POST", "/api/map", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status in (405, 413)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the atlas hung up before all was sent
    finally:
        connection.close()


def test_errors_are_one_line_and_do_not_leak(notes: TestClient) -> None:
    broken = notes.get("/api/broken")
    assert (broken.status_code, broken.json()) == (500, {"detail": "something went wrong here; the terminal says more"})
    assert notes.get("/api/wrong").json() == {"detail": "two lines with half a pair: ?"}
    assert notes.get("/api/conflict").status_code == 409
    wrong = notes.post("/api/notes", json={"text": 3})
    assert (wrong.status_code, wrong.json()) == (422, {"detail": "text: Input should be a valid string"})
    torn = notes.post("/api/notes", content=b"{", headers={"Content-Type": "application/json"})
    assert (torn.status_code, torn.text.count("\n")) == (422, 0)
    for response in (broken, wrong, torn):
        assert {name: response.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert response.headers["Cache-Control"] == "no-store"


def test_half_a_pair_is_no_server_error(notes: TestClient) -> None:
    kind = {"Content-Type": "application/json"}
    for text in (rb'{"text": "\ud83d"}', b'{"text": "\xed\xa0\xbd"}', '{"text": "a"}'.encode("utf-16-le")):
        assert notes.post("/api/notes", content=text, headers=kind).status_code == 422
    whole = notes.post("/api/notes", content=rb'{"text": "\ud83d\ude00"}', headers=kind)
    assert whole.json() == {"text": "\N{GRINNING FACE}"}


@pytest.mark.parametrize("path", ["/", "/api/map", "/static/common.js", "/nothing", "/clusters/2/0", "/openapi.json"])
def test_every_answer_has_the_headers(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "server" not in response.headers
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", ["/", "/clusters/2/0", "/map", "/flow", "/nothing"])
def test_pages_hold_no_script_and_no_style_of_their_own(client: TestClient, path: str) -> None:
    page = client.get(path).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\son\w+=|javascript:", page)
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)


PATHS = (
    "/",
    "/api/map",
    "/api/clusters/2/0/mosaic.jpg",
    "/api/samples/k2-c0-0.png",
    "/static/common.js",
    "/openapi.json",
)


@pytest.mark.parametrize("path", PATHS)
def test_everything_wants_the_token(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 401
    for wrong in ("x" * len(TOKEN), TOKEN[:-1], TOKEN.upper(), "é"):
        assert guarded.get(path, params={"token": wrong}).status_code == 401
        assert guarded.get(path, headers={b"Authorization": f"Bearer {wrong}".encode()}).status_code == 401
    assert guarded.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)


def test_the_address_of_the_terminal_opens_it_and_the_token_leaves_the_address(guarded: TestClient) -> None:
    entered = guarded.get("/", params={"k": 2, "token": TOKEN})
    assert (entered.status_code, entered.headers["location"]) == (303, "/?k=2")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(entered.headers["set-cookie"].split("; "))
    assert TOKEN not in entered.headers["set-cookie"]
    assert [guarded.get(path).status_code for path in PATHS[2:]] == [200] * 4
    assert TOKEN not in guarded.get("/").text


def test_a_token_does_not_lead_to_another_computer(guarded: TestClient) -> None:
    for path in ("//evil.example/", "/%2fevil.example", r"/\evil.example"):
        entered = guarded.request("GET", f"http://192.168.1.7:8765{path}", params={"token": TOKEN})
        assert re.match(r"/(?![/\\])", entered.headers["location"])


def test_a_cookie_does_not_make_another_page_the_atlas(guarded: TestClient) -> None:
    guarded.get("/", params={"token": TOKEN})
    assert guarded.post("/api/notes", json={"text": "a"}).status_code == 200
    response = guarded.post("/api/notes", json={"text": "a"}, headers={"Origin": "http://evil.example"})
    assert response.status_code == 403


def test_a_name_that_was_not_given_is_not_answered_elsewhere_either(guarded: TestClient) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/", headers=bearer | {"Host": "evil.example"}).status_code == 421
    assert guarded.get("/", headers=bearer | {"Host": "10.0.0.1"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "token"), [("0.0.0.0", None), ("192.168.1.7", None), ("::", None), ("0.0.0.0", "short")]
)
def test_another_host_wants_a_token_of_some_length(host: str, token: str | None) -> None:
    with pytest.raises(UserError, match=r"--token [\w-]{20,}"):
        Access(host, token)


def test_answers_are_sent_at_once() -> None:
    """Without TCP_NODELAY each picture of a gallery waits 40 ms for the acknowledgement of the one before."""

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listening("127.0.0.1", port=0)
        async with await asyncio.start_server(connected, sock=listener) as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            value = await asyncio.wait_for(found, timeout=10)
            writer.close()
        return value

    # On a thread of its own: a browser's test may have left an event loop running on this one.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: asyncio.run(accepted())).result()


def test_a_port_in_use_is_one_line() -> None:
    with listening("127.0.0.1", port=0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is in use.*--port {port + 1}"):
            listening("127.0.0.1", port=port)
    with pytest.raises(UserError, match=r"--host no\.such\.place"):
        listening("no.such.place.invalid", port=0)


def test_addresses_can_be_typed() -> None:
    assert browser_url(Access(), port=8765) == "http://127.0.0.1:8765/"
    assert browser_url(Access("::1", TOKEN), port=80) == f"http://[::1]:80/?token={TOKEN}"
    everywhere = Access("0.0.0.0", TOKEN)
    found = re.fullmatch(rf"http://([\d.]+):80/\?token={TOKEN}", browser_url(everywhere, port=80))
    assert found
    assert found[1] != "0.0.0.0"
    assert everywhere.accepts_host(found[1])


def test_a_web_socket_is_closed(client: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/api/map"):
        pass
    assert closed.value.code == 1008
