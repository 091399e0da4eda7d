"""The 2-D map of patches: similar patches lie together. The page draws it on a canvas and describes it in a table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from histoloom.atlas.browse.grouping import NO_GROUP
from histoloom.atlas.maps.palette import colours, hexadecimal
from histoloom.atlas.maps.patch_map import (
    FEATURE_TITLES,
    METHOD_TITLES,
    Embedding,
    NeighbourShares,
    central_patches,
    neighbour_shares,
)
from histoloom.atlas.web.clusters import cards
from histoloom.atlas.web.errors import NotFound
from histoloom.atlas.web.gallery_api import group_page
from histoloom.atlas.web.pages import render
from histoloom.atlas.web.pictures import patch_address
from histoloom.atlas.web.routing import QueryK, View
from histoloom.atlas.web.run_view import RunView

router = APIRouter()

# From orange (unsure) to dark blue (sure), lighter to darker all the way, which the colour-blind see as well.
_PROBABILITY_RAMP = [(round(240 - 23 * step), round(170 - 14 * step), round(60 + 7 * step)) for step in range(10)]
_METHODS = ("umap", "tsne", "pca")  # the first of them that the report has is shown first


@dataclass(frozen=True)
class PlacedPatches:
    """The patches on the map: their rows in the patch table, their places (N, 2) in 0..1 by method.

    ``neighbours_Nn`` are the nearest others among the features.
    """

    rows_N: np.ndarray
    maps: dict[str, np.ndarray]
    neighbours_Nn: np.ndarray


@dataclass(frozen=True)
class ClusterOnMap:
    """A row of the table below the map: a cluster, and its most central patch on the first map."""

    row: NeighbourShares
    central_patch_id: str


class Colouring(BaseModel):
    """What points are coloured by: each point's place in ``names`` and ``colours``."""

    values: list[int]
    names: list[str]
    colours: list[str]


class GroupOnMap(BaseModel):
    """A group in the legend: one of corrected patches alone has no clusters."""

    name: str
    clusters: list[int]
    colour: str
    page: str


class GroupsOnMap(BaseModel):
    """The groups, and each point's place among them, -1 for none: what changes with a correction."""

    values: list[int]
    groups: list[GroupOnMap]


class MapModel(BaseModel):
    """Points in the order of ``ids``; ``maps`` has x and y (0..1, y upwards) by method, one after the other."""

    k: int
    ids: list[str]
    pictures: list[str]
    groups: GroupsOnMap
    colourings: dict[str, Colouring]
    maps: dict[str, list[float]]
    titles: dict[str, str]


@router.get("/map", response_class=HTMLResponse, tags=["pages"])
def map_page(request: Request, view: View, k: QueryK) -> HTMLResponse:
    """The map, and a table that describes it for those who cannot see it."""
    placed = placed_patches(view)
    return render(
        request,
        "map.html",
        k=k,
        cards=cards(view, k=k),
        titles={} if placed is None else {method: METHOD_TITLES[method] for method in placed.maps},
        n=0 if placed is None else len(placed.rows_N),
        features=FEATURE_TITLES[view.config.clusters.validity_features],
        rows=[] if placed is None else clusters_on_map(view, placed, k=k),
        path=view.path,
    )


@router.get("/api/map", tags=["clusters"])
def points(view: View, k: QueryK) -> MapModel:
    """The points of all maps, coloured by k."""
    placed = placed_patches(view)
    if placed is None:
        raise NotFound("this run has no 2-D map; it comes with the report: histoloom run RUN")
    ids = view.table.ids(placed.rows_N)
    return MapModel(
        k=k,
        ids=ids,
        pictures=[patch_address(view, patch_id) for patch_id in ids],
        groups=groups_on_map(view, placed.rows_N, k=k),
        colourings=colourings(view, placed.rows_N, k=k),
        maps={method: xy_N2.ravel().tolist() for method, xy_N2 in placed.maps.items()},
        titles={method: METHOD_TITLES[method] for method in placed.maps},
    )


@router.get("/api/map/groups", tags=["clusters"])
def groups(view: View, k: QueryK) -> GroupsOnMap:
    """The groups of the points, as corrections left them."""
    placed = placed_patches(view)
    if placed is None:
        raise NotFound("this run has no 2-D map; it comes with the report: histoloom run RUN")
    return groups_on_map(view, placed.rows_N, k=k)


def groups_on_map(view: RunView, rows_N: np.ndarray, *, k: int) -> GroupsOnMap:
    """The groups of ``k`` and those of the points."""
    grouping = view.grouping(k)
    numbers = list(grouping.groups)
    place_of = {number: place for place, number in enumerate(numbers)}
    return GroupsOnMap(
        values=[place_of.get(number, NO_GROUP) for number in grouping.table.label_N[rows_N].tolist()],
        groups=[
            GroupOnMap(
                name=group.name,
                clusters=list(group.clusters),
                colour=group.colour,
                page=group_page(k, clusters=group.clusters, name=group.name),
            )
            for number, group in grouping.groups.items()
        ],
    )


def colourings(view: RunView, rows_N: np.ndarray, *, k: int) -> dict[str, Colouring]:
    """The points by slide, patient, and probability of their cluster in steps of a tenth."""
    slides, slide_N = view.table.slides, view.table.slide_N[rows_N]
    found = {}
    for by, column in {"slide": "slide_id", "patient": "patient"}.items():
        names, value_S = np.unique(slides[column].astype(str).to_numpy(), return_inverse=True)
        palette = [hexadecimal(colour) for colour in colours(len(names))]
        found[by] = Colouring(values=value_S[slide_N].tolist(), names=names.tolist(), colours=palette)
    tenth_N = np.minimum((10 * view.clusters(k).p_N[rows_N]).astype(int), 9)
    ramp = [hexadecimal(rgb) for rgb in _PROBABILITY_RAMP]
    steps = [f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}" for tenth in range(10)]
    found["probability"] = Colouring(values=tenth_N.tolist(), names=steps, colours=ramp)
    return found


def placed_patches(view: RunView) -> PlacedPatches | None:
    """The report's ``embedding.json``; None if it does not exist, or if it is of other patches."""

    def read() -> PlacedPatches | None:
        embedding = Embedding.load(view.run.folder("report") / "embedding.json")
        if embedding is None:
            return None
        rows_N = view.table.rows_of(pa.array(embedding.patch_ids, pa.string()))
        if (rows_N < 0).any():
            return None
        maps = {method: embedding.maps[method] for method in _METHODS if method in embedding.maps}
        return PlacedPatches(rows_N, maps, embedding.neighbours_Nn)

    return view.cached("embedding", depends_on=["report/artifact.json", "patches/artifact.json"], make=read)


def clusters_on_map(view: RunView, placed: PlacedPatches, *, k: int) -> list[ClusterOnMap]:
    """The groups of ``k`` that have patches on the map."""
    labels_N = view.grouping(k).table.label_N[placed.rows_N].astype(np.int64)
    central = central_patches(next(iter(placed.maps.values())), labels_N=labels_N)
    return [
        ClusterOnMap(row, view.table.ids([placed.rows_N[central[row.cluster]]])[0])
        for row in neighbour_shares(labels_N, neighbours_Nn=placed.neighbours_Nn, map_neighbours=[])
        if row.cluster >= 0
    ]
