"""Greys without their slow changes (shade, stain, light) and their finest grain: what close looks compare.

A half is filtered by itself, as if the picture ended there: in a collage the edge between two halves would else be the
strongest structure of either, and hide what the half shows. Shape suffixes: G = ``SIDE``, B bands, H side of a half.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy.linalg import block_diag

from histoloom.evaluation.originality.greys import SIDE, blurring

FINEST, COARSEST = 0.6, 3.0
"""px; Gaussians that bound the band"""
BANDS = ((1, 1), (1, 2), (2, 1))
"""pieces that rows and columns are filtered in: the whole; left and right half; upper and lower half"""


def band(greys: np.ndarray) -> np.ndarray:
    """The band of whole pictures: greys (..., G, G) to float32 of that shape."""
    return _filtered(greys, rows=1, columns=1)


def bands(greys: np.ndarray) -> np.ndarray:
    """Every band of ``BANDS``: greys (..., G, G) to float32 (..., B, G, G)."""
    return np.stack([_filtered(greys, rows=rows, columns=columns) for rows, columns in BANDS], axis=-3)


def _filtered(greys: np.ndarray, *, rows: int, columns: int) -> np.ndarray:
    values = greys.astype(np.float32)
    fine, slow = (
        blur_in_pieces(sigma, rows) @ values @ blur_in_pieces(sigma, columns).T for sigma in (FINEST, COARSEST)
    )
    return fine - slow


@cache
def blur_in_pieces(sigma: float, pieces: int) -> np.ndarray:
    """A Gaussian of ``sigma`` px along one axis that is cut into equal pieces, float32 (G, G)."""
    return block_diag(*[blurring(SIDE // pieces, sigma)] * pieces).astype(np.float32)
