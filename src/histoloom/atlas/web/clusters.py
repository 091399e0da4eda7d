"""Pages of clusters: all of one k, and each with its patches, samples, slides and neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from histoloom.atlas.browse.cluster_table import UNSURE_BELOW, Extent, overlap
from histoloom.atlas.browse.flow import ClusterFlow, cluster_flows, counterpart
from histoloom.atlas.browse.grouping import NO_GROUP
from histoloom.atlas.report.lights import Light, lights
from histoloom.atlas.web import routing
from histoloom.atlas.web.gallery_api import FilterQuery, filtered, group_page, slide_counts
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.pictures import mosaic_address, named_mosaic_address, place_address
from histoloom.atlas.web.routing import ClusterNumber, NamedGroup, PathK, QueryK, View
from histoloom.atlas.web.run_view import RunView
from histoloom.names import FLAGS, default_name, flags_of

router = APIRouter(tags=["pages"])

_LIGHTS = ("clusters/artifact.json", "evaluation/artifact.json")
"""What the lights are read from."""

SLIDES_SHOWN = 12
NEIGHBOURS_SHOWN = 4


@dataclass(frozen=True)
class Card:
    """A group on the first page: a cluster, or several of one tissue, which stands under its first one.

    ``named`` is False where ``name`` is only its number. ``flags`` are those of its clusters. A group that has no
    clusters is made of corrected patches alone; its ``number`` is good for its colour on this page only. ``sent_here``
    and ``sent_away`` are patches that experts corrected.
    """

    number: int
    clusters: tuple[int, ...]
    name: str
    named: bool
    flags: tuple[str, ...]
    extent: Extent
    mosaic: str
    page: str
    sent_here: int
    sent_away: int

    @property
    def numbers(self) -> str:
        """The numbers of its clusters."""
        return ", ".join(map(str, self.clusters))


@dataclass(frozen=True)
class SlideShare:
    """A slide with patches of a cluster: how many, and their share of the slide's patches (0..1)."""

    slide_id: str
    patient: str
    patches: int
    share: float
    picture: str


@dataclass(frozen=True)
class AtOtherK:
    """Where a cluster's patches are at another k, and the names there."""

    k: int
    step: ClusterFlow
    names: Mapping[int, str]


@dataclass(frozen=True)
class NextStep:
    """Something that the reader can do next: what, the state of it, and where; ``first``: the first that is open."""

    title: str
    text: str
    action: str
    href: str
    done: bool = False
    first: bool = False


@router.get("/", response_class=HTMLResponse)
def start(request: Request, view: View, k: QueryK) -> HTMLResponse:
    """What the run is, whether it is good, what to do next, and all clusters of one k."""
    all_cards = cards(view, k=k)
    return render(
        request,
        "clusters.html",
        k=k,
        view=view,
        cards=list(all_cards.values()),
        table=view.table,
        no_tissue=len(view.grouping(k).members(NO_GROUP)),
        lights=lights_of(view, k=k),
        steps=next_steps(view, cards=all_cards, k=k),
    )


@router.get("/clusters/{k}/colours.css", response_class=Response)
def colour_stylesheet(view: View, k: PathK) -> Response:
    """The colour of each cluster as ``--c`` of the class ``c{cluster}``, and of groups that no cluster has after it."""
    further = [group.colour for group in view.groups(k).groups if not group.clusters]
    return routing.colour_stylesheet([*view.colours(k), *further], prefix="c")


@router.get("/clusters/{k}/{cluster}", response_class=HTMLResponse)
def cluster_page(request: Request, view: View, k: PathK, cluster: ClusterNumber, selected: FilterQuery) -> Response:
    """One group: a cluster, or all clusters of one tissue, at the address of the first of them."""
    if (first := view.tissue_of(k, cluster)) != cluster:
        return RedirectResponse(f"/clusters/{k}/{first}", headers={"Cache-Control": "no-store"})
    table, grouping, all_cards = view.tissues(k), view.grouping(k), cards(view, k=k)
    filtered(view, table.members[cluster], slide=selected.slide, patient=selected.patient)  # or there is none

    # The page at another k is that of the cluster with most of the patches, and it says what becomes of them next.
    shared = {other: overlap(table, view.tissues(other)) for other in view.ks if other != k}
    counterparts = {other: cluster if other == k else counterpart(shared[other], cluster=cluster) for other in view.ks}
    numbers = list(view.tissue_clusters(k))
    position = numbers.index(cluster)
    place = view.ks.index(k)
    next_ks = [*view.ks[max(0, place - 1) : place], *view.ks[place + 1 : place + 2]]
    return render(
        request,
        "cluster.html",
        k=k,
        addresses={other: f"/clusters/{other}/{same}" for other, same in counterparts.items()},
        card=all_cards[cluster],
        flags=FLAGS,
        before=numbers[position - 1] if position else None,
        after=numbers[position + 1] if position + 1 < len(numbers) else None,
        samples=len(view.samples_of(k, cluster)),
        neighbours=[(all_cards[one.cluster], one) for one in grouping.table.neighbours(cluster, n=NEIGHBOURS_SHOWN)],
        unsure=grouping.table.unsure(cluster),
        unsure_below=UNSURE_BELOW,
        selected=selected,
        filter_counts=slide_counts(view, rows=grouping.members(cluster)),
        slides=slide_shares(view, k=k, cluster=cluster),
        slides_shown=SLIDES_SHOWN,
        elsewhere=[AtOtherK(other, cluster_flows(shared[other])[cluster], view.names(other)) for other in next_ks],
    )


