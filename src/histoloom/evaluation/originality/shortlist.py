"""The coarse search: for each image the few training patches, with a rough alignment, that are compared closely.

Greys of 20 px; blocks of three quarters of the sides and halves of the image, each in eight dihedral copies, against
the training patch's blocks at every place: a matrix product for each place. Slow changes are taken out of each block
by itself, so that nothing outside of it counts: half of a collage looks like the same half of its source. Vectors hold
whole numbers whose products single precision adds exactly, so that neither the order nor the size of batches, nor the
device, changes anything.

Shape suffixes: N images, M training patches, L = ``LOW``, V views of a block, P places, D its pixels, C candidates.
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
IMAGES, PATCHES = 64, 1024
"""images and training patches that are compared at once"""
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


def coarse(greys_NGG: np.ndarray) -> np.ndarray:
    """Greys of ``LOW`` px, float32 (N, L, L)."""
    matrix_LG = area_means(SIDE, LOW) @ gaussian(SIDE, _FINE)
    return matrix_LG @ greys_NGG.astype(np.float32) @ matrix_LG.T


def shortlist(images_NLL: np.ndarray, patches_MLL: np.ndarray, *, device: torch.device) -> Candidates:
    """The candidates of each image among the patches (both ``coarse``)."""
    parts = []
    for kind in KINDS:
        patch_NC = _best_patches(images_NLL, patches_MLL, kind=kind, device=device)
        parts.append(_align(images_NLL, patches_MLL, patch_NC=patch_NC, kind=kind))
    return Candidates(
        np.concatenate([part.patch_NC for part in parts], axis=1),
        np.concatenate([part.dihedral_NC for part in parts], axis=1),
        np.concatenate([part.shift_NC2 for part in parts], axis=1),
    )


def _best_patches(
    images_NLL: np.ndarray, patches_MLL: np.ndarray, *, kind: BlockKind, device: torch.device
) -> np.ndarray:
    """The numbers of the ``PER_KIND`` best patches of each image, int64 (N, C); of equals the first."""
    best_NC = np.full((len(images_NLL), PER_KIND), -1, np.int64)
    values_NC = np.full(best_NC.shape, -np.inf)
    views_NVD = torch.from_numpy(_views(images_NLL, kind=kind)).to(device)
    for start in range(0, len(patches_MLL), PATCHES):
        numbers = np.arange(start, min(start + PATCHES, len(patches_MLL)))
        blocks_PMD = torch.from_numpy(_blocks(patches_MLL[numbers], kind.from_patch, kind=kind)).to(device)

        # The largest product of any view of the image with any place of the patch.
        here_NM = torch.full((len(views_NVD), len(numbers)), -torch.inf, device=device)
        for block_MD in blocks_PMD:
            products = (views_NVD.flatten(0, 1) @ block_MD.T).view(len(views_NVD), views_NVD.shape[1], -1)
            here_NM = torch.maximum(here_NM, products.amax(dim=1))
        new_NM = here_NM.cpu().numpy().astype(np.float64)

        # The best of those kept so far and the new ones.
        values = np.concatenate([values_NC, new_NM], axis=1)
        patches = np.concatenate([best_NC, np.broadcast_to(numbers, new_NM.shape)], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :PER_KIND]
        values_NC, best_NC = np.take_along_axis(values, order, axis=1), np.take_along_axis(patches, order, axis=1)
    best_NC[np.isneginf(values_NC)] = -1
    return best_NC


def _align(images_NLL: np.ndarray, patches_MLL: np.ndarray, *, patch_NC: np.ndarray, kind: BlockKind) -> Candidates:
    """How each patch lies best: in which of the eight copies of the image, and how far the image has to be shifted."""
    dihedral_NC = np.zeros_like(patch_NC)
    shift_NC2 = np.zeros((*patch_NC.shape, 2), np.int64)
    offsets = np.array(
        [[(b[0] - a[0], b[1] - a[1]) for b in kind.from_patch] for a in kind.from_image]
    )  # (cuts, places, 2)
    views_NVD = _views(images_NLL, kind=kind)
    for number, patch_C in enumerate(patch_NC):
        blocks_PCD = _blocks(patches_MLL[patch_C], kind.from_patch, kind=kind)
        products_CVP = (views_NVD[number] @ blocks_PCD.transpose(0, 2, 1)).transpose(2, 1, 0)
        best_C = products_CVP.reshape(len(patch_C), -1).argmax(axis=1)
        view_C, place_C = np.divmod(best_C, len(kind.from_patch))
        dihedral_NC[number], cut_C = np.divmod(view_C, len(kind.from_image))
        shift_NC2[number] = np.rint(offsets[cut_C, place_C] * SIDE / LOW)
    return Candidates(patch_NC, dihedral_NC, shift_NC2)


def _views(images_NLL: np.ndarray, *, kind: BlockKind) -> np.ndarray:
    """The eight copies' blocks, (N, V, D), copies outermost."""
    copies = dihedral_copies(images_NLL)
    blocks_P8ND = [_blocks(copies[:, number], kind.from_image, kind=kind) for number in range(8)]
    return np.ascontiguousarray(np.concatenate(blocks_P8ND).transpose(1, 0, 2))


def _blocks(images_NLL: np.ndarray, places: Sequence[tuple[int, int]], *, kind: BlockKind) -> np.ndarray:
    """Blocks as vectors of whole numbers, float32 (P, N, D): without slow changes, of norm ``_NORM`` or less."""
    cut = np.stack([images_NLL[:, y : y + kind.height, x : x + kind.width] for y, x in places])
    cut = cut - gaussian(kind.height, _SLOW) @ cut @ gaussian(kind.width, _SLOW).T
    flat = cut.reshape(*cut.shape[:2], -1)
    flat = flat - flat.mean(axis=2, keepdims=True)
    energy = np.square(flat).sum(axis=2, keepdims=True) + _NOISE * flat.shape[2]
    return np.rint(flat * (_NORM / np.sqrt(energy))).astype(np.float32)
