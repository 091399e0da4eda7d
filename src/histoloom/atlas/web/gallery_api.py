"""The galleries of a cluster as JSON, page by page: real patches in three orders, and samples."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from pydantic import BaseModel

from histoloom.atlas.browse.cluster_table import SortOrder
from histoloom.atlas.web.pictures import patch_address, sample_address
from histoloom.atlas.web.routing import ClusterNumber, PageNumber, PatchId, PathK, QueryK, View
from histoloom.atlas.web.run_view import RunView

router = APIRouter(prefix="/api", tags=["clusters"])

PAGE = 60
"""Pictures on a page of a gallery."""

OrderQuery = Annotated[SortOrder, Query(description="The surest first, at random, or the least sure first.")]


class PatchModel(BaseModel):
    """A real patch: its picture, its place on the slide (level-0 px), and the probabilities of its clusters."""

    id: str
    src: str
    slide: str
    patient: str
    slide_id: str
    x: int
    y: int
    held_out: bool
    cluster: int
    name: str
    probability: float
    second: int
    second_probability: float


class PatchPage(BaseModel):
    """One page of a gallery of real patches."""

    k: int
    cluster: int
    order: SortOrder
    total: int
    page: int
    pages: int
    patches: list[PatchModel]


class SampleModel(BaseModel):
    """A synthetic patch."""

    id: str
    src: str
    index: int


class SamplePage(BaseModel):
    """One page of a gallery of samples."""

    k: int
    cluster: int
    total: int
    page: int
    pages: int
    samples: list[SampleModel]


@router.get("/clusters/{k}/{cluster}/patches")
def patches(
    view: View, k: PathK, cluster: ClusterNumber, order: OrderQuery = "typical", page: PageNumber = 0
) -> PatchPage:
    """A page of a cluster's real patches; a page beyond the last is empty."""
    rows = view.tissues(k).ordered(cluster, order=order, random_N=view.random_N)
    shown = rows[PAGE * page : PAGE * (page + 1)]
    return PatchPage(
        k=k,
        cluster=cluster,
        order=order,
        total=len(rows),
        page=page,
        pages=pages(len(rows)),
        patches=patch_models(view, shown, k=k),
    )


@router.get("/clusters/{k}/{cluster}/samples")
def samples(view: View, k: PathK, cluster: ClusterNumber, page: PageNumber = 0) -> SamplePage:
    """A page of a cluster's samples, in the order in which they were drawn, none left out."""
    drawn = view.samples_of(k, cluster)
    shown = drawn[PAGE * page : PAGE * (page + 1)]
    models = [SampleModel(id=one.sample_id, src=sample_address(view, one.sample_id), index=one.index) for one in shown]
    return SamplePage(k=k, cluster=cluster, total=len(drawn), page=page, pages=pages(len(drawn)), samples=models)


@router.get("/patches/{patch_id}")
def patch(view: View, patch_id: PatchId, k: QueryK) -> PatchModel:
    """One real patch, and its cluster at k."""
    return patch_models(view, np.array([view.row_of(patch_id)]), k=k)[0]


def pages(n: int) -> int:
    """How many pages ``n`` pictures take; one where there are none."""
    return max(1, -(-n // PAGE))


def patch_models(view: RunView, rows: np.ndarray, *, k: int) -> list[PatchModel]:
    """Rows of the patch table as models."""
    table, clusters, names = view.table, view.tissues(k), view.names(k)
    slides = table.slides.iloc[table.slide_N[rows]][["slide", "patient", "slide_id"]].astype(str).to_numpy().tolist()
    return [
        PatchModel(
            id=patch_id,
            src=patch_address(view, patch_id),
            slide=slide,
            patient=patient,
            slide_id=slide_id,
            x=round(float(table.x_N[row])),
            y=round(float(table.y_N[row])),
            held_out=bool(table.held_out_N[row]),
            cluster=int(clusters.label_N[row]),
            name=names.get(int(clusters.label_N[row]), ""),
            probability=float(clusters.p_N[row]),
            second=int(clusters.second_N[row]),
            second_probability=float(clusters.p_second_N[row]),
        )
        for row, patch_id, (slide, patient, slide_id) in zip(rows, table.ids(rows), slides, strict=True)
    ]
