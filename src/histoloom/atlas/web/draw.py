"""The page that generates: its options, and the pictures that it may start from."""

from __future__ import annotations

from typing import Annotated, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from histoloom.atlas.jobs.queue import STUDENT, has_student
from histoloom.atlas.web.generator_view import GeneratorView
from histoloom.atlas.web.init_images import InitImage, init_image
from histoloom.atlas.web.jobs import Queue
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.routing import AnyView, QueryK
from histoloom.atlas.web.run_view import RunView
from histoloom.config import SamplerMethod
from histoloom.names import default_name, without_artefacts

router = APIRouter()

Name = Annotated[
    str, Query(min_length=1, max_length=300, description="A patch, ``samples/ID``, ``drawn/JOB/NUMBER`` or ``own/ID``.")
]


class Tissue(BaseModel):
    """A tissue that can be drawn: one cluster, or several that share a name."""

    name: str
    title: str
    clusters: list[int]
    share: float = Field(description="of all patches, 0..1")
    artefact: bool = Field(description="whether all of it is flagged as artefact: it is then no part of all tissues")


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


@router.get("/draw", response_class=HTMLResponse)
def page(request: Request, view: AnyView, k: QueryK) -> HTMLResponse:
    """The page."""
    return render(
        request,
        "draw.html",
        k=k,
        ready=view.has_generator,
        gate=isinstance(view, RunView) and view.config.evaluation.originality == "gate",
        alone=not isinstance(view, RunView),
        drawn=view.drawn,
        mpp=f"{view.mpp:.3g}",
        side=f"{view.size * view.mpp:.4g}",
    )


@router.get("/api/draw/options", tags=["draw"])
def options(view: AnyView, queue: Queue, k: QueryK) -> Options:
    """The options at one k."""
    queue.preload()
    sampler = view.sampler
    return Options(
        ready=view.has_generator,
        k=k,
        tissues=tissues(view, k=k),
        methods=[method for method in get_args(SamplerMethod) if method != STUDENT or has_student(view.path)],
        method=sampler.method,
        steps=sampler.steps,
        most_steps=view.most_steps,
        guidance=sampler.guidance,
        most_pictures=queue.limits.pictures,
    )


@router.get("/api/draw/source", tags=["draw"])
def source(view: AnyView, name: Name) -> InitImage:
    """A picture that generating may start from, by its name."""
    return init_image(view, name=name)


def tissues(view: GeneratorView, *, k: int) -> list[Tissue]:
    """The names at ``k``, each with its clusters, then clusters without a name; the most frequent first.

    Names of corrected patches that the generator was trained on are tissues too, numbered on from the clusters.
    """
    labels, by_name = view.drawn_labels(k), dict[str, list[int]]()
    shares = {**view.shares(k), **dict(enumerate(view.corrected_groups(k).values(), start=k))}
    mixed = set(without_artefacts(labels))
    for cluster, label in labels.items():
        by_name.setdefault(label.name, []).append(cluster)
    named, unnamed = list[Tissue](), list[Tissue]()
    for name, clusters in by_name.items():
        is_named = name != default_name(clusters[0])
        tissue = Tissue(
            name=name,
            title=_title(name, clusters, k=k) if is_named else f"Group {clusters[0]}",
            clusters=clusters,
            share=sum(shares[cluster] for cluster in clusters),
            artefact=mixed.isdisjoint(clusters),
        )
        (named if is_named else unnamed).append(tissue)
    return [tissue for group in (named, unnamed) for tissue in sorted(group, key=lambda one: -one.share)]


def _title(name: str, clusters: list[int], *, k: int) -> str:
    """The name with its clusters' numbers, or what else it is."""
    numbers = [str(cluster) if cluster < k else "corrected patches" for cluster in clusters]
    return f"{name} ({', '.join(numbers)})"
