"""The surroundings of patches: fields of the slide about each patch, several times as wide and as coarse.

Shapes: N patches; a field is (left, top, side) in level-0 px.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from histoloom.slides.readers.base import Slide

WIDTH = 4
"""Sides of a patch that a field is wide."""

MOST_PX = 128
"""Largest side of a field's image; patches of fewer px have fields of as many px as they have."""


def image_side(patch_size: int) -> int:
    """Side of the fields' images, px, about patches of ``patch_size`` px."""
    return min(patch_size, MOST_PX)


def fields_of(x_N: np.ndarray, y_N: np.ndarray, *, extent: float, dimensions: tuple[int, int]) -> np.ndarray:
    """The field of each patch, float64 (N, 3).

    ``x_N`` and ``y_N`` are the patches' upper left corners and ``extent`` their side, level-0 px. A field has its patch
    in the middle. At the slide's edge it is moved inwards; it is never wider than the slide's shorter side.
    """
    side = min(WIDTH * extent, *dimensions)
    corners = [
        np.clip(corner_N + extent / 2 - side / 2, 0.0, length - side)
        for corner_N, length in zip((x_N, y_N), dimensions, strict=True)
    ]
    return np.stack([*corners, np.full(len(x_N), side)], axis=1)


def read_fields(slide: Slide, fields_N3: np.ndarray, *, side: int) -> Iterator[np.ndarray]:
    """The image of each field, uint8 (side, side, 3), in their order."""
    for left, top, extent in fields_N3.tolist():
        yield slide.read(left, top, extent=extent, size=side)
