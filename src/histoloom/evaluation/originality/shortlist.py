"""The quick look: for each picture the few training patches, with their rough alignment, that a close look has to see.

Greys of 20 px; blocks of three quarters of the sides and halves of the picture, each in eight dihedral copies, against
the training patch's blocks at every place: a matrix product for each place. Slow changes are taken out of each block
by itself, so that nothing outside of it counts: half of a collage looks like the same half of its source. Vectors hold
whole numbers whose products single precision adds exactly, so that neither the order nor the size of batches, nor the
device, changes anything.

Shape suffixes: N pictures, M training patches, L = ``LOW``, V views of a block, P places, D its pixels, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from histoloom.evaluation.originality.greys import SIDE, blurring, turned

LOW = 20
"""px; the side of the coarse greys"""
PER_KIND = 8
"""candidates that each kind of block puts forward"""
PICTURES, PATCHES = 64, 1024
_NORM = 2000.0  # of a vector: 2000 squared, a sum's bound, is below 2**24
_SLOW, _FINE = 2.5, 1.0  # px of the coarse grey, px of the grey
_NOISE = 0.5  # squared grey levels a coarse pixel: what is fainter does not count as structure


@dataclass(frozen=True)
class Kind:
    """A kind of block: its size in coarse px, where it is cut from a picture and from a training patch."""

    height: int
    width: int
    from_picture: tuple[tuple[int, int], ...]
    from_patch: tuple[tuple[int, int], ...]


_BIG, _HALF = 3 * LOW // 4, LOW // 2
_FREE = LOW - _BIG
_MIDDLE = _FREE // 2
KINDS = (
    Kind(
        _BIG,
        _BIG,
        ((_MIDDLE, _MIDDLE), (0, 0), (0, _FREE), (_FREE, 0), (_FREE, _FREE)),
        tuple((y, x) for y in range(_FREE + 1) for x in range(_FREE + 1)),
    ),
    Kind(LOW, _HALF, ((0, 0), (0, _HALF)), tuple((0, x) for x in range(0, _HALF + 1, 2))),
    Kind(_HALF, LOW, ((0, 0), (_HALF, 0)), tuple((y, 0) for y in range(0, _HALF + 1, 2))),
)


@dataclass(frozen=True)
class Candidates:
    """For each of N pictures C training patches: ``patch_NC``, which dihedral copy, and its shift (y, x) in px of G.

    ``patch_NC`` is -1 where there are fewer.
    """

    patch_NC: np.ndarray
    turn_NC: np.ndarray
    shift_NC2: np.ndarray


def coarse(greys_NGG: np.ndarray) -> np.ndarray:
    """Greys of ``LOW`` px, float32 (N, L, L)."""
    fine_LG = _shrinking()
    return fine_LG @ greys_NGG.astype(np.float32) @ fine_LG.T


@cache
def _shrinking() -> np.ndarray:
    edges = np.arange(LOW + 1) * SIDE / LOW
    low, high = np.maximum(edges[:-1, None], np.arange(SIDE)), np.minimum(edges[1:, None], np.arange(SIDE) + 1)
    return (np.clip(high - low, 0, None) * LOW / SIDE).astype(np.float32) @ blurring(SIDE, _FINE)


def shortlist(
    pictures_NLL: np.ndarray,
    patches_MLL: np.ndarray,
    *,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    device: torch.device,
) -> Candidates:
    """The candidates of each picture among the patches (both ``coarse``).

    ``groups`` numbers (N,) and (M,): a patch of the picture's own group is no candidate.
    """
    found = [_best(pictures_NLL, patches_MLL, kind=kind, groups=groups, device=device) for kind in KINDS]
    parts = [
        _aligned(pictures_NLL, patches_MLL, chosen_NC=chosen, kind=kind)
        for kind, chosen in zip(KINDS, found, strict=True)
    ]
    return Candidates(*(np.concatenate([getattr(part, name) for part in parts], axis=1) for name in _FIELDS))


_FIELDS = ("patch_NC", "turn_NC", "shift_NC2")


def _best(
    pictures_NLL: np.ndarray,
    patches_MLL: np.ndarray,
    *,
    kind: Kind,
    groups: tuple[np.ndarray, np.ndarray] | None,
    device: torch.device,
) -> np.ndarray:
    """The numbers of the ``PER_KIND`` best patches of each picture, int64 (N, C); of equals the first."""
    kept = np.full((len(pictures_NLL), PER_KIND), -1, np.int64)
    values = np.full(kept.shape, -np.inf)
    views_NVD = torch.from_numpy(_views(pictures_NLL, kind=kind)).to(device)
    for start in range(0, len(patches_MLL), PATCHES):
        numbers = np.arange(start, min(start + PATCHES, len(patches_MLL)))
        blocks_PMD = torch.from_numpy(_blocks(patches_MLL[numbers], kind.from_patch, kind=kind)).to(device)
        here_NM = _maxima(views_NVD, blocks_PMD).cpu().numpy().astype(np.float64)
        if groups is not None:
            here_NM[groups[0][:, None] == groups[1][None, numbers]] = -np.inf
        values, kept = _merged(values, kept, here_NM, numbers)
    kept[np.isneginf(values)] = -1
    return kept


def _maxima(views_NVD: Tensor, blocks_PMD: Tensor) -> Tensor:
    """The largest product of any view with any place, (N, M)."""
    n, views, _ = views_NVD.shape
    best = torch.full((n, blocks_PMD.shape[1]), -torch.inf, device=views_NVD.device)
    for block_MD in blocks_PMD:
        products = (views_NVD.flatten(0, 1) @ block_MD.T).view(n, views, -1)
        best = torch.maximum(best, products.amax(dim=1))
    return best


def _merged(
    values: np.ndarray, kept: np.ndarray, here_NM: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    all_values = np.concatenate([values, here_NM], axis=1)
    all_numbers = np.concatenate([kept, np.broadcast_to(numbers, here_NM.shape)], axis=1)
    order = np.argsort(-all_values, axis=1, kind="stable")[:, :PER_KIND]
    return np.take_along_axis(all_values, order, axis=1), np.take_along_axis(all_numbers, order, axis=1)


def _aligned(pictures_NLL: np.ndarray, patches_MLL: np.ndarray, *, chosen_NC: np.ndarray, kind: Kind) -> Candidates:
    """How each chosen patch lies best: which of the eight copies, and how far the picture has to be shifted."""
    turn_NC = np.zeros_like(chosen_NC)
    shift_NC2 = np.zeros((*chosen_NC.shape, 2), np.int64)
    offsets = np.array(
        [[(b[0] - a[0], b[1] - a[1]) for b in kind.from_patch] for a in kind.from_picture]
    )  # (cuts, places, 2)
    views_NVD = _views(pictures_NLL, kind=kind)
    for number, chosen_C in enumerate(chosen_NC):
        blocks_PCD = _blocks(patches_MLL[chosen_C], kind.from_patch, kind=kind)
        products_CVP = (views_NVD[number] @ blocks_PCD.transpose(0, 2, 1)).transpose(2, 1, 0)
        best_C = products_CVP.reshape(len(chosen_C), -1).argmax(axis=1)
        view_C, place_C = np.divmod(best_C, len(kind.from_patch))
        turn_NC[number], cut_C = np.divmod(view_C, len(kind.from_picture))
        shift_NC2[number] = np.rint(offsets[cut_C, place_C] * SIDE / LOW)
    return Candidates(chosen_NC, turn_NC, shift_NC2)


def _views(pictures_NLL: np.ndarray, *, kind: Kind) -> np.ndarray:
    """The eight copies' blocks, (N, V, D), copies outermost."""
    copies = turned(pictures_NLL)
    blocks_P8ND = [_blocks(copies[:, turn], kind.from_picture, kind=kind) for turn in range(8)]
    return np.ascontiguousarray(np.concatenate(blocks_P8ND).transpose(1, 0, 2))


def _blocks(images_NLL: np.ndarray, places: Sequence[tuple[int, int]], *, kind: Kind) -> np.ndarray:
    """Blocks as vectors of whole numbers, float32 (P, N, D): without slow changes, of norm ``_NORM`` or less."""
    cut = np.stack([images_NLL[:, y : y + kind.height, x : x + kind.width] for y, x in places])
    cut = cut - blurring(kind.height, _SLOW) @ cut @ blurring(kind.width, _SLOW).T
    flat = cut.reshape(*cut.shape[:2], -1)
    flat = flat - flat.mean(axis=2, keepdims=True)
    energy = np.square(flat).sum(axis=2, keepdims=True) + _NOISE * flat.shape[2]
    return np.rint(flat * (_NORM / np.sqrt(energy))).astype(np.float32)


def chunks(n: int) -> Iterator[slice]:
    """Slices of ``PICTURES`` pictures."""
    return (slice(start, min(start + PICTURES, n)) for start in range(0, n, PICTURES))
