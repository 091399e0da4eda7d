"""The drawing page: the options, and the pictures that a drawing may start from."""

from __future__ import annotations

from typing import Annotated, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from histoloom.atlas.jobs.queue import STUDENT, has_generator, has_student
from histoloom.atlas.web.errors import NotFound
from histoloom.atlas.web.jobs import queue_of
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.pictures import patch_address, sample_address
from histoloom.atlas.web.routing import QueryK, View
from histoloom.atlas.web.run_view import RunView
from histoloom.config import SamplerMethod
from histoloom.names import default_name

router = APIRouter()

Name = Annotated[
    str, Query(min_length=1, max_length=300, description="A patch, ``samples/ID`` or ``drawn/JOB/NUMBER``.")
]


class Tissue(BaseModel):
    """A tissue that can be drawn: one cluster, or several that share a name."""

    name: str
    title: str
    clusters: list[int]
    share: float = Field(description="of all patches, 0..1")


class Options(BaseModel):
    """What the form offers, and its defaults."""

    ready: bool = Field(description="whether the run has a generator")
    k: int
    tissues: list[Tissue]
    methods: list[str]
    method: str
    steps: int
    most_steps: int
    guidance: float
    most_pictures: int


class InitImage(BaseModel):
    """A picture that a drawing may start from; ``k`` and ``cluster`` are None for a patch."""

    name: str
    title: str
    src: str
    real: bool
    k: int | None = None
    cluster: int | None = None
    tissue: str = ""


@router.get("/draw", response_class=HTMLResponse)
def page(request: Request, view: View, k: QueryK) -> HTMLResponse:
    """The page."""
    gate = view.config.evaluation.originality == "gate"
    return render(request, "draw.html", k=k, ready=has_generator(view.path), gate=gate)


@router.get("/api/draw/options", tags=["draw"])
def options(view: View, k: QueryK) -> Options:
    """The options at one k."""
    queue = queue_of(view)
    queue.preload()
    sampler = view.config.samples.sampler
    return Options(
        ready=has_generator(view.path),
        k=k,
        tissues=tissues(view, k=k),
        methods=[method for method in get_args(SamplerMethod) if method != STUDENT or has_student(view.path)],
        method=sampler.method,
        steps=sampler.steps,
        most_steps=view.config.diffusion.steps,
        guidance=sampler.guidance,
        most_pictures=queue.limits.pictures,
    )


@router.get("/api/draw/source", tags=["draw"])
def source(view: View, name: Name) -> InitImage:
    """A picture that a drawing may start from, by its name."""
    kind, _, rest = name.partition("/")
    if kind == "samples" and rest:
        sample = view.sample(rest)
        return InitImage(
            name=name,
            title=f"sample {sample.index + 1} of cluster {sample.cluster}",
            src=sample_address(view, rest),
            real=False,
            k=sample.k,
            cluster=sample.cluster,
            tissue=view.names(sample.k)[sample.cluster] if sample.k in view.ks else "",
        )
    if kind == "drawn" and rest:
        job_id, _, number = rest.partition("/")
        try:
            row = next(made.row for made in queue_of(view).pictures(job_id) if str(made.number) == number)
        except (KeyError, StopIteration) as error:
            raise NotFound("there is no such picture; it may have been deleted") from error
        return InitImage(
            name=name,
            title=f"picture {int(number) + 1} of a job",
            src=f"/api/jobs/{job_id}/pictures/{number}.png",
            real=False,
            k=int(str(row["k"])),
            cluster=int(str(row["cluster"])),
            tissue=str(row["tissue"]),
        )
    view.row_of(name)
    return InitImage(name=name, title=f"patch {name}", src=patch_address(view, name), real=True)


def tissues(view: RunView, *, k: int) -> list[Tissue]:
    """The names at ``k``, each with its clusters, then clusters without a name; the most frequent first."""
    table, by_name = view.clusters(k), dict[str, list[int]]()
    for cluster, name in view.names(k).items():
        by_name.setdefault(name, []).append(cluster)
    named, unnamed = [], []
    for name, clusters in by_name.items():
        share = sum(table.extent(cluster, table=view.table).share for cluster in clusters)
        if name == default_name(clusters[0]):
            unnamed.append(Tissue(name=name, title=f"Cluster {clusters[0]}", clusters=clusters, share=share))
        else:
            title = f"{name} ({', '.join(map(str, clusters))})"
            named.append(Tissue(name=name, title=title, clusters=clusters, share=share))
    return [tissue for group in (named, unnamed) for tissue in sorted(group, key=lambda one: -one.share)]
