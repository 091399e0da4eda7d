"""Tissue groups: what maps show as one. Clusters that share a name are one group.

A correction of single patches moves them to another group, or to one that no cluster has: a new name. Maps of slides
have cells in place of patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import shapely

from histoloom.atlas.maps.palette import cluster_colours, colours, hexadecimal
from histoloom.names import Label, default_name, normalised, tissues_of
from histoloom.names.corrections import NO_TISSUE

NO_GROUP = -1


@dataclass(frozen=True)
class TissueGroup:
    """A group at one k: its name, its clusters, and its colour. One of corrected patches alone has no clusters."""

    name: str
    clusters: tuple[int, ...]
    colour: str

    @property
    def named(self) -> bool:
        """Whether an expert named it."""
        return not (self.clusters and self.name == default_name(self.clusters[0]))

    @property
    def short(self) -> str:
        """The name, or ``group 3``."""
        return self.name if self.named else f"group {self.clusters[0]}"

    @property
    def title(self) -> str:
        """The number of its first cluster and the name, or ``Group 3``."""
        if not self.clusters:
            return self.name
        return f"{self.clusters[0]} · {self.name}" if self.named else f"Group {self.clusters[0]}"


@dataclass(frozen=True)
class TissueGroups:
    """The groups of one k, in the order of their first clusters, and the group of each patch, or of each cell.

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
    label_N: np.ndarray,
    *,
    labels: Mapping[int, Label],
    corrections: Mapping[int, str] = MappingProxyType({}),
    further_names: Iterable[str] = (),
) -> TissueGroups:
    """The group of each patch, from the clusters of all patches, integers (N,), -1 for none.

    ``corrections``: the name of each corrected patch, by its row (``corrections.current_corrections`` has them by
    patch id). ``further_names``: of corrected patches that are not among these; they come first, so that groups have
    the same colours on the map of each slide.
    """
    names = {normalised(label.name) for label in labels.values()}
    new_names: dict[str, str] = {}
    for name in (*further_names, *corrections.values()):
        if name != NO_TISSUE:
            new_names.setdefault(normalised(name), name)
    groups = groups_of(labels, new_names=[name for key, name in new_names.items() if key not in names])

    place_K = np.full(len(labels) + 1, NO_GROUP, np.int16)  # the last one is for patches without a cluster, -1
    for place, group in enumerate(groups):
        place_K[list(group.clusters)] = place
    group_N = place_K[label_N]
    place_of = {normalised(group.name): place for place, group in enumerate(groups)} | {NO_TISSUE: NO_GROUP}
    rows = np.fromiter(corrections, dtype=np.int64, count=len(corrections))
    group_N[rows] = [place_of[name if name == NO_TISSUE else normalised(name)] for name in corrections.values()]
    return TissueGroups(groups, group_N)


def group_cells(
    label_N: np.ndarray,
    *,
    boxes_N4: np.ndarray,
    labels: Mapping[int, Label],
    corrections: Mapping[str, str] = MappingProxyType({}),
    patch_boxes: Mapping[str, tuple[float, float, float, float]] = MappingProxyType({}),
) -> TissueGroups:
    """The group of each cell of a slide: where its middle lies in a corrected patch, that of the nearest such patch.

    ``label_N``: the cells' clusters; ``boxes_N4``: the cells (left, top, right, bottom). ``corrections``: the name of
    each corrected patch of the run, by patch id; ``patch_boxes``: of those on this slide, by patch id, in the same px.
    """
    on_slide = [patch for patch in corrections if patch in patch_boxes]
    boxes_M4 = np.array([patch_boxes[patch] for patch in on_slide], dtype=np.float64).reshape(-1, 4)
    middle_N2, middle_M2 = ((boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (boxes_N4, boxes_M4))
    tree = shapely.STRtree(shapely.box(*boxes_M4.T))
    cells, patches = tree.query(shapely.points(middle_N2), predicate="intersects")
    distances = np.linalg.norm(middle_N2[cells] - middle_M2[patches], axis=1)
    nearest = {int(cells[i]): corrections[on_slide[patches[i]]] for i in np.argsort(-distances, kind="stable")}
    return group_patches(label_N, labels=labels, corrections=nearest, further_names=corrections.values())
