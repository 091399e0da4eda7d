"""Normalisation of stain: a slide's colours as another laboratory would have made them.

Both methods estimate a slide's look once, from a sample of its stained pixels, and move it to a reference: Macenko et
al. 2009 (ISBI) by the two stains' directions and strengths in optical density, Reinhard et al. 2001 (IEEE CG&A) by the
mean and deviation of each axis of Ruderman's colour space. Both keep glass as bright as it is.

Shape letters: P pixels, 3 colours (red, green, blue), S nodes of a table along one colour. Optical densities are
natural logarithms: -ln((value + 1) / (glass + 1)) for values 0..255.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFilter

Method = Literal["macenko", "reinhard"]
Triple = tuple[float, float, float]

GLASS = 245.0
"""What glass becomes, 0..255: below 255, so that its noise is not cut off."""

LEAST_PIXELS = 2000
"""Stained pixels that an estimate needs."""

_STAINED = (0.15, 0.05)
"""Least mean optical density of a stained pixel, and least difference between its colours (grey is no stain)."""

_EXTREMES = (1.0, 99.0)  # percentiles of Macenko et al.
_LEAST_ANGLE = 5.0  # degrees between the stains; below this there is one stain, or none
_NODES = 33

# Ruderman et al. 1998, as in Reinhard et al. 2001, equations 4 and 6.
_LMS_33 = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LAB_33 = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])


@dataclass(frozen=True)
class Macenko:
    """Two stains: unit directions in optical density, and their strengths (99th percentiles); ``glass`` 0..255."""

    glass: Triple
    haematoxylin: Triple
    eosin: Triple
    strengths: tuple[float, float]

    @property
    def basis_33(self) -> np.ndarray:
        """Rows: the two stains and what is neither, as long as they are strong: that by the stains' geometric mean."""
        stains_23 = np.array([self.haematoxylin, self.eosin])
        rest_3 = np.cross(*stains_23)
        lengths_3 = np.array([*self.strengths, np.sqrt(np.prod(self.strengths))])
        return np.vstack([stains_23, rest_3 / np.linalg.norm(rest_3)]) * lengths_3[:, None]


@dataclass(frozen=True)
class Reinhard:
    """Mean and deviation of Ruderman's l, alpha and beta over stained pixels; ``glass`` 0..255."""

    glass: Triple
    mean: Triple
    deviation: Triple


Stain = Macenko | Reinhard

REFERENCES: Mapping[Method, Stain] = {
    # The reference of M. Ludwig's widely copied code, and so of torchstain and others.
    "macenko": Macenko((GLASS,) * 3, (0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581), (1.9705, 1.0308)),
    # The mean look of seven H&E slides after Macenko's normalisation (docs/explanation/stain.md).
    "reinhard": Reinhard((GLASS,) * 3, (8.59, -0.093, 0.036), (0.54, 0.082, 0.0185)),
}


def glass_colour(thumbnail_P3: np.ndarray) -> Triple:
    """The colour of empty glass, 0..255, among a thumbnail's pixels; ``GLASS`` in all where none is seen.

    It is the median of the brightest hundredth, where that is near white. Pixels of pure white were never scanned.
    """
    scanned_P3 = thumbnail_P3[(thumbnail_P3 < 255).any(axis=1)]
    if len(scanned_P3) == 0:
        return (GLASS,) * 3
    lightness_P = scanned_P3.min(axis=1)
    colour_3 = np.median(scanned_P3[lightness_P >= np.quantile(lightness_P, 0.99)], axis=0)
    return _triple(colour_3) if colour_3.min() >= 200 and np.ptp(colour_3) <= 20 else (GLASS,) * 3


def estimate(method: Method, *, pixels_P3: np.ndarray, glass: Triple) -> Stain | None:
    """A slide's stain from a sample of its pixels, uint8; None where too few of them are stained, or by one stain."""
    density_P3 = optical_density(pixels_P3, glass=glass)
    density_P3 = density_P3[_is_stained(density_P3)]
    if len(density_P3) < LEAST_PIXELS:
        return None
    if method == "macenko":
        return _estimate_macenko(density_P3, glass=glass)
    lab_P3 = _to_lab(_light(density_P3))
    deviation_3 = lab_P3.std(axis=0)
    return Reinhard(glass, _triple(lab_P3.mean(axis=0)), _triple(deviation_3)) if deviation_3.min() > 1e-4 else None


def optical_density(pixels_P3: np.ndarray, *, glass: Triple) -> np.ndarray:
    """Optical density (P, 3) of values 0..255; 0 for glass."""
    return np.asarray(-np.log((pixels_P3 + 1.0) / (np.array(glass) + 1.0)))


def _is_stained(density_P3: np.ndarray) -> np.ndarray:
    return np.asarray((density_P3.mean(axis=1) > _STAINED[0]) & (np.ptp(density_P3, axis=1) > _STAINED[1]))


