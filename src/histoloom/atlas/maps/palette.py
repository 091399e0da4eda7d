"""Colours that stay apart for people with any of the three dichromacies.

The first colours are those of Okabe and Ito (2008). Each further one is the colour farthest, at its nearest
neighbour, from all before it, as the worst-placed of four viewers sees it: one with normal vision, and those that
Machado, Oliveira and Fernandes (2009) simulate. So the first n colours do not depend on how many are asked for.

Shape suffixes: M a number of colours, 3 the channels (red, green, blue).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

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
    return list(_chosen(max(n, 32)))[:n]


def hexadecimal(colour: Rgb) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def separation(first_M3: np.ndarray, second_3: np.ndarray) -> np.ndarray:
    """OKLab distance (M,) between colours (uint8 0..255), for the viewer to whom they look most alike."""
    seen_first, seen_second = _seen(np.asarray(first_M3)), _seen(np.asarray(second_3)[None])
    distance: np.ndarray = np.linalg.norm(seen_first - seen_second, axis=-1).min(axis=0)
    return distance


@lru_cache
def _chosen(n: int) -> tuple[Rgb, ...]:
    candidates_M3 = _candidates()
    picked = list(_OKABE_ITO)
    nearest_M = np.min([separation(candidates_M3, np.array(colour)) for colour in picked], axis=0)
    while len(picked) < n:
        best = candidates_M3[int(nearest_M.argmax())]
        picked.append((int(best[0]), int(best[1]), int(best[2])))
        nearest_M = np.minimum(nearest_M, separation(candidates_M3, best))
    return tuple(picked[:n])


def _candidates() -> np.ndarray:
    steps = np.arange(0, 256, 17)
    grid_M3 = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab_M3 = _oklab(_linear(grid_M3))
    lightness_M, chroma_M = lab_M3[:, 0], np.hypot(lab_M3[:, 1], lab_M3[:, 2])
    return grid_M3[(lightness_M >= _LIGHTNESS[0]) & (lightness_M <= _LIGHTNESS[1]) & (chroma_M <= _CHROMA)]


def _seen(rgb_M3: np.ndarray) -> np.ndarray:
    """OKLab as the four viewers see it: (4, M, 3)."""
    linear_M3 = _linear(rgb_M3)
    viewers = [linear_M3, *(np.clip(linear_M3 @ matrix.T, 0, 1) for matrix in _MACHADO)]
    return np.stack([_oklab(viewer) for viewer in viewers])


def _linear(rgb_M3: np.ndarray) -> np.ndarray:
    value = rgb_M3 / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _oklab(linear_M3: np.ndarray) -> np.ndarray:
    lab: np.ndarray = np.cbrt(linear_M3 @ _TO_LMS.T) @ _TO_LAB.T
    return lab
