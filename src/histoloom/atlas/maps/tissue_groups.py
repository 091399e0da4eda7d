"""Tissue groups: what maps show as one. Clusters that share a name are one group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from histoloom.atlas.maps.palette import cluster_colours, hexadecimal
from histoloom.names import Label, tissues_of

NO_GROUP = -1


@dataclass(frozen=True)
class TissueGroup:
    """A group at one k: its name, its clusters, and its colour."""

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


def groups_of(labels: Mapping[int, Label]) -> tuple[TissueGroup, ...]:
    """The groups of all clusters of one k; ``labels`` is what ``names.current_labels`` returns."""
    palette = cluster_colours(labels, k=len(labels))
    return tuple(
        TissueGroup(labels[first].name, clusters, hexadecimal(palette[first]))
        for first, clusters in tissues_of(labels).items()
    )
