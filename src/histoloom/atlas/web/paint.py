"""The page that paints fields: its palette, layouts from files and as files, previews, and the fields themselves."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from histoloom.atlas.browse.drawn_layout import Grid, LayoutFileContent, cell_of, palette_places
from histoloom.atlas.jobs.job_log import FieldSpec
from histoloom.atlas.jobs.queue import STUDENT, Superseded, has_student
from histoloom.atlas.maps.tissue_groups import groups_of
from histoloom.atlas.web.draw import Tissue, tissues
from histoloom.atlas.web.errors import Conflict
from histoloom.atlas.web.generator_view import GeneratorView
from histoloom.atlas.web.jobs import Job, Queue, job_of
from histoloom.atlas.web.own import content_of
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.pictures import patch_address
from histoloom.atlas.web.routing import AnyView, QueryK
from histoloom.atlas.web.run_view import RunView
from histoloom.atlas.web.security import LAYOUTS
from histoloom.config import SamplerMethod
from histoloom.diffusion.generation.request import Request as SampleRequest
from histoloom.diffusion.painting.layout import NOTHING
from histoloom.errors import UserError
from histoloom.run.own_output import png_text

if TYPE_CHECKING:
    from histoloom.diffusion.generation.generator_spec import GeneratorSpec

router = APIRouter()

MOST_PX = 20_000
"""px of a field along a side"""
SOFTNESS = 8.0
"""um, as of ``histoloom paint``"""

Legend = Annotated[str | None, Query(max_length=8000, description="The text of a PNG's legend; none for a GeoJSON.")]
Mpp = Annotated[float, Query(gt=0, le=1000, allow_inf_nan=False, description="um/px of the file.")]


class PaintTissue(Tissue):
    """A tissue of the palette: its colour, and the address of a real patch that shows it; empty where there is none."""

    colour: str
    example: str


class PaintOptions(BaseModel):
    """What the page offers, and its defaults; lengths in px but for ``softness``, um."""

    k: int
    tissues: list[PaintTissue]
    methods: list[str]
    method: str
    steps: int
    most_steps: int
    guidance: float
    softness: float
    mpp: float
    patch: int
    factor: int
    most: int
    slides: bool


class Sampling(BaseModel):
    """How a field is painted; the student has its own steps and guidance."""

    model_config = ConfigDict(extra="forbid")

    layout: Grid
    k: int | None = Field(None, ge=1, le=10_000)
    seed: int = Field(0, ge=0, le=2**53 - 1)
    method: SamplerMethod | None = None
    steps: int | None = Field(None, ge=1, le=10_000)
    guidance: float | None = Field(None, ge=0, le=50)
    softness: float = Field(SOFTNESS, ge=0, le=1000)


class NewPreview(Sampling):
    """What to preview: the whole field, made smaller, or the part whose upper left px is given."""

    part: tuple[Annotated[int, Field(ge=0, le=100_000)], Annotated[int, Field(ge=0, le=100_000)]] | None = None


class PaintedPreview(BaseModel):
    """A preview as a data address, its size, how it was painted, and the seconds that the whole field will take."""

    src: str
    width: int
    height: int
    method: str
    steps: int
    seconds: float
    field_seconds: float


class Imported(BaseModel):
    """A layout in the tissues of the palette; ``empty``: the share of it that lies in no area, 0..1."""

    layout: Grid
    empty: float


class LayoutFile(BaseModel):
    """A layout as a file that the command line reads, and the command that paints the same field from it."""

    geojson: str
    command: str


@router.get("/paint", response_class=HTMLResponse, tags=["pages"])
def page(request: Request, view: AnyView, k: QueryK) -> HTMLResponse:
    """The page."""
    return render(
        request,
        "paint.html",
        k=k,
        ready=view.has_generator,
        alone=not isinstance(view, RunView),
        drawn=view.drawn,
        mpp=f"{view.mpp:.3g}",
    )


def generator_spec(view: GeneratorView) -> GeneratorSpec:
    """The generator's specification; ``Conflict`` where there is none yet."""
    from histoloom.diffusion.generation.generator_spec import read_spec  # loads torch

    if not view.has_generator:
        raise Conflict(f"this run has no generator yet; make it: histoloom run {view.title}")
    files = ["diffusion/artifact.json", "config.yaml", "generator.json"]
    return view.cached("generator", depends_on=files, make=lambda: read_spec(view.path))


