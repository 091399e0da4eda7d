"""The page to draw on: what can be chosen, and what a drawing may begin from."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from histoloom.atlas.jobs.queue import STUDENT, has_generator, has_student
from histoloom.atlas.web.http_errors import NotFound
from histoloom.atlas.web.jobs import queue_of
from histoloom.atlas.web.pages import k_links, render
from histoloom.atlas.web.params import OptionalK, view_of
from histoloom.atlas.web.pictures import patch_address, sample_address
from histoloom.atlas.web.run_view import RunView
from histoloom.config import SamplerMethod
from histoloom.names import default_name

router = APIRouter()

Name = Annotated[
    str, Query(min_length=1, max_length=300, description="A patch, ``samples/ID`` or ``drawn/JOB/NUMBER``.")
]


class Tissue(BaseModel):
    """What can be asked for by name: one cluster or several."""

    name: str
    title: str
    clusters: list[int]
    share: float = Field(description="of all patches, 0..1")


class Options(BaseModel):
    """What a drawing can be told, and what it does where it is told nothing."""

    ready: bool = Field(description="whether the run has a generator")
    k: int
    tissues: list[Tissue]
    methods: list[str]
    method: str
    steps: int
    most_steps: int
    guidance: float
    most_pictures: int


class SourceOut(BaseModel):
    """A picture that a drawing may begin from; ``k`` and ``cluster`` are None where they are told when it is drawn."""

    name: str
    title: str
    src: str
    real: bool
    k: int | None = None
    cluster: int | None = None
    tissue: str = ""


@router.get("/draw", response_class=HTMLResponse)
def page(request: Request, k: OptionalK = None) -> HTMLResponse:
    """The page."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    links = k_links({other: f"/draw?k={other}" for other in view.ks}, current=k, chosen=view.chosen)
    gate = view.config.evaluation.originality == "gate"
    return render(request, "draw.html", k=k, k_links=links, ready=has_generator(view.path), gate=gate)


@router.get("/api/draw/options", tags=["draw"])
def options(request: Request, k: OptionalK = None) -> Options:
    """What can be chosen at one k."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    queue = queue_of(view)
    queue.preload()
    sampler = view.config.samples.sampler
    methods = [method for method in get_args(SamplerMethod) if method != STUDENT or has_student(view.path)]
    return Options(
        ready=has_generator(view.path),
        k=k,
        tissues=tissues(view, k=k),
        methods=methods,
        method=sampler.method,
        steps=sampler.steps,
        most_steps=view.config.diffusion.steps,
        guidance=sampler.guidance,
        most_pictures=queue.limits.pictures,
    )


@router.get("/api/draw/source", tags=["draw"])
def source(request: Request, name: Name) -> SourceOut:
    """A picture that a drawing may begin from, by its name."""
    view = view_of(request)
    kind, _, rest = name.partition("/")
    if kind == "samples" and rest:
        return _sample(view, sample_id=rest)
    if kind == "drawn" and rest:
        return _drawn(view, name=rest)
    view.row_of(name)
    return SourceOut(name=name, title=f"patch {name}", src=patch_address(view, name), real=True)


def tissues(view: RunView, *, k: int) -> list[Tissue]:
    """The names at ``k``, each with its clusters, then clusters without a name; the most frequent first."""
    clusters, names = view.clusters(k), view.names(k)
    by_name: dict[str, list[int]] = {}
    for cluster in range(k):
        by_name.setdefault(names[cluster], []).append(cluster)
    shares = [clusters.extent(cluster, table=view.table).share for cluster in range(k)]
    found = [
        Tissue(name=name, title=_title(name, those), clusters=those, share=sum(shares[cluster] for cluster in those))
        for name, those in by_name.items()
    ]
    return sorted(found, key=lambda one: (one.name == default_name(one.clusters[0]), -one.share))


def _title(name: str, clusters: list[int]) -> str:
    if name == default_name(clusters[0]):
        return f"Cluster {clusters[0]}"
    return f"{name} ({', '.join(map(str, clusters))})"


def _sample(view: RunView, *, sample_id: str) -> SourceOut:
    sample = view.samples.get(sample_id)
    if sample is None:
        raise NotFound("there is no such sample in this run")
    return SourceOut(
        name=f"samples/{sample_id}",
        title=f"sample {sample.index + 1} of cluster {sample.cluster}",
        src=sample_address(view, sample_id),
        real=False,
        k=sample.k,
        cluster=sample.cluster,
        tissue=view.names(sample.k)[sample.cluster] if sample.k in view.ks else "",
    )


def _drawn(view: RunView, *, name: str) -> SourceOut:
    job_id, _, number = name.partition("/")
    try:
        row: dict[str, Any] = next(
            dict(made.row) for made in queue_of(view).pictures(job_id) if str(made.number) == number
        )
    except (KeyError, StopIteration) as error:
        raise NotFound("there is no such picture; it may have been deleted") from error
    return SourceOut(
        name=f"drawn/{job_id}/{number}",
        title=f"picture {int(number) + 1} of a job",
        src=f"/api/jobs/{job_id}/pictures/{number}.png",
        real=False,
        k=int(row["k"]),
        cluster=int(row["cluster"]),
        tissue=str(row["tissue"]),
    )
