"""The pictures that a run has for a reading: real patches and samples of each tissue, in the order of preference.

Numbers are as even over tissues and slides as there are pictures, and no place of a slide is shown twice.

Legend of shapes: N pictures, H and W height and width in px.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from histoloom.clustering.clustering_set import Clustering
from histoloom.errors import UserError
from histoloom.evaluation.images import SampleFolder
from histoloom.evaluation.reading.plan import Kind
from histoloom.names import current_labels, default_name, without_artefacts
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet


@dataclass(frozen=True)
class Tissue:
    """Clusters that share a name."""

    name: str
    clusters: tuple[int, ...]


class Material:
    """Real patches and samples of a run at one k."""

    def __init__(self, run: Run, *, k: int | None) -> None:
        self.run = run
        self.patches = PatchSet.open(run.require("patches"))
        self.samples = SampleFolder(run.require("samples"))
        self.clustering = Clustering.open(run.require("clusters"))
        self.k = self.clustering.chosen if k is None else k
        if self.k not in self.samples.ks:
            available = ", ".join(map(str, self.samples.ks)) or "none"
            raise UserError(f"there are no samples at k = {self.k}; there are at k = {available}")

    def tissues(self, kind: Kind) -> list[Tissue]:
        """The tissues to show, by name, without artefacts; of a naming only those that have a name."""
        labels = current_labels(self.run.path, k=self.k)
        by_name: dict[str, list[int]] = {}
        for cluster in without_artefacts(labels):
            name = labels[cluster].name
            if kind != "naming" or name != default_name(cluster):
                by_name.setdefault(name, []).append(cluster)
        if kind == "naming" and len(by_name) < 2:
            raise UserError(
                f"{len(by_name)} tissues at k = {self.k} have a name; name two or more first: "
                f"histoloom name {self.run.path} CLUSTER NAME"
            )
        return [Tissue(name, tuple(clusters)) for name, clusters in sorted(by_name.items(), key=lambda item: item[1])]

    @property
    def artefacts(self) -> list[int]:
        """The clusters that no reading shows, because they are flagged as artefact."""
        return sorted({*range(self.k)} - {*without_artefacts(current_labels(self.run.path, k=self.k))})

    @cached_property
    def labels(self) -> np.ndarray:
        """The cluster of every patch, in the rows of ``patches``."""
        labels = self.clustering.labels(self.k)
        return labels.reindex(self.patches.columns("patch_id")["patch_id"]).to_numpy()

    def real(self, tissue: Tissue, *, most: int, used: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        """Rows of ``patches`` by preference: no two overlap, unseen and held-out ones first."""
        rows = np.flatnonzero(np.isin(self.labels, tissue.clusters))
        table = self._places.iloc[rows].reset_index(drop=True)
        order = preference_order(
            table["slide_id"].tolist(),
            held_out=(table["split"] == "holdout").to_numpy(),
            uses=table["patch_id"].map(Counter(used)).fillna(0).to_numpy(),
            rng=rng,
        )
        return [int(rows[place]) for place in without_overlap(order, places=table, most=most)]

    def synthetic(self, tissue: Tissue, *, used: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        """Rows of ``samples`` by preference, the least used first."""
        table = self.samples.table
        rows = np.flatnonzero((table["k"] == self.k) & table["cluster"].isin(tissue.clusters))
        uses = table["sample_id"].iloc[rows].map(Counter(used)).fillna(0).to_numpy()
        return [int(row) for row in rows[np.lexsort((rng.random(len(rows)), uses))]]

    def picture(self, row: int, *, synthetic: bool) -> np.ndarray:
        """One picture, uint8 (H, W, 3); ``UserError`` for a sample that is not of the patches' size."""
        if not synthetic:
            return self.patches.images([row])[0]
        image = self.samples.images(np.array([row]))[0]
        size = self.patches.size
        if image.shape != (size, size, 3):
            raise UserError(
                f"a sample is {image.shape[1]} x {image.shape[0]} px and patches are {size} x {size} px; "
                f"draw samples anew: histoloom run {self.run.path}"
            )
        return image

    def digest(self, row: int, *, synthetic: bool) -> str:
        """The SHA-256 of the picture's pixels, equal for equal pictures."""
        return hashlib.sha256(self.picture(row, synthetic=synthetic).tobytes()).hexdigest()

    def named(self, row: int, *, synthetic: bool) -> tuple[str, int, str]:
        """A picture's id, its cluster and its split (empty for a sample)."""
        if synthetic:
            line = self.samples.table.iloc[row]
            return str(line["sample_id"]), int(line["cluster"]), ""
        line = self._places.iloc[row]
        return str(line["patch_id"]), int(self.labels[row]), str(line["split"])

    @cached_property
    def _places(self) -> pd.DataFrame:
        return self.patches.columns("patch_id", "slide_id", "split", "x", "y", "extent")


# --- balance


def allot(n: int, *, capacities: Sequence[int], rng: np.random.Generator) -> list[int]:
    """``n`` pictures over groups as evenly as their capacities allow; which group has one more is drawn.

    Sums to ``n``, or to all capacities where these are fewer.
    """
    counts = [0] * len(capacities)
    left = min(n, sum(capacities))
    while left:
        open_ = [group for group, limit in enumerate(capacities) if counts[group] < limit]
        share = left // len(open_)
        receiving = open_ if share else rng.choice(open_, size=left, replace=False).tolist()
        for group in receiving:
            more = min(max(1, share), capacities[group] - counts[group])
            counts[group] += more
            left -= more
    return counts


def preference_order(
    slides: Sequence[str], *, held_out: np.ndarray, uses: np.ndarray, rng: np.random.Generator
) -> list[int]:
    """Rows of patches by preference: the least used first, of these the ``held_out`` ones, slide by slide in turn.

    A reader who saw a picture before, and its truth at the end, may recognise it: that weighs more than its slide.

    ``held_out`` (N,) bool: patches of held-out slides; ``uses`` (N,): how many readings showed each before.
    """
    table = pd.DataFrame({"slide": list(slides), "train": ~held_out, "uses": uses, "chance": rng.random(len(slides))})
    table = table.sort_values(["uses", "train", "chance"])
    table["turn"] = table.groupby(["slide", "uses", "train"]).cumcount()
    return [int(row) for row in table.sort_values(["uses", "train", "turn", "chance"]).index]


def without_overlap(order: Iterable[int], *, places: pd.DataFrame, most: int) -> list[int]:
    """The first ``most`` rows of ``order`` that overlap no earlier one; ``places`` has slide_id, x, y, extent (px)."""
    accepted: dict[str, list[tuple[float, float, float]]] = {}
    slides, x, y, extent = (places[name].tolist() for name in ("slide_id", "x", "y", "extent"))
    rows: list[int] = []
    for row in order:
        others = accepted.setdefault(slides[row], [])
        if any(max(abs(x[row] - a), abs(y[row] - b)) < max(extent[row], side) for a, b, side in others):
            continue
        others.append((x[row], y[row], extent[row]))
        rows.append(row)
        if len(rows) == most:
            break
    return rows


def distinct(rows: Iterable[int], *, n: int, digest: Callable[[int], str], seen: set[str]) -> list[int]:
    """The first ``n`` rows whose pictures are not ``seen`` yet; their digests are added to ``seen``."""
    distinct_rows: list[int] = []
    for row in rows:
        if len(distinct_rows) == n:
            break
        if (mark := digest(row)) not in seen:
            seen.add(mark)
            distinct_rows.append(row)
    return distinct_rows