@router.get("/api/paint/options", tags=["paint"])
def options(view: AnyView, queue: Queue, k: QueryK) -> PaintOptions:
    """The palette and the settings at one k."""
    spec, sampler, student = generator_spec(view), view.sampler, has_student(view.path)
    queue.preload()
    return PaintOptions(
        k=k,
        tissues=palette(view, k=k),
        methods=[method for method in get_args(SamplerMethod) if method != STUDENT or student],
        method=STUDENT if student else sampler.method,
        steps=sampler.steps,
        most_steps=view.most_steps,
        guidance=sampler.guidance,
        softness=SOFTNESS,
        mpp=view.mpp,
        patch=view.size,
        factor=spec.size // spec.shape[1],
        most=MOST_PX,
        slides=isinstance(view, RunView),
    )


@router.get("/api/paint/examples", tags=["paint"])
def examples(view: AnyView, queue: Queue, k: QueryK) -> dict[str, str]:
    """A synthetic picture of each tissue, for a generator without patches: data addresses by name."""
    generator_spec(view)
    names = [tissue.name for tissue in tissues(view, k=k)]

    def make() -> dict[str, str]:
        drawn = queue.urgently("examples", lambda runner, check: runner.examples(names, k=k, on_progress=check))
        return {name: data_address(image) for name, image in drawn.items()}

    return view.cached(("examples", k, *names), depends_on=[], make=make)


