"""The queue of jobs over HTTP: the jobs, their progress, their pictures, and all of these as a ZIP file."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, FastAPI, Path
from fastapi.responses import Response, StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from histoloom.atlas.jobs.job_log import FIELD_FOLDER, LAYOUT_FILE, FieldSpec, State, archive
from histoloom.atlas.jobs.queue import JobQueue, JobStatus
from histoloom.atlas.web.errors import Conflict, NotFound
from histoloom.atlas.web.generator_view import GeneratorView
from histoloom.atlas.web.init_images import InitImage, init_image, job_picture_address
from histoloom.atlas.web.pictures import patch_address
from histoloom.atlas.web.routing import AnyView
from histoloom.atlas.web.run_view import RunView
from histoloom.config import SamplerMethod
from histoloom.diffusion.generation.request import Request
from histoloom.errors import UserError

LIFETIME = "private, max-age=31536000, immutable"
"""A picture of a job never changes: neither its job's id nor its number is used twice."""
FIRST = 4
"""Pictures that stand for a job in a list."""
FIELD_FILES = {
    "field.ome.tif": (f"{FIELD_FOLDER}/field.ome.tif", "Field (OME-TIFF)"),
    "mask.png": (f"{FIELD_FOLDER}/mask.png", "Mask (PNG)"),
    "mask.tif": (f"{FIELD_FOLDER}/mask.tif", "Mask (TIFF)"),
    "mask.json": (f"{FIELD_FOLDER}/mask.json", "Names of the mask"),
    "map.geojson": (f"{FIELD_FOLDER}/map.geojson", "Areas (GeoJSON)"),
    "field.json": (f"{FIELD_FOLDER}/field.json", "Record"),
    LAYOUT_FILE: (LAYOUT_FILE, "Layout (GeoJSON)"),
}
"""The files of a field by their names: where each lies in the folder of its job, and its title."""


@asynccontextmanager
async def _close_queue(app: FastAPI) -> AsyncIterator[None]:
    """End what is being drawn when the atlas ends."""
    yield
    view: GeneratorView = app.state.view
    view.queue.close()


router = APIRouter(prefix="/api/jobs", tags=["jobs"], lifespan=_close_queue)


