"""The galleries of a cluster as JSON, page by page: real patches in three orders, and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from histoloom.atlas.browse.cluster_table import SortOrder
from histoloom.atlas.web.errors import NotFound
from histoloom.atlas.web.pictures import patch_address, sample_address
from histoloom.atlas.web.routing import ClusterNumber, NamedGroup, PageNumber, PatchId, PathK, QueryK, View
from histoloom.atlas.web.run_view import RunView

router = APIRouter(prefix="/api", tags=["clusters"])

PAGE = 60
"""Pictures on a page of a gallery."""

OrderQuery = Annotated[SortOrder, Query(description="The surest first, at random, or the least sure first.")]

CorrectedOnly = Annotated[
    int, Query(ge=0, le=1, description="1: only those that experts sent to the group or away from it.")
]

FilterText = Annotated[str, Query(max_length=300, description="Exactly as the run has it; all where it is empty.")]


@dataclass(frozen=True)
class Filters:
    """Real patches of one slide, of one patient, or of both; all where a text is empty."""

    slide: str = ""
    patient: str = ""


def filters_of(slide: FilterText = "", patient: FilterText = "") -> Filters:
    """The filters in the address."""
    return Filters(slide, patient)


FilterQuery = Annotated[Filters, Depends(filters_of)]


class PatchModel(BaseModel):
    """A real patch: its picture, its place on the slide (level-0 px), and the probabilities of its clusters.

    ``cluster`` and ``name`` are those that the program found; ``group`` is the name of the group that counts, empty for
    none, and ``page`` the address of its page. ``corrected_by`` is the rater who sent the patch there; empty where none
    did.
    """

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
    group: str
    page: str
    corrected_by: str


class PatchPage(BaseModel):
    """One page of a gallery of real patches of a group: a cluster, or a name that no cluster has.

    ``corrected``: how many patches experts sent to this group or away from it.
    """

    k: int
    cluster: int | None
    order: SortOrder
    corrected: int
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
    view: View,
    k: PathK,
    cluster: ClusterNumber,
    filters: FilterQuery,
    order: OrderQuery = "typical",
    page: PageNumber = 0,
    corrected: CorrectedOnly = 0,
) -> PatchPage:
    """A page of a cluster's real patches, of one slide or patient where asked; a page beyond the last is empty."""
    return _patch_page(view, k=k, group=cluster, filters=filters, order=order, page=page, corrected=bool(corrected))


@router.get("/groups/{k}/patches")
def named_patches(
    view: View,
    k: PathK,
    group: NamedGroup,
    filters: FilterQuery,
    order: OrderQuery = "typical",
    page: PageNumber = 0,
    corrected: CorrectedOnly = 0,
) -> PatchPage:
    """The same of a group by its name: one that no cluster may have."""
    return _patch_page(view, k=k, group=group, filters=filters, order=order, page=page, corrected=bool(corrected))


def _patch_page(
    view: RunView, *, k: int, group: int, filters: Filters, order: SortOrder, page: int, corrected: bool
) -> PatchPage:
    grouping = view.grouping(k)
    rows_corrected = filtered(view, grouping.corrected(group), slide=filters.slide, patient=filters.patient)
    rows = filtered(view, grouping.members(group), slide=filters.slide, patient=filters.patient)
    rows = grouping.table.sorted_rows(rows_corrected if corrected else rows, order=order, random_N=view.random_N)
    shown = rows[PAGE * page : PAGE * (page + 1)]
    return PatchPage(
        k=k,
        cluster=group if 0 <= group < k else None,
        order=order,
        corrected=len(rows_corrected),
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


def filtered(view: RunView, rows: np.ndarray, *, slide: str, patient: str) -> np.ndarray:
    """The rows of a slide (its id) and of a patient; an empty text is none. ``NotFound`` where the run has none."""
    slides = view.table.slides
    if slide:
        rows = rows[view.table.slide_N[rows] == view.slide_of(slide)]
    if patient:
        of_patient_S = slides["patient"].astype(str).to_numpy() == patient
        if not of_patient_S.any():
            raise NotFound("there is no such patient in this run")
        rows = rows[of_patient_S[view.table.slide_N[rows]]]
    return rows


@dataclass(frozen=True)
class SlideCounts:
    """How many of some patches are of each slide and of each patient; only those that have some, by name."""

    by_slide: dict[str, int]
    by_patient: dict[str, int]


def slide_counts(view: RunView, *, rows: np.ndarray) -> SlideCounts:
    """The choices of the filters for these patches."""
    slides, counts_S = view.table.slides, np.bincount(view.table.slide_N[rows], minlength=len(view.table.slides))
    by_slide: dict[str, int] = {}
    by_patient: dict[str, int] = {}
    for slide_id, patient, n in sorted(
        zip(slides["slide_id"].astype(str), slides["patient"].astype(str), counts_S, strict=True)
    ):
        if n:
            by_slide[slide_id] = int(n)
            by_patient[patient] = by_patient.get(patient, 0) + int(n)
    return SlideCounts(by_slide, dict(sorted(by_patient.items())))


def patch_models(view: RunView, rows: np.ndarray, *, k: int) -> list[PatchModel]:
    """Rows of the patch table as models."""
    table, clusters, names, grouping = view.table, view.tissues(k), view.names(k), view.grouping(k)
    slides = table.slides.iloc[table.slide_N[rows]][["slide", "patient", "slide_id"]].astype(str).to_numpy().tolist()
    models = []
    for row, patch_id, (slide, patient, slide_id) in zip(rows.tolist(), table.ids(rows), slides, strict=True):
        cluster, number = int(clusters.label_N[row]), int(grouping.table.label_N[row])
        correction, group = grouping.corrections.get(row), grouping.groups.get(number)
        name, members = (group.name, group.clusters) if group else ("", ())
        models.append(
            PatchModel(
                id=patch_id,
                src=patch_address(view, patch_id),
                slide=slide,
                patient=patient,
                slide_id=slide_id,
                x=round(float(table.x_N[row])),
                y=round(float(table.y_N[row])),
                held_out=bool(table.held_out_N[row]),
                cluster=cluster,
                name=names.get(cluster, ""),
                probability=float(clusters.p_N[row]),
                second=int(clusters.second_N[row]),
                second_probability=float(clusters.p_second_N[row]),
                group=name,
                page=group_page(k, clusters=members, name=name),
                corrected_by=correction.rater if correction else "",
            )
        )
    return models


def group_page(k: int, *, clusters: Sequence[int], name: str) -> str:
    """The address of a group's page: by its first cluster, or by its name, empty for no tissue, where it has none."""
    return f"/clusters/{k}/{clusters[0]}" if clusters else f"/groups/{k}?name={quote(name, safe='')}"
