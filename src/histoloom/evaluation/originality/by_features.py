"""A second opinion on copies: the nearest training patch by an extractor's features, and authenticity.

Features know textures that two pictures share where their pixels do not lie on one another, and see less of where
things are: an alarm here alone says "very like", not "the same". A picture is looked at in its eight dihedral copies;
shifts change little, since features are pooled over places. Thresholds come from held-out patches, as for pixels.

Shape suffixes: N pictures, M training patches, H held-out patches, D features, T = 8 dihedral copies (the first is the
picture itself), C candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histoloom.evaluation.extractors import Extractor
from histoloom.evaluation.feature_cache import ImageSource, cached_features
from histoloom.evaluation.originality.audit import Calibration, calibrated, drawn
from histoloom.evaluation.originality.calibration import Share

COPIES = 8
CANDIDATES = 8
"""that a fast look puts forward for an exact one"""
HELD_OUT = 600
"""held-out patches that are looked at, drawn at random where there are more"""
BLOCK = 256
DIGITS = 6


class Dihedral:
    """The eight dihedral copies of each image of a source, those of one image together."""

    def __init__(self, images: ImageSource, *, numbers: np.ndarray) -> None:
        self._images, self._numbers = images, numbers

    def __len__(self) -> int:
        return COPIES * len(self._numbers)

    def key(self, number: int) -> bytes:
        """Of the image and the copy."""
        image, turn = divmod(number, COPIES)
        content = self._images.key(int(self._numbers[image]))
        return hashlib.sha256(content + bytes([turn])).digest() if turn else content

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The copies of these numbers, uint8 (n, S, S, 3): four turns by 90 degrees, then those of the mirror image."""
        images, turns = np.divmod(numbers, COPIES)
        read = self._images.read(self._numbers[images])
        return np.stack([_turned(image, int(turn)) for image, turn in zip(read, turns, strict=True)])


