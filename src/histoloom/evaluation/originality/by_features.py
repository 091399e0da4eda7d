"""A second opinion on copies: the nearest training patch by an extractor's features, and authenticity.

Features know textures that two images share where their pixels do not lie on one another, and see less of where things
are: an alarm here alone says "very like", not "the same". An image is compared in its eight dihedral copies; shifts
change little, since features are pooled over places. Thresholds come from held-out patches, as for pixels.

Shape suffixes: N images, M training patches, H held-out patches, D features, T = 8 dihedral copies (the first is the
image itself), C candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoloom.evaluation.extractors import Extractor
from histoloom.evaluation.feature_cache import cached_features, feature_rows
from histoloom.evaluation.images import ImageSource
from histoloom.evaluation.originality.audit import AuditSets, draw_rows
from histoloom.evaluation.originality.calibration import Calibration, Share, calibrate, copy_rates
from histoloom.evaluation.originality.greys import dihedral_copies
from histoloom.evaluation.results import AuthenticityResult, FeatureOriginality
from histoloom.run.row_file import Rows

COPIES = 8
CANDIDATES = 8
"""that a fast search puts forward for exact distances"""
HELD_OUT = 600
"""held-out patches that are compared, drawn at random where there are more"""
BLOCK, ROWS = 256, 8192
"""images, and training patches, that are compared at once"""
DIGITS = 6
"""of a distance"""


class DihedralCopies:
    """The eight dihedral copies of some images of a source, those of one image together; an ``ImageSource``."""

    def __init__(self, images: ImageSource, *, rows: np.ndarray) -> None:
        self._images, self._rows = images, rows
        self._last_key = (-1, b"")

    def __len__(self) -> int:
        return COPIES * len(self._rows)

    def key(self, index: int) -> bytes:
        """Of the image and the copy."""
        image, copy = divmod(index, COPIES)
        if self._last_key[0] != image:
            self._last_key = (image, self._images.key(int(self._rows[image])))
        content = self._last_key[1]
        return hashlib.sha256(content + bytes([copy])).digest() if copy else content

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Copies, uint8 (n, S, S, 3): four turns by 90 degrees, then those of the mirror image."""
        image_n, copy_n = np.divmod(indices, COPIES)
        different, place_n = np.unique(image_n, return_inverse=True)
        copies_N8SS3 = dihedral_copies(self._images.read(self._rows[different]))
        return copies_N8SS3[place_n, copy_n]


@dataclass(frozen=True)
class FeatureAudit:
    """Each sample's nearest training patch by one extractor; ``calibration`` is of the negative distance.

    ``calibration`` is None for too few held-out patches; ``authenticity`` for fewer than two training patches.
    A sample is authentic where its nearest training patch has another training patch nearer to it than the sample in
    any of its copies (Alaa et al. 2022, ICML); its floor is the same of held-out patches, which are nobody's copies.
    """

    extractor: str
    number_N: np.ndarray
    distance_N: np.ndarray
    calibration: Calibration | None
    authenticity: AuthenticityResult | None

    @property
    def alarm_N(self) -> np.ndarray:
        """Whether each sample is nearer than the threshold allows."""
        threshold = np.inf if self.calibration is None else self.calibration.threshold
        return -self.distance_N > threshold

    @property
    def copies(self) -> Share:
        """Alarms among all samples."""
        return Share(int(self.alarm_N.sum()), len(self.number_N))

    @property
    def record(self) -> FeatureOriginality:
        """The numbers, without the samples; thresholds are distances."""
        calibration = self.calibration
        rates = dict(copy_rates(self.copies, calibration))
        return FeatureOriginality(
            **rates | {"threshold": -calibration.threshold if calibration else None},
            extractor=self.extractor,
            n_calibration=calibration.n if calibration else 0,
            n_test=calibration.tested.n if calibration else 0,
            authenticity=self.authenticity,
        )


def audit_features(
    sets: AuditSets, *, extractor: Extractor, cache: Path | None, seed: int, folder: Path | None = None
) -> FeatureAudit:
    """The nearest training patch of each sample, calibrated by what held-out patches reach in the same way.

    Features are read from ``cache`` where they are known. Those of many training patches lie in a temporary file in
    ``folder``.
    """
    held_out = draw_rows(len(sets.holdout), HELD_OUT, seed=seed, what="holdout, features")
    samples_NTD, holdout_HTD = (
        cached_features(DihedralCopies(images, rows=rows), extractor=extractor, cache=cache, what=what).reshape(
            len(rows), COPIES, -1
        )
        for images, rows, what in (
            (sets.samples, np.arange(len(sets.samples)), "samples, dihedral copies"),
            (sets.holdout, held_out, "held-out patches, dihedral copies"),
        )
    )
    train_MD = feature_rows(sets.train, extractor=extractor, cache=cache, what="training patches", folder=folder)
    return compare_features(
        samples_NTD,
        train_MD=train_MD,
        holdout_HTD=holdout_HTD,
        slide_H=[sets.slide_H[row] for row in held_out],
        extractor=extractor.name,
    )


