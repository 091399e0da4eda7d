"""Where samples are told from real patches: a classifier of windows, ``telling.npz`` of the stage ``evaluation``.

The two-sample test judges whole images. To show the places, the same classifier learns from windows of half the side,
nine of each image, by texture and shape. The windows of a sample are scored by a classifier that has learned from none
of them. Shapes: N images of S x S px, W windows of an image, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from histoloom.evaluation.images import Images
from histoloom.evaluation.texture_features import MIN_SIDE, N_COLOUR, TextureStatistics
from histoloom.run.directory import replacing

FILE = "telling.npz"
SHOWN = 8
"""samples that are kept at most"""
MOST = 200
"""samples, and real patches, that windows are taken of"""
ACROSS = 3
"""windows of an image on each side; neighbours overlap by half"""
FOLDS = 5
_STRENGTH = 0.01  # inverse strength of regularisation: windows have few independent features


def windows(images_NSS3: Images) -> Images:
    """The windows of each image, row by row: uint8 (N W, S / 2, S / 2, 3)."""
    side = images_NSS3.shape[1] // 2
    starts = [round(number * side / (ACROSS - 1)) for number in range(ACROSS)]
    cut = [images_NSS3[:, top : top + side, left : left + side] for top in starts for left in starts]
    return np.stack(cut, axis=1).reshape(-1, side, side, 3)


def window_scores(real_NSS3: Images, samples_MSS3: Images, *, extractor: TextureStatistics) -> np.ndarray:
    """The probability that a window is synthetic, for each window of each sample: float32 (M, 3, 3)."""
    real_NF, samples_MF = (extractor.features(windows(images))[:, N_COLOUR:] for images in (real_NSS3, samples_MSS3))
    mean_F, spread_F = real_NF.mean(axis=0), real_NF.std(axis=0) + 1e-6
    real_NF, samples_MF = (np.clip((features - mean_F) / spread_F, -6, 6) for features in (real_NF, samples_MF))
    per_image = ACROSS**2
    fold_M = np.repeat(np.arange(len(samples_MSS3)) % FOLDS, per_image)
    scores_M = np.zeros(len(samples_MF))
    for fold in range(FOLDS):
        seen = samples_MF[fold_M != fold]
        labels = np.repeat([0, 1], [len(real_NF), len(seen)])
        classifier = LogisticRegression(C=_STRENGTH, class_weight="balanced", max_iter=500)
        classifier.fit(np.concatenate([real_NF, seen]), labels)
        scores_M[fold_M == fold] = classifier.decision_function(samples_MF[fold_M == fold])
    return expit(scores_M).reshape(-1, ACROSS, ACROSS).astype(np.float32)


def write_telling_windows(
    folder: Path,
    *,
    real_NSS3: Images,
    samples_MSS3: Images,
    clusters_M: np.ndarray,
    files: Sequence[str],
    extractor: TextureStatistics,
) -> None:
    """Write ``telling.npz``: ``sample`` (P, S, S, 3), their windows' ``score`` (P, 3, 3), and their ``name``.

    The samples are ordered by how clearly they are told; the first of each cluster is kept, at most ``SHOWN``. Nothing
    is written where windows would be smaller than ``MIN_SIDE`` px.
    """
    if samples_MSS3.shape[1] >= 2 * MIN_SIDE:
        scores = window_scores(real_NSS3, samples_MSS3, extractor=extractor)
        shown = np.sort(np.unique(clusters_M, return_index=True)[1])[:SHOWN]
        with replacing(folder / FILE) as path, path.open("wb") as file:
            names = np.array([files[row] for row in shown])
            np.savez_compressed(file, sample=samples_MSS3[shown], score=scores[shown], name=names)
