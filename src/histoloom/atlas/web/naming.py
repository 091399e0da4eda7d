"""The naming page with all clusters of one k, and its API. ``histoloom.names`` stores the names."""

from __future__ import annotations

import base64
import binascii
import logging
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from histoloom.atlas.browse.agreement import agreements, disagreements
from histoloom.atlas.browse.carry_over import CarriedName, carried_names
from histoloom.atlas.browse.cluster_table import Extent
from histoloom.atlas.maps.palette import colours, hexadecimal
from histoloom.atlas.web import routing
from histoloom.atlas.web.errors import Conflict
from histoloom.atlas.web.naming_models import (
    Carried,
    Change,
    Flag,
    ImportOutcome,
    Merge,
    Named,
    Names,
    RaterComparison,
    Redo,
    Reference,
    Side,
    Synonym,
    Synonyms,
    Table,
    Undo,
)
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.pictures import patch_address
from histoloom.atlas.web.routing import ClusterNumber, OptionalK, PathK, QueryK, View
from histoloom.atlas.web.run_view import RunView
from histoloom.errors import UserError
from histoloom.names import (
    FLAGS,
    Event,
    LabelState,
    add_label,
    choose_reference,
    clustering_of,
    default_name,
    display_labels,
    merge,
    names_journal,
    normalised,
    raters_of,
    redo,
    refresh_sample_names,
    tissues_of,
    undo,
)
from histoloom.names.corrections import FILE as CORRECTIONS
from histoloom.names.corrections import NO_TISSUE
from histoloom.names.synonyms import FILE as SYNONYMS
from histoloom.names.synonyms import canonical_names, read_synonyms, write_synonyms
from histoloom.names.table import Sizes, TableError, export_table, import_table
from histoloom.names.text import NUMBER
from histoloom.run.directory import fingerprint

logger = logging.getLogger(__name__)

router = APIRouter()
api = APIRouter(prefix="/api/names", tags=["names"])

TYPICAL = 16
"""Patches shown with each cluster."""

PALETTE = 24
"""Colours to choose from."""

REFRESH_DELAY = 3.0
"""Seconds from the last change of a name to the update of the samples' table, which may have 100,000 rows."""

OptionalRater = Annotated[str, Query(max_length=200, description="Whose names; of nobody if empty.")]


@dataclass(frozen=True)
class Row:
    """A cluster on the page, with some of its typical patches: [(address, text)]."""

    number: int
    extent: Extent
    patches: list[tuple[str, str]]


@router.get("/name", response_class=HTMLResponse, include_in_schema=False)
def page(request: Request, view: View, k: QueryK) -> HTMLResponse:
    """All clusters of one k, to be named."""
    clusters, table = view.clusters(k), view.table
    slide_ids = table.slides["slide_id"].astype(str).to_numpy()
    rows = []
    for cluster in range(k):
        members = clusters.members[cluster]
        typical = clusters.representatives(members, n=TYPICAL, random_N=view.random_N, slide_N=table.slide_N)
        patches = [
            (patch_address(view, patch_id), f"Patch of group {cluster}, slide {slide}")
            for patch_id, slide in zip(table.ids(typical), slide_ids[table.slide_N[typical]], strict=True)
        ]
        rows.append(Row(cluster, clusters.extent(cluster, table=table), patches))
    return render(
        request,
        "name.html",
        k=k,
        rows=rows,
        flags=FLAGS,
        palette=[hexadecimal(colour) for colour in colours(PALETTE)],
    )


@router.get("/name/palette.css", response_class=Response, include_in_schema=False)
def palette_sheet() -> Response:
    """The colours to choose from as ``--c`` of ``p{number}``."""
    return routing.colour_stylesheet(map(hexadecimal, colours(PALETTE)), prefix="p")


@api.get("/table.csv", response_class=Response)
def table(view: View, rater: OptionalRater = "", k: OptionalK = None) -> Response:
    """Names as CSV: of one rater or of all, at one k or at all."""
    k = None if k is None else view.k_or_chosen(k)
    text = export_table(view.path, sizes=_sizes(view), rater=rater.strip() or None, k=k)
    name = "names.csv" if k is None else f"names-k{k}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text.encode("utf-8", "replace"), media_type="text/csv", headers=headers)


