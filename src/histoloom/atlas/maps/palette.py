"""The colours of clusters: distinct from stained tissue and from each other, also for the colour-blind.

Haematoxylin and eosin fill the range from white over pink to purple. Each colour of the palette is the candidate that
is farthest from ``STAIN`` and from all earlier colours (farthest-point sampling), so that the first n colours do not
depend on how many are requested. The distance is CIEDE2000, and the smallest that any of several viewers sees: one with
normal vision and dichromats, whom Machado, Oliveira and Fernandes (2009) simulate. About 2 is just noticeable side by
side. Dichromats see so few hues that their smallest distances alone would choose several blues; what normal vision sees
counts by about half, so that it must be about twice as much.

Shape suffixes: M a number of colours, S tissues, V viewers, 3 the channels (red, green, blue, or L*, a*, b*).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from histoloom.names import Label, tissues_of

Rgb = tuple[int, int, int]

STAIN: tuple[Rgb, ...] = (
    (244, 242, 243),
    (233, 210, 225),
    (222, 182, 205),
    (210, 155, 186),
    (191, 127, 165),
    (222, 117, 151),
    (207, 94, 126),
    (176, 65, 92),
    (165, 96, 141),
    (148, 108, 170),
    (102, 83, 151),
    (117, 56, 108),
    (99, 42, 98),
)
"""Glass, eosin from pale to blood, haematoxylin from stroma to dense nuclei: cluster centres (k-means) of the pixels of
fields of bone and bowel from two laboratories, and of the demo's slides."""

# Linear-RGB matrices for severity 1.0 (Machado et al. 2009, table 1): protanopia, deuteranopia, tritanopia.
_MACHADO = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)

# Linear RGB to XYZ (IEC 61966-2-1).
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)

_LUMINANCE = (0.035, 0.82)
"""Relative luminance of the candidates: visible on black and on white pages."""

_STAIN_WEIGHT = 1.25
"""How much a difference from stained tissue counts, against one between two colours of the palette."""


_NORMAL_WEIGHT = 0.55
"""How much a difference for normal vision counts, against one for a dichromat. Tried from 0.45 to 0.7: with 0.55 the
first 8 colours reach 21 between two for normal vision and 13 for any viewer, with 1 it is 17 and 16."""

_TINT, _TINT_WEIGHT = 0.4, 3
"""A tint that is as strong as slides have it at first, and how much the difference counts that it makes to the tissue
below: salmon differs from every tissue, yet a tint of salmon is lost on pink."""


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
            result[cluster] = rgb(label.colour)
    return result


def hexadecimal(colour: Rgb) -> str:
    """``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def rgb(colour: str) -> Rgb:
    """``#rrggbb`` as numbers."""
    red, green, blue = bytes.fromhex(colour[1:])
    return red, green, blue


def separation(first_M3: np.ndarray, second_M3: np.ndarray, *, viewers: int = 4) -> np.ndarray:
    """CIEDE2000 between each of the first and each of the second colours (uint8), for whom they look most alike.

    ``viewers``: 1 for normal vision, 3 with protanopia and deuteranopia, 4 with tritanopia too.
    """
    from skimage.color import deltaE_ciede2000  # loads slowly

    first_VM13 = _seen(np.asarray(first_M3))[:viewers, :, None]
    second_V1M3 = _seen(np.asarray(second_M3))[:viewers, None]
    distance: np.ndarray = deltaE_ciede2000(first_VM13, second_V1M3).min(axis=0)
    return distance


@lru_cache
def _distinct(n: int) -> tuple[Rgb, ...]:
    # Candidates: a regular grid over RGB, without colours too light or too dark.
    steps = np.arange(0, 256, 17)
    grid_M3 = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    luminance_M = _linear(grid_M3) @ _TO_XYZ[1]
    candidates_M3 = grid_M3[(luminance_M >= _LUMINANCE[0]) & (luminance_M <= _LUMINANCE[1])]

    # How far each differs from stained tissue, and its tint from the tissue below (glass shows every tint)
    stain_S3 = np.array(STAIN)
    nearest_M = _STAIN_WEIGHT * _weighted(candidates_M3, stain_S3, viewers=3).min(axis=1)
    for stain_3 in stain_S3[1:]:
        tinted_M3 = np.rint(_TINT * candidates_M3 + (1 - _TINT) * stain_3)
        change_M = _weighted(tinted_M3, stain_3[None], viewers=3)[:, 0]
        nearest_M = np.minimum(nearest_M, _TINT_WEIGHT * change_M)

    # Farthest-point sampling, starting from the colours of stained tissue; tritanopia is too rare to limit this too.
    selected: list[Rgb] = []
    while len(selected) < n:
        farthest_3 = candidates_M3[int(nearest_M.argmax())]
        selected.append((int(farthest_3[0]), int(farthest_3[1]), int(farthest_3[2])))
        nearest_M = np.minimum(nearest_M, _weighted(candidates_M3, farthest_3[None], viewers=4)[:, 0])
    return tuple(selected)


def _weighted(first_M3: np.ndarray, second_M3: np.ndarray, *, viewers: int) -> np.ndarray:
    """``separation``, where normal vision counts by ``_NORMAL_WEIGHT``."""
    normal = _NORMAL_WEIGHT * separation(first_M3, second_M3, viewers=1)
    return np.minimum(separation(first_M3, second_M3, viewers=viewers), normal)


def _seen(rgb_M3: np.ndarray) -> np.ndarray:
    """CIELAB as the four viewers see it: (4, M, 3)."""
    from skimage.color import xyz2lab  # loads slowly

    linear_M3 = _linear(rgb_M3)
    viewers = [linear_M3, *(np.clip(linear_M3 @ matrix.T, 0, 1) for matrix in _MACHADO)]
    lab_VM3: np.ndarray = xyz2lab(np.stack(viewers) @ _TO_XYZ.T)
    return lab_VM3


def _linear(rgb_M3: np.ndarray) -> np.ndarray:
    """Linear RGB 0..1 from sRGB 0..255 (IEC 61966-2-1)."""
    value = rgb_M3 / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
