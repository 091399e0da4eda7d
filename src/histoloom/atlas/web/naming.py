"""Naming: the page with all clusters of one k, and its API. Names are kept by ``histoloom.names``; this translates."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, cast

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from histoloom.atlas.browse.agreement import agreements, disagreements
from histoloom.atlas.browse.cluster_table import Extent
from histoloom.atlas.maps.palette import colours, hexadecimal
from histoloom.atlas.web.http_errors import Conflict
from histoloom.atlas.web.naming_models import (
    AgreementModel,
    Change,
    Comparison,
    Flag,
    ImportOutcome,
    KappaModel,
    Merge,
    Named,
    Names,
    Reference,
    Side,
    Step,
    Table,
)
from histoloom.atlas.web.pages import k_links, render
from histoloom.atlas.web.params import ClusterNumber, K, OptionalK, view_of
from histoloom.atlas.web.pictures import patch_address
from histoloom.atlas.web.run_view import RunView
from histoloom.atlas.web.sample_names import SampleNames
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
    normalised,
    raters_of,
    redo,
    undo,
)
from histoloom.names.journal import Journal
from histoloom.names.table import Sizes, TableError, export_table, import_table
from histoloom.run.directory import fingerprint

router = APIRouter()
api = APIRouter(prefix="/api/names", tags=["names"])

TYPICAL = 16
"""Patches beside a cluster's name."""

PALETTE = 24
"""Colours to choose from."""

OptionalRater = Annotated[str, Query(max_length=200, description="Whose names; of nobody if empty.")]


@dataclass(frozen=True)
class Row:
    """A cluster on the page, with some of its typical patches: [(address, text)]."""

    number: int
    extent: Extent
    patches: list[tuple[str, str]]


@router.get("/name", response_class=HTMLResponse, include_in_schema=False)
def page(request: Request, k: OptionalK = None) -> HTMLResponse:
    """All clusters of one k, to be named."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    return render(
        request,
        "name.html",
        k=k,
        k_links=k_links({other: f"/name?k={other}" for other in view.ks}, current=k, chosen=view.chosen),
        rows=[_row(view, k=k, cluster=cluster) for cluster in range(k)],
        flags=FLAGS,
        palette=[hexadecimal(colour) for colour in colours(PALETTE)],
    )


@router.get("/name/palette.css", response_class=Response, include_in_schema=False)
def palette_sheet() -> Response:
    """The colours to choose from as ``--c`` of ``p{place}``: the page itself may carry no styles."""
    lines = [f".p{place} {{ --c: {hexadecimal(colour)}; }}" for place, colour in enumerate(colours(PALETTE))]
    return Response("\n".join(lines) + "\n", media_type="text/css", headers={"Cache-Control": "private, no-cache"})


@api.get("/table.csv", response_class=Response)
def table(request: Request, rater: OptionalRater = "", k: OptionalK = None) -> Response:
    """Names as CSV: of one rater or of all, at one k or at all."""
    view = view_of(request)
    k = None if k is None else view.k_or_chosen(k)
    text = export_table(view.path, sizes=_sizes(view), rater=rater.strip() or None, k=k)
    name = "names.csv" if k is None else f"names-k{k}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text.encode("utf-8", "replace"), media_type="text/csv", headers=headers)


@api.post("/import")
def import_names(request: Request, table: Table) -> ImportOutcome:
    """Import a table of names; where it has errors, nothing is imported and ``problems`` lists them."""
    view = view_of(request)
    try:
        data = base64.b64decode(table.data, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("data: not base64") from None
    try:
        result = import_table(view.path, data, sizes=_sizes(view), rater=table.rater, force=table.force)
    except TableError as error:
        return ImportOutcome(rows=0, empty=0, changes=0, problems=error.lines)
    _changed(request)
    return ImportOutcome(rows=result.rows, empty=result.empty, changes=result.changes, problems=[])


@api.post("/reference")
def refer(request: Request, choice: Reference) -> dict[str, str]:
    """Let only one rater's names count, or the latest by anyone."""
    event = choose_reference(view_of(request).path, reference=choice.reference, by=choice.rater)
    _changed(request)
    return {"reference": event.value}


@api.get("/{k}", responses={204: {"description": "Nothing changed since that version."}})
def names(
    request: Request,
    k: K,
    rater: OptionalRater = "",
    since: Annotated[str, Query(max_length=64, description="The version that is known.")] = "",
) -> Names:
    """One rater's names at one k."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    found = _names(view, k=k, rater=rater)
    return cast(Names, Response(status_code=204)) if since == found.version else found


@api.get("/{k}/agreement")
def compare(request: Request, k: K) -> Comparison:
    """All raters side by side, and how far they agree."""
    view = view_of(request)
    k = view.k_or_chosen(k)
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
    agreement = [_agreement(one) for one in agreements(state, sizes=sizes)]
    return Comparison(k=k, reference=state.reference, raters=list(labels), clusters=sides, agreement=agreement)


@api.post("/{k}/merge")
def join(request: Request, k: K, wanted: Merge) -> Names:
    """Make clusters one tissue."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    for cluster in wanted.clusters:
        view.check_cluster(k, cluster)
    merge(view.path, clusters=wanted.clusters, k=k, rater=wanted.rater, name=wanted.name)
    return _answer(request, k=k, rater=wanted.rater)


