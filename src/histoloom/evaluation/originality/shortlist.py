"""The coarse search: for each image the few training patches, with a rough alignment, that are compared closely.

Greys of 20 px; blocks of three quarters of the sides and halves of the image, each in eight dihedral copies, against
the training patch's blocks at every place: a matrix product for each place. Slow changes are taken out of each block
by itself, so that nothing outside of it counts: half of a collage looks like the same half of its source. Vectors hold
whole numbers whose products single precision adds exactly, so that neither the order nor the size of batches, nor the
device, changes anything.

No bound rules enough patches out to save time: with the Cauchy-Schwarz bound in the images' own principal axes, half of
the coordinates rule out five of six pairs, and what remains costs as much as it saves.

Shape suffixes: N images, M training patches, L = ``LOW``, V views of a block, P places, D its pixels, C candidates, K
pairs of an image and a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from histoloom.evaluation.originality.greys import SIDE, area_means, dihedral_copies, gaussian

LOW = 20
"""px; the side of the coarse greys"""
PER_KIND = 8
"""candidates that each kind of block puts forward"""
IMAGES = {"cpu": 16}
"""images that are compared at once, by the kind of device: on a CPU, products that fit its cache"""
MORE_IMAGES = 256
"""elsewhere"""
PATCHES = 256
"""training patches that they are compared with at once"""
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


def coarse(greys_NGG: np.ndarray) -> np.ndarray:
    """Greys of ``LOW`` px, float32 (N, L, L)."""
    matrix_LG = area_means(SIDE, LOW) @ gaussian(SIDE, _FINE)
    return matrix_LG @ greys_NGG.astype(np.float32) @ matrix_LG.T


def shortlist(images_NLL: np.ndarray, patches_MLL: np.ndarray, *, device: torch.device) -> Candidates:
    """The candidates of each image among the patches (both ``coarse``)."""
    parts = [_best_patches(images_NLL, patches_MLL, kind=kind, device=device) for kind in KINDS]
    return Candidates(
        np.concatenate([part.patch_NC for part in parts], axis=1),
        np.concatenate([part.dihedral_NC for part in parts], axis=1),
        np.concatenate([part.shift_NC2 for part in parts], axis=1),
    )


def _best_patches(
    images_NLL: np.ndarray, patches_MLL: np.ndarray, *, kind: BlockKind, device: torch.device
) -> Candidates:
    """The ``PER_KIND`` patches with the largest products, of equals the first, and how each lies best."""
    # The eight copies' blocks, copies outermost.
    copies = dihedral_copies(images_NLL)
    blocks_P8ND = [_blocks(copies[:, number], kind.from_image, kind=kind) for number in range(8)]
    views_NVD = torch.from_numpy(np.concatenate(blocks_P8ND)).to(device).transpose(0, 1).contiguous()
    n, at_once = len(images_NLL), IMAGES.get(device.type, MORE_IMAGES)
    best_NC, value_NC = np.full((n, PER_KIND), -1, np.int64), np.full((n, PER_KIND), -np.inf, np.float32)
    for first in range(0, len(patches_MLL), PATCHES):
        # The largest product of any view of an image with any place of a patch.
        numbers_M = np.arange(first, min(first + PATCHES, len(patches_MLL)))
        blocks_PMD = torch.from_numpy(_blocks(patches_MLL[numbers_M], kind.from_patch, kind=kind)).to(device)
        largest_NM = torch.full((n, len(numbers_M)), -torch.inf, device=device)
        for views_nVD, largest_nM in zip(views_NVD.split(at_once), largest_NM.split(at_once), strict=True):
            for block_MD in blocks_PMD:
                products_nVM = (views_nVD.flatten(0, 1) @ block_MD.T).unflatten(0, views_nVD.shape[:2])
                torch.maximum(largest_nM, products_nVM.amax(dim=1), out=largest_nM)

        # The best of those kept so far and the new ones.
        values = np.concatenate([value_NC, largest_NM.cpu().numpy()], axis=1)
        patches = np.concatenate([best_NC, np.broadcast_to(numbers_M, largest_NM.shape)], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :PER_KIND]
        value_NC, best_NC = np.take_along_axis(values, order, axis=1), np.take_along_axis(patches, order, axis=1)
    known_NC = ~np.isneginf(value_NC)
    best_NC[~known_NC] = -1

    # In which of the eight copies of the image, and how far the image has to be shifted.
    way_NC = np.zeros_like(best_NC)
    for start in range(0, n, at_once):
        some = slice(start, start + at_once)
        patch_U, place_K = np.unique(best_NC[some][known_NC[some]], return_inverse=True)
        blocks_PUD = torch.from_numpy(_blocks(patches_MLL[patch_U], kind.from_patch, kind=kind)).to(device)
        image_K = torch.from_numpy(start + np.nonzero(known_NC[some])[0]).to(device)
        blocks_KPD = blocks_PUD.transpose(0, 1)[torch.from_numpy(place_K).to(device)]
        products_KVP = views_NVD[image_K] @ blocks_KPD.mT
        way_NC[some][known_NC[some]] = products_KVP.flatten(1).argmax(dim=1).cpu().numpy()
    view_NC, place_NC = np.divmod(way_NC, len(kind.from_patch))
    dihedral_NC, cut_NC = np.divmod(view_NC, len(kind.from_image))
    offsets = np.array([[(b[0] - a[0], b[1] - a[1]) for b in kind.from_patch] for a in kind.from_image])
    return Candidates(best_NC, dihedral_NC, np.rint(offsets[cut_NC, place_NC] * SIDE / LOW).astype(np.int64))


def _blocks(images_NLL: np.ndarray, places: Sequence[tuple[int, int]], *, kind: BlockKind) -> np.ndarray:
    """Blocks as vectors of whole numbers, float32 (P, N, D): without slow changes, of norm ``_NORM`` or less."""
    cut = np.stack([images_NLL[:, y : y + kind.height, x : x + kind.width] for y, x in places])
    cut = cut - gaussian(kind.height, _SLOW) @ cut @ gaussian(kind.width, _SLOW).T
    flat = cut.reshape(*cut.shape[:2], -1)
    flat = flat - flat.mean(axis=2, keepdims=True)
    energy = np.square(flat).sum(axis=2, keepdims=True) + _NOISE * flat.shape[2]
    return np.rint(flat * (_NORM / np.sqrt(energy))).astype(np.float32)
