"""For each picture its nearest training patch and how near it is.

Shape suffixes: N pictures, M training patches, G = ``SIDE``, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from histoloom.evaluation.originality.bands import band, bands
from histoloom.evaluation.originality.close import SIZES, scores
from histoloom.evaluation.originality.greys import turned
from histoloom.evaluation.originality.shortlist import Candidates, chunks, coarse, shortlist

CLOSE = 6
"""candidates that are looked at in every size"""
DIGITS = 4


@dataclass(frozen=True)
class Nearest:
    """Each picture's nearest training patch: its number (-1: there is none), and the score of both, 0..1.

    The score is 1 for a copy, given to four digits (``close.scores``).
    """

    number_N: np.ndarray
    score_N: np.ndarray


def nearest(
    pictures_NGG: np.ndarray,
    patches_MGG: np.ndarray,
    *,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    device: torch.device | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Nearest:
    """The nearest of the patches for each picture; both are ``small_greys``.

    ``groups`` numbers (N,) and (M,): patches of a picture's own group do not count. Neither the order nor the number
    of pictures changes a picture's result; of equally near patches the first is named.
    """
    patches_MLL = coarse(patches_MGG)
    number_N, score_N = np.full(len(pictures_NGG), -1, np.int64), np.zeros(len(pictures_NGG))
    for part in chunks(len(pictures_NGG)):
        those = None if groups is None else (groups[0][part], groups[1])
        found = shortlist(coarse(pictures_NGG[part]), patches_MLL, groups=those, device=device or torch.device("cpu"))
        for place, row in enumerate(range(part.start, part.stop)):
            number_N[row], score_N[row] = _nearest(pictures_NGG[row], patches_MGG, found=found, place=place)
        advance(part.stop - part.start)
    return Nearest(number_N, score_N)


def _nearest(picture_GG: np.ndarray, patches_MGG: np.ndarray, *, found: Candidates, place: int) -> tuple[int, float]:
    """The nearest of one picture's candidates: all at their rough alignment first, then the best ones in every size."""
    patch_C = found.patch_NC[place]
    ways_C4 = np.column_stack([patch_C, found.turn_NC[place], found.shift_NC2[place]])[patch_C >= 0]
    if not len(ways_C4):
        return -1, 0.0
    ways_C4 = np.unique(ways_C4, axis=0)
    patch_C, turn_C, shift_C2 = ways_C4[:, 0], ways_C4[:, 1], ways_C4[:, 2:]
    views_CBGG = bands(turned(picture_GG[None])[0])[turn_C]
    bands_CGG = band(patches_MGG[patch_C])
    rough_C = scores(views_CBGG, bands_CGG, shift_C2=shift_C2, sizes=(1.0,), reach=4, step=2)
    best_C = np.lexsort((patch_C, -rough_C.round(DIGITS)))[:CLOSE]
    close_C = scores(
        views_CBGG[best_C], bands_CGG[best_C], shift_C2=shift_C2[best_C], sizes=SIZES, reach=4, step=1
    ).round(DIGITS)
    winner = np.lexsort((patch_C[best_C], -close_C))[0]
    return int(patch_C[best_C][winner]), float(close_C[winner])
