"""The training patch that is nearest to an image, and how near it is: the score that identifies copies.

The few candidates of the coarse search are compared closely: band-passed greys of 64 px, the image in five sizes,
shifted about a rough alignment. The normalised correlation counts the pixels that both have (Padfield 2012, IEEE TIP
21(5), 2706), over the whole or one half, whichever is statistically strongest: a correlation of few pixels (one cell on
empty glass) is chance more often than one of many, and counts less.

Shape suffixes: N images, M training patches, C candidates, G = ``SIDE``, B = ``BANDS``, Z sizes, P shifts, Q quarters
of the image, T parts of it (the whole, left, right, upper, lower half), H = G / 2, W windows' side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from histoloom.evaluation.originality.greys import (
    BANDS,
    SIDE,
    bands,
    dihedral_copies,
    gaussian_in_pieces,
    interpolation,
    whole_band,
)
from histoloom.evaluation.originality.shortlist import IMAGES, Candidates, coarse, shortlist

CLOSE = 6
"""candidates that are compared in every size"""
DIGITS = 4
"""of a score"""
SIZES = (0.9, 0.95, 1.0, 1.05, 1.1)
FURTHEST = 20
"""px of G; shifts that a rough alignment may have"""
NOISE = 4.0  # squared grey levels a pixel: what is fainter does not count as structure
NEIGHBOURHOOD = 2.5
"""px; over which structure is spread when its pixels are counted"""
FULL = SIDE**2 // 4
"""pixels with structure that count as a whole image of it"""
MIN_WHOLE, MIN_HALF = 0.5, 0.8
"""share of the whole, or of a half, that has to lie on the training patch"""

_HALF = SIDE // 2
_HALVES = (slice(0, _HALF), slice(_HALF, SIDE))
_QUARTERS_TQ = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]], np.float32)
_BAND_T = np.array([0, 1, 1, 2, 2])
_MIN_PIXELS_T = np.array([MIN_WHOLE, *[MIN_HALF / 2] * 4])[:, None, None] * SIDE**2
_PAD = FURTHEST + 8


@dataclass(frozen=True)
class Nearest:
    """Each image's nearest training patch: its number (-1: there is none), and the score of both, 0..1.

    The score is 1 for a copy, rounded to ``DIGITS``.
    """

    number_N: np.ndarray
    score_N: np.ndarray


def nearest(
    greys_NGG: np.ndarray,
    patches_MGG: np.ndarray,
    *,
    device: torch.device | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Nearest:
    """The nearest of the patches for each image; both are greys (``read_greys``).

    Neither the order nor the number of images changes an image's result; of equally near patches the first is named.
    """
    patches_MLL = coarse(patches_MGG)
    n = len(greys_NGG)
    number_N, score_N = np.full(n, -1, np.int64), np.zeros(n)
    for start in range(0, n, IMAGES):
        part = slice(start, min(start + IMAGES, n))
        candidates = shortlist(coarse(greys_NGG[part]), patches_MLL, device=device or torch.device("cpu"))
        for place, row in enumerate(range(part.start, part.stop)):
            number_N[row], score_N[row] = _nearest_candidate(
                greys_NGG[row], patches_MGG, candidates=candidates, place=place
            )
        advance(part.stop - part.start)
    return Nearest(number_N, score_N)


def _nearest_candidate(
    grey_GG: np.ndarray, patches_MGG: np.ndarray, *, candidates: Candidates, place: int
) -> tuple[int, float]:
    """The nearest of one image's candidates: all at their rough alignment first, then the best ones in every size."""
    patch_C = candidates.patch_NC[place]
    ways_C4 = np.column_stack([patch_C, candidates.dihedral_NC[place], candidates.shift_NC2[place]])[patch_C >= 0]
    if not len(ways_C4):
        return -1, 0.0
    ways_C4 = np.unique(ways_C4, axis=0)
    patch_C, dihedral_C, shift_C2 = ways_C4[:, 0], ways_C4[:, 1], ways_C4[:, 2:]
    views_CBGG = bands(dihedral_copies(grey_GG[None])[0])[dihedral_C]
    patches_CGG = whole_band(patches_MGG[patch_C])
    rough_C = scores(views_CBGG, patches_CGG, shift_C2=shift_C2, sizes=(1.0,), reach=4, step=2)
    best_C = np.lexsort((patch_C, -rough_C.round(DIGITS)))[:CLOSE]
    close_C = scores(
        views_CBGG[best_C], patches_CGG[best_C], shift_C2=shift_C2[best_C], sizes=SIZES, reach=4, step=1
    ).round(DIGITS)
    winner = np.lexsort((patch_C[best_C], -close_C))[0]
    return int(patch_C[best_C][winner]), float(close_C[winner])


