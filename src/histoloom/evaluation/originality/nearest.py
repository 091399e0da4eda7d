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

PAIRS = 8
"""that are compared at a time, so that what they need fits the processor's cache"""

_HALF = SIDE // 2
_HALVES = (slice(0, _HALF), slice(_HALF, SIDE))
_PARTS = ((0, [0, 1, 2, 3]), (1, [0, 2]), (1, [1, 3]), (2, [0, 1]), (2, [2, 3]))
"""the band of each part and its quarters of the image"""
_MIN_PIXELS_T = np.array([MIN_WHOLE, *[MIN_HALF / 2] * 4])[:, None, None] * SIDE**2
_PAD = FURTHEST + 8
_INSIDE_SG = sliding_window_view(np.pad(np.ones(SIDE, np.float32), _PAD), SIDE)
"""which pixels of an image's side lie on the patch, where it starts at S of the padded side"""


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
    score_C = np.empty(len(shifts))
    for start in range(0, len(shifts), PAIRS):
        part = slice(start, start + PAIRS)
        score_C[part] = _scores(images_CBGG[part], patches_CGG[part], shifts[part], sizes=sizes, moves_P=moves_P)
    return score_C


def _scores(
    images_CBGG: np.ndarray,
    patches_CGG: np.ndarray,
    shift_C2: np.ndarray,
    *,
    sizes: tuple[float, ...],
    moves_P: np.ndarray,
) -> np.ndarray:
    """The scores of a few pairs. Every product is one of each pair alone, so that a score depends on its pair only."""
    # The image in each size (C, B, Z, G, G), 0 where it does not reach, and where along a side it does (Z, G).
    matrices_ZGG, rows_ZG = (np.stack(parts) for parts in zip(*map(_enlargement, sizes), strict=True))
    views_CBZGG = matrices_ZGG @ images_CBGG[:, :, None] @ matrices_ZGG.transpose(0, 2, 1)

    # The patch's pixels below the image at every shift: sums of products, by quarter of the image.
    top_CP, left_CP = _PAD + shift_C2[:, :1] + moves_P, _PAD + shift_C2[:, 1:] + moves_P
    below_CQPH = _quarters_below(patches_CGG, top_CP=top_CP, left_CP=left_CP)
    products = _sum_parts(_quarters(views_CBZGG) @ below_CQPH[:, None].swapaxes(-1, -2))

    # Which pixels of the image lie on the patch, how many, and the energies of both there.
    down_CPG, right_CPG = _INSIDE_SG[top_CP], _INSIDE_SG[left_CP]
    whole_1ZGG = rows_ZG[None, :, :, None] * rows_ZG[None, :, None, :]
    count = _sum_parts(_sums_inside(whole_1ZGG, down_CPG[:, None, None], right_CPG[:, None, None]))
    own = [
        _sum_parts(_sums_inside(energy_CBZGG, down_CPG[:, None, None], right_CPG[:, None, None]))
        for energy_CBZGG in _energies(views_CBZGG)
    ]
    masks = [_below(rows_ZG, starts_CP) for starts_CP in (top_CP, left_CP)]
    other = [
        _sum_parts(_sums_below(energy_C11GG[:, 0, 0], *masks)[:, None])
        for energy_C11GG in _energies(patches_CGG[:, None, None])
    ]
    energy = (own[0] + NOISE * count) * (other[0] + NOISE * count)
    correlation = np.clip(products / np.sqrt(energy + 1e-6), 0, 1)

    # How many pixels hold structure, as if all of these held the same: the participation number of the energies.
    pixels = np.minimum(*(np.square(sums[1]) / (sums[2] + 1e-6) for sums in (own, other)))
    # The correlation of equal likelihood ratio if ``FULL`` pixels held structure, 0..1: the likelihood ratio of
    # a correlation c among n independent pixels is (1 - c^2)^(-n/2).
    value = np.sqrt(1 - (1 - np.square(correlation)) ** np.minimum(1, pixels / FULL))
    return np.where(count >= _MIN_PIXELS_T, value, 0).max(axis=(1, 2, 3))


@cache
def _enlargement(size: float) -> tuple[np.ndarray, np.ndarray]:
    """The matrix (G, G) that enlarges an image about its middle, and where along a side the result reaches (G,)."""
    middle = (SIDE - 1) / 2
    places_G = (np.arange(SIDE) - middle) / size + middle
    reached_G = ((places_G >= 0) & (places_G <= SIDE - 1)).astype(np.float32)
    return interpolation(SIDE, SIDE, places_G) * reached_G[:, None], reached_G


