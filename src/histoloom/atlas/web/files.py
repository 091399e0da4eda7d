"""Scripts and style sheets: read once, found by name in a table; a request's text never becomes a path."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from histoloom.atlas.web.http_errors import NotFound

router = APIRouter(tags=["pages"])

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class _File:
    data: bytes
    media_type: str
    etag: str


@router.get("/static/{name}")
def static(name: str, request: Request) -> Response:
    """A file of ``static/``."""
    file = _files().get(name)
    if file is None:
        raise NotFound("there is no such file")
    headers = {"ETag": file.etag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.media_type, headers=headers)


@cache
def _files() -> dict[str, _File]:
    atlas = files("histoloom.atlas")
    found = {entry.name: _file(entry) for entry in (atlas / "web" / "static").iterdir() if _suffix(entry) in _TYPES}
    return found | {"tokens.css": _file(atlas / "templates" / "tokens.css")}


def _file(entry: Traversable) -> _File:
    data = entry.read_bytes()
    return _File(data, _TYPES[_suffix(entry)], f'"{hashlib.sha256(data).hexdigest()[:16]}"')


def _suffix(entry: Traversable) -> str:
    return "." + entry.name.rpartition(".")[2]
