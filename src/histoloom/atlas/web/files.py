"""Scripts and style sheets, read once. A request's name is looked up in a table and never becomes a path."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, Request
from fastapi.responses import Response

from histoloom.atlas.web.errors import NotFound
from histoloom.atlas.web.routing import cached_response

router = APIRouter(tags=["pages"])

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@router.get("/static/{name}")
def static(name: str, request: Request) -> Response:
    """A file of ``static/``."""
    content = _contents().get(name)
    if content is None:
        raise NotFound("there is no such file")
    made_from = [hashlib.sha256(content).hexdigest()]
    media_type = _TYPES[PurePath(name).suffix]
    return cached_response(request, made_from=made_from, immutable=False, media_type=media_type, make=lambda: content)


@cache
def _contents() -> dict[str, bytes]:
    """The files by name."""
    atlas = files("histoloom.atlas")
    entries = [*(atlas / "web" / "static").iterdir(), atlas / "templates" / "tokens.css"]
    return {entry.name: entry.read_bytes() for entry in entries if PurePath(entry.name).suffix in _TYPES}