def compare_features(
    samples_NTD: np.ndarray, *, train_MD: Rows, holdout_HTD: np.ndarray, slide_H: Sequence[str], extractor: str
) -> FeatureAudit:
    """``audit_features`` of features; ``slide_H`` is the slide of each held-out patch."""
    number_N, distance_N = nearest_of_copies(samples_NTD, train_MD)
    number_H, distance_H = nearest_of_copies(holdout_HTD, train_MD)
    authenticity = None
    if len(train_MD) > 1 and len(number_H):
        authentic = authentic_share(number_N, distance_N, train_MD=train_MD)
        floor = authentic_share(number_H, distance_H, train_MD=train_MD)
        authenticity = AuthenticityResult(
            value=authentic.value,
            interval=authentic.interval,
            n=authentic.n,
            floor=floor.value,
            floor_interval=floor.interval,
            n_floor=floor.n,
        )
    return FeatureAudit(extractor, number_N, distance_N, calibrate(slide_H, -distance_H), authenticity)


def nearest_of_copies(x_NTD: np.ndarray, train_MD: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Number (N,) and Euclidean distance (N,) of the training patch that is nearest to any copy of each image."""
    n, copies, dimension = x_NTD.shape
    number_NT, distance_NT = nearest_features(x_NTD.reshape(-1, dimension), train_MD)
    number_NT, distance_NT = number_NT.reshape(n, copies), distance_NT.reshape(n, copies)
    order = np.lexsort((number_NT, distance_NT), axis=1)[:, :1]
    return np.take_along_axis(number_NT, order, axis=1)[:, 0], np.take_along_axis(distance_NT, order, axis=1)[:, 0]


def nearest_features(
    x_ND: np.ndarray, train_MD: Rows, *, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Number (N,) and Euclidean distance (N,), to six digits, of each row's nearest training row.

    ``own``: the training row (N,) that does not count for each. A fast search by a product of matrices, whose last bits
    depend on the batch, puts forward candidates; the distance is computed for each pair alone. ``ROWS`` training rows
    are in memory at once.
    """
    spans = [slice(first, min(first + ROWS, len(train_MD))) for first in range(0, len(train_MD), ROWS)]
    sum_D = sum(train_MD[span].sum(axis=0, dtype=np.float64) for span in spans)
    mean_D = (sum_D / len(train_MD)).astype(np.float32)

    # The training rows that are nearly the nearest.
    count = min(CANDIDATES, len(train_MD) - (own is not None))
    candidate_NC, rough_NC = np.full((len(x_ND), count), -1), np.full((len(x_ND), count), np.inf, np.float32)
    for span in spans:
        centred_mD = train_MD[span] - mean_D
        squares_m = np.square(centred_mD).sum(axis=1)
        for start in range(0, len(x_ND), BLOCK):
            some = slice(start, min(start + BLOCK, len(x_ND)))
            rough_Bm = squares_m - 2 * (x_ND[some] - mean_D) @ centred_mD.T
            if own is not None:
                here_B = np.flatnonzero((own[some] >= span.start) & (own[some] < span.stop))
                rough_Bm[here_B, own[some][here_B] - span.start] = np.inf
            best_BC = np.argpartition(rough_Bm, min(count, rough_Bm.shape[1]) - 1, axis=1)[:, :count]
            rough_BC = np.concatenate([rough_NC[some], np.take_along_axis(rough_Bm, best_BC, axis=1)], axis=1)
            number_BC = np.concatenate([candidate_NC[some], best_BC + span.start], axis=1)
            order_BC = np.argsort(rough_BC, axis=1, kind="stable")[:, :count]
            candidate_NC[some] = np.take_along_axis(number_BC, order_BC, axis=1)
            rough_NC[some] = np.take_along_axis(rough_BC, order_BC, axis=1)

    # Their distances.
    number_N, distance_N = np.empty(len(x_ND), np.int64), np.empty(len(x_ND))
    for start in range(0, len(x_ND), BLOCK):
        some = slice(start, min(start + BLOCK, len(x_ND)))
        different_U, place_BC = np.unique(candidate_NC[some], return_inverse=True)
        candidates_BCD = train_MD[different_U][place_BC.reshape(-1, count)]
        apart_BCD = x_ND[some, None].astype(np.float64) - candidates_BCD
        exact_BC = np.sqrt(np.square(apart_BCD).sum(axis=2)).round(DIGITS)
        best_B1 = np.lexsort((candidate_NC[some], exact_BC), axis=1)[:, :1]
        number_N[some] = np.take_along_axis(candidate_NC[some], best_B1, axis=1)[:, 0]
        distance_N[some] = np.take_along_axis(exact_BC, best_B1, axis=1)[:, 0]
    return number_N, distance_N


def authentic_share(number_N: np.ndarray, distance_N: np.ndarray, *, train_MD: Rows) -> Share:
    """The share of images that are not nearer to their nearest training patch than that is to another one."""
    _, among_N = nearest_features(train_MD[number_N], train_MD, own=number_N)
    return Share(int((distance_N > among_N).sum()), len(number_N))