def _turned(image_SS3: np.ndarray, turn: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(image_SS3 if turn < COPIES // 2 else image_SS3[:, ::-1], turn % 4))


@dataclass(frozen=True)
class FeatureSets:
    """What is compared; ``slide_H`` as in ``audit.Sets``."""

    samples_NTD: np.ndarray
    train_MD: np.ndarray
    holdout_HTD: np.ndarray
    slide_H: Sequence[str]


@dataclass(frozen=True)
class Authenticity:
    """How many are not nearer to a real patch than real patches are to one another (Alaa et al. 2022, ICML).

    A sample is authentic where its nearest training patch has another training patch nearer to it than the sample in
    any of its copies. ``floor``: the same of held-out patches, which are nobody's copies.
    """

    samples: Share
    floor: Share


@dataclass(frozen=True)
class ByFeatures:
    """Each sample's nearest training patch by one extractor; ``calibration`` is of the negative distance.

    ``calibration`` is None for too few held-out patches; ``authenticity`` for fewer than two training patches.
    """

    extractor: str
    number_N: np.ndarray
    distance_N: np.ndarray
    calibration: Calibration | None
    authenticity: Authenticity | None

    @property
    def alarm_N(self) -> np.ndarray:
        """Whether each sample is nearer than the threshold allows."""
        limit = np.inf if self.calibration is None else self.calibration.threshold
        return -self.distance_N > limit

    @property
    def copies(self) -> Share:
        """Alarms among all samples."""
        return Share(int(self.alarm_N.sum()), len(self.number_N))


@dataclass(frozen=True)
class Sources:
    """Images by number; ``slide_H``: the slide of each held-out one."""

    samples: ImageSource
    train: ImageSource
    holdout: ImageSource
    slide_H: Sequence[str]


def look(sources: Sources, *, extractor: Extractor, cache: Path, seed: int) -> ByFeatures:
    """``by_features`` of images, whose features are read from ``cache`` where they are known."""
    held = drawn(len(sources.holdout), HELD_OUT, seed=seed, what="holdout, features")
    every = np.arange(len(sources.samples))
    copies = [
        cached_features(Dihedral(images, numbers=numbers), extractor=extractor, cache=cache, what=what)
        for images, numbers, what in (
            (sources.samples, every, "samples, turned"),
            (sources.holdout, held, "held-out patches, turned"),
        )
    ]
    samples_NTD, holdout_HTD = (x_ND.reshape(-1, COPIES, x_ND.shape[1]) for x_ND in copies)
    train_MD = cached_features(sources.train, extractor=extractor, cache=cache, what="training patches")
    slides = [sources.slide_H[row] for row in held]
    return by_features(FeatureSets(samples_NTD, train_MD, holdout_HTD, slides), extractor=extractor.name)


def by_features(sets: FeatureSets, *, extractor: str) -> ByFeatures:
    """The nearest training patch of each sample, calibrated by what held-out patches reach in the same way."""
    number_N, distance_N = nearest_of_copies(sets.samples_NTD, sets.train_MD)
    number_H, distance_H = nearest_of_copies(sets.holdout_HTD, sets.train_MD)
    genuine = None
    if len(sets.train_MD) > 1 and len(number_H):
        genuine = Authenticity(
            authentic(number_N, distance_N, train_MD=sets.train_MD),
            authentic(number_H, distance_H, train_MD=sets.train_MD),
        )
    return ByFeatures(extractor, number_N, distance_N, calibrated(sets.slide_H, -distance_H), genuine)


def nearest_of_copies(x_NTD: np.ndarray, train_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number (N,) and Euclidean distance (N,) of the training patch that is nearest to any copy of each picture."""
    n, copies, dimension = x_NTD.shape
    number_NT, distance_NT = nearest_features(x_NTD.reshape(-1, dimension), train_MD)
    number_NT, distance_NT = number_NT.reshape(n, copies), distance_NT.reshape(n, copies)
    order = np.lexsort((number_NT, distance_NT), axis=1)[:, :1]
    return np.take_along_axis(number_NT, order, axis=1)[:, 0], np.take_along_axis(distance_NT, order, axis=1)[:, 0]


def nearest_features(
    x_ND: np.ndarray, train_MD: np.ndarray, *, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Number (N,) and Euclidean distance (N,), to six digits, of each row's nearest training row.

    ``own``: the training row (N,) that does not count for each. A fast look by a product of matrices, whose last bits
    depend on the batch, puts forward candidates; what is given is computed for each pair alone.
    """
    mean_D = train_MD.mean(axis=0)
    centred_MD = train_MD - mean_D
    squares_M = np.square(centred_MD).sum(axis=1)
    number_N, distance_N = np.empty(len(x_ND), np.int64), np.empty(len(x_ND))
    for start in range(0, len(x_ND), BLOCK):
        x_BD = x_ND[start : start + BLOCK]
        rough_BM = squares_M - 2 * (x_BD - mean_D) @ centred_MD.T
        if own is not None:
            rough_BM[np.arange(len(x_BD)), own[start : start + BLOCK]] = np.inf
        count = min(CANDIDATES, len(train_MD) - (own is not None))
        chosen_BC = np.argpartition(rough_BM, count - 1, axis=1)[:, :count]
        apart_BCD = x_BD[:, None].astype(np.float64) - train_MD[chosen_BC]
        exact_BC = np.sqrt(np.square(apart_BCD).sum(axis=2)).round(DIGITS)
        best_B1 = np.lexsort((chosen_BC, exact_BC), axis=1)[:, :1]
        number_N[start : start + BLOCK] = np.take_along_axis(chosen_BC, best_B1, axis=1)[:, 0]
        distance_N[start : start + BLOCK] = np.take_along_axis(exact_BC, best_B1, axis=1)[:, 0]
    return number_N, distance_N


def authentic(number_N: np.ndarray, distance_N: np.ndarray, *, train_MD: np.ndarray) -> Share:
    """The share of pictures that are not nearer to their nearest training patch than that is to another one."""
    _, among_N = nearest_features(train_MD[number_N], train_MD, own=number_N)
    return Share(int((distance_N > among_N).sum()), len(number_N))


def features_summary(found: ByFeatures) -> dict[str, Any]:
    """The numbers as JSON-like data, without the samples; thresholds are distances."""
    copies, calibration, authenticity = found.copies, found.calibration, found.authenticity
    return {
        "extractor": found.extractor,
        "copies": copies.count if calibration else None,
        "copy_rate": copies.value if calibration else None,
        "interval": copies.interval if calibration else None,
        "false_alarm_rate": calibration.tested.value if calibration else None,
        "false_alarm_interval": calibration.tested.interval if calibration else None,
        "threshold": -calibration.threshold if calibration else None,
        "n_calibration": calibration.calibration if calibration else 0,
        "n_test": calibration.tested.n if calibration else 0,
        "authenticity": authenticity
        and {
            "value": authenticity.samples.value,
            "interval": authenticity.samples.interval,
            "n": authenticity.samples.n,
            "floor": authenticity.floor.value,
            "floor_interval": authenticity.floor.interval,
            "n_floor": authenticity.floor.n,
        },
    }


def sample_entries(
    found: Sequence[ByFeatures], row: int, *, ids: Sequence[str] | np.ndarray
) -> dict[str, dict[str, Any]]:
    """What each extractor says of one sample; ``ids`` names the training patches."""
    return {
        each.extractor: {
            "nearest": str(ids[each.number_N[row]]),
            "distance": float(each.distance_N[row]),
            "copy": bool(each.alarm_N[row]),
        }
        for each in found
    }


def features_said(entry: Mapping[str, Any]) -> str:
    """One sentence of a ``features_summary``."""
    parts = []
    if entry["copy_rate"] is not None:
        low, high = entry["interval"]
        parts.append(
            f"{entry['copy_rate']:.1%} of the samples ({low:.1%} to {high:.1%}) lie as near to a training patch as "
            f"hardly any held-out patch does ({entry['false_alarm_rate']:.1%} of these)"
        )
    genuine = entry["authenticity"]
    if genuine is not None:
        low, high = genuine["interval"]
        parts.append(
            f"{genuine['value']:.0%} are authentic, not nearer to a training patch than another one is ({low:.0%} to "
            f"{high:.0%}; held-out patches: {genuine['floor']:.0%})"
        )
    return f"By {entry['extractor']}: {'; '.join(parts) or 'too few held-out patches'}."