def one_line(text: str) -> str:
    """``text``; ``ValueError`` where it holds control characters or half of a surrogate pair."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError("give one plain line of text")
    return text


Line = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(one_line)]
JobId = Annotated[str, Path(min_length=1, max_length=60, description="A job's id.")]
Number = Annotated[int, Path(ge=0, le=1_000_000, description="The picture's number in its job.")]


class NewJob(BaseModel):
    """What to draw. ``like`` and ``between`` name patches, ``samples/ID`` or ``drawn/JOB/NUMBER``."""

    model_config = ConfigDict(extra="forbid")

    n: int = Field(ge=1, le=10_000, description="pictures a tissue, or in all where none is named")
    tissues: list[Line] = Field(default=[], max_length=60, description="names, or clusters' numbers; none: all")
    k: int | None = Field(None, ge=1, le=10_000)
    seed: int = Field(0, ge=0, le=2**53 - 1)
    method: SamplerMethod | None = None
    steps: int | None = Field(None, ge=1, le=10_000)
    guidance: float | None = Field(None, ge=0, le=50)
    like: Line | None = None
    between: tuple[Line, Line] | None = None
    strength: float | None = Field(None, gt=0, le=1)


class JobRequest(BaseModel):
    """The part of a request that the page shows."""

    model_config = ConfigDict(from_attributes=True)

    n: int
    k: int | None
    seed: int
    like: str | None
    between: tuple[str, str] | None
    strength: float | None
    tissues: tuple[str, ...]


class FieldFile(BaseModel):
    """A file of a painted field."""

    name: str
    title: str
    href: str


class PaintedField(BaseModel):
    """The field of a job: (width, height), px; the command that paints or continues it; what is there of it.

    ``picture`` and ``page``: the addresses of a small picture and of the viewer; empty until it is painted.
    """

    size: tuple[int, int]
    softness: float
    command: str
    picture: str = ""
    page: str = ""
    files: list[FieldFile] = []


class Job(BaseModel):
    """The state of a job."""

    model_config = ConfigDict(from_attributes=True)

    id: str = Field(validation_alias="job_id")
    state: State
    title: str
    message: str
    time: str
    total: int
    made: int
    withheld: int
    share: float = Field(description="done, 0..1")
    seconds_left: float | None
    ahead: int = Field(description="jobs that are drawn before")
    request: JobRequest
    sources: list[InitImage] = Field([], description="the pictures that it starts from, as far as they are there")
    first: list[str] = Field([], description="addresses of its first pictures")
    painted: PaintedField | None = Field(None, description="of a job that paints a field")


class Jobs(BaseModel):
    """All jobs, the newest first."""

    jobs: list[Job]


class JobPicture(BaseModel):
    """A picture of a job, and its row of ``metadata.csv``."""

    number: int
    src: str
    record: Mapping[str, object]


class JobPictures(BaseModel):
    """The pictures of a job that were not withheld, in the order of drawing."""

    pictures: list[JobPicture]


class Nearest(BaseModel):
    """The training patch nearest to a picture; ``patch_id`` is None where none could be searched."""

    patch_id: str | None
    src: str | None = None
    score: float | None = Field(None, description="1 for a copy, 0..1")
    threshold: float | None = Field(None, description="a score above it counts as a copy")


class Deleted(BaseModel):
    """The job is deleted."""

    state: Literal["deleted"] = "deleted"


def queue_of(view: AnyView) -> JobQueue:
    """The queue of the run or generator."""
    return view.queue


Queue = Annotated[JobQueue, Depends(queue_of)]


def job_of(view: GeneratorView, status: JobStatus) -> Job:
    """A job with the pictures that it starts from and its first ones, or with its field."""
    job, request = Job.model_validate(status), status.request
    if status.field is not None:
        job.painted = painted_field(view, status, field=status.field)
        job.first = [job.painted.picture] if job.painted.picture else []
        return job
    for name in request.init_images:
        with suppress(NotFound):
            job.sources.append(init_image(view, name=name))
    with suppress(KeyError):  # deleted a moment ago
        job.first = [job_picture_address(job.id, made.number) for made in view.queue.pictures(job.id)[:FIRST]]
    return job


def painted_field(view: GeneratorView, status: JobStatus, *, field: FieldSpec) -> PaintedField:
    """The field of a job, with the files that are there."""
    job_id, address = status.job_id, f"/api/paint/fields/{status.job_id}"
    painted = PaintedField(size=field.size, softness=field.softness, command=view.queue.command(job_id))
    with suppress(KeyError):  # deleted a moment ago
        for name, (path, title) in FIELD_FILES.items():
            if (view.queue.folder(job_id) / path).is_file():
                painted.files.append(FieldFile(name=name, title=title, href=f"{address}/files/{name}"))
    if status.state == "done":
        painted.picture, painted.page = f"{address}/picture.jpg", f"/paint/{job_id}"
    return painted


@contextmanager
def errors_as_http(*, conflict: bool = False) -> Iterator[None]:
    """``NotFound`` for a job or file that is gone; with ``conflict``, ``Conflict`` for a refusal of the queue."""
    try:
        yield
    except (KeyError, FileNotFoundError) as error:
        raise NotFound("there is no such job or picture; it may have been deleted") from error
    except UserError as error:
        if not conflict:
            raise
        raise Conflict(str(error)) from error


@router.get("")
def jobs(view: AnyView, queue: Queue) -> Jobs:
    """All jobs."""
    return Jobs(jobs=[job_of(view, status) for status in queue.jobs()])


@router.post("", status_code=201)
def submit(view: AnyView, queue: Queue, new: NewJob) -> Job:
    """End a job before its next step; what it has drawn stays. The answer says how it ended, if it had already."""
    if not view.has_generator:
        raise Conflict(f"this run has no generator yet; make it: histoloom run {view.title}")
    with errors_as_http():
        job_id = queue.submit(Request(**new.model_dump() | {"tissues": tuple(new.tissues)}))
        return job_of(view, queue.status(job_id))


@router.get("/{job_id}")
def job(view: AnyView, queue: Queue, job_id: JobId) -> Job:
    """One job."""
    with errors_as_http():
        return job_of(view, queue.status(job_id))


@router.post("/{job_id}/cancel")
def cancel(view: AnyView, queue: Queue, job_id: JobId) -> Job:
    """End a job before its next step; what it has drawn stays. The answer says how it ended."""
    with errors_as_http(conflict=True):
        queue.cancel(job_id)
        return job_of(view, queue.status(job_id))


@router.post("/{job_id}/resume")
def resume(view: AnyView, queue: Queue, job_id: JobId) -> Job:
    """Draw what is missing of a job that ended early."""
    with errors_as_http(conflict=True):
        queue.resume(job_id)
        return job_of(view, queue.status(job_id))


@router.delete("/{job_id}")
def delete(queue: Queue, job_id: JobId) -> Deleted:
    """Delete a job and its pictures from the disk."""
    with errors_as_http(conflict=True):
        queue.delete(job_id)
    return Deleted()


@router.get("/{job_id}/pictures")
def pictures(queue: Queue, job_id: JobId) -> JobPictures:
    """The pictures of a job."""
    with errors_as_http():
        drawn = queue.pictures(job_id)
    return JobPictures(
        pictures=[
            JobPicture(number=one.number, src=job_picture_address(job_id, one.number), record=one.row) for one in drawn
        ]
    )


@router.get("/{job_id}/pictures/{number}.png", response_class=Response)
def picture(queue: Queue, job_id: JobId, number: Number) -> Response:
    """A picture, pixel by pixel as it was drawn."""
    with errors_as_http():
        content = queue.file(job_id, number).read_bytes()
    return Response(content, media_type="image/png", headers={"Cache-Control": LIFETIME})


@router.get("/{job_id}/pictures/{number}/nearest")
def nearest(view: AnyView, queue: Queue, job_id: JobId, number: Number) -> Nearest:
    """The training patch nearest to a picture; takes a second or two."""
    from histoloom.atlas.jobs.nearest_patch import TrainingPatches
    from histoloom.diffusion.generation.source_images import read_picture

    with errors_as_http():
        file = queue.file(job_id, number)
    if not isinstance(view, RunView):
        return Nearest(patch_id=None)
    image = read_picture(file, size=view.size).image_HW3
    training = view.cached("training patches", depends_on=[], make=lambda: TrainingPatches(view.path))
    match = training.nearest(image)
    if match is None:
        return Nearest(patch_id=None)
    src = patch_address(view, match.patch_id)
    return Nearest(patch_id=match.patch_id, src=src, score=match.score, threshold=match.threshold)


@router.get("/{job_id}/pictures.zip", response_class=StreamingResponse)
def download(queue: Queue, job_id: JobId) -> StreamingResponse:
    """The labelled folder as a ZIP file."""
    with errors_as_http():
        drawn, folder = queue.pictures(job_id), queue.folder(job_id)
    if not drawn:
        raise Conflict("this job has no pictures yet")
    name = f"synthetic-{job_id}"
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(archive(folder, pictures=drawn, name=name), media_type="application/zip", headers=headers)