def best_score(greys_NGG: np.ndarray) -> np.ndarray:
    """What exact copies of the images would score, float64 (N,): low where an image shows little."""
    no_shift_N2 = np.zeros((len(greys_NGG), 2), np.int64)
    return scores(bands(greys_NGG), whole_band(greys_NGG), shift_C2=no_shift_N2, sizes=(1.0,), reach=0, step=1)


def best_score_of_weakest_half(greys_NGG: np.ndarray) -> np.ndarray:
    """What an exact copy of the half that shows least would score, float64 (N,)."""
    by_half = []
    for half in (np.s_[:, :, :_HALF], np.s_[:, :, _HALF:], np.s_[:, :_HALF], np.s_[:, _HALF:]):
        alone = np.broadcast_to(greys_NGG.mean(axis=(1, 2), keepdims=True), greys_NGG.shape).astype(np.uint8)
        alone[half] = greys_NGG[half]
        by_half.append(best_score(alone))
    return np.min(by_half, axis=0)


# --- the score of a pair


def scores(
    images_CBGG: np.ndarray,
    patches_CGG: np.ndarray,
    *,
    shift_C2: np.ndarray,
    sizes: tuple[float, ...],
    reach: int,
    step: int,
) -> np.ndarray:
    """The score of each pair, float64 (C,), 0..1: low where there is little to compare.

    Images are ``bands``, patches ``whole_band``. The image's pixel p lies on the patch's pixel p + shift; shifts up to
    ``reach`` px about ``shift_C2`` are tried, ``step`` px apart, and the image enlarged by each of ``sizes``.
    """
    shifts = np.clip(shift_C2, -FURTHEST, FURTHEST)
    moves_P = np.arange(-reach, reach + 1, step)
    return np.array(
        [
            _score(image, patch, shift=shift, sizes=sizes, moves_P=moves_P)
            for image, patch, shift in zip(images_CBGG, patches_CGG, shifts, strict=True)
        ]
    )


def _score(
    image_BGG: np.ndarray, patch_GG: np.ndarray, *, shift: np.ndarray, sizes: tuple[float, ...], moves_P: np.ndarray
) -> float:
    # The image in each size (B, Z, G, G), 0 where it does not reach, and where along a side it does (Z, G).
    resized = [_enlargement(size) for size in sizes]
    views_BZGG = np.stack([matrix @ image_BGG @ matrix.T for matrix, _ in resized], axis=1)
    rows_ZG = np.stack([reached_G for _, reached_G in resized])

    # The patch's pixels below the image at every shift: sums of products, by quarter of the image.
    top, left = _PAD + shift[0] + moves_P, _PAD + shift[1] + moves_P
    padded_WW = np.pad(patch_GG, _PAD)
    windows_PGG = sliding_window_view(padded_WW, (SIDE, SIDE))[np.ix_(top, left)].reshape(-1, SIDE, SIDE)
    products = np.stack([_quarters(view) @ _quarters(windows_PGG).transpose(0, 2, 1) for view in views_BZGG])

    # Which pixels of the image lie on the patch, how many, and the energies of both there.
    inside_SG = sliding_window_view(np.pad(np.ones(SIDE, np.float32), _PAD), SIDE)
    down_PG, right_PG = inside_SG[top], inside_SG[left]
    count = _sum_parts(_sums_inside(rows_ZG[:, :, None] * rows_ZG[:, None, :], down_PG, right_PG)[None])
    own = [
        _sum_parts(np.stack([_sums_inside(images_ZGG, down_PG, right_PG) for images_ZGG in energies]))
        for energies in _energies(views_BZGG)
    ]
    other = [
        _sum_parts(_sums_below(np.pad(energies[0, 0], _PAD), rows_ZG, top=top, left=left)[None])
        for energies in _energies(patch_GG[None, None])
    ]
    energy = (own[0] + NOISE * count) * (other[0] + NOISE * count)
    correlation = np.clip(_sum_parts(products) / np.sqrt(energy + 1e-6), 0, 1)

    # How many pixels hold structure, as if all of these held the same: the participation number of the energies.
    pixels = np.minimum(*(np.square(sums[1]) / (sums[2] + 1e-6) for sums in (own, other)))
    # The correlation of equal likelihood ratio if ``FULL`` pixels held structure, 0..1: the likelihood ratio of
    # a correlation c among n independent pixels is (1 - c^2)^(-n/2).
    value = np.sqrt(1 - (1 - np.square(correlation)) ** np.minimum(1, pixels / FULL))
    return float(np.where(count >= _MIN_PIXELS_T, value, 0).max())


