"""Types of what a request may ask for: everything has bounds."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query, Request

from histoloom.atlas.web.run_view import RunView

K = Annotated[int, Path(ge=1, le=10_000, description="Number of clusters; one of the run's sweep.")]
OptionalK = Annotated[int | None, Query(ge=1, le=10_000, description="Number of clusters; the chosen one if absent.")]
ClusterNumber = Annotated[int, Path(ge=0, le=9_999, description="The cluster's number.")]
PageNumber = Annotated[int, Query(ge=0, le=1_000_000, description="Which page, from 0.")]
PatchId = Annotated[str, Path(min_length=1, max_length=300, description="A patch's id.")]
SampleId = Annotated[str, Path(min_length=1, max_length=300, description="A sample's id.")]
SlideId = Annotated[str, Path(min_length=1, max_length=300, description="A slide's id.")]


def view_of(request: Request) -> RunView:
    """The open run; what every route begins with."""
    view: RunView = request.app.state.view
    return view