def _estimate_macenko(density_P3: np.ndarray, *, glass: Triple) -> Macenko | None:
    """The extreme directions in the plane through the origin that holds most of the densities."""
    _, vectors_33 = np.linalg.eigh(density_P3.T @ density_P3)
    plane_32 = vectors_33[:, :0:-1] * np.sign(vectors_33[:, :0:-1].sum(axis=0))
    along_P, across_P = (density_P3 @ plane_32).T
    angles_2 = np.percentile(np.arctan2(across_P, along_P), _EXTREMES)
    if np.degrees(np.ptp(angles_2)) < _LEAST_ANGLE:
        return None
    first_3, second_3 = (plane_32 @ (np.cos(angle), np.sin(angle)) for angle in angles_2)
    haematoxylin_3, eosin_3 = (first_3, second_3) if first_3[0] > second_3[0] else (second_3, first_3)
    directions = Macenko(glass, _triple(haematoxylin_3), _triple(eosin_3), (1.0, 1.0))
    amounts_P3 = density_P3 @ np.linalg.inv(directions.basis_33)
    strong, stronger = np.percentile(amounts_P3[:, :2], _EXTREMES[1], axis=0)
    if min(strong, stronger) < _STAINED[0]:
        return None
    return Macenko(glass, directions.haematoxylin, directions.eosin, (float(strong), float(stronger)))


def recolour(pixels_P3: np.ndarray, *, stain: Stain, reference: Stain) -> np.ndarray:
    """Values 0..255 (P, 3, float) of a slide of ``stain`` as ``reference`` would have them.

    What is neither stain (ink, pigment) keeps its own colour under Macenko's method.
    """
    density_P3 = optical_density(pixels_P3, glass=stain.glass)
    if isinstance(stain, Macenko):
        assert isinstance(reference, Macenko), "stain and reference are of one method"
        moved_P3 = _light(density_P3 @ np.linalg.inv(stain.basis_33) @ reference.basis_33, glass=reference.glass)
        return np.clip(moved_P3, 0, 255)
    assert isinstance(reference, Reinhard), "stain and reference are of one method"
    lab_P3 = _to_lab(_light(density_P3))
    lab_P3 = (lab_P3 - stain.mean) * (np.array(reference.deviation) / stain.deviation) + reference.mean
    moved_P3 = _from_lab(lab_P3)
    share_P1 = np.clip(density_P3.mean(axis=1, keepdims=True) / _STAINED[0], 0, 1)
    return np.clip(share_P1 * moved_P3 + (1 - share_P1) * _light(density_P3), 0, 255)


def _light(density_P3: np.ndarray, *, glass: Triple = (GLASS,) * 3) -> np.ndarray:
    return np.asarray((np.array(glass) + 1) * np.exp(-density_P3) - 1)


def _to_lab(rgb_P3: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(rgb_P3, 1) @ _LMS_33.T) @ _LAB_33.T)


def _from_lab(lab_P3: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(lab_P3 @ np.linalg.inv(_LAB_33).T) @ np.linalg.inv(_LMS_33).T)


@dataclass(frozen=True)
class Recolouring:
    """``recolour`` of whole images, through a table of the colour cube with linear interpolation."""

    stain: Stain
    reference: Stain

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (..., width, 3) in the reference's stain, of the same shape."""
        rows = Image.fromarray(np.ascontiguousarray(images).reshape(-1, *images.shape[-2:]))
        return np.array(rows.filter(_table(self))).reshape(images.shape)  # a copy, which torch may write to


@lru_cache(maxsize=4)
def _table(job: Recolouring) -> ImageFilter.Color3DLUT:
    nodes_S = np.linspace(0, 255, _NODES)
    blue, green, red = np.meshgrid(nodes_S, nodes_S, nodes_S, indexing="ij")  # red runs fastest
    cube_P3 = np.stack([red.ravel(), green.ravel(), blue.ravel()], axis=1)
    moved_P3 = recolour(cube_P3, stain=job.stain, reference=job.reference) / 255
    return ImageFilter.Color3DLUT(_NODES, moved_P3.astype(np.float32).ravel())


def to_json(stain: Stain | None) -> dict[str, Any] | None:
    """Plain data that ``from_json`` reads."""
    return None if stain is None else asdict(stain)


def from_json(method: Method, *, values: Mapping[str, Any] | None) -> Stain | None:
    """What ``to_json`` made."""
    if values is None:
        return None
    fields = {name: _nested(value) for name, value in values.items()}
    return Macenko(**fields) if method == "macenko" else Reinhard(**fields)


def _nested(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _triple(values_3: np.ndarray) -> Triple:
    first, second, third = (float(value) for value in values_3)
    return first, second, third
