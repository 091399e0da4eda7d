"""The groups of one k as the pages show them: clusters of one name are one group, and corrected patches are moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from histoloom.atlas.browse.cluster_table import ClusterTable, regrouped
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.maps.tissue_groups import TissueGroup, TissueGroups
from histoloom.names import normalised
from histoloom.names.corrections import NO_TISSUE

NO_GROUP = -1


@dataclass(frozen=True)
class CorrectedPatch:
    """A correction that counts: the name of the patch's group, or ``NO_TISSUE``, and whose correction it is."""

    name: str
    rater: str


@dataclass(frozen=True)
class Grouping:
    """The groups by number, the patches of each in ``table``, and ``corrections`` by the row of the patch.

    The number of a group is that of its first cluster. Groups that no cluster has are numbered from k on; these numbers
    are for one answer alone, because they change with the corrections. ``own_N`` is the group of each patch without
    corrections, int16 (N,). Patches without a group have ``NO_GROUP``.
    """

    groups: Mapping[int, TissueGroup]
    table: ClusterTable
    own_N: np.ndarray
    corrections: Mapping[int, CorrectedPatch]

    def number_of(self, name: str) -> int | None:
        """The number of the group of this name; ``NO_GROUP`` for ``NO_TISSUE``; None where there is none."""
        if name == NO_TISSUE:
            return NO_GROUP
        wanted = normalised(name)
        return next((number for number, group in self.groups.items() if normalised(group.name) == wanted), None)

    def members(self, number: int) -> np.ndarray:
        """The rows of a group, rising; for ``NO_GROUP`` those that were corrected to no tissue."""
        if number != NO_GROUP:
            return self.table.members[number]
        rows = self._corrected_rows()
        return rows[self.table.label_N[rows] == NO_GROUP]

    def corrected(self, number: int) -> np.ndarray:
        """The rows that were sent to a group, and those that were sent away from it, rising."""
        rows = self._corrected_rows()
        return rows[(self.table.label_N[rows] == number) | (self.own_N[rows] == number)]

    def _corrected_rows(self) -> np.ndarray:
        return np.array(sorted(self.corrections), dtype=np.int64)


def grouping_of(
    tissue: TissueGroups, *, merged: ClusterTable, table: PatchTable, corrections: Mapping[int, CorrectedPatch]
) -> Grouping:
    """The grouping from the groups of patches and the clusters that are merged by name."""
    with_clusters = sum(bool(group.clusters) for group in tissue.groups)
    numbers = [
        group.clusters[0] if group.clusters else merged.k + place - with_clusters
        for place, group in enumerate(tissue.groups)
    ]
    label_N = np.array([*numbers, NO_GROUP], np.int16)[tissue.group_N]  # the last one is that of no group, -1
    groups = dict(zip(numbers, tissue.groups, strict=True))
    if np.array_equal(label_N, merged.label_N):
        return Grouping(groups, merged, merged.label_N, corrections)
    n = max(merged.k, *(number + 1 for number in numbers))
    return Grouping(groups, regrouped(merged, label_N, n=n, table=table), merged.label_N, corrections)