@api.post("/import")
def import_names(view: View, table: Table) -> ImportOutcome:
    """Import a table of names; where it has errors, nothing is imported and ``problems`` lists them."""
    try:
        data = base64.b64decode(table.data, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("data: not base64") from None
    try:
        result = import_table(view.path, data, sizes=_sizes(view), rater=table.rater, force=table.force)
    except TableError as error:
        return ImportOutcome(rows=0, empty=0, changes=0, problems=error.lines)
    _refresh_sample_names(view)
    return ImportOutcome(rows=result.rows, empty=result.empty, changes=result.changes, problems=[])


@api.post("/reference")
def set_reference(view: View, new: Reference) -> dict[str, str]:
    """Let only one rater's names count, or the latest by anyone."""
    event = choose_reference(view.path, reference=new.reference, by=new.rater)
    _refresh_sample_names(view)
    return {"reference": event.value}


@api.post("/synonyms")
def set_synonyms(view: View, new: Synonyms) -> Synonyms:
    """Replace the table of synonyms, which the agreement of raters uses."""
    write_synonyms(view.path, [(row.name, row.means) for row in new.rows])
    return new


@api.get("/{k}", responses={204: {"description": "Nothing changed since that version."}})
def names(
    view: View,
    k: PathK,
    rater: OptionalRater = "",
    since: Annotated[str, Query(max_length=64, description="The version that is known.")] = "",
) -> Names:
    """One rater's names at one k."""
    current = _names(view, k=k, rater=rater)
    return cast(Names, Response(status_code=204)) if since == current.version else current


@api.get("/{k}/agreement")
def compare(view: View, k: PathK) -> RaterComparison:
    """All raters side by side, and how far they agree."""
    state, sizes = _label_state(view, k=k), _sizes(view)[k]
    labels = {rater: state.labels(rater) for rater in state.raters}
    differing = {one.cluster for one in disagreements(state)}
    sides = [
        Side(
            cluster=cluster,
            patches=sizes[cluster],
            counts=label.name if label.name != default_name(cluster) else "",
            flag=cast(Flag, label.flag),
            names={rater: of_rater[cluster].name for rater, of_rater in labels.items()},
            flags={rater: cast(Flag, of_rater[cluster].flag) for rater, of_rater in labels.items()},
            differ=cluster in differing,
        )
        for cluster, label in display_labels(state.effective()).items()
    ]
    return RaterComparison(
        k=k,
        reference=state.reference,
        raters=list(labels),
        clusters=sides,
        agreement=agreements(state, sizes=sizes),
        synonyms=[Synonym(name=name, means=means) for name, means in read_synonyms(view.path)],
    )


@api.get("/{k}/carried")
def carried(view: View, k: PathK, rater: OptionalRater = "") -> list[Carried]:
    """The names of other k that fit clusters to which the rater has given no name."""
    return [
        Carried(cluster=one.cluster, name=one.label.name, source_k=one.source_k, source=one.source, overlap=one.overlap)
        for one in _carried_names(view, k=k, rater=rater.strip())
    ]


@api.post("/{k}/carry")
def carry_over(view: View, k: PathK, who: Redo) -> Names:
    """Give these clusters their names, colours and flags of the other k; one undo takes all of them back."""
    edit = f"carry-{uuid.uuid4().hex[:32]}"
    events: list[Event] = []
    for one in _carried_names(view, k=k, rater=who.rater.strip()):
        label = {"name": one.label.name, "colour": one.label.colour or None, "flag": one.label.flag or None}
        events = add_label(view.path, cluster=one.cluster, k=k, rater=who.rater, edit=edit, **label)
    if not events:
        raise Conflict("no name of another k fits a group without a name")
    _refresh_sample_names(view)
    return _names(view, k=k, rater=who.rater, step=events[-1].id)


@api.post("/{k}/merge")
def merge_clusters(view: View, k: PathK, new: Merge) -> Names:
    """Make clusters one tissue."""
    for cluster in new.clusters:
        view.check_cluster(k, cluster)
    event = merge(view.path, clusters=new.clusters, k=k, rater=new.rater, name=new.name)
    _refresh_sample_names(view)
    return _names(view, k=k, rater=new.rater, step=event.id)


@api.post("/{k}/undo")
def undo_step(view: View, k: PathK, which: Undo) -> Names:
    """Undo the rater's last step, or exactly the one that is named; 409 where that is no longer possible."""
    if not which.step and not _label_state(view, k=k).history(which.rater.strip()).undoable:
        raise Conflict("there is nothing to undo")
    try:
        undo(view.path, k=k, rater=which.rater, step=which.step)
    except UserError as error:
        raise Conflict(str(error)) from None
    _refresh_sample_names(view)
    return _names(view, k=k, rater=which.rater)


@api.post("/{k}/redo")
def redo_step(view: View, k: PathK, which: Redo) -> Names:
    """Redo the rater's last undone step."""
    if not _label_state(view, k=k).history(which.rater.strip()).redoable:
        raise Conflict("there is nothing to redo")
    redo(view.path, k=k, rater=which.rater)
    _refresh_sample_names(view)
    return _names(view, k=k, rater=which.rater)


@api.post("/{k}/{cluster}")
def change(view: View, k: PathK, cluster: ClusterNumber, new: Change) -> Names:
    """Set a cluster's name, colour or flag. The change is on disk when this returns."""
    name = default_name(cluster) if new.name is not None and not new.name.strip() else new.name
    events: list[Event] = []
    if (new.name, new.colour, new.flag) != (None, None, None):
        edit = new.edit
        if new.colour is not None:
            # A tissue has one colour, so it is set for all clusters to which this rater gave the same name.
            tissues = tissues_of(_label_state(view, k=k).labels(new.rater.strip())).values()
            others = [other for clusters in tissues if cluster in clusters for other in clusters if other != cluster]
            edit = edit or f"colour-{uuid.uuid4().hex}"[:40]
            for other in others:
                add_label(view.path, cluster=other, k=k, rater=new.rater, edit=edit, colour=new.colour)
        label = {"name": name, "colour": new.colour, "flag": new.flag}
        events = add_label(view.path, cluster=cluster, k=k, rater=new.rater, edit=edit, **label)
    _refresh_sample_names(view)
    return _names(view, k=k, rater=new.rater, step=events[-1].id if events else "")


class SampleNames:
    """Updates the names in ``samples/metadata.csv`` ``REFRESH_DELAY`` seconds after the last call of ``schedule``."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def schedule(self) -> None:
        """A name has changed."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(REFRESH_DELAY, self._refresh)
            self._timer.start()

    def _refresh(self) -> None:
        try:
            refresh_sample_names(self.run)
        except (UserError, OSError, KeyError, ValueError) as error:
            logger.warning("the names in the samples' table are not up to date: %s", error)


def _refresh_sample_names(view: RunView) -> None:
    view.cached("sample names", depends_on=[], make=lambda: SampleNames(view.path)).schedule()


def _names(view: RunView, *, k: int, rater: str, step: str = "") -> Names:
    state, events, rater = _label_state(view, k=k), _events(view), rater.strip()
    history = state.history(rater)

    return Names(
        k=k,
        version=fingerprint([len(events), events[-1].id if events else "", state.clustering, rater]),
        clustering=state.clustering,
        reference=state.reference,
        raters=raters_of(events),
        clusters=[
            Named(
                cluster=cluster,
                name=label.name,
                colour=label.colour,
                flag=cast(Flag, label.flag),
                shown=view.colours(k)[cluster],
            )
            for cluster, label in state.labels(rater).items()
        ],
        undo=state.step_title(history.undoable),
        redo=state.step_title(history.redoable),
        step=step,
        suggestions=used_names(view),
    )


def used_names(view: RunView) -> list[str]:
    """The names that are used anywhere in the run, each once: so that raters use the same words."""

    def make() -> list[str]:
        states = [_label_state(view, k=other) for other in view.ks]
        names = [label.name for one in states for name in one.raters for label in one.labels(name).values()]
        names += [name for other in view.ks for name in view.corrections(other).values() if name != NO_TISSUE]
        named = [name for name in names if name and not NUMBER.fullmatch(name)]
        return sorted({normalised(name): name for name in named}.values(), key=normalised)

    return view.cached("suggestions", depends_on=["clusters/artifact.json", "names.jsonl", CORRECTIONS], make=make)


def _events(view: RunView) -> list[Event]:
    journal = view.cached("journal", depends_on=[], make=lambda: names_journal(view.path))
    return view.cached("names' events", depends_on=["names.jsonl"], make=journal.events)


def _label_state(view: RunView, *, k: int) -> LabelState:
    def make() -> LabelState:
        synonyms = canonical_names(read_synonyms(view.path))
        return LabelState(_events(view), k=k, clustering=clustering_of(view.path), synonyms=synonyms)

    depends_on = ["clusters/artifact.json", "names.jsonl", SYNONYMS]
    return view.cached(("label state", k), depends_on=depends_on, make=make)


def _carried_names(view: RunView, *, k: int, rater: str) -> list[CarriedName]:
    """Of the rater's own names at other k, or of those that count where the rater has named nothing there."""
    others = {}
    for other in view.ks:
        if other != k:
            state = _label_state(view, k=other)
            own = state.labels(rater)
            others[other] = own if any(label.name for label in own.values()) else state.effective()
    own = _label_state(view, k=k).labels(rater)
    return carried_names(own, others, shared_with=lambda other: view.overlap(k, other))


def _sizes(view: RunView) -> Sizes:
    def make() -> Sizes:
        from histoloom.clustering.clustering_set import Clustering

        return Clustering.open(view.run.require("clusters")).sizes

    return view.cached("sizes", depends_on=["clusters/artifact.json"], make=make)


router.include_router(api)
