"""The slides: a list of them, and a viewer that shows one at any size with its clusters over it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, Response
from PIL import Image
from pydantic import BaseModel

from histoloom.atlas.browse.run_slides import NoSlide, RunSlides, SlideInfo, drawn_map, jpeg_settings
from histoloom.atlas.web.errors import Conflict, NotFound
from histoloom.atlas.web.gallery_api import PatchModel, group_page, patch_models
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.routing import PageNumber, QueryK, SlideId, Version, View, cached_response
from histoloom.atlas.web.run_view import RunView
from histoloom.slides.entries import SlideError
from histoloom.slides.readers.viewer import TILE, NoTile, SlideCache

router = APIRouter()

PER_PAGE = 60
_SMALL_THUMBNAIL = 384  # px; the longer side of a picture in the list

Index = Annotated[int, InPath(description="From 0.")]
Coordinate = Annotated[float, Query(ge=-1e8, le=1e8, allow_inf_nan=False, description="Level-0 px.")]
SearchText = Annotated[str, Query(max_length=200, description="Part of a slide's id, slide, patient or split.")]


class LegendEntry(BaseModel):
    """A group in the viewer's legend; ``patches`` are those on this slide, ``page`` the address of the group's page."""

    name: str
    clusters: list[int]
    colour: str
    patches: int
    page: str


class ViewerSlide(BaseModel):
    """What the viewer needs: geometry (level-0 px, ``mpp`` um/px), addresses of pictures, and the legend.

    ``tiles`` is a pattern with ``{level}``, ``{column}`` and ``{row}``; it is empty if the slide cannot be read, and
    ``problem`` then says why. ``thumbnail`` and ``map`` are empty if there is none.
    """

    slide_id: str
    width: int
    height: int
    mpp: float | None
    tile: int
    levels: int
    k: int
    problem: str
    tiles: str
    thumbnail: str
    map: str
    groups: list[LegendEntry]


@dataclass(frozen=True)
class Segment:
    """A cluster's segment in the bar of a slide: its left side and its width, in percent of the slide's patches."""

    cluster: int
    start: float
    width: float


@dataclass(frozen=True)
class SlideCard:
    """A slide in the list; ``segments`` and ``top_clusters`` are the clusters of its patches, the largest first."""

    info: SlideInfo
    has_thumbnail: bool
    segments: tuple[Segment, ...]
    top_clusters: str

    @property
    def title(self) -> str:
        """The slide's name; with the file's name if a slide has several files."""
        info = self.info
        return info.slide_id if info.slide_id.startswith(info.slide) else f"{info.slide}, {info.slide_id}"

    @property
    def size(self) -> str:
        """In millimetres if the um/px are known, else in pixels; empty if the size is unknown."""
        info = self.info
        if info.zoom is None:
            return ""
        if info.mpp is None:
            return f"{info.width:,} × {info.height:,} px"
        return f"{info.width * info.mpp / 1000:.1f} × {info.height * info.mpp / 1000:.1f} mm"


@contextmanager
def errors_as_http() -> Iterator[None]:
    """``NotFound`` for a slide or tile that does not exist, ``Conflict`` for a slide that cannot be read."""
    try:
        yield
    except (NoSlide, NoTile) as error:
        raise NotFound(str(error)) from error
    except SlideError as error:
        raise Conflict(f"the slide cannot be shown: {error.reason}") from error


def slides_of(view: View) -> RunSlides:
    """The run's slides. Its open slide files stay open when the stage ``patches`` is published again."""
    cache = view.cached("open slides", depends_on=(), make=SlideCache)
    return view.cached(
        "slides",
        depends_on=["patches/artifact.json"],
        make=lambda: RunSlides(view.run.require("patches"), paths=view.run.config.slides.paths, slide_cache=cache),
    )


Slides = Annotated[RunSlides, Depends(slides_of)]


def slide_of(slides: Slides, slide_id: SlideId) -> SlideInfo:
    """The slide in the address; ``NotFound`` where there is none."""
    with errors_as_http():
        return slides.slide(slide_id)


Slide = Annotated[SlideInfo, Depends(slide_of)]


