"""Images as small grey images and their band-passed versions: the input of all comparisons for originality.

Shape suffixes: N images, S side of an image in px, G = ``SIDE``, B = ``BANDS``. Every step is a product of matrices for
one image at a time, so that an image's grey does not depend on what else is read with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from scipy.linalg import block_diag
from scipy.ndimage import gaussian_filter1d

from histoloom.errors import UserError
from histoloom.evaluation.images import Images, ImageSource
from histoloom.run.row_file import Rows, scratch_rows

SIDE = 64
"""px; the side of a grey image"""
MIN_SIZE = 16
"""px; the least side of an image that can be compared"""
CHUNK = 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

FINEST, COARSEST = 0.6, 3.0
"""px; Gaussians that bound the band"""
BANDS = ((1, 1), (1, 2), (2, 1))
"""pieces that rows and columns are filtered in: the whole; left and right half; upper and lower half"""


def read_greys(
    images: ImageSource,
    *,
    indices: np.ndarray | None = None,
    folder: Path | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Rows:
    """All images, or those of ``indices``, as greys, uint8 (N, G, G): 4 KB an image, read ``CHUNK`` at a time.

    Many lie in a temporary file in ``folder`` (``scratch_rows``). Raises ``UserError`` for images that are not square
    or below ``MIN_SIZE`` px.
    """
    rows = np.arange(len(images)) if indices is None else indices
    greys_NGG = scratch_rows((len(rows), SIDE, SIDE), np.uint8, folder=folder)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        greys_NGG[start : start + len(part)] = to_greys(images.read(part))
        advance(len(part))
    return greys_NGG


def to_greys(images_NSS3: Images) -> np.ndarray:
    """Images as greys, uint8 (N, G, G); ``UserError`` where they are not square or too small."""
    height, width = images_NSS3.shape[1:3]
    if height != width or height < MIN_SIZE:
        raise UserError(
            f"the images are {width} x {height} px; originality compares square ones of at least {MIN_SIZE} px a side"
        )
    grey_NSS = np.stack([image @ _LUMA for image in images_NSS3])
    # The mean over each new pixel's area, or between pixels where the image is smaller.
    matrix_GS = (
        interpolation(height, SIDE, (np.arange(SIDE) + 0.5) * height / SIDE - 0.5)
        if height < SIDE
        else area_means(height, SIDE)
    )
    return np.clip(np.rint(matrix_GS @ grey_NSS @ matrix_GS.T), 0, 255).astype(np.uint8)


def area_means(side: int, new_side: int) -> np.ndarray:
    """Takes ``side`` px to fewer, each the mean over its area, float32 (new_side, side)."""
    edges = np.arange(new_side + 1) * side / new_side
    low, high = np.maximum(edges[:-1, None], np.arange(side)), np.minimum(edges[1:, None], np.arange(side) + 1)
    return (np.clip(high - low, 0, None) * new_side / side).astype(np.float32)


def interpolation(side: int, new_side: int, places: np.ndarray) -> np.ndarray:
    """Reads ``side`` pixels at fractional ``places`` (new_side,), linearly; outside, the border's pixels repeat."""
    places = np.clip(places, 0, side - 1)
    low = np.minimum(places.astype(int), side - 2)
    matrix = np.zeros((new_side, side), np.float32)
    matrix[np.arange(new_side), low] = 1 - (places - low)
    matrix[np.arange(new_side), low + 1] = places - low
    return matrix


@cache
def gaussian(side: int, sigma: float) -> np.ndarray:
    """A Gaussian of ``sigma`` px along one axis of ``side`` px, mirrored at the border, float32 (side, side)."""
    return gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect").astype(np.float32)


@cache
def gaussian_in_pieces(sigma: float, pieces: int) -> np.ndarray:
    """A Gaussian of ``sigma`` px along one axis that is cut into equal pieces, float32 (G, G)."""
    return block_diag(*[gaussian(SIDE // pieces, sigma)] * pieces).astype(np.float32)


def dihedral_copies(images_NSS: np.ndarray) -> np.ndarray:
    """The eight dihedral copies, (N, 8, S, S): four turns by 90 degrees, then those of the mirror image.

    A last axis of channels is allowed.
    """
    mirrored = images_NSS[:, :, ::-1]
    turns = [np.rot90(images, turn, axes=(1, 2)) for images in (images_NSS, mirrored) for turn in range(4)]
    return np.ascontiguousarray(np.stack(turns, axis=1))
