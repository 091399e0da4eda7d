"""Pages from the templates: everything that is filled in is escaped, and nothing may be left undefined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from histoloom.atlas.report.text import count


@dataclass(frozen=True)
class Entry:
    """An entry of the navigation; it is current for its path and all below, or below one of ``also``."""

    path: str
    title: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class KLink:
    """The same page at another k: ``href`` is where, ``current`` whether it is this one."""

    k: int
    href: str
    current: bool
    chosen: bool


def render(request: Request, template: str, *, status: int = 200, k: int | None = None, **values: Any) -> HTMLResponse:
    """A template of ``templates/`` as a page; ``k`` is kept in the navigation's links."""
    text = (
        _environment()
        .get_template(template)
        .render(
            navigation=[_link(entry, request=request, k=k) for entry in request.app.state.navigation],
            run=request.app.state.view.title,
            k=k,
            status=status,
            **values,
        )
    )
    return HTMLResponse(text, status_code=status, headers={"Cache-Control": "no-store"})


def k_links(ks: Mapping[int, str], *, current: int, chosen: int) -> list[KLink]:
    """Links to the same page at every k; ``ks`` has where each lies."""
    return [KLink(k, href, k == current, k == chosen) for k, href in ks.items()]


def _link(entry: Entry, *, request: Request, k: int | None) -> dict[str, Any]:
    path = request.url.path
    current = path == entry.path or any(
        path.startswith(f"{start}/") for start in (entry.path.rstrip("/"), *entry.also) if start
    )
    return {"href": entry.path + ("" if k is None else f"?k={k}"), "title": entry.title, "current": current}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("histoloom.atlas.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "segment": lambda text: quote(str(text), safe=""), "percent": percent}
    return environment


def percent(share: float) -> str:
    """A share (0..1) as ``12.3 %``, or ``< 0.1 %``."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
