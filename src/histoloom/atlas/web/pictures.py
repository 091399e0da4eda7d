"""Pictures by id: real patches, samples, and the typical patches of a cluster.

A picture's address carries the version of its inputs (``?v=``), so that a browser may keep it for good.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from PIL import Image

from histoloom.atlas.maps.overlay import cluster_overlay
from histoloom.atlas.maps.palette import rgb
from histoloom.atlas.web.routing import (
    ClusterNumber,
    NamedGroup,
    PatchId,
    PathK,
    SampleId,
    SlideId,
    Version,
    View,
    cached_response,
)
from histoloom.atlas.web.run_view import RunView

router = APIRouter(prefix="/api", tags=["pictures"], default_response_class=Response)

QUALITY = 92
COLUMNS, ROWS, TILE, GAP = 4, 2, 112, 2
"""The picture on a cluster's card: patches across and down, px of each and between them."""

PLACE = 480
"""Longest side of a slide on a cluster's page, px."""


@router.get("/patches/{patch_id}.jpg")
def patch_jpeg(request: Request, view: View, patch_id: PatchId, v: Version = "") -> Response:
    """A real patch, as JPEG without chroma subsampling: for galleries."""
    row = view.row_of(patch_id)
    return _picture(request, view.version, v=v, media_type="image/jpeg", make=lambda: encoded(view.table.image(row)))


@router.get("/patches/{patch_id}.png")
def patch_png(request: Request, view: View, patch_id: PatchId, v: Version = "") -> Response:
    """A real patch, pixel by pixel as the networks see it."""
    row = view.row_of(patch_id)
    # Lightly compressed: it is sent on this computer
    make = lambda: encoded(view.table.image(row), "PNG", compress_level=1)  # noqa: E731
    return _picture(request, view.version, v=v, media_type="image/png", make=make)


@router.get("/samples/{sample_id}.png")
def sample_png(request: Request, view: View, sample_id: SampleId, v: Version = "") -> Response:
    """A synthetic patch of the run's samples."""
    file = view.run.folder("samples") / view.sample(sample_id).file
    return _picture(request, view.version, v=v, media_type="image/png", make=file.read_bytes)


@router.get("/clusters/{k}/{cluster}/mosaic.jpg")
def mosaic(request: Request, view: View, k: PathK, cluster: ClusterNumber, v: Version = "") -> Response:
    """The typical patches of a cluster, in one picture."""
    return _mosaic(request, view, k=k, group=cluster, v=v)


@router.get("/groups/{k}/mosaic.jpg")
def named_mosaic(request: Request, view: View, k: PathK, group: NamedGroup, v: Version = "") -> Response:
    """Patches of a group by its name: one that no cluster may have."""
    return _mosaic(request, view, k=k, group=group, v=v)


def _mosaic(request: Request, view: RunView, *, k: int, group: int, v: str) -> Response:
    grouping = view.grouping(k)

    def make() -> bytes:
        table, n = view.table, COLUMNS * ROWS
        members = grouping.members(group)
        rows = grouping.table.representatives(members, n=n, random_N=view.random_N, slide_N=table.slide_N)
        step = TILE + GAP
        sheet = Image.new("RGB", (COLUMNS * step - GAP, ROWS * step - GAP), "white")
        for number, image in enumerate(table.patches.images(rows)):
            tile = Image.fromarray(image).resize((TILE, TILE), Image.Resampling.LANCZOS, reducing_gap=2.0)
            sheet.paste(tile, (step * (number % COLUMNS), step * (number // COLUMNS)))
        return encoded(np.asarray(sheet), quality=85)

    return _picture(request, view.group_version(k, group), v=v, media_type="image/jpeg", make=make)


@router.get("/clusters/{k}/{cluster}/slides/{slide_id}.jpg")
def place(
    request: Request, view: View, k: PathK, cluster: ClusterNumber, slide_id: SlideId, v: Version = ""
) -> Response:
    """The places of a cluster's patches on a slide."""
    slide, colour = view.slide_of(slide_id), view.colours(k)[cluster]

    def make() -> bytes:
        table, info = view.table, view.table.slides.iloc[slide]
        rows = view.grouping(k).members(cluster)
        with Image.open(view.run.folder("patches") / "thumbnails" / f"{info['slide_id']}.jpg") as image:
            image.thumbnail((PLACE, PLACE))
            thumbnail_HW3 = np.asarray(image.convert("RGB"))
        image_HW3 = cluster_overlay(
            thumbnail_HW3,
            boxes_N4=table.boxes(rows[table.slide_N[rows] == slide]),
            dimensions=(int(info["width"]), int(info["height"])),
            colour=rgb(colour),
        )
        return encoded(image_HW3, quality=85)

    version = view.group_version(k, cluster)
    return _picture(request, version, v=v, media_type="image/jpeg", make=make)


def _picture(request: Request, version: str, *, v: str, media_type: str, make: Callable[[], bytes]) -> Response:
    """A picture whose content depends on its path and on a version, of the run or of a group's patches."""
    made_from = (version, request.url.path)
    return cached_response(request, made_from=made_from, immutable=v == version, media_type=media_type, make=make)


def encoded(image_HW3: np.ndarray, kind: str = "JPEG", *, quality: int = QUALITY, **options: int) -> bytes:
    """An image file of uint8 (H, W, 3). JPEG has no chroma subsampling: nuclei are small and purple."""
    data = io.BytesIO()
    Image.fromarray(image_HW3).save(data, kind, quality=quality, subsampling=0, **options)
    return data.getvalue()


def patch_address(view: RunView, patch_id: str) -> str:
    """The address of a patch's picture."""
    return f"/api/patches/{quote(patch_id, safe='')}.jpg?v={view.version}"


def sample_address(view: RunView, sample_id: str) -> str:
    """The address of a sample's picture."""
    return f"/api/samples/{quote(sample_id, safe='')}.png?v={view.version}"


def mosaic_address(view: RunView, *, k: int, cluster: int) -> str:
    """The address of the picture on a cluster's card."""
    return f"/api/clusters/{k}/{cluster}/mosaic.jpg?v={view.group_version(k, cluster)}"


def named_mosaic_address(view: RunView, *, k: int, name: str) -> str:
    """The same of a group that no cluster has, or of patches without tissue."""
    number = view.group_number(k, name)
    return f"/api/groups/{k}/mosaic.jpg?name={quote(name, safe='')}&v={view.group_version(k, number)}"


def place_address(view: RunView, *, k: int, cluster: int, slide_id: str) -> str:
    """The address of the picture of a cluster on a slide."""
    return f"/api/clusters/{k}/{cluster}/slides/{quote(slide_id, safe='')}.jpg?v={view.group_version(k, cluster)}"
