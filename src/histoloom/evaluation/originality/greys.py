"""Pictures as small greys: what all comparisons for originality begin with.

Shape suffixes: N pictures, S side of a picture in px, G = ``SIDE``. Every step is a product of matrices for one picture
at a time, so that a picture's grey does not depend on what else is read with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np

from histoloom.errors import UserError
from histoloom.evaluation.similarity import Images

SIDE = 64
"""px; the side of a grey"""
LEAST, CHUNK = 16, 64
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class Pictures(Protocol):
    """Pictures that are read a few at a time."""

    def __len__(self) -> int:
        """How many."""

    def read(self, numbers: np.ndarray) -> Images:
        """The pictures of these numbers, uint8 (n, S, S, 3)."""


def small_greys(
    pictures: Pictures, *, numbers: np.ndarray | None = None, advance: Callable[[int], None] = lambda _: None
) -> np.ndarray:
    """All pictures, or those of ``numbers``, as greys, uint8 (N, G, G): 4 KB a picture, read ``CHUNK`` at a time.

    Raises ``UserError`` for pictures that are not square or below ``LEAST`` px.
    """
    wanted = np.arange(len(pictures)) if numbers is None else numbers
    result = np.empty((len(wanted), SIDE, SIDE), np.uint8)
    for start in range(0, len(wanted), CHUNK):
        part = wanted[start : start + CHUNK]
        result[start : start + CHUNK] = shrunk(pictures.read(part))
        advance(len(part))
    return result


def shrunk(images_NSS3: Images) -> np.ndarray:
    """Pictures as greys, uint8 (N, G, G); ``UserError`` where they are not square or too small."""
    height, width = images_NSS3.shape[1:3]
    if height != width or height < LEAST:
        raise UserError(
            f"the images are {width} x {height} px; originality compares square ones of at least {LEAST} px a side"
        )
    grey_NSS = np.stack([image @ _LUMA for image in images_NSS3])
    matrix_GS = _averaging(height)
    return np.clip(np.rint(matrix_GS @ grey_NSS @ matrix_GS.T), 0, 255).astype(np.uint8)


@cache
def _averaging(side: int) -> np.ndarray:
    """Takes ``side`` px to G: the mean over each new pixel's area, or between pixels where the picture is smaller."""
    if side < SIDE:
        return resampling(side, SIDE, (np.arange(SIDE) + 0.5) * side / SIDE - 0.5)
    edges = np.arange(SIDE + 1) * side / SIDE
    low, high = np.maximum(edges[:-1, None], np.arange(side)), np.minimum(edges[1:, None], np.arange(side) + 1)
    return (np.clip(high - low, 0, None) * SIDE / side).astype(np.float32)


def resampling(side: int, wanted: int, places: np.ndarray) -> np.ndarray:
    """Reads ``side`` pixels at fractional ``places`` (wanted,), linearly; the border's pixels go on outside."""
    places = np.clip(places, 0, side - 1)
    low = np.minimum(places.astype(int), side - 2)
    matrix = np.zeros((wanted, side), np.float32)
    matrix[np.arange(wanted), low] = 1 - (places - low)
    matrix[np.arange(wanted), low + 1] = places - low
    return matrix


@cache
def blurring(side: int, sigma: float) -> np.ndarray:
    """A Gaussian of ``sigma`` px along one axis of ``side`` px, mirrored at the border, float32 (side, side)."""
    from scipy.ndimage import gaussian_filter1d

    return gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect").astype(np.float32)


def turned(images_NSS: np.ndarray) -> np.ndarray:
    """The eight dihedral copies, (N, 8, S, S): four turns by 90 degrees, then those of the mirror image."""
    mirrored = images_NSS[:, :, ::-1]
    turns = [np.rot90(images, turn, axes=(1, 2)) for images in (images_NSS, mirrored) for turn in range(4)]
    return np.ascontiguousarray(np.stack(turns, axis=1))
