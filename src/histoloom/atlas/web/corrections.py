"""The API of corrections: patches that experts send to another group, to a new one, to no tissue, or back.

``histoloom.names.corrections`` stores them. A correction is on the disk when its request is answered.
"""

from __future__ import annotations

from typing import Annotated, cast

import pyarrow as pa
from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from histoloom.atlas.web.errors import Conflict, NotFound
from histoloom.atlas.web.gallery_api import group_page
from histoloom.atlas.web.naming import OptionalRater, used_names
from histoloom.atlas.web.naming_models import Number, Rater, Redo, Text, Undo
from histoloom.atlas.web.routing import PageNumber, PathK, View
from histoloom.atlas.web.run_view import RunView
from histoloom.errors import UserError
from histoloom.names.corrections import correct, counts_by_name, redo_correction, undo_correction
from histoloom.run.directory import fingerprint

router = APIRouter(prefix="/api/corrections", tags=["corrections"])

MAX_PATCHES = 3_000
"""Patches in one request: as many as the 2-D map has at most."""

PAGE = 1_000
"""Corrections on a page of the list."""

PatchIds = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=300)]], Field(min_length=1, max_length=MAX_PATCHES)
]


class NewCorrection(BaseModel):
    """Patches and where they belong: a group by the number of a cluster, or by name; "": no tissue; null: back.

    ``edit`` joins requests that are one step.
    """

    model_config = ConfigDict(extra="forbid")

    rater: Rater
    patches: PatchIds
    target: Annotated[Number, Field(strict=True)] | Text | None
    edit: Annotated[str, Field(max_length=40)] = ""


class GroupChoice(BaseModel):
    """A group to which patches can be sent: its first cluster, or None where no cluster has its name."""

    name: str
    clusters: list[int]
    colour: str
    patches: int
    page: str


class Corrections(BaseModel):
    """The corrections at one k. ``version`` changes with every change by anyone; ``counts`` are by name.

    ``undo`` and ``redo`` say what the rater's next ones are about; empty where there is none. ``step``: what this
    request did, for an undo of exactly that.
    """

    k: int
    version: str
    reference: str
    counts: dict[str, int]
    groups: list[GroupChoice]
    suggestions: list[str]
    undo: str
    redo: str
    step: str


class CorrectedPatchModel(BaseModel):
    """A corrected patch: the name of its group, and who corrected it when (UTC)."""

    patch: str
    name: str
    rater: str
    time: str


class CorrectionPage(BaseModel):
    """A page of the list of corrected patches, in the order in which they were first corrected."""

    k: int
    total: int
    page: int
    pages: int
    corrections: list[CorrectedPatchModel]


@router.get("/{k}", responses={204: {"description": "Nothing changed since that version."}})
def corrections(
    view: View,
    k: PathK,
    rater: OptionalRater = "",
    since: Annotated[str, Query(max_length=64, description="The version that is known.")] = "",
) -> Corrections:
    """The counts by name, the groups, and what the rater can undo."""
    current = _corrections(view, k=k, rater=rater)
    return cast(Corrections, Response(status_code=204)) if since == current.version else current


@router.get("/{k}/patches")
def corrected_patches(view: View, k: PathK, page: PageNumber = 0) -> CorrectionPage:
    """The corrected patches one by one; a page beyond the last is empty."""
    names, events = view.corrections(k), view.correction_state(k).effective_events()
    shown = [patch for patch in events if patch in names][PAGE * page : PAGE * (page + 1)]
    return CorrectionPage(
        k=k,
        total=len(names),
        page=page,
        pages=max(1, -(-len(names) // PAGE)),
        corrections=[
            CorrectedPatchModel(patch=patch, name=names[patch], rater=events[patch].rater, time=events[patch].time)
            for patch in shown
        ],
    )


@router.post("/{k}")
def send(view: View, k: PathK, new: NewCorrection) -> Corrections:
    """Send patches to a group."""
    if isinstance(new.target, int):
        view.check_cluster(k, new.target)
    elif new.target and not new.target.strip():
        raise UserError("the name is empty; give at least one character")
    ids = [patch.encode("utf-8", "replace").decode() for patch in new.patches]  # a lone surrogate is no text
    unknown = int((view.table.rows_of(pa.array(ids, pa.string())) < 0).sum())
    if unknown:
        raise NotFound(f"{unknown:,} of the {len(ids):,} patches are not in this run; reload the page")
    event = correct(view.path, patches=ids, target=new.target, k=k, rater=new.rater, edit=new.edit)
    return _corrections(view, k=k, rater=new.rater, step=event.id)


@router.post("/{k}/undo")
def undo_step(view: View, k: PathK, which: Undo) -> Corrections:
    """Undo the rater's last step, or exactly the one that is named; 409 where that is no longer possible."""
    try:
        undo_correction(view.path, k=k, rater=which.rater, step=which.step)
    except UserError as error:
        raise Conflict(str(error)) from None
    return _corrections(view, k=k, rater=which.rater)


@router.post("/{k}/redo")
def redo_step(view: View, k: PathK, which: Redo) -> Corrections:
    """Redo the rater's last undone step; 409 where there is none."""
    try:
        redo_correction(view.path, k=k, rater=which.rater)
    except UserError as error:
        raise Conflict(str(error)) from None
    return _corrections(view, k=k, rater=which.rater)


def _corrections(view: RunView, *, k: int, rater: str, step: str = "") -> Corrections:
    state, labels, grouping, rater = view.correction_state(k), view.labels(k), view.grouping(k), rater.strip()
    history, names = state.history(rater), view.corrections(k)
    groups = [
        GroupChoice(
            name=group.name,
            clusters=list(group.clusters),
            colour=group.colour,
            patches=len(grouping.members(number)),
            page=group_page(k, clusters=group.clusters, name=group.name),
        )
        for number, group in grouping.groups.items()
    ]
    labelled = [[one.name, one.clusters, one.colour] for one in groups]
    return Corrections(
        k=k,
        version=fingerprint([state.last, labelled, rater]),
        reference=state.reference,
        counts=counts_by_name(names),
        groups=groups,
        suggestions=used_names(view),
        undo=state.step_title(history.undoable, labels=labels),
        redo=state.step_title(history.redoable, labels=labels),
        step=step,
    )