@cache
def _enlargement(size: float) -> tuple[np.ndarray, np.ndarray]:
    """The matrix (G, G) that enlarges an image about its middle, and where along a side the result reaches (G,)."""
    middle = (SIDE - 1) / 2
    places_G = (np.arange(SIDE) - middle) / size + middle
    reached_G = ((places_G >= 0) & (places_G <= SIDE - 1)).astype(np.float32)
    return interpolation(SIDE, SIDE, places_G) * reached_G[:, None], reached_G


def _sum_parts(sums_BQZP: np.ndarray) -> np.ndarray:
    """Sums over quarters as sums over parts, each part from its band (of one band, all from that), (T, Z, P)."""
    band_T = _BAND_T if len(sums_BQZP) > 1 else np.zeros_like(_BAND_T)
    return np.einsum("tq,tqzp->tzp", _QUARTERS_TQ, sums_BQZP[band_T])


def _energies(images_BZGG: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squares, the same spread out over their neighbourhood, and the squares of that."""
    squares = np.square(images_BZGG)
    spread = np.stack(
        [
            gaussian_in_pieces(NEIGHBOURHOOD, rows) @ image_ZGG @ gaussian_in_pieces(NEIGHBOURHOOD, columns).T
            for image_ZGG, (rows, columns) in zip(squares, BANDS, strict=False)
        ]
    )
    return squares, spread, np.square(spread)


def _quarters(images_NGG: np.ndarray) -> np.ndarray:
    """Upper left, upper right, lower left, lower right, as vectors, (Q, N, H * H)."""
    n = len(images_NGG)
    parts = images_NGG.reshape(n, 2, _HALF, 2, _HALF).transpose(1, 3, 0, 2, 4)
    return parts.reshape(4, n, _HALF * _HALF)


def _sums_inside(images_ZGG: np.ndarray, down_PG: np.ndarray, right_PG: np.ndarray) -> np.ndarray:
    """Sums over the pixels of each quarter of the image that lie on the patch at each shift, (Q, Z, P * P)."""
    sums = [down_PG[:, a] @ images_ZGG[:, a, b] @ right_PG[:, b].T for a in _HALVES for b in _HALVES]
    return np.stack(sums).reshape(4, len(images_ZGG), -1)


def _sums_below(padded_WW: np.ndarray, rows_ZG: np.ndarray, *, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Sums over the patch's pixels below each quarter of the image at each size and shift, (Q, Z, P * P)."""
    # Where the first and the second half of the image's side lie on the padded side, (2, Z, P, W).
    masks = []
    for starts_P in (top, left):
        mask = np.zeros((2, len(rows_ZG), len(starts_P), len(padded_WW)), np.float32)
        for place, start in enumerate(starts_P):
            mask[0, :, place, start : start + _HALF] = rows_ZG[:, :_HALF]
            mask[1, :, place, start + _HALF : start + SIDE] = rows_ZG[:, _HALF:]
        masks.append(mask)
    down, right = masks
    sums = [down[a] @ padded_WW @ right[b].transpose(0, 2, 1) for a in (0, 1) for b in (0, 1)]
    return np.stack(sums).reshape(4, len(rows_ZG), -1)
