"""The few routes that the atlas of an exported generator has in place of those of groups, slides and maps."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import RedirectResponse, Response

from histoloom.atlas.web import routing
from histoloom.atlas.web.routing import AnyView, PathK

router = APIRouter(tags=["pages"])


@router.get("/", response_class=RedirectResponse)
def start() -> RedirectResponse:
    """The first page is the one that generates."""
    return RedirectResponse("/draw", status_code=303)


@router.get("/clusters/{k}/colours.css", response_class=Response)
def colour_stylesheet(view: AnyView, k: PathK) -> Response:
    """The colour of each cluster as ``--c`` of the class ``c{cluster}``."""
    return routing.colour_stylesheet(view.colours(k), prefix="c")
