"""Tissue groups: what maps show as one. Clusters that share a name are one group.

A correction of single patches moves them to another group, or to one that no cluster has: a new name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from histoloom.atlas.maps.palette import cluster_colours, colours, hexadecimal
from histoloom.names import Label, normalised, tissues_of
from histoloom.names.corrections import NO_TISSUE

NO_GROUP = -1


@dataclass(frozen=True)
class TissueGroup:
    """A group at one k: its name, its clusters, and its colour. One of corrected patches alone has no clusters."""

    name: str
    clusters: tuple[int, ...]
    colour: str


@dataclass(frozen=True)
class TissueGroups:
    """The groups of one k, in the order of their first clusters, and the group of each patch.

    ``group_N`` is int16, a place in ``groups``, or ``NO_GROUP``.
    """

    groups: tuple[TissueGroup, ...]
    group_N: np.ndarray

    def sizes(self, rows: np.ndarray) -> list[int]:
        """How many of these patches each group has."""
        group_M = self.group_N[rows]
        return np.bincount(group_M[group_M >= 0], minlength=len(self.groups)).tolist()


def groups_of(labels: Mapping[int, Label], *, new_names: Sequence[str] = ()) -> tuple[TissueGroup, ...]:
    """The groups of all clusters of one k, then those of ``new_names``, which no cluster has.

    ``labels`` is what ``names.current_labels`` returns. The clusters' colours do not depend on the new names.
    """
    palette = cluster_colours(labels, k=len(labels))
    groups = [
        TissueGroup(labels[first].name, clusters, hexadecimal(palette[first]))
        for first, clusters in tissues_of(labels).items()
    ]
    further = colours(len(labels) + len(new_names))[len(labels) :]
    return (*groups, *(TissueGroup(name, (), hexadecimal(rgb)) for name, rgb in zip(new_names, further, strict=True)))


def group_patches(
    label_N: np.ndarray, *, labels: Mapping[int, Label], corrections: Mapping[int, str] = MappingProxyType({})
) -> TissueGroups:
    """The group of each patch, from the clusters of all patches, integers (N,), -1 for none.

    ``corrections``: the name of each corrected patch, by its row (``corrections.current_corrections`` has them by
    patch id).
    """
    names = {normalised(label.name) for label in labels.values()}
    new_names = {normalised(name): name for name in corrections.values() if name != NO_TISSUE}
    groups = groups_of(labels, new_names=[name for key, name in new_names.items() if key not in names])

    place_K = np.full(len(labels) + 1, NO_GROUP, np.int16)  # the last one is for patches without a cluster, -1
    for place, group in enumerate(groups):
        place_K[list(group.clusters)] = place
    group_N = place_K[label_N]
    place_of = {normalised(group.name): place for place, group in enumerate(groups)} | {NO_TISSUE: NO_GROUP}
    rows = np.fromiter(corrections, dtype=np.int64, count=len(corrections))
    group_N[rows] = [place_of[name if name == NO_TISSUE else normalised(name)] for name in corrections.values()]
    return TissueGroups(groups, group_N)
