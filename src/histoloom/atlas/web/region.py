"""A region drawn on a slide, and the patches of the run that are most like it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from histoloom.atlas.browse.similar import most_similar
from histoloom.atlas.web.gallery_api import PAGE, PatchModel, patch_models
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.routing import QueryK, View
from histoloom.atlas.web.slides import Slide, Slides, thumbnail_address

router = APIRouter()

Pixels = Annotated[int, Query(ge=0, le=10_000_000, description="Level-0 px.")]


@router.get("/slides/{slide_id}/similar", response_class=HTMLResponse, tags=["pages"])
def similar_page(
    request: Request,
    view: View,
    slides: Slides,
    slide: Slide,
    k: QueryK,
    x: Pixels = 0,
    y: Pixels = 0,
    width: Pixels = 0,
    height: Pixels = 0,
) -> HTMLResponse:
    """A slide on which a region can be drawn; with a region, the patches most like those whose centre is in it."""
    table = view.table
    rows = table.on_slide(slide.slide_id)
    middle_x, middle_y = (corner_N[rows] + table.extent_N[rows] / 2 for corner_N in (table.x_N, table.y_N))
    rows = rows[(middle_x >= x) & (middle_x < x + width) & (middle_y >= y) & (middle_y < y + height)]
    found: list[PatchModel] = []
    if len(rows):
        ids = most_similar(
            view.run.require("latents"),
            clusters=view.run.require("clusters"),
            kind=view.config.clusters.validity_features,
            region_ids=table.ids(rows),
            n=PAGE,
        )
        found_rows: np.ndarray = table.rows_of(pa.array(ids, pa.string()))
        found = patch_models(view, found_rows[found_rows >= 0], k=k)
    region = {"x": x, "y": y, "width": width, "height": height}
    query = "".join(f"&{name}={value}" for name, value in region.items())
    return render(
        request,
        "similar.html",
        k=k,
        addresses={other: f"{request.url.path}?k={other}{query}" for other in view.ks},
        slide=slide,
        thumbnail=thumbnail_address(view, slides, slide),
        region=region,
        inside=len(rows),
        found=found,
    )
