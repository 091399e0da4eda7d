"""The coarse search: for each image the few training patches, with a rough alignment, that are compared closely.

Greys of 20 px; blocks of three quarters of the sides and halves of the image, each in eight dihedral copies, against
the training patch's blocks at every place. Slow changes are taken out of each block by itself, so that nothing outside
of it counts: half of a collage looks like the same half of its source.

The largest product of a pair is computed nearly, from a quarter of the multiplications (``symmetry``), and then exactly
for the few pairs that may be among the best by what is known of its error. Exact products are of whole numbers whose
sums single precision holds, so that neither the order nor the size of batches, nor the device, changes anything.

No bound rules enough patches out to save more time: with the Cauchy-Schwarz bound in the images' own principal axes,
half of the coordinates rule out five of six pairs, and what remains costs as much as it saves.

Shape suffixes: N images, M training patches, L = ``LOW``, V views of a block, P places, D its pixels, K
its coordinates, or pairs of an image and a patch, R rows (``symmetry``), C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from histoloom.evaluation.originality.greys import SIDE, area_means, dihedral_copies, gaussian
from histoloom.evaluation.originality.symmetry import TOLERANCE, Coordinates, Copies, Family, coordinates, families
from histoloom.run.row_file import Rows
from histoloom.training.transfers import put_array

LOW = 20
"""px; the side of the coarse greys"""
PER_KIND = 8
"""candidates that each kind of block puts forward"""
IMAGES = {"cpu": 64}
"""images that are compared at once, by the kind of device: on a CPU, products that fit its cache"""
MORE_IMAGES = 256
"""elsewhere"""
PATCHES = 512
"""training patches that they are compared with at once"""
PAIRS = {"cpu": 64}
"""of an image and a patch, whose exact products are computed at once, by the kind of device"""
MORE_PAIRS = 1024
"""elsewhere"""
KEPT_BYTES = 2**29
"""of patches' blocks that are kept for later searches, 63 KB a patch; those of further patches are computed anew"""
_NORM = 2000.0  # of a vector: 2000 squared, a sum's bound, is below 2**24
_SLOW, _FINE = 2.5, 1.0  # px of the coarse grey, px of the grey
_NOISE = 0.5  # squared grey levels a coarse pixel: what is fainter does not count as structure


@dataclass(frozen=True)
class BlockKind:
    """A kind of block: its size in coarse px, where it is cut from an image and from a training patch."""

    height: int
    width: int
    from_image: tuple[tuple[int, int], ...]
    from_patch: tuple[tuple[int, int], ...]


_BIG, _HALF = 3 * LOW // 4, LOW // 2
_FREE = LOW - _BIG
_MIDDLE = _FREE // 2
KINDS = (
    BlockKind(
        _BIG,
        _BIG,
        ((_MIDDLE, _MIDDLE), (0, 0), (0, _FREE), (_FREE, 0), (_FREE, _FREE)),
        tuple((y, x) for y in range(_FREE + 1) for x in range(_FREE + 1)),
    ),
    BlockKind(LOW, _HALF, ((0, 0), (0, _HALF)), tuple((0, x) for x in range(0, _HALF + 1, 2))),
    BlockKind(_HALF, LOW, ((0, 0), (_HALF, 0)), tuple((y, 0) for y in range(0, _HALF + 1, 2))),
)


@dataclass(frozen=True)
class Candidates:
    """For each of N images C training patches: ``patch_NC``, which dihedral copy, and its shift (y, x) in px of G.

    ``patch_NC`` is -1 where there are fewer.
    """

    patch_NC: np.ndarray
    dihedral_NC: np.ndarray
    shift_NC2: np.ndarray

    def rows(self, rows: slice) -> Candidates:
        """Those of some images."""
        return Candidates(self.patch_NC[rows], self.dihedral_NC[rows], self.shift_NC2[rows])


@dataclass(frozen=True)
class PatchBlocks:
    """The blocks of some patches at every place, int16, and their coordinates in the basis of the kind, float32."""

    exact_PMD: Tensor
    near_PMK: Tensor

    @property
    def nbytes(self) -> int:
        """Of both."""
        return self.exact_PMD.nbytes + self.near_PMK.nbytes


