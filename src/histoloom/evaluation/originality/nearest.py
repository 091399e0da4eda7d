"""The training patch that is nearest to an image, and how near it is: the score that identifies copies.

The few candidates of the coarse search are compared closely (``pair_scores``): all at their rough alignment first, then
the best ones in every size. A batch always has the same shape, so that a score does not depend on the other images.

Shape suffixes: N images, n images of a batch, M training patches, C candidates of each image, U different patches, G =
``SIDE``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from histoloom.evaluation.originality.pair_scores import (
    FURTHEST,
    HALF,
    REACH,
    ImageBands,
    image_bands,
    patch_bands,
    scores,
    scores_of_copies,
    turns,
    windows,
)
from histoloom.evaluation.originality.shortlist import Candidates, CoarsePatches, coarse, shortlist
from histoloom.run.row_file import Rows
from histoloom.training.devices import full_precision
from histoloom.training.memory import in_fitting_parts
from histoloom.training.transfers import put_array

CLOSE = 6
"""candidates that are compared in every size"""
DIGITS = 4
"""of a score"""

IMAGES, CHUNK = 2048, 256
"""images that are searched for at once, and of which all candidates are in memory at once"""
BATCH = {"cpu": 1}
"""images that are compared closely at once, by the kind of device: on a CPU, what fits its cache"""
LARGE_BATCH = 32
"""elsewhere"""
COPIES = {"cpu": 8}
"""images whose copies are scored at once, by the kind of device"""
MORE_COPIES = 256
"""elsewhere"""


@dataclass(frozen=True)
class Nearest:
    """Each image's nearest training patch: its number (-1: there is none), and the score of both, 0..1.

    The score is 1 for a copy, rounded to ``DIGITS``.
    """

    number_N: np.ndarray
    score_N: np.ndarray


class Gallery:
    """Patches that images are compared with, as greys (``read_greys``), on a device; for several calls of ``nearest``.

    The first call prepares them.
    """

    def __init__(self, greys_MGG: Rows, *, device: torch.device | None = None) -> None:
        self.greys_MGG, self.device = greys_MGG, device or torch.device("cpu")

    def __len__(self) -> int:
        return len(self.greys_MGG)

    @cached_property
    def coarse(self) -> CoarsePatches:
        """For the coarse search."""
        return CoarsePatches(self.greys_MGG, device=self.device)


def nearest(greys_NGG: Rows, gallery: Gallery, *, advance: Callable[[int], None] = lambda _: None) -> Nearest:
    """The nearest patch of the gallery for each image; images are greys (``read_greys``).

    Neither the order nor the number of images changes an image's result; of equally near patches the first is named.
    """
    n = len(greys_NGG)
    number_N, score_N = np.full(n, -1, np.int64), np.zeros(n)
    if not len(gallery):
        return Nearest(number_N, score_N)
    for first in range(0, n, IMAGES):
        some = slice(first, min(first + IMAGES, n))
        with full_precision():
            candidates = shortlist(coarse(greys_NGG[some]), gallery.coarse)
            for start in range(some.start, some.stop, CHUNK):
                part = slice(start, min(start + CHUNK, some.stop))
                number_N[part], score_N[part] = _nearest_candidates(
                    greys_NGG[part],
                    gallery,
                    candidates=candidates.rows(slice(part.start - first, part.stop - first)),
                )
                advance(part.stop - part.start)
    return Nearest(number_N, score_N)


def _nearest_candidates(
    greys_NGG: np.ndarray, gallery: Gallery, *, candidates: Candidates
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest candidate of each image: all at their rough alignment first, then the best ones in every size."""
    device = gallery.device
    # Each way (patch, dihedral copy, shift) of an image once, in rising order; -1 where there are fewer.
    ways_NC4 = np.concatenate(
        [candidates.patch_NC[..., None], candidates.dihedral_NC[..., None], candidates.shift_NC2], axis=2
    )
    ways_NC4 = np.stack([ways_C4[np.lexsort(ways_C4.T[::-1])] for ways_C4 in ways_NC4])
    ways_NC4[:, 1:][(ways_NC4[:, 1:] == ways_NC4[:, :-1]).all(axis=2)] = -1
    patch_NC, dihedral_NC, shift_NC2 = ways_NC4[..., 0], ways_NC4[..., 1], ways_NC4[..., 2:]
    known_NC = patch_NC >= 0
    dihedral_NC = np.where(known_NC, dihedral_NC, 0)
    shift_NC2 = (turns()[1][dihedral_NC] @ shift_NC2[..., None])[..., 0].clip(-FURTHEST, FURTHEST)

    # The candidates' bands, each computed once.
    patch_U, place_NC = np.unique(np.where(known_NC, patch_NC, 0), return_inverse=True)
    patches_U2GG = patch_bands(put_array(gallery.greys_MGG[patch_U], device).float())
    aligned_NC4 = np.concatenate([place_NC.reshape(*patch_NC.shape, 1), dihedral_NC[..., None], shift_NC2], axis=2)

    number_N, score_N = np.full(len(greys_NGG), -1, np.int64), np.zeros(len(greys_NGG))
    batch = BATCH.get(device.type, LARGE_BATCH)

    def closely(row_n: np.ndarray) -> None:
        row_n1 = row_n[:, None]
        image = image_bands(put_array(greys_NGG[row_n], device).float())

        def compare(column_nC: np.ndarray, *, image: ImageBands, step: int) -> np.ndarray:
            ways_nC4 = put_array(aligned_NC4[row_n1, column_nC], device)
            windows_nC2WW = windows(patches_U2GG, ways_nC4, reach=REACH)
            score_nC = scores(image, windows_nC2WW, ways_nC4[..., 2:], step=step)
            return np.where(known_NC[row_n1, column_nC], score_nC.cpu().double().numpy().round(DIGITS), -1.0)

        every_nC = np.broadcast_to(np.arange(patch_NC.shape[1]), (len(row_n), patch_NC.shape[1]))
        rough_nC = compare(every_nC, image=image.only(1.0), step=2)
        best_nC = np.lexsort((patch_NC[row_n], -rough_nC), axis=1)[:, :CLOSE]
        close_nC = compare(best_nC, image=image, step=1)
        patch_nC = patch_NC[row_n1, best_nC]
        winner_n1 = np.lexsort((patch_nC, -close_nC), axis=1)[:, :1]
        number_N[row_n] = np.take_along_axis(patch_nC, winner_n1, axis=1)[:, 0]
        score_N[row_n] = np.take_along_axis(close_nC, winner_n1, axis=1)[:, 0].clip(0)

    for start in range(0, len(greys_NGG), batch):
        # The last batch is filled up.
        row_n = np.minimum(np.arange(start, start + batch), len(greys_NGG) - 1)
        in_fitting_parts(closely, row_n, name="looking for copies")
    return number_N, score_N