@api.post("/{k}/undo")
def step_back(request: Request, k: K, step: Step) -> Names:
    """Take back the rater's last step."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    if not _label_state(view, k=k).undoable(step.rater.strip()):
        raise Conflict("there is nothing to undo")
    undo(view.path, k=k, rater=step.rater)
    return _answer(request, k=k, rater=step.rater)


@api.post("/{k}/redo")
def step_forward(request: Request, k: K, step: Step) -> Names:
    """Bring back the rater's last step that was taken back."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    if not _label_state(view, k=k).redoable(step.rater.strip()):
        raise Conflict("there is nothing to redo")
    redo(view.path, k=k, rater=step.rater)
    return _answer(request, k=k, rater=step.rater)


@api.post("/{k}/{cluster}")
def change(request: Request, k: K, cluster: ClusterNumber, said: Change) -> Names:
    """Say something of a cluster; it is on the disk when this answers."""
    view = view_of(request)
    view.check_cluster(k, cluster)
    name = default_name(cluster) if said.name is not None and not said.name.strip() else said.name
    if (said.name, said.colour, said.flag) != (None, None, None):
        add_label(
            view.path,
            cluster=cluster,
            k=k,
            rater=said.rater,
            name=name,
            colour=said.colour,
            flag=said.flag,
            edit=said.edit,
        )
    return _answer(request, k=k, rater=said.rater)


def _answer(request: Request, *, k: int, rater: str) -> Names:
    _changed(request)
    return _names(view_of(request), k=k, rater=rater)


def _changed(request: Request) -> None:
    """The samples' table follows, when nothing more is said for a while."""
    view = view_of(request)
    view.kept("sample names", of=[], make=lambda: SampleNames(view.path)).soon()


def _names(view: RunView, *, k: int, rater: str) -> Names:
    state, events, who = _label_state(view, k=k), _events(view), rater.strip()
    return Names(
        k=k,
        version=fingerprint([len(events), events[-1].id if events else "", state.clustering, who]),
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
            for cluster, label in state.labels(who).items()
        ],
        undo=bool(state.undoable(who)),
        redo=bool(state.redoable(who)),
        suggestions=_suggestions(view),
    )


def _events(view: RunView) -> list[Event]:
    journal = view.kept("journal", of=[], make=lambda: Journal(view.path))
    return view.kept("names' events", of=["names.jsonl"], make=journal.events)


def _label_state(view: RunView, *, k: int) -> LabelState:
    make = lambda: LabelState(_events(view), k=k, clustering=clustering_of(view.path))  # noqa: E731
    return view.kept(("book", k), of=["clusters/artifact.json", "names.jsonl"], make=make)


def _suggestions(view: RunView) -> list[str]:
    """The names that stand anywhere in the run, each once: so that raters use the same words."""

    def make() -> list[str]:
        states = [_label_state(view, k=k) for k in view.ks]
        labels = [label for state in states for who in state.raters for label in state.labels(who).values()]
        return sorted({normalised(label.name): label.name for label in labels if label.name}.values(), key=normalised)

    return view.kept("suggestions", of=["clusters/artifact.json", "names.jsonl"], make=make)


def _sizes(view: RunView) -> Sizes:
    def make() -> Sizes:
        from histoloom.clustering.clustering_set import Clustering

        return Clustering.open(view.run.require("clusters")).sizes

    return view.kept("sizes", of=["clusters/artifact.json"], make=make)


def _row(view: RunView, *, k: int, cluster: int) -> Row:
    clusters, table = view.clusters(k), view.table
    rows = clusters.representatives(cluster, n=TYPICAL, random_N=view.random_N, slide_N=table.slide_N)
    slides = table.slides["slide_id"].astype(str).to_numpy()[table.slide_N[rows]]
    patches = [
        (patch_address(view, patch_id), f"Patch of cluster {cluster}, slide {slide}")
        for patch_id, slide in zip(table.ids(rows), slides, strict=True)
    ]
    return Row(cluster, clusters.extent(cluster, table=table), patches)


def _agreement(found: Any) -> AgreementModel:
    kappas = {name: getattr(found, name) for name in ("equal", "by_patches")}
    return AgreementModel(
        raters=list(found.raters),
        kind="Cohen" if len(found.raters) == 2 else "Fleiss",
        clusters=found.clusters,
        patches=found.patches,
        **{name: None if kappa is None else KappaModel(**vars(kappa)) for name, kappa in kappas.items()},
    )


router.include_router(api)
