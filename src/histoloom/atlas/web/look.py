"""Pages to look at clusters with: all of one k, and each with its patches, samples, slides and neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from histoloom.atlas.gallery import Extent
from histoloom.atlas.web.pages import k_links, render
from histoloom.atlas.web.params import K, OptionalK, view_of
from histoloom.atlas.web.pictures import mosaic_address
from histoloom.atlas.web.run_view import RunView
from histoloom.names import default_name

router = APIRouter()


@dataclass(frozen=True)
class Card:
    """A cluster on the first page; ``named`` is False where ``name`` is only its number."""

    number: int
    name: str
    named: bool
    extent: Extent
    mosaic: str


@router.get("/", response_class=HTMLResponse)
def start(request: Request, k: OptionalK = None) -> HTMLResponse:
    """All clusters of one k."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    links = k_links({other: f"/?k={other}" for other in view.ks}, current=k, chosen=view.chosen)
    return render(request, "clusters.html", k=k, k_links=links, cards=cards(view, k=k), table=view.table)


@router.get("/clusters/{k}/colours.css", response_class=Response)
def colour_sheet(request: Request, k: K) -> Response:
    """The colour of each cluster as ``--c`` of the class ``c{cluster}``: the page itself may carry no styles."""
    view = view_of(request)
    lines = [f".c{cluster} {{ --c: {colour}; }}" for cluster, colour in enumerate(view.colours(view.k_or_chosen(k)))]
    return Response("\n".join(lines) + "\n", media_type="text/css", headers={"Cache-Control": "private, no-cache"})


def cards(view: RunView, *, k: int) -> list[Card]:
    """A card for each cluster, in the order of their numbers."""
    clusters, names = view.clusters(k), view.names(k)
    return [
        Card(
            number=cluster,
            name=names[cluster],
            named=names[cluster] != default_name(cluster),
            extent=clusters.extent(cluster, table=view.table),
            mosaic=mosaic_address(view, k=k, cluster=cluster),
        )
        for cluster in range(k)
    ]
