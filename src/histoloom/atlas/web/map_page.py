"""The 2-D map of patches: where they lie by how they look, as data for a canvas and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from histoloom.atlas.maps.patch_map import FEATURE_TITLES, METHOD_TITLES, Embedding, central_patches, neighbour_shares
from histoloom.atlas.web.clusters import cards
from histoloom.atlas.web.http_errors import NotFound
from histoloom.atlas.web.pages import k_links, render
from histoloom.atlas.web.params import OptionalK, view_of
from histoloom.atlas.web.pictures import patch_address
from histoloom.atlas.web.run_view import RunView

router = APIRouter()

_FIRST = ("umap", "tsne", "pca")  # the first that there is is shown first
_FILES = ("report/artifact.json", "patches/artifact.json")


@dataclass(frozen=True)
class _Embedding:
    """``rows_N`` in the patch table; a map (N, 2) in 0..1 by method; ``near_Nn`` the nearest in the features."""

    rows_N: np.ndarray
    maps: dict[str, np.ndarray]
    near_Nn: np.ndarray


class MapModel(BaseModel):
    """Points in the order of ``ids``; ``maps`` has x and y (0..1, y upwards) by method, one after the other."""

    k: int
    ids: list[str]
    pictures: list[str]
    labels: list[int]
    maps: dict[str, list[float]]
    titles: dict[str, str]


@router.get("/map", response_class=HTMLResponse, tags=["pages"])
def map_page(request: Request, k: OptionalK = None) -> HTMLResponse:
    """The map, and the same in words."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    found = _embedding(view)
    return render(
        request,
        "map.html",
        k=k,
        k_links=k_links({other: f"/map?k={other}" for other in view.ks}, current=k, chosen=view.chosen),
        cards=cards(view, k=k),
        titles={} if found is None else {method: METHOD_TITLES[method] for method in found.maps},
        n=0 if found is None else len(found.rows_N),
        features=FEATURE_TITLES[view.config.clusters.validity_features],
        words=[] if found is None else _words(view, found, k=k),
        path=view.path,
    )


@router.get("/api/map", tags=["clusters"])
def points(request: Request, k: OptionalK = None) -> MapModel:
    """The points of all maps, coloured by k."""
    view = view_of(request)
    k = view.k_or_chosen(k)
    found = _embedding(view)
    if found is None:
        raise NotFound("this run has no 2-D map; it comes with the report: histoloom run RUN")
    ids = view.table.ids(found.rows_N)
    return MapModel(
        k=k,
        ids=ids,
        pictures=[patch_address(view, patch_id) for patch_id in ids],
        labels=view.clusters(k).label_N[found.rows_N].tolist(),
        maps={method: xy_N2.ravel().tolist() for method, xy_N2 in found.maps.items()},
        titles={method: METHOD_TITLES[method] for method in found.maps},
    )


def _embedding(view: RunView) -> _Embedding | None:
    return view.kept("embedding", of=_FILES, make=lambda: _read(view))


def _read(view: RunView) -> _Embedding | None:
    """``embedding.json``; None where there is none, or it is of other patches."""
    found = Embedding.load(view.run.folder("report") / "embedding.json")
    if found is None:
        return None
    rows_N = view.table.rows_of(pa.array(found.patch_ids, pa.string()))
    if (rows_N < 0).any():
        return None
    maps = {method: found.maps[method] for method in _FIRST if method in found.maps}
    return _Embedding(rows_N, maps, found.neighbours_Nn)


def _words(view: RunView, found: _Embedding, *, k: int) -> list[dict[str, Any]]:
    """A row for each cluster that is on the map, with the most central patch of the first map."""
    labels_N = view.clusters(k).label_N[found.rows_N].astype(np.int64)
    first = next(iter(found.maps.values()))
    central = central_patches(first, labels_N=labels_N)
    rows = neighbour_shares(labels_N, neighbours_Nn=found.near_Nn, map_neighbours=[])
    return [
        {"row": row, "central": view.table.ids([found.rows_N[central[row.cluster]]])[0]}
        for row in rows
        if row.cluster >= 0
    ]
