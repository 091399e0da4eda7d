"""The queue of drawing jobs over HTTP: what waits, how far it is, its pictures, and all of them as a ZIP file."""

from __future__ import annotations

import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Path, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from histoloom.atlas.jobs.job_log import JobPicture, State, archive
from histoloom.atlas.jobs.queue import JobQueue, JobStatus, has_generator
from histoloom.atlas.web.http_errors import Conflict, NotFound
from histoloom.atlas.web.params import view_of
from histoloom.atlas.web.pictures import patch_address
from histoloom.atlas.web.run_view import RunView
from histoloom.config import SamplerMethod
from histoloom.diffusion.generation.request import Request as Drawing
from histoloom.errors import UserError

LASTING = "private, max-age=31536000, immutable"
"""a picture of a job never changes: neither its job's id nor its number is given twice"""


@asynccontextmanager
async def _closing(app: FastAPI) -> AsyncIterator[None]:
    """End what is being drawn when the atlas ends."""
    yield
    view: RunView = app.state.view
    queue_of(view).close()


router = APIRouter(prefix="/api/jobs", tags=["jobs"], lifespan=_closing)


def _one_line(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError("give one plain line of text")
    return text


Line = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_one_line)]
JobId = Annotated[str, Path(min_length=1, max_length=60, description="A job's id.")]
Number = Annotated[int, Path(ge=0, le=1_000_000, description="The picture's number in its job.")]


class DrawIn(BaseModel):
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


class JobOut(BaseModel):
    """How a job stands."""

    id: str
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
    request: dict[str, Any]


class JobsOut(BaseModel):
    """All jobs, the newest first."""

    jobs: list[JobOut]


class PictureOut(BaseModel):
    """A picture of a job and its record."""

    number: int
    src: str
    record: dict[str, Any]


class PicturesOut(BaseModel):
    """The pictures of a job that were not withheld, in the order of drawing."""

    pictures: list[PictureOut]


class NearestOut(BaseModel):
    """The training patch that a picture is nearest to; ``patch_id`` is None where nobody can tell."""

    patch_id: str | None
    src: str | None = None
    score: float | None = Field(None, description="1 for a copy, 0..1")
    threshold: float | None = Field(None, description="a score above it is taken for a copy")


class Gone(BaseModel):
    """What was done."""

    state: Literal["deleted"] = "deleted"


def queue_of(view: RunView) -> JobQueue:
    """The run's queue; made when it is first asked for."""
    return view.kept("jobs", of=[], make=lambda: JobQueue(view.path))


@router.get("")
def jobs(request: Request) -> JobsOut:
    """All jobs."""
    return JobsOut(jobs=[_out(status) for status in queue_of(view_of(request)).jobs()])


@router.post("", status_code=201)
def draw(request: Request, asked: DrawIn) -> JobOut:
    """Queue a job."""
    view = view_of(request)
    if not has_generator(view.path):
        raise Conflict(f"this run has no generator yet; make it: histoloom run {view.title}")
    given = asked.model_dump()
    queue = queue_of(view)
    with _known():
        job_id = queue.submit(Drawing(**given | {"tissues": tuple(given["tissues"])}))
        return _out(queue.status(job_id))


@router.get("/{job_id}")
def job(request: Request, job_id: JobId) -> JobOut:
    """One job."""
    with _known():
        return _out(queue_of(view_of(request)).status(job_id))


@router.post("/{job_id}/cancel")
def cancel(request: Request, job_id: JobId) -> JobOut:
    """End a job before its next step; what it has drawn stays."""
    return _changed(request, job_id, change=lambda queue: queue.cancel(job_id))


@router.post("/{job_id}/resume")
def resume(request: Request, job_id: JobId) -> JobOut:
    """Draw what is missing of a job that ended early."""
    return _changed(request, job_id, change=lambda queue: queue.resume(job_id))


@router.delete("/{job_id}")
def delete(request: Request, job_id: JobId) -> Gone:
    """Take a job and its pictures off the disk."""
    with _known(), _conflicting():
        queue_of(view_of(request)).delete(job_id)
    return Gone()


@router.get("/{job_id}/pictures")
def pictures(request: Request, job_id: JobId) -> PicturesOut:
    """The pictures of a job."""
    with _known():
        made = queue_of(view_of(request)).pictures(job_id)
    return PicturesOut(pictures=[_picture(job_id, one) for one in made])


@router.get("/{job_id}/pictures/{number}.png", response_class=Response)
def picture(request: Request, job_id: JobId, number: Number) -> Response:
    """A picture, pixel by pixel as it was drawn."""
    with _known():
        file = queue_of(view_of(request)).file(job_id, number)
        return Response(file.read_bytes(), media_type="image/png", headers={"Cache-Control": LASTING})


@router.get("/{job_id}/pictures/{number}/nearest")
def nearest(request: Request, job_id: JobId, number: Number) -> NearestOut:
    """The training patch that a picture is nearest to; takes a second or two."""
    from histoloom.atlas.jobs.nearest_patch import TrainingPatches
    from histoloom.diffusion.generation.source_images import read_picture

    view = view_of(request)
    with _known():
        file = queue_of(view).file(job_id, number)
        image = read_picture(file, size=view.table.size).image_HW3
    training = view.kept("training patches", of=[], make=lambda: TrainingPatches(view.path))
    found = training.nearest(image)
    if found is None:
        return NearestOut(patch_id=None)
    src = patch_address(view, found.patch_id)
    return NearestOut(patch_id=found.patch_id, src=src, score=found.score, threshold=found.threshold)


@router.get("/{job_id}/pictures.zip", response_class=StreamingResponse)
def download(request: Request, job_id: JobId) -> StreamingResponse:
    """The labelled folder as a ZIP file."""
    queue = queue_of(view_of(request))
    with _known():
        made, folder, status = queue.pictures(job_id), queue.folder(job_id), queue.status(job_id)
    if not made:
        raise Conflict("this job has no pictures yet")
    name = f"synthetic-{status.job_id}"
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
    return StreamingResponse(archive(folder, pictures=made, name=name), media_type="application/zip", headers=headers)


def _changed(request: Request, job_id: str, *, change: Callable[[JobQueue], None]) -> JobOut:
    queue = queue_of(view_of(request))
    with _known(), _conflicting():
        change(queue)
        return _out(queue.status(job_id))


@contextmanager
def _known() -> Iterator[None]:
    """What the queue does not know, or what is no longer on disk, is not here."""
    try:
        yield
    except (KeyError, FileNotFoundError) as error:
        raise NotFound("there is no such job or picture; it may have been deleted") from error


@contextmanager
def _conflicting() -> Iterator[None]:
    """What a job in this state does not allow is a conflict."""
    try:
        yield
    except UserError as error:
        raise Conflict(str(error)) from error


def _out(status: JobStatus) -> JobOut:
    asked = status.request
    return JobOut(
        id=status.job_id,
        state=status.state,
        title=status.title,
        message=status.message,
        time=status.time,
        total=status.total,
        made=status.made,
        withheld=status.withheld,
        share=status.share,
        seconds_left=status.seconds_left,
        ahead=status.ahead,
        request={"n": asked.n, "k": asked.k, "seed": asked.seed, "like": asked.like, "between": asked.between}
        | {"strength": asked.strength, "tissues": asked.tissues},
    )


def _picture(job_id: str, made: JobPicture) -> PictureOut:
    return PictureOut(number=made.number, src=f"/api/jobs/{job_id}/pictures/{made.number}.png", record=dict(made.row))
