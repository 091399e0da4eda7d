"""The close look: how well a picture lies on a training patch.

Band-passed greys of 64 px; the picture in five sizes, shifted about a rough alignment. The normalised correlation
counts the pixels that both have (Padfield 2012, IEEE TIP 21(5), 2706), over the whole or one half, whichever says most:
a correlation of few pixels (one cell on empty glass) is chance more often than one of many, and counts less.

Shape suffixes: C candidates, G = ``SIDE``, B = ``BANDS``, Z sizes, P shifts, Q quarters of the picture, T parts of it
(the whole, left, right, upper, lower half), H = G / 2, W windows' side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from histoloom.evaluation.originality.bands import BANDS, band, bands, blur_in_pieces
from histoloom.evaluation.originality.greys import SIDE, resampling

SIZES = (0.9, 0.95, 1.0, 1.05, 1.1)
FURTHEST = 20
"""px of G; shifts that a rough alignment may have"""
NOISE = 4.0  # squared grey levels a pixel: what is fainter does not count as structure
NEIGHBOURHOOD = 2.5
"""px; over which structure is spread when its pixels are counted"""
FULL = SIDE**2 // 4
"""pixels with structure that count as a whole picture of it"""
LEAST_WHOLE, LEAST_HALF = 0.5, 0.8
"""share of the whole, or of a half, that has to lie on the training patch"""
_HALF = SIDE // 2
_QUARTERS_TQ = np.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]], np.float32)
_BAND_T = np.array([0, 1, 1, 2, 2])
_LEAST_T = np.array([LEAST_WHOLE, *[LEAST_HALF / 2] * 4])[:, None, None] * SIDE**2
_PAD = FURTHEST + 8


def scores(
    pictures_CBGG: np.ndarray,
    patches_CGG: np.ndarray,
    *,
    shift_C2: np.ndarray,
    sizes: tuple[float, ...],
    reach: int,
    step: int,
) -> np.ndarray:
    """The score of each pair, float64 (C,), 0..1: low where there is little to compare.

    Pictures are ``bands``, patches ``band``.
    The picture's pixel p lies on the patch's pixel p + shift; shifts up to ``reach`` px about ``shift_C2`` are tried,
    ``step`` px apart, and the picture enlarged by each of ``sizes``.
    """
    shifts = np.clip(shift_C2, -FURTHEST, FURTHEST)
    moves_P = np.arange(-reach, reach + 1, step)
    return np.array(
        [
            _pair(picture, patch, shift=shift, sizes=sizes, moves_P=moves_P)
            for picture, patch, shift in zip(pictures_CBGG, patches_CGG, shifts, strict=True)
        ]
    )


def _pair(
    picture_BGG: np.ndarray, patch_GG: np.ndarray, *, shift: np.ndarray, sizes: tuple[float, ...], moves_P: np.ndarray
) -> float:
    views_BZGG, rows_ZG = _views(picture_BGG, sizes)
    top, left = _PAD + shift[0] + moves_P, _PAD + shift[1] + moves_P
    windows_PGG = sliding_window_view(np.pad(patch_GG, _PAD), (SIDE, SIDE))[np.ix_(top, left)].reshape(-1, SIDE, SIDE)
    products = np.stack([_quarters(view) @ _quarters(windows_PGG).transpose(0, 2, 1) for view in views_BZGG])
    inside_SG = sliding_window_view(np.pad(np.ones(SIDE, np.float32), _PAD), SIDE)
    down_PG, right_PG = inside_SG[top], inside_SG[left]
    count = _of_parts(_rectangles(rows_ZG[:, :, None] * rows_ZG[:, None, :], down_PG, right_PG)[None])
    own = [_of_parts(_rectangles_of(part, down_PG, right_PG)) for part in _energies(views_BZGG)]
    other = [
        _of_parts(_windowed(np.pad(part[0, 0], _PAD), rows_ZG, top=top, left=left)[None])
        for part in _energies(patch_GG[None, None])
    ]
    energy = (own[0] + NOISE * count) * (other[0] + NOISE * count)
    correlation = np.clip(_of_parts(products) / np.sqrt(energy + 1e-6), 0, 1)
    value = _evidence(correlation, pixels=np.minimum(_pixels(own), _pixels(other)))
    return float(np.where(count >= _LEAST_T, value, 0).max())


def _of_parts(sums_BQZP: np.ndarray) -> np.ndarray:
    """Sums over quarters as sums over parts, each part from its band (of one band, all from that), (T, Z, P)."""
    band_T = _BAND_T if len(sums_BQZP) > 1 else np.zeros_like(_BAND_T)
    return np.einsum("tq,tqzp->tzp", _QUARTERS_TQ, sums_BQZP[band_T])


def _energies(images_BZGG: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squares, the same spread out over their neighbourhood, and the squares of that."""
    squares = np.square(images_BZGG)
    spread = np.stack(
        [
            blur_in_pieces(NEIGHBOURHOOD, rows) @ image_ZGG @ blur_in_pieces(NEIGHBOURHOOD, columns).T
            for image_ZGG, (rows, columns) in zip(squares, BANDS, strict=False)
        ]
    )
    return squares, spread, np.square(spread)


