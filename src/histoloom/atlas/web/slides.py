"""The slides: a list of them, and a viewer that shows one at any size with its clusters over it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, Response
from PIL import Image
from pydantic import BaseModel

from histoloom.atlas.browse.run_slides import NoSlide, RunSlides, SlideInfo, drawn_map, jpeg_settings
from histoloom.atlas.web.http_errors import Conflict, NotFound
from histoloom.atlas.web.pages import k_links, render
from histoloom.atlas.web.params import OptionalK, PageNumber, SlideId, view_of
from histoloom.atlas.web.run_view import RunView
from histoloom.atlas.web.slide_cards import PER_PAGE, cards
from histoloom.slides.entries import SlideError
from histoloom.slides.readers.viewer import TILE, NoTile, SlideCache

router = APIRouter()

_PATCHES = "patches/artifact.json"
_SMALL = 384  # px; the longer side of a picture in the list

Index = Annotated[int, InPath(description="From 0.")]
Place = Annotated[float, Query(ge=-1e8, le=1e8, allow_inf_nan=False, description="Level-0 px.")]
Version = Annotated[str, Query(max_length=64, description="What the picture is made from; optional.")]
Text = Annotated[str, Query(max_length=200, description="Part of a slide's id, slide, patient or split.")]


class LegendEntry(BaseModel):
    """A cluster in the viewer's legend; ``patches`` are those on this slide."""

    cluster: int
    name: str
    colour: str
    patches: int


class SlideAnswer(BaseModel):
    """What the viewer needs: geometry (level-0 px, ``mpp`` um/px), addresses of pictures, and the legend.

    ``tiles`` has ``{level}``, ``{column}``, ``{row}`` to be filled in, empty where ``trouble`` says why there are
    none; ``thumbnail`` and ``map`` are empty where there is none.
    """

    slide_id: str
    width: int
    height: int
    mpp: float | None
    tile: int
    levels: int
    k: int
    trouble: str
    tiles: str
    thumbnail: str
    map: str
    clusters: list[LegendEntry]


@router.get("/slides", response_class=HTMLResponse, include_in_schema=False)
def slides_page(request: Request, k: OptionalK = None, page: PageNumber = 0, find: Text = "") -> HTMLResponse:
    """The list of slides, with the share of each cluster on them."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    found = slides_of(view).search(find)
    pages = max(1, -(-len(found) // PER_PAGE))
    if page >= pages:
        raise NotFound(f"there is no page {page + 1} of slides; there are {pages}")
    shown = found[PER_PAGE * page : PER_PAGE * (page + 1)]
    kept = f"&find={quote(find, safe='')}" if find else ""
    return render(
        request,
        "slides.html",
        k=k,
        k_links=k_links({other: f"/slides?k={other}{kept}" for other in view.ks}, current=k, chosen=view.chosen),
        cards=cards(
            shown,
            pictured=lambda about: slides_of(view).thumbnail(about.slide_id) is not None,
            clusters=view.clusters(k),
            table=view.table,
            names=view.names(k),
        ),
        all_slides=len(slides_of(view).by_id),
        found=len(found),
        find=find,
        page=page,
        pages=pages,
        kept=kept,
        version=view.version,
    )


@router.get("/slides/{slide_id}", response_class=HTMLResponse, include_in_schema=False)
def slide_page(request: Request, slide_id: SlideId, k: OptionalK = None) -> HTMLResponse:
    """The viewer of one slide."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    about = slide_of(view, slide_id)
    order = [other.slide_id for other in slides_of(view).search("")]
    place = order.index(slide_id)
    segment = quote(slide_id, safe="")
    links = {other: f"/slides/{segment}?k={other}" for other in view.ks}
    return render(
        request,
        "slide.html",
        k=k,
        k_links=k_links(links, current=k, chosen=view.chosen),
        slide=about,
        trouble=slides_of(view).problem(slide_id),
        before=order[place - 1] if place else None,
        after=order[place + 1] if place + 1 < len(order) else None,
        thumbnail=thumbnail_address(view, about),
    )


