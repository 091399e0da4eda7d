"""Pages to look at clusters with: all of one k, and each with its patches, samples, slides and neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from histoloom.atlas.browse.cluster_table import UNSURE_BELOW, Extent
from histoloom.atlas.browse.flow import ClusterFlow, cluster_flows, counterpart
from histoloom.atlas.web.pages import k_links, render
from histoloom.atlas.web.params import ClusterNumber, K, OptionalK, view_of
from histoloom.atlas.web.pictures import mosaic_address, place_address
from histoloom.atlas.web.run_view import RunView
from histoloom.names import default_name

router = APIRouter(tags=["pages"])

SLIDES_SHOWN = 12
NEIGHBOURS_SHOWN = 4


@dataclass(frozen=True)
class Card:
    """A cluster on the first page; ``named`` is False where ``name`` is only its number."""

    number: int
    name: str
    named: bool
    extent: Extent
    mosaic: str


@dataclass(frozen=True)
class SlideShare:
    """A slide that a cluster reaches: its patches of the cluster, and their share of the slide's patches (0..1)."""

    slide_id: str
    patient: str
    patches: int
    share: float
    picture: str


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


@router.get("/clusters/{k}/{cluster}", response_class=HTMLResponse)
def cluster_page(request: Request, k: K, cluster: ClusterNumber) -> HTMLResponse:
    """One cluster."""
    view = view_of(request)
    view.check_cluster(k, cluster)
    table = view.clusters(k)
    found = cards(view, k=k)
    beside = table.neighbours(cluster, n=NEIGHBOURS_SHOWN)
    return render(
        request,
        "cluster.html",
        k=k,
        k_links=k_links(_elsewhere(view, k=k, cluster=cluster), current=k, chosen=view.chosen),
        card=found[cluster],
        cards=found,
        samples=len(view.samples_of(k, cluster)),
        neighbours=[(found[one.cluster], one) for one in beside],
        unsure=table.unsure(cluster),
        unsure_below=UNSURE_BELOW,
        slides=slide_shares(view, k=k, cluster=cluster),
        slides_shown=SLIDES_SHOWN,
        elsewhere=_at_next_ks(view, k=k, cluster=cluster),
    )


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


def slide_shares(view: RunView, *, k: int, cluster: int) -> list[SlideShare]:
    """The slides that a cluster reaches, by falling number of its patches."""
    counts_S = view.clusters(k).slides_KS[cluster]
    all_S = view.clusters(k).slides_KS.sum(axis=0)
    slides = view.table.slides
    found = []
    for number in np.argsort(-counts_S, kind="stable")[: int((counts_S > 0).sum())]:
        slide_id, patient = (str(slides[name].iloc[number]) for name in ("slide_id", "patient"))
        found.append(
            SlideShare(
                slide_id=slide_id,
                patient=patient,
                patches=int(counts_S[number]),
                share=float(counts_S[number] / all_S[number]),
                picture=place_address(view, k=k, cluster=cluster, slide_id=slide_id),
            )
        )
    return found


def _elsewhere(view: RunView, *, k: int, cluster: int) -> dict[int, str]:
    """Where most of a cluster's patches are at each k."""
    found = {}
    for other in view.ks:
        same = cluster if other == k else counterpart(view.overlap(k, other), cluster=cluster)
        found[other] = f"/clusters/{other}/{same}"
    return found


def _at_next_ks(view: RunView, *, k: int, cluster: int) -> list[dict[str, Any]]:
    """What the cluster is at the k before and after: in words, with the names there."""
    place = view.ks.index(k)
    found = []
    for other in [*view.ks[max(0, place - 1) : place], *view.ks[place + 1 : place + 2]]:
        step: ClusterFlow = cluster_flows(view.overlap(k, other))[cluster]
        found.append({"k": other, "step": step, "names": view.names(other)})
    return found
