"""A run's patches with what is known of each: its place, its cluster, and the tissue that counts for it: its cluster's
name, or what an expert has corrected it to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoloom.clustering.clustering_set import Clustering
from histoloom.errors import UserError
from histoloom.names import Label, current_labels
from histoloom.names.corrections import NO_TISSUE, CorrectedTissues, corrected_tissues, current_corrections
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet

PLACE = ("patch_id", "slide_id", "slide", "patient", "split", "x", "y", "extent")
"""columns of the patches' own table: corner and side in level-0 px"""
NO_NUMBER = -1
"""of patches that show no tissue"""


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

    def corrected(self, k: int) -> CorrectedTissues:
        """What experts have corrected patch by patch."""
        return corrected_tissues(self.run.path, k=k)

    def numbers(self, k: int) -> np.ndarray:
        """Each patch's tissue as a number, int64 (N,): its cluster, or what an expert has corrected it to.

        That is the first cluster of the name; k and on for the names of ``corrected`` that no cluster has; NO_NUMBER.
        """
        number_N, corrected = self.clusters(k).copy(), self.corrected(k)
        if corrected.numbers:
            row_N = pd.Index(self.patches.columns("patch_id")["patch_id"]).get_indexer(list(corrected.numbers))
            first_N = np.array([(*numbers, NO_NUMBER)[0] for numbers in corrected.numbers.values()])
            number_N[row_N[row_N >= 0]] = first_N[row_N >= 0]
        return number_N

    def tissues(self, k: int) -> dict[int, Label]:
        """The label of each number of ``numbers``."""
        corrected = self.corrected(k)
        further = {number: Label(name) for number, name in enumerate(corrected.names, start=k)}
        if () in corrected.numbers.values():
            further[NO_NUMBER] = Label(NO_TISSUE, flag="artefact")
        return self.labels(k) | further

    def table(self, k: int) -> pd.DataFrame:
        """A row a patch: its place, um/px, cluster, its tissue's name, flag and colour, and the cluster's probability.

        Where patches were drawn inside regions, also the region. Where experts have corrected patches, the tissue is
        the corrected one, and there are also its number, the cluster's own name, and the correction, empty for none.
        """
        region = ("region",) if self.patches.has_regions else ()
        table, cluster_N = self.patches.columns(*PLACE, *region), self.clusters(k)
        tissues, number_N = self.tissues(k), self.numbers(k)
        table["mpp"], table["k"], table["cluster"] = self.patches.mpp, k, cluster_N
        for column, values in {
            "tissue": {number: label.name for number, label in tissues.items()},
            "flag": {number: label.flag for number, label in tissues.items()},
            "colour": {number: label.colour for number, label in tissues.items()},
        }.items():
            table[column] = np.array([values[number] for number in number_N], dtype=object)
        table["probability"] = self.probabilities(k)[np.arange(len(cluster_N)), cluster_N]
        if corrections := current_corrections(self.run.path, k=k):
            table["number"] = number_N
            table["cluster_tissue"] = np.array([tissues[cluster].name for cluster in cluster_N], dtype=object)
            table["correction"] = table["patch_id"].astype(str).map(corrections).fillna("")
        return table