def _sum_parts(sums_CBQZP: np.ndarray) -> np.ndarray:
    """Sums over quarters as sums over parts, each part from its band (of one band, all from that), (C, T, Z, P)."""
    bands = sums_CBQZP.swapaxes(0, 1) if sums_CBQZP.shape[1] > 1 else [sums_CBQZP[:, 0]] * len(BANDS)
    parts = [bands[band][:, quarters].sum(axis=1) for band, quarters in _PARTS]
    return np.stack(parts, axis=1)


def _energies(images_CBZGG: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squares, the same spread out over their neighbourhood, and the squares of that."""
    squares = np.square(images_CBZGG)
    rows_BGG, columns_BGG = (
        np.stack([gaussian_in_pieces(NEIGHBOURHOOD, pieces[axis]) for pieces in BANDS[: squares.shape[1]]])
        for axis in (0, 1)
    )
    spread = rows_BGG[:, None] @ squares @ columns_BGG[:, None].swapaxes(-1, -2)
    return squares, spread, np.square(spread)


def _quarters(images_CBZGG: np.ndarray) -> np.ndarray:
    """Upper left, upper right, lower left, lower right, as vectors, (C, B, Q, Z, H * H)."""
    c, b, z = images_CBZGG.shape[:3]
    parts = images_CBZGG.reshape(c, b, z, 2, _HALF, 2, _HALF).transpose(0, 1, 3, 5, 2, 4, 6)
    return parts.reshape(c, b, 4, z, _HALF * _HALF)


def _quarters_below(patches_CGG: np.ndarray, *, top_CP: np.ndarray, left_CP: np.ndarray) -> np.ndarray:
    """The patch's pixels below each quarter of the image at each shift, (C, Q, P * P, H * H)."""
    padded_CWW = np.pad(patches_CGG, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)))
    windows = sliding_window_view(padded_CWW, (_HALF, _HALF), axis=(1, 2))
    halves_2 = np.array([0, _HALF])
    pair = np.arange(len(patches_CGG))[:, None, None, None, None]
    rows, columns = halves_2[:, None] + top_CP[:, None], halves_2[:, None] + left_CP[:, None]
    below = windows[pair, rows[:, :, None, :, None], columns[:, None, :, None, :]]
    return below.reshape(len(patches_CGG), 4, -1, _HALF * _HALF)


def _sums_inside(images_CBZGG: np.ndarray, down_C11PG: np.ndarray, right_C11PG: np.ndarray) -> np.ndarray:
    """Sums over the pixels of each quarter of the image that lie on the patch at each shift, (C, B, Q, Z, P * P)."""
    sums = []
    for upper_or_lower in _HALVES:
        rows = down_C11PG[..., upper_or_lower] @ images_CBZGG[..., upper_or_lower, :]
        sums += [rows[..., side] @ right_C11PG[..., side].swapaxes(-1, -2) for side in _HALVES]
    return np.stack(sums, axis=2).reshape(*sums[0].shape[:2], 4, sums[0].shape[2], -1)


def _below(rows_ZG: np.ndarray, starts_CP: np.ndarray) -> np.ndarray:
    """Where the first and the second half of the image's side lie on the patch's, at each size and shift.

    ``starts_CP`` count from the padded side's begin. The result is (C, 2, Z, P, G).
    """
    halves_2ZG = np.stack([rows_ZG, rows_ZG])
    halves_2ZG[0, :, _HALF:] = halves_2ZG[1, :, :_HALF] = 0
    padded_2ZW = np.pad(halves_2ZG, ((0, 0), (0, 0), (_PAD, _PAD)))
    # The patch's pixel g is the image's pixel g - shift.
    return np.moveaxis(sliding_window_view(padded_2ZW, SIDE, axis=2)[:, :, 2 * _PAD - starts_CP], 2, 0)


def _sums_below(images_CGG: np.ndarray, down_C2ZPG: np.ndarray, right_C2ZPG: np.ndarray) -> np.ndarray:
    """Sums over the patch's pixels below each quarter of the image at each size and shift, (C, Q, Z, P * P)."""
    c, _, z, p, _ = down_C2ZPG.shape
    rows_C2ZPG = (down_C2ZPG.reshape(c, -1, SIDE) @ images_CGG).reshape(down_C2ZPG.shape)
    sums = rows_C2ZPG[:, :, None] @ right_C2ZPG[:, None].swapaxes(-1, -2)
    return sums.reshape(c, 4, z, p * p)
