"""A run's patches with what is known of each: its place, its cluster and the name that counts for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoloom.clustering.clustering_set import Clustering
from histoloom.errors import UserError
from histoloom.names import Label, current_labels
from histoloom.names.corrections import current_corrections
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet

PLACE = ("patch_id", "slide_id", "slide", "patient", "split", "x", "y", "extent")
"""columns of the patches' own table: corner and side in level-0 px"""


@dataclass(frozen=True)
class LabelledPatches:
    """Patches and clusters of a run: ``row_N`` is each patch's row in the tables of the clusters."""

    patches: PatchSet
    clustering: Clustering
    row_N: np.ndarray
    run: Run

    @staticmethod
    def open(run: Run) -> LabelledPatches:
        """The published stages of a run; ``UserError`` where one is missing, or the clusters are of other patches."""
        patches, clustering = PatchSet.open(run.require("patches")), Clustering.open(run.require("clusters"))
        ids = patches.columns("patch_id")["patch_id"]
        row_N = pd.Index(clustering.table["patch_id"]).get_indexer(pd.Index(ids))
        if (row_N < 0).any():
            raise UserError(
                f"the clusters of {run.path} are of other patches; make them again: histoloom run {run.path}"
            )
        return LabelledPatches(patches, clustering, row_N, run)

    def k(self, requested: int | None) -> int:
        """The requested number of clusters, or the chosen one; ``UserError`` where it is not in the sweep."""
        k = self.clustering.chosen if requested is None else requested
        if k not in self.clustering.ks:
            raise UserError(f"k = {k} is not in this run's sweep; allowed: {', '.join(map(str, self.clustering.ks))}")
        return k

    def labels(self, k: int) -> dict[int, Label]:
        """The label that counts for each cluster."""
        return current_labels(self.run.path, k=k)

    def clusters(self, k: int) -> np.ndarray:
        """Each patch's cluster, int64 (N,)."""
        return self.clustering.table[f"k{k}"].to_numpy(np.int64)[self.row_N]

    def probabilities(self, k: int) -> np.ndarray:
        """Each patch's probabilities, float32 (N, k)."""
        return self.clustering.probabilities(k)[self.row_N]

    def table(self, k: int) -> pd.DataFrame:
        """A row a patch: its place, um/px, cluster, the cluster's name, flag and colour, and its probability.

        Where patches were drawn inside regions, also the region; where an expert has corrected some, the corrections.
        """
        region = ("region",) if self.patches.has_regions else ()
        table, cluster_N, labels = self.patches.columns(*PLACE, *region), self.clusters(k), self.labels(k)
        table["mpp"], table["k"], table["cluster"] = self.patches.mpp, k, cluster_N
        for column, values in {
            "tissue": [label.name for label in labels.values()],
            "flag": [label.flag for label in labels.values()],
            "colour": [label.colour for label in labels.values()],
        }.items():
            table[column] = np.array(values, dtype=object)[cluster_N]
        table["probability"] = self.probabilities(k)[np.arange(len(cluster_N)), cluster_N]
        if corrections := current_corrections(self.run.path, k=k):
            table["correction"] = table["patch_id"].astype(str).map(corrections).fillna("")
        return table