def best_score(greys_NGG: Rows, *, device: torch.device | None = None) -> np.ndarray:
    """What exact copies of the images would score, float64 (N,): low where an image shows little."""
    device = device or torch.device("cpu")
    batch = COPIES.get(device.type, MORE_COPIES)

    def of_copies(greys_nGG: np.ndarray) -> Tensor:
        return scores_of_copies(put_array(greys_nGG, device).float())

    with full_precision():
        parts = [
            part
            for start in range(0, len(greys_NGG), batch)
            for part in in_fitting_parts(of_copies, greys_NGG[start : start + batch], name="scores of exact copies")
        ]
    return np.concatenate([np.empty(0), *([torch.cat(parts).double().cpu().numpy()] if parts else [])])


def best_score_of_weakest_half(greys_NGG: Rows, *, device: torch.device | None = None) -> np.ndarray:
    """What an exact copy of the half that shows least would score, float64 (N,)."""
    parts = [np.empty(0)]
    for start in range(0, len(greys_NGG), IMAGES):
        greys_nGG = greys_NGG[start : start + IMAGES]
        by_half = []
        for half in (np.s_[:, :, :HALF], np.s_[:, :, HALF:], np.s_[:, :HALF], np.s_[:, HALF:]):
            alone = np.broadcast_to(greys_nGG.mean(axis=(1, 2), keepdims=True), greys_nGG.shape).astype(np.uint8)
            alone[half] = greys_nGG[half]
            by_half.append(best_score(alone, device=device))
        parts.append(np.min(by_half, axis=0))
    return np.concatenate(parts)