@router.get("/slides", response_class=HTMLResponse, include_in_schema=False)
def slides_page(
    request: Request, view: View, slides: Slides, k: QueryK, page: PageNumber = 0, find: SearchText = ""
) -> HTMLResponse:
    """The list of slides, with the share of each cluster on them."""
    matches = slides.search(find)
    pages = max(1, -(-len(matches) // PER_PAGE))
    if page >= pages:
        raise NotFound(f"there is no page {page + 1} of slides; there are {pages}")
    query = f"&find={quote(find, safe='')}" if find else ""
    return render(
        request,
        "slides.html",
        k=k,
        addresses={other: f"/slides?k={other}{query}" for other in view.ks},
        cards=cards(view, matches[PER_PAGE * page : PER_PAGE * (page + 1)], slides=slides, k=k),
        all_slides=len(slides.by_id),
        matches=len(matches),
        find=find,
        page=page,
        pages=pages,
        query=query,
        version=view.version,
    )


def cards(view: RunView, shown: Sequence[SlideInfo], *, slides: RunSlides, k: int) -> list[SlideCard]:
    """A card for each of the slides ``shown``."""
    grouping = view.grouping(k)
    names, slides_KS = {number: group.name for number, group in grouping.groups.items()}, grouping.table.slides_KS
    result = []
    for info in shown:
        row = view.table.slide_number(info.slide_id)
        sizes_K = [0] * len(slides_KS) if row is None else slides_KS[:, row].tolist()
        segments: list[Segment] = []
        start = 0.0
        for cluster in sorted(names, key=lambda c: -sizes_K[c]):
            if sizes_K[cluster]:
                segments.append(Segment(cluster, start, 100 * sizes_K[cluster] / sum(sizes_K)))
                start += segments[-1].width
        top_clusters = ", ".join(f"{names[one.cluster]} {one.width:.0f} %" for one in segments[:3])
        result.append(SlideCard(info, slides.thumbnail(info.slide_id) is not None, tuple(segments), top_clusters))
    return result


@router.get("/slides/{slide_id}", response_class=HTMLResponse, include_in_schema=False)
def slide_page(request: Request, view: View, slides: Slides, slide: Slide, k: QueryK) -> HTMLResponse:
    """The viewer of one slide."""
    slide_ids = [other.slide_id for other in slides.search("")]
    place = slide_ids.index(slide.slide_id)
    return render(
        request,
        "slide.html",
        k=k,
        slide=slide,
        problem=slides.problem(slide.slide_id),
        previous=slide_ids[place - 1] if place else None,
        following=slide_ids[place + 1] if place + 1 < len(slide_ids) else None,
        paints=view.has_generator and slide.usable and slide.patches > 0,
        thumbnail=thumbnail_address(view, slides, slide),
    )


@router.get("/api/slides/{slide_id}", tags=["slides"])
def viewer_slide(view: View, slides: Slides, slide: Slide, k: QueryK) -> ViewerSlide:
    """A slide's geometry, the addresses of its pictures, and its clusters."""
    problem = slides.problem(slide.slide_id)
    address = f"/api/slides/{quote(slide.slide_id, safe='')}"
    tiles = ""
    if not problem:
        with errors_as_http():
            tiles = f"{address}/tiles/{{level}}/{{column}}/{{row}}.jpg?v={slides.identity(slide.slide_id)}"
    tissue = view.groups(k)
    sizes = tissue.sizes(view.table.on_slide(slide.slide_id))
    return ViewerSlide(
        slide_id=slide.slide_id,
        width=slide.width,
        height=slide.height,
        mpp=slide.mpp,
        tile=TILE,
        levels=0 if slide.zoom is None else slide.zoom.levels,
        k=k,
        problem=problem,
        tiles=tiles,
        thumbnail=thumbnail_address(view, slides, slide),
        map="" if tissue_map_path(view, slide, k=k) is None else f"{address}/map.png?k={k}&v={view.version}",
        groups=[
            LegendEntry(
                name=group.name,
                clusters=list(group.clusters),
                colour=group.colour,
                patches=size,
                page=group_page(k, clusters=group.clusters, name=group.name),
            )
            for group, size in zip(tissue.groups, sizes, strict=True)
        ],
    )


@router.get("/api/slides/{slide_id}/tiles/{level}/{column}/{row}.jpg", tags=["slides"], response_class=Response)
def tile(
    request: Request, slides: Slides, slide: Slide, level: Index, column: Index, row: Index, v: Version = ""
) -> Response:
    """A tile; level 0 is the slide itself, and each further level half of the one before."""
    with errors_as_http():
        identity = slides.identity(slide.slide_id)
        return cached_response(
            request,
            made_from=(identity, level, column, row, jpeg_settings()),
            immutable=v == identity,
            media_type="image/jpeg",
            make=lambda: slides.tile(slide.slide_id, level=level, column=column, row=row),
        )


@router.get("/api/slides/{slide_id}/thumbnail.jpg", tags=["slides"], response_class=Response)
def thumbnail(
    request: Request,
    view: View,
    slides: Slides,
    slide: Slide,
    size: Literal["small", "full"] = "full",
    v: Version = "",
) -> Response:
    """The slide in one picture, as the run keeps it (at most 1024 px wide or high), or ``small``, for lists."""
    path = slides.thumbnail(slide.slide_id)
    if path is None:
        raise NotFound("there is no thumbnail of this slide; it could not be read when the run was made")

    def make() -> bytes:
        if size == "full":
            return path.read_bytes()
        data = io.BytesIO()
        with Image.open(path) as image:
            image.draft("RGB", (_SMALL_THUMBNAIL, _SMALL_THUMBNAIL))
            image.thumbnail((_SMALL_THUMBNAIL, _SMALL_THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=2.0)
            image.convert("RGB").save(data, "JPEG", quality=85, subsampling=0)
        return data.getvalue()

    made_from = (view.version, slide.slide_id, size)
    return cached_response(
        request, made_from=made_from, immutable=v == view.version, media_type="image/jpeg", make=make
    )


@router.get("/api/slides/{slide_id}/map.png", tags=["slides"], response_class=Response)
def tissue_map(request: Request, view: View, slide: Slide, k: QueryK, v: Version = "") -> Response:
    """The report's tissue map of the slide: its thumbnail with the clusters of a grid of patches over it."""
    path = tissue_map_path(view, slide, k=k)
    if path is None:
        raise NotFound(f"the report has no tissue map of this slide at k = {k}; more: --set report.map_slides=N")
    made_from = (view.version, slide.slide_id, k, path.stat().st_mtime_ns)
    immutable = v == view.version
    return cached_response(
        request, made_from=made_from, immutable=immutable, media_type="image/png", make=path.read_bytes
    )


@router.get("/api/slides/{slide_id}/patches", tags=["slides"], response_class=Response)
def patches(
    view: View,
    slide: Slide,
    left: Coordinate,
    top: Coordinate,
    right: Coordinate,
    bottom: Coordinate,
    k: QueryK,
) -> Response:
    """The patches that touch a part of the slide (level-0 px), as lists of equal length.

    ``{"x": [], "y": [], "extent": [], "cluster": [], "group": [], "total": n}``; an even selection if there are too
    many to show. A group is a place in the list of the slide's groups, or -1.
    """
    label_N, table = view.clusters(k).label_N, view.table
    inside = table.in_box(slide.slide_id, label_N=label_N, box=(left, top, right, bottom))
    columns = {
        "x": table.x_N,
        "y": table.y_N,
        "extent": table.extent_N,
        "cluster": label_N,
        "group": view.groups(k).group_N,
    }
    content: dict[str, object] = {name: values_N[inside.rows_M].tolist() for name, values_N in columns.items()}
    return Response(json.dumps(content | {"total": inside.total}), media_type="application/json")


@router.get("/api/slides/{slide_id}/patch", tags=["slides"])
def patch_at(view: View, slide: Slide, x: Coordinate, y: Coordinate, k: QueryK) -> PatchModel:
    """The patch whose upper left corner is this point of the slide (level-0 px)."""
    rows = view.table.on_slide(slide.slide_id)
    rows = rows[(view.table.x_N[rows] == np.float32(x)) & (view.table.y_N[rows] == np.float32(y))]
    if not len(rows):
        raise NotFound("this slide has no patch with its corner there")
    return patch_models(view, rows[:1], k=k)[0]


def tissue_map_path(view: RunView, slide: SlideInfo, *, k: int) -> Path | None:
    """The report's tissue map of a slide; None if it shows another k or earlier clusters."""
    artifact = view.run.artifact("clusters")
    clusters = artifact.fingerprint if artifact else ""
    return drawn_map(view.run.folder("report"), slide_id=slide.slide_id, k=k, clusters=clusters)


def thumbnail_address(view: RunView, slides: RunSlides, slide: SlideInfo) -> str:
    """The address of a slide's thumbnail; empty where there is none."""
    if slides.thumbnail(slide.slide_id) is None:
        return ""
    return f"/api/slides/{quote(slide.slide_id, safe='')}/thumbnail.jpg?v={view.version}"
