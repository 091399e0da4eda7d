"""Pages from the templates: all values are escaped, and an undefined name is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from histoloom.atlas.report.text import count, percent


@dataclass(frozen=True)
class NavigationEntry:
    """An entry of the navigation; it is current for its path and all below, or below one of ``also``."""

    path: str
    title: str
    also: tuple[str, ...] = ()

    def is_current(self, path: str) -> bool:
        """Whether the page at ``path`` belongs to this entry."""
        above = (self.path.rstrip("/"), *self.also)
        return path == self.path or any(path.startswith(f"{start}/") for start in above if start)


@dataclass(frozen=True)
class KLink:
    """A link to the same page at another k."""

    k: int
    href: str
    current: bool
    chosen: bool


_TEMPLATES = Environment(
    loader=PackageLoader("histoloom.atlas.web", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"count": count, "segment": lambda text: quote(str(text), safe=""), "percent": percent}


def render(
    request: Request,
    template: str,
    *,
    status: int = 200,
    k: int | None = None,
    addresses: Mapping[int, str] | None = None,
    **values: object,
) -> HTMLResponse:
    """A page from a template.

    ``k`` is kept in the navigation's links. ``addresses`` are those of this page at each k of the sweep; by default
    they differ in the query alone.
    """
    view, path = request.app.state.view, request.scope["path"]
    if k is not None:
        addresses = addresses or {other: f"{quote(path)}?k={other}" for other in view.ks}
        values["k_links"] = [KLink(other, href, other == k, other == view.chosen) for other, href in addresses.items()]
    query = "" if k is None else f"?k={k}"
    navigation = [
        {"href": entry.path + query, "title": entry.title, "current": entry.is_current(path)}
        for entry in request.app.state.navigation
    ]
    text = _TEMPLATES.get_template(template).render(navigation=navigation, run=view.title, k=k, status=status, **values)
    return HTMLResponse(text, status_code=status, headers={"Cache-Control": "no-store"})