def _pixels(sums: Sequence[np.ndarray]) -> np.ndarray:
    """How many pixels hold structure, as if all of these held the same: the participation number of the energies."""
    return np.square(sums[1]) / (sums[2] + 1e-6)


def _evidence(correlation: np.ndarray, *, pixels: np.ndarray) -> np.ndarray:
    """The correlation that would say as much if ``FULL`` pixels held structure, 0..1.

    The likelihood ratio of a correlation c among n independent pixels is (1 - c^2)^(-n/2).
    """
    return np.sqrt(1 - (1 - np.square(correlation)) ** np.minimum(1, pixels / FULL))


def _views(picture_BGG: np.ndarray, sizes: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The picture in each size, 0 where it does not reach, (B, Z, G, G); and where along a side it does (Z, G)."""
    made = [_enlarging(size) for size in sizes]
    views = [matrix @ picture_BGG @ matrix.T for matrix, _ in made]
    return np.stack(views, axis=1), np.stack([reached for _, reached in made])


@cache
def _enlarging(size: float) -> tuple[np.ndarray, np.ndarray]:
    middle = (SIDE - 1) / 2
    places_G = (np.arange(SIDE) - middle) / size + middle
    reached_G = ((places_G >= 0) & (places_G <= SIDE - 1)).astype(np.float32)
    return resampling(SIDE, SIDE, places_G) * reached_G[:, None], reached_G


def _quarters(images_NGG: np.ndarray) -> np.ndarray:
    """Upper left, upper right, lower left, lower right, as vectors, (Q, N, H * H)."""
    n = len(images_NGG)
    parts = images_NGG.reshape(n, 2, _HALF, 2, _HALF).transpose(1, 3, 0, 2, 4)
    return parts.reshape(4, n, _HALF * _HALF)


def _rectangles(images_ZGG: np.ndarray, down_PG: np.ndarray, right_PG: np.ndarray) -> np.ndarray:
    """Sums over the pixels of each quarter that lie on the patch at each shift, (Q, Z, P * P)."""
    halves = (slice(0, _HALF), slice(_HALF, SIDE))
    sums = [down_PG[:, a] @ images_ZGG[:, a, b] @ right_PG[:, b].T for a in halves for b in halves]
    return np.stack(sums).reshape(4, len(images_ZGG), -1)


def _rectangles_of(images_BZGG: np.ndarray, down_PG: np.ndarray, right_PG: np.ndarray) -> np.ndarray:
    return np.stack([_rectangles(images_ZGG, down_PG, right_PG) for images_ZGG in images_BZGG])


def _windowed(padded_WW: np.ndarray, rows_ZG: np.ndarray, *, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Sums over the patch's pixels below each quarter of the picture at each size and shift, (Q, Z, P * P)."""
    down, right = (_placed(rows_ZG, starts, length=len(padded_WW)) for starts in (top, left))
    sums = [down[a] @ padded_WW @ right[b].transpose(0, 2, 1) for a in (0, 1) for b in (0, 1)]
    return np.stack(sums).reshape(4, len(rows_ZG), -1)


def _placed(rows_ZG: np.ndarray, starts_P: np.ndarray, *, length: int) -> np.ndarray:
    """Where the first and the second half of a picture's side lie on a side of ``length`` px, (2, Z, P, length)."""
    result = np.zeros((2, len(rows_ZG), len(starts_P), length), np.float32)
    for place, start in enumerate(starts_P):
        result[0, :, place, start : start + _HALF] = rows_ZG[:, :_HALF]
        result[1, :, place, start + _HALF : start + SIDE] = rows_ZG[:, _HALF:]
    return result


def best_score(greys_NGG: np.ndarray) -> np.ndarray:
    """What exact copies of the pictures would score, float64 (N,): low where a picture shows little."""
    nowhere_N2 = np.zeros((len(greys_NGG), 2), np.int64)
    return scores(bands(greys_NGG), band(greys_NGG), shift_C2=nowhere_N2, sizes=(1.0,), reach=0, step=1)


def weakest_half(greys_NGG: np.ndarray) -> np.ndarray:
    """What an exact copy of the half that shows least would score, float64 (N,)."""
    found = []
    for half in (np.s_[:, :, :_HALF], np.s_[:, :, _HALF:], np.s_[:, :_HALF], np.s_[:, _HALF:]):
        alone = np.broadcast_to(greys_NGG.mean(axis=(1, 2), keepdims=True), greys_NGG.shape).astype(np.uint8)
        alone[half] = greys_NGG[half]
        found.append(best_score(alone))
    return np.min(found, axis=0)
