"""The largest product of a patch's block with an image's block in all its turned copies, from few multiplications.

The copies of a block are what a group of turns and reflections makes of it. In coordinates that belong to the group's
irreducible representations, the products with all copies are sums and differences of few shorter ones: for the eight
copies of a square 337 multiplications instead of 1,800 (Serre 1977, Linear Representations of Finite Groups, chapter
2). Results are near the exact products; ``TOLERANCE`` and ``Copies.error_N`` bound by how much.

Shape suffixes: N images, M patches, V views of an image (its blocks in all copies), F base views, from which the group
makes all others, D pixels of a block, K coordinates, H elements of a group, R = N * F rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from histoloom.training.transfers import put_array

TOLERANCE = 1.6e-5
"""of a product, for vectors of norm 1: 2**-24, single precision's rounding, for each of at most 256 terms"""

Parts = dict[str, slice]
"""The coordinates of each representation, by its name."""


@dataclass(frozen=True)
class Coordinates:
    """An orthonormal basis of the blocks of one shape, and which of its vectors belong to which representation.

    A square's eight elements have the representations A1, A2, B1, B2, of one dimension, and E, of two, whose parts E1
    and E2 reflections at a diagonal keep or negate. A rectangle's four have one dimension each.
    """

    basis_DK: np.ndarray
    parts: Parts


@dataclass(frozen=True)
class Family:
    """Views that some elements of the group make of base views: ``view_FH`` are their numbers, by ``pixels_HD``."""

    name: str
    view_FH: np.ndarray
    pixels_HD: np.ndarray


@dataclass(frozen=True)
class Copies:
    """The base views of images in a family, as coordinates, and by how much exact views differ from these's copies."""

    family: Family
    rows_RK: Tensor
    error_N: np.ndarray

    @staticmethod
    def of_views(views_NVD: np.ndarray, family: Family, coordinates: Coordinates, *, device: torch.device) -> Copies:
        """From all views of the images."""
        base_NFD = views_NVD[:, family.view_FH[:, 0]]
        exact_NFHD = views_NVD[:, family.view_FH]
        error_N = np.linalg.norm(exact_NFHD - base_NFD[:, :, family.pixels_HD], axis=3).max(axis=(1, 2))
        rows_RK = base_NFD.reshape(-1, base_NFD.shape[2]) @ coordinates.basis_DK
        return Copies(family, put_array(rows_RK, device), error_N)

    def largest(self, patches_MK: Tensor, parts: Parts) -> Tensor:
        """Of each base view's products with a patch's block in all copies, (R, M)."""
        product = {name: self.rows_RK[:, part] @ patches_MK[:, part].T for name, part in self._products(parts).items()}
        if self.family.name == "mirrored":
            return product["even"].add_(product["odd"].abs_())
        if self.family.name == "rectangle":
            first, second = _sum_and_difference(product["A"], product["B"])
            third, fourth = _sum_and_difference(product["C"], product["D"])
            return torch.maximum(first.add_(third.abs_()), second.add_(fourth.abs_()))
        turns, mirrors = _sum_and_difference(product["A1"], product["A2"])
        straight, diagonal = _sum_and_difference(product["B1"], product["B2"])
        crossed = [
            self.rows_RK[:, parts[one]] @ patches_MK[:, parts[other]].T for one, other in (("E1", "E2"), ("E2", "E1"))
        ]
        half_turn, at_diagonal = _sum_and_difference(product["E1"], product["E2"])
        at_axis, quarter_turn = _sum_and_difference(*crossed)
        # An element and the same with half a turn: E has opposite signs.
        turned = torch.maximum(half_turn.abs_().add_(straight), quarter_turn.abs_().sub_(straight)).add_(turns)
        mirrored = torch.maximum(at_axis.abs_().add_(diagonal), at_diagonal.abs_().sub_(diagonal)).add_(mirrors)
        return torch.maximum(turned, mirrored, out=turned)

    def _products(self, parts: Parts) -> Parts:
        if self.family.name != "mirrored":
            return parts
        # What the reflection at a diagonal keeps, and what it negates, lie side by side.
        return {
            "even": slice(parts["A1"].start, parts["E1"].stop),
            "odd": slice(parts["E2"].start, parts["B1"].stop),
        }


