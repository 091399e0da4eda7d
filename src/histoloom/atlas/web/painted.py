"""Painted fields over HTTP: the viewer's page, a picture, tiles, the files, and the layout of one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi import Path as InPath
from fastapi.responses import FileResponse, HTMLResponse, Response
from PIL import Image
from pydantic import BaseModel

from histoloom.atlas.browse.run_slides import jpeg
from histoloom.atlas.jobs.job_log import FIELD_FOLDER, LAYOUT_FILE
from histoloom.atlas.jobs.queue import JobStatus
from histoloom.atlas.web.errors import Conflict, NotFound
from histoloom.atlas.web.generator_view import GeneratorView
from histoloom.atlas.web.jobs import FIELD_FILES, LIFETIME, JobId, PaintedField, Queue, errors_as_http, painted_field
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.paint import Imported, PaintTissue, layout_of_file, palette
from histoloom.atlas.web.routing import AnyView
from histoloom.slides.entries import SlideError
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.viewer import TILE, NoTile, SlideCache, Zoom, tile_pixels

router = APIRouter()

PICTURE = 640
"""px of the longer side of a field's picture in a list"""
ADDRESS = "/api/paint/fields/{job_id}"

Index = Annotated[int, InPath(ge=0, le=1_000_000, description="From 0.")]
FileName = Annotated[str, InPath(min_length=1, max_length=60, description="One of the field's files.")]


class ViewedField(BaseModel):
    """What the viewer needs of a field: its geometry, addresses, and its tissues in their colours."""

    title: str
    width: int
    height: int
    mpp: float
    tile: int
    levels: int
    tiles: str
    thumbnail: str
    tissues: list[PaintTissue]
    painted: PaintedField


def field_status(queue: Queue, job_id: JobId) -> JobStatus:
    """The job of a field; ``NotFound`` where there is none."""
    with errors_as_http():
        status = queue.status(job_id)
    if status.field is None:
        raise NotFound("this job drew pictures, and has no field")
    return status


FieldStatus = Annotated[JobStatus, Depends(field_status)]


@contextmanager
def open_field(view: GeneratorView, status: JobStatus) -> Iterator[Slide]:
    """The field of a job as a slide; ``Conflict`` while it is not painted."""
    cache = view.cached("open fields", depends_on=(), make=SlideCache)
    with errors_as_http():
        path = view.queue.folder(status.job_id) / FIELD_FOLDER / "field.ome.tif"
    if not path.is_file():
        raise Conflict("this field is not painted yet")
    try:
        with cache.use(path) as slide:
            yield slide
    except SlideError as error:
        raise Conflict(f"the field cannot be shown: {error.reason}") from error


@router.get("/paint/{job_id}", response_class=HTMLResponse, tags=["pages"])
def page(request: Request, view: AnyView, status: FieldStatus) -> HTMLResponse:
    """The viewer of one field."""
    assert status.field is not None, "field_status"
    k = status.request.k
    return render(
        request,
        "painted.html",
        k=k if k in view.ks else view.chosen,
        job_id=status.job_id,
        title=status.title,
        painted=painted_field(view, status, field=status.field),
        seed=status.request.seed,
        mpp=f"{view.mpp:.3g}",
    )


@router.get(ADDRESS, tags=["paint"])
def viewed_field(view: AnyView, status: FieldStatus) -> ViewedField:
    """A painted field for the viewer."""
    assert status.field is not None, "field_status"
    k = view.k_or_chosen(status.request.k)
    tissues = palette(view, k=k)
    address = ADDRESS.format(job_id=status.job_id)
    with open_field(view, status) as slide:
        width, height = slide.dimensions
    return ViewedField(
        title=status.title,
        width=width,
        height=height,
        mpp=view.mpp,
        tile=TILE,
        levels=Zoom(width, height).levels,
        tiles=f"{address}/tiles/{{level}}/{{column}}/{{row}}.jpg",
        thumbnail=f"{address}/picture.jpg",
        tissues=tissues,
        painted=painted_field(view, status, field=status.field),
    )


@router.get(f"{ADDRESS}/layout", tags=["paint"])
def layout(view: AnyView, queue: Queue, status: FieldStatus) -> Imported:
    """The layout of a field, to change it and paint it again."""
    assert status.field is not None, "field_status"
    with errors_as_http():
        content = (queue.folder(status.job_id) / LAYOUT_FILE).read_bytes()
    k = view.k_or_chosen(status.request.k)
    return layout_of_file(view, content, k=k, mpp=view.mpp, size=status.field.size)


@router.get(f"{ADDRESS}/picture.jpg", response_class=Response, tags=["paint"])
def picture(view: AnyView, status: FieldStatus) -> Response:
    """The whole field in one small picture."""
    with open_field(view, status) as slide:
        small_HW3 = slide.thumbnail(PICTURE)
    data = io.BytesIO()
    Image.fromarray(small_HW3).save(data, "JPEG", quality=88, subsampling=0)
    return Response(data.getvalue(), media_type="image/jpeg", headers={"Cache-Control": LIFETIME})


@router.get(f"{ADDRESS}/tiles/{{level}}/{{column}}/{{row}}.jpg", response_class=Response, tags=["paint"])
def tile(view: AnyView, status: FieldStatus, level: Index, column: Index, row: Index) -> Response:
    """A tile of a field, as of a slide."""
    with open_field(view, status) as slide:
        try:
            place = Zoom(*slide.dimensions).tile(level, column=column, row=row)
        except NoTile as error:
            raise NotFound(str(error)) from error
        pixels = tile_pixels(slide, place)
    return Response(jpeg(pixels), media_type="image/jpeg", headers={"Cache-Control": LIFETIME})


@router.get(f"{ADDRESS}/files/{{name}}", response_class=FileResponse, tags=["paint"])
def file(queue: Queue, status: FieldStatus, name: FileName) -> FileResponse:
    """A file of a field, under a name that says what it is."""
    if name not in FIELD_FILES:
        raise NotFound("a field has no such file")
    with errors_as_http():
        path = queue.folder(status.job_id) / FIELD_FILES[name][0]
    if not path.is_file():
        raise NotFound("this field has no such file yet")
    return FileResponse(path, filename=f"synthetic-{status.job_id}-{name}")
