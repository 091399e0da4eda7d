"""The audit of a set of samples: which of them look like copies of the patches that the generator was trained on?

Shape suffixes: N samples, M training patches, H held-out patches, G side of a grey image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from histoloom.evaluation.images import ImageSource
from histoloom.evaluation.originality.calibration import (
    MIN_PER_HALF,
    RATE,
    Calibration,
    Share,
    calibrate,
    can_calibrate,
    membership,
)
from histoloom.evaluation.originality.greys import read_greys
from histoloom.evaluation.originality.nearest import Gallery, Nearest, best_score, best_score_of_weakest_half, nearest
from histoloom.evaluation.results import Membership
from histoloom.progress import meter
from histoloom.run.row_file import Rows, appended
from histoloom.seeding import permutation

VERSION = 2
"""of the scores: thresholds are of one version"""
SURE = 0.8
"""what an exact copy of a sample has to score at least, so that a changed copy would be recognised too"""
MAX_HELD_OUT = 4000
"""held-out patches that are compared, drawn at random where there are more"""
MEMBERS = 300
"""training patches, and held-out ones, of the membership test"""


@dataclass(frozen=True)
class AuditSets:
    """What is compared. ``slide_H``: of each held-out patch; a slide's patches calibrate or test, never both."""

    samples: ImageSource
    train: ImageSource
    holdout: ImageSource
    slide_H: Sequence[str]


@dataclass(frozen=True)
class PixelAudit:
    """The nearest training patch of each sample. ``calibration`` is None for too few held-out patches.

    ``held_out_H``: the scores of the held-out patches; none where these are too few.
    """

    nearest: Nearest
    best_N: np.ndarray
    """what an exact copy of the sample would score"""
    half_N: np.ndarray
    """what an exact copy of its weakest half would score"""
    calibration: Calibration | None
    membership: Membership | None
    n_train: int
    n_holdout: int
    held_out_H: np.ndarray

    @property
    def alarm_N(self) -> np.ndarray:
        """Whether each sample counts as a copy."""
        if self.calibration is None:
            return np.zeros(len(self.best_N), bool)
        return self.nearest.score_N > self.calibration.threshold

    @property
    def copies(self) -> Share:
        """Alarms among all samples."""
        return Share(int(self.alarm_N.sum()), len(self.best_N))

    @property
    def too_plain_N(self) -> np.ndarray:
        """Whether a sample shows so little that a changed copy may not be recognised."""
        return self.best_N < SURE

    @property
    def half_too_plain_N(self) -> np.ndarray:
        """Whether a half of a sample shows so little that a copy of that half alone may not be recognised."""
        return self.half_N < SURE

    @property
    def order(self) -> list[int]:
        """The samples' numbers, the most suspicious first; of equals the first."""
        return sorted(range(len(self.best_N)), key=lambda row: (-self.nearest.score_N[row], row))


def audit_pixels(
    sets: AuditSets, *, seed: int = 0, device: torch.device | None = None, folder: Path | None = None
) -> PixelAudit:
    """The nearest training patch of every sample, and what held-out patches score in the same way.

    ``seed`` draws the held-out patches, and those of the membership test. The greys of many training patches lie in a
    temporary file in ``folder``, 4 KB a patch.
    """
    held_out = draw_rows(len(sets.holdout), MAX_HELD_OUT, seed=seed, what="holdout")
    members = draw_rows(len(sets.train), min(len(held_out), MEMBERS), seed=seed, what="members")
    others = draw_rows(len(held_out), MEMBERS, seed=seed, what="others")
    total = 2 * (len(sets.samples) + len(held_out)) + len(sets.train) + len(others) + len(members)
    with meter("looking for copies", total=total) as counter:
        samples_NGG = read_greys(sets.samples, folder=folder, advance=counter.advance)
        train_MGG = read_greys(sets.train, folder=folder, advance=counter.advance)
        holdout_HGG = read_greys(sets.holdout, indices=held_out, advance=counter.advance)

        def search(greys_NGG: Rows, gallery: Gallery) -> Nearest:
            return nearest(greys_NGG, gallery, advance=counter.advance)

        # A threshold from one part of the held-out slides, tested on the other. Samples and held-out patches are
        # searched for together, since many training patches are prepared anew for each search.
        slide_H = [sets.slide_H[row] for row in held_out]
        n, calibrated = len(samples_NGG), can_calibrate(slide_H)
        searched = appended(samples_NGG, holdout_HGG[:], folder=folder) if calibrated else samples_NGG
        found = search(searched, Gallery(train_MGG, device=device))
        of_samples, held_out_H = Nearest(found.number_N[:n], found.score_N[:n]), found.score_N[n:]
        calibration = calibrate(slide_H, held_out_H) if calibrated else None
        if not calibrated:
            counter.advance(len(held_out))

        # Membership: are training patches nearer to the samples than held-out ones are?
        membership_test = None
        if min(len(members), len(others)) >= 2:
            members_NGG, others_NGG = train_MGG[members], holdout_HGG[others]
            samples = Gallery(samples_NGG, device=device)
            scores = (search(images_NGG, samples).score_N for images_NGG in (members_NGG, others_NGG))
            membership_test = membership(*scores)
    best_N, half_N = (score(samples_NGG, device=device) for score in (best_score, best_score_of_weakest_half))
    return PixelAudit(
        nearest=of_samples,
        best_N=best_N,
        half_N=half_N,
        calibration=calibration,
        membership=membership_test,
        n_train=len(train_MGG),
        n_holdout=len(held_out),
        held_out_H=held_out_H,
    )


def draw_rows(n: int, most: int, *, seed: int, what: str) -> np.ndarray:
    """At most ``most`` of ``n`` rows, drawn at random, sorted; ``what`` names the random stream under ``seed``."""
    return np.sort(permutation(seed, "originality", what, n=n)[:most])


def notes(audit: PixelAudit) -> list[str]:
    """The limits of the numbers, in sentences."""
    calibration = audit.calibration
    if calibration is None:
        return [
            f"nothing could be calibrated: a threshold with a false-alarm rate of {RATE:.0%}, and its test on other "
            f"slides, need two groups of held-out slides of at least {MIN_PER_HALF} patches each, and there are "
            f"{audit.n_holdout} held-out patches in all; scores are given, copies are not counted"
        ]
    low, high = calibration.tested.interval
    result = [
        f"threshold from {calibration.n} held-out patches, tested on {calibration.tested.n} others: "
        f"{calibration.tested.count} false alarms, so that the true rate may be anything from {low:.1%} to {high:.1%}, "
        "and further off on slides unlike these"
    ]
    first, second = calibration.slides
    if second == 0:
        result.append(
            "all held-out patches count as one slide, so that threshold and test are not independent; in folders, give "
            "each slide a subfolder"
        )
    elif min(first, second) < 3:
        result.append(
            f"the threshold comes from {first} slide(s) and the test from {second}: so few say little about others, "
            "since patches of one slide are alike"
        )
    plain = int(audit.too_plain_N.sum())
    if plain:
        result.append(
            f"{plain} of {audit.copies.n} samples show so little (empty glass, a few cells) that a changed copy might "
            "not be recognised"
        )
    halves = int(audit.half_too_plain_N.sum()) - plain
    if halves > 0:
        result.append(
            f"{halves} others have a half that shows so little that a copy of it alone might not be recognised"
        )
    if audit.copies.interval[0] <= high:
        result.append("the copy rate is no higher than what false alarms alone may give")
    return result
