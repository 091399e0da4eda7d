"""The page that shows how clusters split and merge from one k to the next."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse

from histoloom.atlas.browse.flow import ClusterFlow, cluster_flows, flow
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.routing import PathK, QueryK, View

router = APIRouter()

OtherK = Annotated[int, Path(ge=1, le=10_000, description="Another k of the run's sweep.")]

COLUMNS = 9
"""The most values of k in one picture, about the one in focus."""


@router.get("/flow", response_class=HTMLResponse, tags=["pages"])
def flow_page(request: Request, view: View, k: QueryK) -> HTMLResponse:
    """The picture, with colours of the clusters at k, and every step in words."""
    first_column = max(0, min(view.ks.index(k) - COLUMNS // 2, len(view.ks) - COLUMNS))
    shown = view.ks[first_column : first_column + COLUMNS]
    picture = view.cached(
        ("flow", k),
        depends_on=["patches/artifact.json", "clusters/artifact.json"],
        make=lambda: flow([view.clusters(other) for other in shown], focus=k),
    )
    return render(
        request,
        "flow.html",
        k=k,
        flow=picture,
        colours=view.colours(k),
        names={other: view.names(other) for other in shown},
        steps=[
            (first, second, cluster_flows(view.overlap(first, second)), cluster_flows(view.overlap(second, first)))
            for first, second in pairwise(shown)
        ],
    )


@router.get("/api/clusters/{k}/at/{other}", tags=["clusters"])
def changes(view: View, k: PathK, other: OtherK) -> list[ClusterFlow]:
    """Where the patches of each cluster of k are at another k."""
    return cluster_flows(view.overlap(k, other))