@router.get("/api/slides/{slide_id}", tags=["slides"])
def slide_answer(request: Request, slide_id: SlideId, k: OptionalK = None) -> SlideAnswer:
    """A slide's geometry, the addresses of its pictures, and its clusters."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    about, slides = slide_of(view, slide_id), slides_of(view)
    trouble = slides.problem(slide_id)
    zoom, start = about.zoom, f"/api/slides/{quote(slide_id, safe='')}"
    with refused():
        tiles = "" if trouble else f"{start}/tiles/{{level}}/{{column}}/{{row}}.jpg?v={slides.identity(slide_id)}"
    label_N, names, colours = view.clusters(k).label_N, view.names(k), view.colours(k)
    sizes = view.table.cluster_sizes(slide_id, label_N=label_N, k=k)
    return SlideAnswer(
        slide_id=slide_id,
        width=about.width,
        height=about.height,
        mpp=about.mpp,
        tile=TILE,
        levels=0 if zoom is None else zoom.levels,
        k=k,
        trouble=trouble,
        tiles=tiles,
        thumbnail=thumbnail_address(view, about),
        map="" if map_of(view, slide_id, k=k) is None else f"{start}/map.png?k={k}&v={view.version}",
        clusters=[LegendEntry(cluster=c, name=names[c], colour=colours[c], patches=int(sizes[c])) for c in range(k)],
    )


@router.get("/api/slides/{slide_id}/tiles/{level}/{column}/{row}.jpg", tags=["slides"], response_class=Response)
def tile(request: Request, slide_id: SlideId, level: Index, column: Index, row: Index, v: Version = "") -> Response:
    """A tile; level 0 is the slide itself, and each further level half of the one before."""
    view = view_of(request)
    slide_of(view, slide_id)
    slides = slides_of(view)
    with refused():
        identity = slides.identity(slide_id)
        return _lasting(
            request,
            what=(identity, str(level), str(column), str(row), jpeg_settings()),
            same=v == identity,
            kind="image/jpeg",
            make=lambda: slides.tile(slide_id, level=level, column=column, row=row),
        )


@router.get("/api/slides/{slide_id}/thumbnail.jpg", tags=["slides"], response_class=Response)
def thumbnail(
    request: Request, slide_id: SlideId, size: Literal["small", "full"] = "full", v: Version = ""
) -> Response:
    """The slide in one picture, as the run keeps it (at most 1024 px wide or high), or ``small``, for lists."""
    view = view_of(request)
    slide_of(view, slide_id)
    path = slides_of(view).thumbnail(slide_id)
    if path is None:
        raise NotFound("there is no thumbnail of this slide; it could not be read when the run was made")
    make = path.read_bytes if size == "full" else lambda: _smaller(path)
    what = (view.version, slide_id, size)
    return _lasting(request, what=what, same=v == view.version, kind="image/jpeg", make=make)


@router.get("/api/slides/{slide_id}/map.png", tags=["slides"], response_class=Response)
def tissue_map(request: Request, slide_id: SlideId, k: OptionalK = None, v: Version = "") -> Response:
    """The report's tissue map of the slide: its thumbnail with the clusters of a grid of patches over it."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    slide_of(view, slide_id)
    path = map_of(view, slide_id, k=k)
    if path is None:
        raise NotFound(f"the report has no tissue map of this slide at k = {k}; more: --set report.map_slides=N")
    found = path.stat()
    what = (view.version, slide_id, str(k), str(found.st_mtime_ns))
    return _lasting(request, what=what, same=v == view.version, kind="image/png", make=path.read_bytes)


@router.get("/api/slides/{slide_id}/patches", tags=["slides"], response_class=Response)
def patches(
    request: Request,
    slide_id: SlideId,
    left: Place,
    top: Place,
    right: Place,
    bottom: Place,
    k: OptionalK = None,
) -> Response:
    """The patches that touch a part of the slide (level-0 px), as lists of equal length.

    ``{"x": [], "y": [], "extent": [], "cluster": [], "total": n}``; where they are more than can be shown, an even
    choice of them.
    """
    view = view_of(request)
    k = view.k_or_chosen(k)
    slide_of(view, slide_id)
    label_N, table = view.clusters(k).label_N, view.table
    found = view.table.in_box(slide_id, label_N=label_N, box=(left, top, right, bottom))
    columns = {"x": table.x_N, "y": table.y_N, "extent": table.extent_N, "cluster": label_N}
    answer: dict[str, object] = {name: values[found.rows_M].tolist() for name, values in columns.items()}
    return Response(json.dumps(answer | {"total": found.total}), media_type="application/json")


def slides_of(view: RunView) -> RunSlides:
    """The run's slides; their open files outlive a change of the stage."""
    kept = view.kept("open slides", of=(), make=SlideCache)
    return view.kept("slides", of=[_PATCHES], make=lambda: RunSlides(view.run.require("patches"), slide_cache=kept))


def slide_of(view: RunView, slide_id: str) -> SlideInfo:
    """A slide by its id; ``NotFound``."""
    with refused():
        return slides_of(view).slide(slide_id)


def map_of(view: RunView, slide_id: str, *, k: int) -> Path | None:
    """The report's tissue map of a slide, where it is of this k and of the clusters as they are now."""
    artifact = view.run.artifact("clusters")
    slide = slide_of(view, slide_id)
    return drawn_map(
        view.run.folder("report"), slide_id=slide.slide_id, k=k, clusters=artifact.fingerprint if artifact else ""
    )


def thumbnail_address(view: RunView, about: SlideInfo) -> str:
    """Where a slide's thumbnail is; empty where there is none."""
    if slides_of(view).thumbnail(about.slide_id) is None:
        return ""
    return f"/api/slides/{quote(about.slide_id, safe='')}/thumbnail.jpg?v={view.version}"


@contextmanager
def refused() -> Iterator[None]:
    """What the slides refuse, as the atlas says it."""
    try:
        yield
    except (NoSlide, NoTile) as error:
        raise NotFound(str(error)) from error
    except SlideError as error:
        raise Conflict(f"the slide cannot be shown: {error.reason}") from error


def _lasting(request: Request, *, what: tuple[str, ...], same: bool, kind: str, make: Callable[[], bytes]) -> Response:
    """A picture that is told by ``what``, kept for good where its address names that (``same``)."""
    etag = f'"{hashlib.sha256(chr(0).join(what).encode("utf-8", "replace")).hexdigest()[:24]}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable" if same else "private, no-cache",
    }
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(make(), media_type=kind, headers=headers)


def _smaller(path: Path) -> bytes:
    data = io.BytesIO()
    with Image.open(path) as picture:
        picture.draft("RGB", (_SMALL, _SMALL))
        picture.thumbnail((_SMALL, _SMALL), Image.Resampling.LANCZOS, reducing_gap=2.0)
        picture.convert("RGB").save(data, "JPEG", quality=85, subsampling=0)
    return data.getvalue()