@router.get("/groups/{k}", response_class=HTMLResponse)
def named_group_page(request: Request, view: View, k: PathK, group: NamedGroup, selected: FilterQuery) -> Response:
    """A group that no cluster has, of corrected patches alone; or the patches that show no tissue."""
    if 0 <= group < k:
        return RedirectResponse(f"/clusters/{k}/{group}", headers={"Cache-Control": "no-store"})
    grouping = view.grouping(k)
    rows = grouping.members(group)
    filtered(view, rows, slide=selected.slide, patient=selected.patient)  # or there is none
    slides, slide_M = view.table.slides, view.table.slide_N[rows]
    own, name = Counter(grouping.own_N[rows].tolist()), grouping.groups[group].name if group >= 0 else ""
    return render(
        request,
        "corrected_group.html",
        k=k,
        addresses={other: f"/?k={other}" for other in view.ks if other != k}
        | {k: group_page(k, clusters=(), name=name)},
        number=group,
        name=name,
        patches=len(rows),
        slides=slides.iloc[np.unique(slide_M)]["slide"].nunique(),
        patients=slides.iloc[np.unique(slide_M)]["patient"].nunique(),
        own=[(cluster, view.names(k).get(cluster, ""), n) for cluster, n in own.most_common()],
        selected=selected,
        filter_counts=slide_counts(view, rows=rows),
    )


def cards(view: RunView, *, k: int) -> dict[int, Card]:
    """A card for each group, by its number in ``Grouping``: rising, those that no cluster has last."""
    grouping, labels = view.grouping(k), view.labels(k)
    corrected = np.array(sorted(grouping.corrections), dtype=np.int64)
    own_M, now_M = grouping.own_N[corrected], grouping.table.label_N[corrected]
    return {
        number: Card(
            number=number,
            clusters=group.clusters,
            name=group.name,
            named=number >= k or group.name != default_name(number),
            flags=flags_of(labels, clusters=group.clusters),
            extent=grouping.table.extent(number, table=view.table),
            mosaic=mosaic_address(view, k=k, cluster=number)
            if number < k
            else named_mosaic_address(view, k=k, name=group.name),
            page=group_page(k, clusters=group.clusters, name=group.name),
            sent_here=int(((now_M == number) & (own_M != number)).sum()),
            sent_away=int(((now_M != number) & (own_M == number)).sum()),
        )
        for number, group in grouping.groups.items()
    }


def lights_of(view: RunView, *, k: int) -> tuple[Light, ...]:
    """The four lights; none where another version of Histoloom wrote the measurements, which cannot be read then."""
    try:
        return view.cached(("lights", k), depends_on=_LIGHTS, make=lambda: lights(view.path, k=k))
    except (ValueError, KeyError):
        return ()


def next_steps(view: RunView, *, cards: Mapping[int, Card], k: int) -> list[NextStep]:
    """What to do next, in this order: name, look at slides, generate, read blinded."""
    named, query = sum(len(card.clusters) for card in cards.values() if card.named), f"?k={k}"
    trained = view.run.artifact("diffusion") is not None
    steps = [
        NextStep(
            f"Name {k} groups: {named} done",
            "Say what each group shows, or that it is no tissue. Names appear on all pages, maps and samples.",
            f"Name the other {k - named}" if 0 < named < k else "Name the groups" if not named else "See the names",
            f"/name{query}",
            done=named == k,
        ),
        NextStep("Look at the slides", "Where the groups lie on the tissue.", "Open the slides", f"/slides{query}"),
        NextStep(
            "Generate",
            "New patches of a group, of a mixture, similar to a patch, or between two."
            if trained
            else "This run has no generator yet; it is trained after the groups.",
            "Generate patches",
            f"/draw{query}",
        ),
        NextStep(
            "Read blinded",
            "Real or synthetic? See how well a pathologist can tell, with a result to report.",
            "Start a reading",
            f"/read{query}",
        ),
        NextStep("Read the report", "All results of the run, also to print.", "Open the report", f"/report{query}"),
    ]
    first_open = next(number for number, step in enumerate(steps) if not step.done)
    return [replace(step, first=number == first_open) for number, step in enumerate(steps)]


def slide_shares(view: RunView, *, k: int, cluster: int) -> list[SlideShare]:
    """The slides with patches of a cluster, by falling number of these."""
    slides_KS, slides = view.grouping(k).table.slides_KS, view.table.slides
    counts_S, all_S = slides_KS[cluster], slides_KS.sum(axis=0)
    shares = []
    for row in np.argsort(-counts_S, kind="stable")[: int((counts_S > 0).sum())]:
        slide_id, patient = (str(slides[name].iloc[row]) for name in ("slide_id", "patient"))
        picture = place_address(view, k=k, cluster=cluster, slide_id=slide_id)
        shares.append(SlideShare(slide_id, patient, int(counts_S[row]), float(counts_S[row] / all_S[row]), picture))
    return shares