class CoarsePatches:
    """The patches that are searched, from their greys, on a device.

    Their blocks are kept for later searches, up to ``KEPT_BYTES``; of the others ``PATCHES`` are in memory at once.
    """

    def __init__(self, greys_MGG: Rows, *, device: torch.device) -> None:
        self.greys_MGG, self.device = greys_MGG, device
        self._kept: dict[tuple[BlockKind, int], PatchBlocks] = {}

    def __len__(self) -> int:
        return len(self.greys_MGG)

    def blocks(self, kind: BlockKind, *, first: int) -> PatchBlocks:
        """Those of ``PATCHES`` patches from ``first`` on."""
        kept = self._kept.get((kind, first))
        if kept is not None:
            return kept
        some_MLL = coarse(self.greys_MGG[first : first + PATCHES])
        blocks_PMD = put_array(blocks(some_MLL, kind.from_patch, kind=kind), self.device)
        basis_DK = put_array(coordinates(kind.height, kind.width).basis_DK, self.device)
        made = PatchBlocks(blocks_PMD.short(), blocks_PMD @ basis_DK)
        if made.nbytes + sum(kept.nbytes for kept in self._kept.values()) <= KEPT_BYTES:
            self._kept[kind, first] = made
        return made


def coarse(greys_NGG: np.ndarray) -> np.ndarray:
    """Greys of ``LOW`` px, float32 (N, L, L)."""
    matrix_LG = area_means(SIDE, LOW) @ gaussian(SIDE, _FINE)
    return matrix_LG @ greys_NGG.astype(np.float32) @ matrix_LG.T


def shortlist(images_NLL: np.ndarray, patches: CoarsePatches) -> Candidates:
    """The candidates of each image among the patches; the images are ``coarse``."""
    parts = [_best_patches(images_NLL, patches, kind=kind) for kind in KINDS]
    return Candidates(
        np.concatenate([part.patch_NC for part in parts], axis=1),
        np.concatenate([part.dihedral_NC for part in parts], axis=1),
        np.concatenate([part.shift_NC2 for part in parts], axis=1),
    )


def _best_patches(images_NLL: np.ndarray, patches: CoarsePatches, *, kind: BlockKind) -> Candidates:
    """The ``PER_KIND`` patches with the largest products, of equals the first, and how each lies best."""
    device = patches.device
    n, at_once = len(images_NLL), IMAGES.get(device.type, MORE_IMAGES)
    views, symmetry = _views(images_NLL, kind=kind), coordinates(kind.height, kind.width)
    some_images = [slice(start, min(start + at_once, n)) for start in range(0, n, at_once)]
    copies = [
        [Copies.of_views(views[some], family, symmetry, device=device) for family in _families(kind)]
        for some in some_images
    ]
    error_N = np.concatenate([np.max([part.error_N for part in parts], axis=0) for parts in copies])
    error_N = (_NORM * error_N + TOLERANCE * _NORM**2).astype(np.float32)
    views_NVD = put_array(views, device)

    best = _Best.none(n)
    for first in range(0, len(patches), PATCHES):
        of_patches = patches.blocks(kind, first=first)
        largest_NM = torch.cat([_largest(parts, of_patches.near_PMK, symmetry) for parts in copies]).cpu().numpy()

        # The exact products of those that may be among the best.
        kth_N = np.full(n, -np.inf, np.float32)
        if largest_NM.shape[1] > PER_KIND:
            kth_N = np.partition(largest_NM, -PER_KIND, axis=1)[:, -PER_KIND]
        least_N = np.maximum(best.value_NC[:, -1] - error_N, kth_N - 2 * error_N)
        image_K, patch_K = np.nonzero(largest_NM >= least_N[:, None])
        value_K, way_K = _exact_products(views_NVD, of_patches.exact_PMD, image_K=image_K, patch_K=patch_K)
        best = best.with_pairs(image_K, first + patch_K, value_K, way_K)

    # In which of the eight copies of the image, and how far the image has to be shifted.
    view_NC, place_NC = np.divmod(best.way_NC, len(kind.from_patch))
    dihedral_NC, cut_NC = np.divmod(view_NC, len(kind.from_image))
    offsets = np.array([[(b[0] - a[0], b[1] - a[1]) for b in kind.from_patch] for a in kind.from_image])
    return Candidates(best.patch_NC, dihedral_NC, np.rint(offsets[cut_NC, place_NC] * SIDE / LOW).astype(np.int64))


