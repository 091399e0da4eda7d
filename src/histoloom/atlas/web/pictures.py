"""Pictures by id: real patches, samples, and the few that stand for a cluster.

A picture's address carries the version of what it is made from (``?v=``), so that a browser may keep it for good.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Annotated
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from PIL import Image

from histoloom.atlas.maps.overlay import cluster_overlay
from histoloom.atlas.maps.palette import colours
from histoloom.atlas.web.params import ClusterNumber, K, PatchId, SampleId, SlideId, view_of
from histoloom.atlas.web.run_view import RunView

router = APIRouter(prefix="/api", tags=["pictures"], default_response_class=Response)

QUALITY = 92
COLUMNS, ROWS, TILE, GAP = 4, 2, 112, 2
"""The picture on a cluster's card: patches across and down, px of each and between them."""

PLACE = 480
"""Longest side of a slide on a cluster's page, px."""

Version = Annotated[str, Query(max_length=64, description="What the picture is made from; optional.")]


@router.get("/patches/{patch_id}.jpg")
def patch_jpeg(request: Request, patch_id: PatchId, v: Version = "") -> Response:
    """A real patch, as JPEG without chroma subsampling: for galleries."""
    view = view_of(request)
    row = view.row_of(patch_id)
    return picture(request, v=v, kind="image/jpeg", make=lambda: jpeg(view.table.image(row)))


@router.get("/patches/{patch_id}.png")
def patch_png(request: Request, patch_id: PatchId, v: Version = "") -> Response:
    """A real patch, pixel by pixel as the networks see it."""
    view = view_of(request)
    row = view.row_of(patch_id)
    return picture(request, v=v, kind="image/png", make=lambda: png(view.table.image(row)))


@router.get("/samples/{sample_id}.png")
def sample_png(request: Request, sample_id: SampleId, v: Version = "") -> Response:
    """A synthetic patch of the run's samples."""
    file = view_of(request).sample_file(sample_id)
    return picture(request, v=v, kind="image/png", make=file.read_bytes)


@router.get("/clusters/{k}/{cluster}/mosaic.jpg")
def mosaic(request: Request, k: K, cluster: ClusterNumber, v: Version = "") -> Response:
    """The patches that stand for a cluster, in one picture."""
    view = view_of(request)
    view.check_cluster(k, cluster)
    return picture(request, v=v, kind="image/jpeg", make=lambda: _mosaic(view, k=k, cluster=cluster))


@router.get("/clusters/{k}/{cluster}/slides/{slide_id}.jpg")
def place(request: Request, k: K, cluster: ClusterNumber, slide_id: SlideId, v: Version = "") -> Response:
    """Where a cluster's patches lie on a slide."""
    view = view_of(request)
    view.check_cluster(k, cluster)
    slide = view.slide_of(slide_id)
    return picture(request, v=v, kind="image/jpeg", make=lambda: _place(view, k=k, cluster=cluster, slide=slide))


def picture(request: Request, *, v: str, kind: str, make: Callable[[], bytes]) -> Response:
    """A picture that ``make`` makes unless the browser has it: what its address and the version say does not change."""
    version = view_of(request).version
    etag = f'"{hashlib.sha256(f"{version} {request.url.path}".encode("utf-8", "replace")).hexdigest()[:24]}"'
    lasting = "private, max-age=31536000, immutable" if v == version else "private, no-cache"
    headers = {"ETag": etag, "Cache-Control": lasting}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(make(), media_type=kind, headers=headers)


def patch_address(view: RunView, patch_id: str) -> str:
    """Where a patch's picture is."""
    return f"/api/patches/{quote(patch_id, safe='')}.jpg?v={view.version}"


def sample_address(view: RunView, sample_id: str) -> str:
    """Where a sample's picture is."""
    return f"/api/samples/{quote(sample_id, safe='')}.png?v={view.version}"


def mosaic_address(view: RunView, *, k: int, cluster: int) -> str:
    """Where the picture on a cluster's card is."""
    return f"/api/clusters/{k}/{cluster}/mosaic.jpg?v={view.version}"


def place_address(view: RunView, *, k: int, cluster: int, slide_id: str) -> str:
    """Where the picture of a cluster on a slide is."""
    return f"/api/clusters/{k}/{cluster}/slides/{quote(slide_id, safe='')}.jpg?v={view.version}"


def jpeg(image_HW3: np.ndarray, *, quality: int = QUALITY) -> bytes:
    """JPEG of uint8 (H, W, 3) without chroma subsampling: nuclei are small and purple."""
    data = io.BytesIO()
    Image.fromarray(image_HW3).save(data, "JPEG", quality=quality, subsampling=0)
    return data.getvalue()


def png(image_HW3: np.ndarray) -> bytes:
    """PNG of uint8 (H, W, 3) or (H, W, 4), lightly compressed: it does not go far."""
    data = io.BytesIO()
    Image.fromarray(image_HW3).save(data, "PNG", compress_level=1)
    return data.getvalue()


def _mosaic(view: RunView, *, k: int, cluster: int) -> bytes:
    table = view.table
    rows = view.clusters(k).representatives(cluster, n=COLUMNS * ROWS, random_N=view.random_N, slide_N=table.slide_N)
    step = TILE + GAP
    sheet = Image.new("RGB", (COLUMNS * step - GAP, ROWS * step - GAP), "white")
    for place, image in enumerate(table.patches.images(rows)):
        tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.LANCZOS, reducing_gap=2.0)
        sheet.paste(tile, (step * (place % COLUMNS), step * (place // COLUMNS)))
    return jpeg(np.asarray(sheet), quality=85)


def _place(view: RunView, *, k: int, cluster: int, slide: int) -> bytes:
    table, about = view.table, view.table.slides.iloc[slide]
    rows = view.clusters(k).members[cluster]
    boxes_N4 = table.boxes(rows[table.slide_N[rows] == slide])
    with Image.open(view.run.folder("patches") / "thumbnails" / f"{about['slide_id']}.jpg") as image:
        image.thumbnail((PLACE, PLACE))
        thumbnail = np.asarray(image.convert("RGB"))
    dimensions = (int(about["width"]), int(about["height"]))
    colour = colours(k)[cluster]
    return jpeg(cluster_overlay(thumbnail, boxes_N4=boxes_N4, dimensions=dimensions, colour=colour), quality=85)