def data_address(image_HW3: np.ndarray) -> str:
    """A picture, uint8 (H, W, 3), as a PNG in an address."""
    data = io.BytesIO()
    Image.fromarray(image_HW3).save(data, "PNG", pnginfo=png_text(), compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def palette(view: GeneratorView, *, k: int) -> list[PaintTissue]:
    """The tissues that the generator draws at ``k``, clusters of one name as one, in the colours of the maps."""
    groups = groups_of(view.labels(k), new_names=list(view.corrected_groups(k)))
    colours = {group.name: group.colour for group in groups}

    def example(name: str) -> str:
        if not isinstance(view, RunView):
            return ""
        grouping = view.grouping(k)
        number = grouping.number_of(name)
        if number is None or not len(rows := grouping.members(number)):
            return ""
        table = view.table
        row = grouping.table.representatives(rows, n=1, random_N=view.random_N, slide_N=table.slide_N)[:1]
        return patch_address(view, table.ids(row)[0])

    return [
        PaintTissue(**tissue.model_dump(), colour=colours[tissue.name], example=example(tissue.name))
        for tissue in tissues(view, k=k)
    ]


def checked(view: GeneratorView, sampling: Sampling) -> SampleRequest:
    """A field as a request of its tissues. ``UserError`` where it cannot be painted."""
    spec, grid = generator_spec(view), sampling.layout
    factor, size = spec.size // spec.shape[1], (grid.width, grid.height)
    if min(size) < spec.size:
        raise UserError(
            f"a field of {grid.width} x {grid.height} px is smaller than a patch of this generator; "
            f"make each side at least {spec.size} px"
        )
    if max(size) > MOST_PX:
        raise UserError(f"a field has at most {MOST_PX:,} px along a side here, got {grid.width:,} x {grid.height:,}")
    if any(side % factor for side in (*size, grid.cell)):
        raise UserError(f"the sides of a field and of its cells are multiples of {factor} px with this generator")
    k, layout = view.k_or_chosen(sampling.k), grid.layout()
    return SampleRequest(
        n=1,
        tissues=layout.names,
        k=k,
        method=sampling.method,
        steps=sampling.steps,
        guidance=sampling.guidance,
        seed=sampling.seed,
    )


@router.post("/api/paint/layout", tags=["paint"])
def layout_file(view: AnyView, queue: Queue, new: Sampling) -> LayoutFile:
    """A layout as GeoJSON, and the command that paints it."""
    request, field = checked(view, new), field_spec(new)
    queue.plan_field(request, field)
    command = field.command(view.path, request, layout=Path("layout.geojson"), out=Path("field"))
    return LayoutFile(geojson=new.layout.geojson(), command=command)


def field_spec(new: Sampling) -> FieldSpec:
    """The size and the boundaries of a field."""
    return FieldSpec((new.layout.width, new.layout.height), new.softness)


@router.post(LAYOUTS, tags=["paint"])
def imported(
    view: AnyView, k: QueryK, content: Annotated[bytes, Depends(content_of)], mpp: Mpp, legend: Legend = None
) -> Imported:
    """A layout from a GeoJSON, or from an indexed PNG with its legend, which is the body of the request."""
    return layout_of_file(view, content, k=k, mpp=mpp, legend=legend)


def layout_of_file(
    view: GeneratorView,
    content: bytes,
    *,
    k: int,
    mpp: float,
    legend: str | None = None,
    size: tuple[int, int] | None = None,
) -> Imported:
    """A file in the tissues of the palette; ``size`` of the field, px: None for what it covers. ``UserError``."""
    spec = generator_spec(view)
    factor = spec.size // spec.shape[1]
    file = LayoutFileContent(content, legend=legend, mpp=mpp)
    cells, names, canvas = file.read(field_mpp=spec.mpp, factor=factor, least=spec.size, most=MOST_PX, size=size)
    offered = tissues(view, k=k)
    labels = {number: label.name for number, label in view.drawn_labels(k).items()}
    places = palette_places(names, palette=[(one.name, one.clusters) for one in offered], labels=labels, k=k)
    grid = Grid.of(
        np.array([*places, NOTHING], np.int16)[cells],
        tissues=[tissue.name for tissue in offered],
        size=canvas.size,
        cell=cell_of(canvas.size, factor=factor),
    )
    return Imported(layout=grid, empty=float((cells == NOTHING).mean()))


@router.post("/api/paint/preview", tags=["paint"])
def preview(view: AnyView, queue: Queue, new: NewPreview) -> PaintedPreview:
    """Paint a small field within seconds; another request for a preview ends this one."""
    from histoloom.atlas.jobs.field_job import FieldPlan, PreviewRequest, seconds_of_field  # loads torch

    request, spec, field = checked(view, new), generator_spec(view), field_spec(new)
    plan = queue.plan_field(request, field)
    planned = FieldPlan(new.layout.layout().tissue_hw, new.layout.cell, field.size, plan.sampler, plan.evaluations)
    labels_HW, names = new.layout.preview(part=new.part, patch=spec.size)
    assert request.k is not None, "checked"
    small = PreviewRequest(labels_HW, names, request.k, new.seed, new.softness)
    try:
        painted = queue.preview(small)
    except Superseded as error:
        raise Conflict(str(error)) from error
    height, width = painted.image.shape[:2]
    return PaintedPreview(
        src=data_address(painted.image),
        width=width,
        height=height,
        method=painted.sampler.method,
        steps=painted.sampler.steps,
        seconds=painted.seconds,
        field_seconds=seconds_of_field(planned, preview=painted, request=small, spec=spec),
    )


@router.post("/api/paint/fields", status_code=201, tags=["paint"])
def submit(view: AnyView, queue: Queue, new: Sampling) -> Job:
    """Paint a field in the background."""
    request = checked(view, new)
    job_id = queue.submit_field(request, field=field_spec(new), layout=new.layout.geojson())
    return job_of(view, queue.status(job_id))