@dataclass(frozen=True)
class _Best:
    """The best patches of each image so far, their products, and which view and place these are of."""

    patch_NC: np.ndarray
    value_NC: np.ndarray
    way_NC: np.ndarray

    @staticmethod
    def none(n: int) -> _Best:
        shape = n, PER_KIND
        return _Best(np.full(shape, -1), np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int64))

    def with_pairs(self, image_K: np.ndarray, patch_K: np.ndarray, value_K: np.ndarray, way_K: np.ndarray) -> _Best:
        """Also those of other pairs, which are sorted by image and patch, and whose patches have higher numbers."""
        n, kept = self.patch_NC.shape
        column_K = kept + np.arange(len(image_K)) - np.searchsorted(image_K, image_K)
        shape = n, int(column_K.max(initial=kept - 1)) + 1
        all_NC = [np.full(shape, -1), np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int64)]
        for of_all_NC, old_NC, new_K in zip(
            all_NC, (self.patch_NC, self.value_NC, self.way_NC), (patch_K, value_K, way_K), strict=True
        ):
            of_all_NC[:, :kept], of_all_NC[image_K, column_K] = old_NC, new_K
        order_NC = np.argsort(-all_NC[1], axis=1, kind="stable")[:, :kept]
        return _Best(*(np.take_along_axis(of_all_NC, order_NC, axis=1) for of_all_NC in all_NC))


def _largest(copies: list[Copies], blocks_PMK: Tensor, symmetry: Coordinates) -> Tensor:
    """Of all views of each image with all places of each patch, nearly, (N, M)."""
    by_family = []
    for part in copies:
        largest_RM = part.largest(blocks_PMK[0], symmetry.parts)
        for block_MK in blocks_PMK[1:]:
            torch.maximum(largest_RM, part.largest(block_MK, symmetry.parts), out=largest_RM)
        by_family.append(largest_RM.unflatten(0, (-1, len(part.family.view_FH))).amax(dim=1))
    return torch.stack(by_family).amax(dim=0)


def _exact_products(
    views_NVD: Tensor, blocks_PMD: Tensor, *, image_K: np.ndarray, patch_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The largest product of each pair, and which view and place it is of, as one number."""
    device = views_NVD.device
    image_k, patch_k = put_array(image_K, device), put_array(patch_K, device)
    # Numbers of ways are small: single precision holds them.
    best_k2 = []
    at_once = PAIRS.get(device.type, MORE_PAIRS)
    for image_p, patch_p in zip(image_k.split(at_once), patch_k.split(at_once), strict=True):
        products_pVP = views_NVD[image_p] @ blocks_PMD[:, patch_p].float().permute(1, 2, 0)
        value_p, way_p = products_pVP.flatten(1).max(dim=1)
        best_k2.append(torch.stack([value_p, way_p.float()], dim=1))
    best_K2 = torch.cat(best_k2).cpu().numpy()
    return best_K2[:, 0], best_K2[:, 1].astype(np.int64)


def _views(images_NLL: np.ndarray, *, kind: BlockKind) -> np.ndarray:
    """The blocks of the images' eight copies, copies outermost, (N, V, D)."""
    copies = dihedral_copies(images_NLL)
    blocks_P8ND = [blocks(copies[:, number], kind.from_image, kind=kind) for number in range(8)]
    return np.ascontiguousarray(np.concatenate(blocks_P8ND).swapaxes(0, 1))


@cache
def _families(kind: BlockKind) -> list[Family]:
    """Which views are copies of one another."""
    copies_8LL = dihedral_copies(np.arange(LOW**2).reshape(1, LOW, LOW))[0]
    views_VD = [
        copy_LL[y : y + kind.height, x : x + kind.width].ravel() for copy_LL in copies_8LL for y, x in kind.from_image
    ]
    return families(np.stack(views_VD), height=kind.height, width=kind.width)


def blocks(images_NLL: np.ndarray, places: Sequence[tuple[int, int]], *, kind: BlockKind) -> np.ndarray:
    """Blocks as vectors of whole numbers, float32 (P, N, D): without slow changes, of norm ``_NORM`` or less."""
    cut = np.stack([images_NLL[:, y : y + kind.height, x : x + kind.width] for y, x in places])
    cut = cut - gaussian(kind.height, _SLOW) @ cut @ gaussian(kind.width, _SLOW).T
    flat = cut.reshape(*cut.shape[:2], -1)
    flat = flat - flat.mean(axis=2, keepdims=True)
    energy = np.square(flat).sum(axis=2, keepdims=True) + _NOISE * flat.shape[2]
    return np.rint(flat * (_NORM / np.sqrt(energy))).astype(np.float32)
