"""Suspicious pairs as one picture: each sample with its nearest training patch to the right of it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

PAIRS_A_ROW, GAP, BETWEEN = 4, 2, 12


def sheet_png(samples_PSS3: np.ndarray, patches_PSS3: np.ndarray) -> bytes:
    """A PNG of all pairs, ``PAIRS_A_ROW`` in a row, the most suspicious first (uint8 images of one size)."""
    side = samples_PSS3.shape[1]
    rows = -(-len(samples_PSS3) // PAIRS_A_ROW)
    across, down = 2 * side + GAP + BETWEEN, side + BETWEEN
    page = np.full((rows * down + BETWEEN, PAIRS_A_ROW * across + BETWEEN, 3), 255, np.uint8)
    for number, (sample, patch) in enumerate(zip(samples_PSS3, patches_PSS3, strict=True)):
        row, column = divmod(number, PAIRS_A_ROW)
        top, left = BETWEEN + row * down, BETWEEN + column * across
        page[top : top + side, left : left + side] = sample
        page[top : top + side, left + side + GAP : left + 2 * side + GAP] = patch
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