def _sum_and_difference(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The difference takes the memory of the first."""
    return one + other, one.sub_(other)


@cache
def coordinates(height: int, width: int) -> Coordinates:
    """Those of blocks of a shape."""
    matrices_H22, pixels_HD = _elements(height, width)
    permutations_HDD = np.eye(height * width)[pixels_HD]
    if height == width:
        determinant_H = np.linalg.det(matrices_H22).round()
        straight_H = np.where(matrices_H22[:, 0, 0] != 0, 1, -1)
        # In the axes along the diagonals, in which reflections at these are diagonal.
        axes = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
        of_E_H22 = axes @ matrices_H22 @ axes
        first_DK = _range(np.tensordot(of_E_H22[:, 0, 0], permutations_HDD, axes=1) / 4, pixels_HD)
        second_DK = np.tensordot(of_E_H22[:, 0, 1], permutations_HDD, axes=1) / 4 @ first_DK
        characters = {
            "A1": np.ones(8),
            "B2": determinant_H * straight_H,
            "A2": determinant_H,
            "B1": straight_H,
        }
        bases = {
            name: _range(np.tensordot(character_H, permutations_HDD, axes=1) / 8, pixels_HD)
            for name, character_H in characters.items()
        }
        bases |= {"E1": first_DK, "E2": second_DK}
        names = ["A1", "B2", "E1", "E2", "A2", "B1"]
    else:
        y_H, x_H = matrices_H22[:, 0, 0], matrices_H22[:, 1, 1]
        # The last two change their sign under half a turn.
        bases = {
            name: _range(np.tensordot(character_H, permutations_HDD, axes=1) / 4, pixels_HD)
            for name, character_H in (("A", np.ones(4)), ("B", y_H * x_H), ("C", y_H), ("D", x_H))
        }
        names = list(bases)
    ends = np.cumsum([bases[name].shape[1] for name in names])
    parts = {name: slice(end - bases[name].shape[1], end) for name, end in zip(names, ends.tolist(), strict=True)}
    return Coordinates(np.concatenate([bases[name] for name in names], axis=1).astype(np.float32), parts)


def families(views_VD: np.ndarray, *, height: int, width: int) -> list[Family]:
    """Of the views of an image whose pixels are numbers, all different."""
    _, pixels_HD = _elements(height, width)
    number = {view.tobytes(): place for place, view in enumerate(views_VD)}
    found: dict[tuple[int, ...], list[list[int]]] = {}
    seen: set[int] = set()
    for base, view_D in enumerate(views_VD):
        if base in seen:
            continue
        copies = {h: number.get(view_D[pixels_D].tobytes()) for h, pixels_D in enumerate(pixels_HD)}
        made = {h: view for h, view in copies.items() if view is not None}
        seen |= set(made.values())
        found.setdefault(tuple(made), []).append(list(made.values()))
    name = {8: "square", 4: "rectangle", 2: "mirrored"}
    return [Family(name[len(some_H)], np.array(view_FH), pixels_HD[list(some_H)]) for some_H, view_FH in found.items()]


@cache
def _elements(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The turns and reflections that keep the shape: as matrices (H, 2, 2), and where they take a block's pixels from.

    The first one changes nothing.
    """
    signs = [np.diag(pair) for pair in ((1, 1), (-1, -1), (1, -1), (-1, 1))]
    matrices_H22 = np.stack(signs if height != width else signs + [matrix[::-1] for matrix in signs])
    middle_2 = np.array([height - 1, width - 1]) / 2
    places_D2 = np.indices((height, width)).reshape(2, -1).T - middle_2
    from_HD2 = np.rint(places_D2 @ matrices_H22.swapaxes(1, 2) + middle_2).astype(int)
    return matrices_H22, from_HD2[..., 0] * width + from_HD2[..., 1]


def _range(projection_DD: np.ndarray, pixels_HD: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what a projection keeps: each vector on pixels that the group exchanges."""
    vectors: list[np.ndarray] = []
    for orbit in sorted({tuple(sorted(set(pixels_H))) for pixels_H in pixels_HD.T.tolist()}):
        values, within = np.linalg.eigh(projection_DD[np.ix_(orbit, orbit)])
        for vector in within[:, values > 0.5].T:
            vectors.append(np.zeros(len(projection_DD)))
            vectors[-1][list(orbit)] = vector
    return np.stack(vectors, axis=1)
