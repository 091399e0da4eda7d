"""The pictures that a run has for a reading: real patches and samples of each tissue, in the order to take them.

Legend of shapes: N pictures, H and W height and width in px.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from histoloom.clustering.clustering_set import Clustering
from histoloom.errors import UserError
from histoloom.evaluation.images import SampleFolder
from histoloom.evaluation.reading.balance import apart, spread_order
from histoloom.evaluation.reading.plan import Kind
from histoloom.names import current_names, default_name
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
            raise UserError(f"there are no samples at k = {self.k}; there are at k = {_listed(self.samples.ks)}")

    def tissues(self, kind: Kind) -> list[Tissue]:
        """The tissues to show, by name; of a naming only those that have one."""
        names = current_names(self.run.path, k=self.k)
        together: dict[str, list[int]] = {}
        for cluster, name in names.items():
            if kind != "naming" or name != default_name(cluster):
                together.setdefault(name, []).append(cluster)
        if kind == "naming" and len(together) < 2:
            raise UserError(
                f"{len(together)} tissues at k = {self.k} have a name; name two or more first: "
                f"histoloom name {self.run.path} CLUSTER NAME"
            )
        return [Tissue(name, tuple(clusters)) for name, clusters in sorted(together.items(), key=lambda item: item[1])]

    @cached_property
    def labels(self) -> np.ndarray:
        """The cluster of every patch, in the rows of ``patches``."""
        found = self.clustering.labels(self.k)
        return found.reindex(self.patches.columns("patch_id")["patch_id"]).to_numpy()

    def real(self, tissue: Tissue, *, most: int, used: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        """Rows of ``patches`` to take from: apart from each other, unseen and held-out ones first."""
        rows = np.flatnonzero(np.isin(self.labels, tissue.clusters))
        table = self._places.iloc[rows].reset_index(drop=True)
        order = spread_order(
            table["slide_id"].tolist(),
            first=(table["split"] == "holdout").to_numpy(),
            uses=table["patch_id"].map(Counter(used)).fillna(0).to_numpy(),
            rng=rng,
        )
        return [int(rows[place]) for place in apart(order, places=table, most=most)]

    def synthetic(self, tissue: Tissue, *, used: Mapping[str, int], rng: np.random.Generator) -> list[int]:
        """Rows of ``samples`` to take from, the least used first."""
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
        """What the picture's pixels are, to tell equal ones."""
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


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
