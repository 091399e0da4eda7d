"""The page that shows how clusters split and merge from one k to the next."""

from __future__ import annotations

from itertools import pairwise

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from histoloom.atlas.browse.flow import Flow, cluster_flows, flow
from histoloom.atlas.web.pages import k_links, render
from histoloom.atlas.web.params import K, OptionalK, view_of
from histoloom.atlas.web.run_view import RunView

router = APIRouter()

COLUMNS = 9
"""Numbers of clusters in one picture, about the one in focus."""


class Part(BaseModel):
    """A cluster of the other k and the share (0..1) of the patches that it holds."""

    cluster: int
    share: float


class Change(BaseModel):
    """Where a cluster's patches are at another k, by falling share; small shares are left out."""

    cluster: int
    patches: int
    to: list[Part]


@router.get("/flow", response_class=HTMLResponse, tags=["pages"])
def flow_page(request: Request, k: OptionalK = None) -> HTMLResponse:
    """The picture, with colours of the clusters at k, and every step in words."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    shown = near(view.ks, k=k)
    return render(
        request,
        "flow.html",
        k=k,
        k_links=k_links({other: f"/flow?k={other}" for other in view.ks}, current=k, chosen=view.chosen),
        flow=_flow(view, shown=shown, k=k),
        colours=view.colours(k),
        names={other: view.names(other) for other in shown},
        steps=[
            (first, second, cluster_flows(view.overlap(first, second)), cluster_flows(view.overlap(second, first)))
            for first, second in pairwise(shown)
        ],
    )


@router.get("/api/clusters/{k}/at/{other}", tags=["clusters"])
def changes(request: Request, k: K, other: K) -> list[Change]:
    """Where the patches of each cluster of k are at another k."""
    view = view_of(request)
    shared = view.overlap(view.k_or_chosen(k), view.k_or_chosen(other))
    return [
        Change(
            cluster=step.cluster,
            patches=step.patches,
            to=[Part(cluster=part.cluster, share=part.share) for part in step.to],
        )
        for step in cluster_flows(shared)
    ]


def near(ks: tuple[int, ...], *, k: int) -> tuple[int, ...]:
    """At most ``COLUMNS`` of the sweep, about ``k``."""
    start = max(0, min(ks.index(k) - COLUMNS // 2, len(ks) - COLUMNS))
    return ks[start : start + COLUMNS]


def _flow(view: RunView, *, shown: tuple[int, ...], k: int) -> Flow:
    return view.kept(
        ("flow", k),
        of=["patches/artifact.json", "clusters/artifact.json"],
        make=lambda: flow([view.clusters(other) for other in shown], focus=k),
    )
