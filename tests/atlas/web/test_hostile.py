"""Hostile requests, generated from the description of every route: none breaks the atlas or leads out of its run.

``HISTOLOOM_HOSTILE_REQUESTS`` says how many schemathesis generates (400 if it does not); the ones written down here
come on top. A failure names the request.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pandas as pd
import pytest
import requests
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode

import histoloom
from histoloom.atlas.jobs.report_job import ReportJob, ReportStatus
from histoloom.atlas.web.app import create_app
from histoloom.atlas.web.security import MAX_BODY, Access
from histoloom.config import RuntimeConfig
from histoloom.errors import UserError
from histoloom.run.directory import Run
from histoloom.training.devices import accelerator

USUAL = 400
REQUESTS = int(os.environ.get("HISTOLOOM_HOSTILE_REQUESTS", str(USUAL)))
HERE = "http://127.0.0.1"

TEXTS = (
    *("../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/config.yaml", "....//....//config.yaml"),
    *(
        "/etc/passwd",
        "file:///etc/passwd",
        "\\\\host\\share",
        "C:\\Windows\\win.ini",
        "~/.ssh/id_rsa",
        "con",
        "slide-0/../slide-0",
    ),
    *(
        "\0",
        "slide-0\0.jpg",
        "%00",
        "\r\nSet-Cookie: a=b",
        "\n",
        "\t",
        "\x7f",
        "\u202egnp.exe",
        "\ufeff",
        "\ud7ff",
        "\U0010ffff",
    ),
    *(
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "javascript:alert(1)",
        "{{7*7}}",
        "{% raw %}",
        "${7*7}",
    ),
    *(
        "%s%s%n",
        "%(x)s",
        "{0.__class__}",
        "' OR 1=1 --",
        "; ls",
        "| id",
        "$(id)",
        "`id`",
        "=cmd|'/c calc'!A1",
        "__proto__",
    ),
    *(
        "0",
        "-1",
        "-0",
        "1e3",
        "1_000",
        "٣",
        "0x10",
        "2.0",
        "nan",
        "inf",
        "9" * 18,
        "9" * 400,
        "9" * 5000,
        "true",
        "null",
        "[]",
        "{}",
    ),
    *(
        "a" * 301,
        "é" * 200,
        "a" * 20_000,
        " ",
        "",
        ".",
        "..",
        "*",
        "?",
        "#",
        "k2",
        "-",
        "%",
        "%zz",
        "%ed%a0%80",
        "%ff%fe",
    ),
)

BODIES = (
    *(
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"a"',
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b"1" * 5000,
        b"1e999",
        b"NaN",
        b"\xff\xfe",
    ),
    *(
        b"\xef\xbb\xbf{}",
        b"{}\0",
        rb'{"name": "\ud800"}',
        b'{"__proto__": {}}',
        b"{" + b'"a":1,' * 50_000 + b'"a":1}',
        b" " * MAX_BODY,
    ),
    *(
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32"),
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>",
    ),
)

TYPES = (
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "multipart/form-data; boundary=a",
    "a" * 5000,
    "",
)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


class Callback:
    """Which files Python opens and changes, and what it starts, while it watches. An audit hook stays for good."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[tuple[str, str]] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.putenv", "os.unsetenv"):  # accelerate sets the variables of its environment back
            return
        if self.on and (event == "open" or event.startswith(("os.", "shutil.", "subprocess.", "socket.connect"))):
            self.seen += [(event, os.fsdecode(one)) for one in arguments[:2] if isinstance(one, str | bytes | Path)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def outside(self, *allowed: Path) -> set[tuple[str, str]]:
        """What was touched elsewhere; modes and flags are no paths."""
        places = tuple(str(place.resolve()) for place in allowed)
        return {
            (event, path)
            for event, path in self.seen
            if os.sep in path and not str(Path(path).resolve()).startswith(places)
        }


WATCH = Callback()
PACKAGES = [Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib")]


class NoReport(ReportJob):
    """Begins no process: what that one reads and writes would not be watched here."""

    def start(self) -> ReportStatus:
        raise UserError("no report is made in this test")


@pytest.fixture(scope="module")
def app(published: Run, write_map: Any) -> Any:
    """The atlas of a run that hostile requests may change, as far as the atlas lets them."""
    write_map(published)
    created = create_app(published.path, access=Access())
    view = created.state.view
    view.cached("report job", depends_on=[], make=lambda: NoReport(view.path))
    return created


@pytest.fixture(scope="module")
def hostile_client(app: Any) -> Iterator[TestClient]:
    """A client whose first requests, which load what libraries read once, are over before anything is watched.

    Entered once, it keeps one event loop for all requests instead of starting one for each.
    """
    for module in pkgutil.walk_packages(histoloom.__path__, "histoloom."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("torch._dynamo")  # diffusers' samplers load it
    pd.read_csv(io.StringIO("a\n1\n"))  # asks once for the number of CPUs
    Image.init()  # a PDF of a gallery does: Pillow looks once for the modules of all of its formats
    accelerator(RuntimeConfig())  # asks once what the CPU computes in
    with TestClient(app, base_url=HERE, follow_redirects=False, raise_server_exceptions=False) as client:
        for path, about in app.openapi()["paths"].items():
            parameters = [one for described in about.values() for one in described.get("parameters", ())]
            address = path
            for one in parameters:
                address = address.replace(f"{{{one['name']}}}", _plain(one))
            client.get(address)
        yield client


@pytest.fixture(autouse=True)
def _nothing_outside_is_touched(published: Run) -> Iterator[None]:
    """Around every test: the run's neighbours stay as they are, and Python opens but run, slides and itself."""
    slides = pd.read_parquet(published.folder("patches") / "slides.parquet")["file"].map(Path)
    before = _tree(published.path.parent)
    WATCH.seen.clear()
    yield
    found = WATCH.outside(published.path, *slides, Path(histoloom.__file__).parent, *PACKAGES)
    assert not found, sorted(found)[:10]
    assert _tree(published.path.parent) == before


def test_generated_requests(app: Any, hostile_client: TestClient) -> None:
    # An operation that schemathesis cannot read has no ok(), and fails the test.
    operations = [
        result.ok()  # type: ignore[union-attr]
        for result in schemathesis.openapi.from_dict(app.openapi()).get_all_operations()
    ]
    # About a fifth of the scans find nothing to send (no operation without parameters has an invalid request), so that
    # one turn is usually enough. Few long scans: each starts with the simplest request, and costs time of its own.
    each = -(-REQUESTS // round(0.8 * 2 * len(operations)))
    sent = turn = 0
    while sent < REQUESTS:
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                sent += _scan(operation, hostile_client, mode=mode, n=each, turn=turn)
        turn += 1
        assert turn < 20, "almost nothing could be generated"


def test_every_text_in_every_route(app: Any, hostile_client: TestClient) -> None:
    """In a full scan each place of a route gets every text, else they take turns."""
    turns = 1 if REQUESTS > USUAL else 3
    for path, about in app.openapi()["paths"].items():
        parameters = [one for described in about.values() for one in described.get("parameters", ())]
        for place, wanted in enumerate(parameters):
            for text in TEXTS[place % turns :: turns]:
                values = {one["name"]: text if one is wanted else _plain(one) for one in parameters}
                address = path
                for one in parameters:
                    if one["in"] == "path":
                        address = address.replace(f"{{{one['name']}}}", quote(values[one["name"]], safe="%"))
                query = {wanted["name"]: text} if wanted["in"] == "query" else {}
                _ask(hostile_client, "GET", address, params=query)


def test_every_method_and_body_at_every_address(app: Any, hostile_client: TestClient) -> None:
    for path, about in app.openapi()["paths"].items():
        address = path.replace("{k}", "2").replace("{cluster}", "0").replace("{", "").replace("}", "")
        for method in METHODS:
            _ask(hostile_client, method, address)
        for method in {found.upper() for found in about} & {"POST", "PUT", "PATCH", "DELETE"}:
            for body in BODIES:
                _ask(hostile_client, method, address, content=body, headers={"Content-Type": "application/json"})
            for kind in TYPES:
                _ask(hostile_client, method, address, content=b"{}", headers={"Content-Type": kind})


def _scan(operation: Any, client: TestClient, *, mode: GenerationMode, n: int, turn: int) -> int:
    """Send ``n`` generated requests; returns how many could be sent."""
    sent = []

    @seed(turn)
    @settings(
        max_examples=n,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        try:
            prepared = requests.Request(**case.as_transport_kwargs(base_url=HERE)).prepare()
        except (ValueError, requests.RequestException):
            return
        body = prepared.body or b""
        body = body if isinstance(body, bytes) else str(body).encode("utf-8", "replace")
        sent.append(_ask(client, str(prepared.method), str(prepared.url), content=body, headers=dict(prepared.headers)))

    with suppress(Unsatisfiable):  # nothing that is no text can stand in a path
        ask()
    return sum(sent)


def _ask(client: TestClient, method: str, address: str, **request: Any) -> bool:
    """Send one request; False where it is no HTTP."""
    try:
        with WATCH.watching():
            response = client.request(method, address, **request)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError, UnicodeError):
        return False
    assert response.status_code < 500, (method, address, request)
    if response.status_code >= 400 and response.request.url.path.startswith("/api/") and method != "HEAD":
        assert response.json().keys() == {"detail"}, (method, address, request)
        assert "\n" not in response.json()["detail"]
        assert "Traceback" not in response.text
    return True


def _plain(parameter: dict[str, Any]) -> str:
    """A harmless value."""
    return {"k": "2", "other": "4", "cluster": "0", "slide_id": "slide-0"}.get(parameter["name"], "a")


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything beside the run: sizes and times."""
    found = (path for path in folder.rglob("*") if path.is_file() and "run" not in path.relative_to(folder).parts[:1])
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}
