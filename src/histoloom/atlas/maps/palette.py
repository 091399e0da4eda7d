"""The colours of clusters: distinct for people with any of the three dichromacies.

The first colours are those of Okabe and Ito (2008). Each further colour is the candidate whose nearest earlier colour
is farthest away (farthest-point sampling). The distance is the smallest that any of four viewers sees: one with normal
vision and the three dichromats that Machado, Oliveira and Fernandes (2009) simulate. The first n colours therefore do
not depend on how many are requested.

Shape suffixes: M a number of colours, 3 the channels (red, green, blue).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from histoloom.names import Label, tissues_of

Rgb = tuple[int, int, int]

_OKABE_ITO: tuple[Rgb, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

# Linear-RGB matrices for severity 1.0 (Machado et al. 2009, table 1): protanopia, deuteranopia, tritanopia.
_MACHADO = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)

# Linear RGB to OKLab (Ottosson 2020).
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

_LIGHTNESS = (0.36, 0.87)
"""OKLab lightness of the candidates: visible on white and on black."""

_CHROMA = 0.2
"""Largest OKLab chroma of the candidates: nothing glares beside stained tissue."""


def colours(n: int) -> list[Rgb]:
    """``n`` distinct colours, uint8 0..255; the first m of them are ``colours(m)``."""
    if n < 0:
        raise ValueError(f"the number of colours must not be negative, got {n}")
    return list(_distinct(max(n, 32)))[:n]


def cluster_colours(labels: Mapping[int, Label], *, k: int) -> list[Rgb]:
    """Colours of clusters 0..k-1: the colour of the cluster's label where it has one, else the palette's.

    ``labels`` is what ``names.current_labels`` returns. Clusters of one tissue have the colour of its first one.
    """
    result = colours(k)
    for first, clusters in tissues_of(labels).items():
        for cluster in clusters:
            result[cluster] = result[first]
    for cluster, label in labels.items():
        if label.colour:
            red, green, blue = bytes.fromhex(label.colour[1:])
            result[cluster] = (red, green, blue)
    return result


def hexadecimal(colour: Rgb) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def separation(first_M3: np.ndarray, second_3: np.ndarray) -> np.ndarray:
    """OKLab distance (M,) between colours (uint8 0..255), for the viewer to whom they look most alike."""
    seen_first, seen_second = _seen(np.asarray(first_M3)), _seen(np.asarray(second_3)[None])
    distance: np.ndarray = np.linalg.norm(seen_first - seen_second, axis=-1).min(axis=0)
    return distance


@lru_cache
def _distinct(n: int) -> tuple[Rgb, ...]:
    # Candidates: a regular grid over RGB, without colours too light, too dark or too vivid.
    steps = np.arange(0, 256, 17)
    grid_M3 = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab_M3 = _oklab(_linear(grid_M3))
    lightness_M, chroma_M = lab_M3[:, 0], np.hypot(lab_M3[:, 1], lab_M3[:, 2])
    candidates_M3 = grid_M3[(lightness_M >= _LIGHTNESS[0]) & (lightness_M <= _LIGHTNESS[1]) & (chroma_M <= _CHROMA)]

    # Farthest-point sampling, starting from the colours of Okabe and Ito.
    selected = list(_OKABE_ITO)
    nearest_M = np.min([separation(candidates_M3, np.array(colour)) for colour in selected], axis=0)
    while len(selected) < n:
        farthest_3 = candidates_M3[int(nearest_M.argmax())]
        selected.append((int(farthest_3[0]), int(farthest_3[1]), int(farthest_3[2])))
        nearest_M = np.minimum(nearest_M, separation(candidates_M3, farthest_3))
    return tuple(selected[:n])


def _seen(rgb_M3: np.ndarray) -> np.ndarray:
    """OKLab as the four viewers see it: (4, M, 3)."""
    linear_M3 = _linear(rgb_M3)
    viewers = [linear_M3, *(np.clip(linear_M3 @ matrix.T, 0, 1) for matrix in _MACHADO)]
    return np.stack([_oklab(viewer) for viewer in viewers])


def _linear(rgb_M3: np.ndarray) -> np.ndarray:
    """Linear RGB 0..1 from sRGB 0..255 (IEC 61966-2-1)."""
    value = rgb_M3 / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _oklab(linear_M3: np.ndarray) -> np.ndarray:
    lab: np.ndarray = np.cbrt(linear_M3 @ _TO_LMS.T) @ _TO_LAB.T
    return lab
