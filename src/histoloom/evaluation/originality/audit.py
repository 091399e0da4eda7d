"""The whole check of a set of samples against the patches that the generator was trained on.

Shape suffixes: N samples, M training patches, H held-out patches, G side of a grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from histoloom.evaluation.originality.calibration import Auc, Share, auc, halves, least_images, threshold
from histoloom.evaluation.originality.close import best_score, weakest_half
from histoloom.evaluation.originality.greys import Pictures, small_greys
from histoloom.evaluation.originality.nearest import Nearest, nearest
from histoloom.progress import Meter, meter
from histoloom.seeding import permutation

VERSION = 2
"""of the scores: thresholds are of one version"""
RATE = 0.01
"""the false-alarm rate that thresholds are set for"""
MARGIN = 2
"""the threshold is set for ``RATE / MARGIN`` where there are patches enough: slides differ"""
SURE = 0.8
"""what an exact copy of a sample has to score at least, so that a changed copy would be found too"""
LEAST_A_PART = least_images(RATE)
"""held-out patches that set a threshold, and that test it"""
LARGEST = 4000
"""held-out patches that are looked at, drawn at random where there are more"""
MEMBERS = 300
"""training patches, and held-out ones, of the membership test"""


@dataclass(frozen=True)
class Sets:
    """What is compared. ``slide_H``: of each held-out patch; a slide's patches calibrate or test, never both."""

    samples: Pictures
    train: Pictures
    holdout: Pictures
    slide_H: Sequence[str]


@dataclass(frozen=True)
class Calibration:
    """``threshold``: a score above it is an alarm; ``tested``: alarms among held-out patches that did not set it.

    ``slides``: how many set it, and how many others tested it.
    """

    threshold: float
    rate: float
    calibration: int
    slides: tuple[int, int]
    tested: Share


@dataclass(frozen=True)
class Audit:
    """What was found. ``calibration`` is None where there were too few held-out patches to set a threshold."""

    nearest: Nearest
    best_N: np.ndarray
    """what an exact copy of the sample would score"""
    half_N: np.ndarray
    """what an exact copy of its weakest half would score"""
    calibration: Calibration | None
    membership: Auc | None
    n_train: int
    n_holdout: int

    @property
    def alarm_N(self) -> np.ndarray:
        """Whether each sample is taken for a copy."""
        if self.calibration is None:
            return np.zeros(len(self.best_N), bool)
        return self.nearest.score_N > self.calibration.threshold

    @property
    def plain_N(self) -> np.ndarray:
        """Whether a sample shows so little that a changed copy may not be known."""
        return self.best_N < SURE

    @property
    def plain_half_N(self) -> np.ndarray:
        """Whether a half of a sample shows so little that a copy of that half alone may not be known."""
        return self.half_N < SURE

    @property
    def copies(self) -> Share:
        """Alarms among all samples."""
        return Share(int(self.alarm_N.sum()), len(self.best_N))


def audit(sets: Sets, *, seed: int = 0, device: torch.device | None = None) -> Audit:
    """The nearest training patch of every sample, and what held-out patches score in the same way.

    ``seed`` draws the held-out patches, and those of the membership test.
    """
    held = drawn(len(sets.holdout), LARGEST, seed=seed, what="holdout")
    members = drawn(len(sets.train), min(len(held), MEMBERS), seed=seed, what="members")
    others = drawn(len(held), MEMBERS, seed=seed, what="others")
    total = 2 * (len(sets.samples) + len(held)) + len(sets.train) + len(others) + len(members)
    with meter("looking for copies", total=total) as counter:
        samples_NGG = small_greys(sets.samples, advance=counter.advance)
        train_MGG = small_greys(sets.train, advance=counter.advance)
        holdout_HGG = small_greys(sets.holdout, numbers=held, advance=counter.advance)
        search = _Search(device, counter)
        found = search(samples_NGG, train_MGG)
        calibration = _calibration([sets.slide_H[row] for row in held], holdout_HGG, train_MGG, search=search)
        membership = _membership(train_MGG[members], holdout_HGG[others], samples_NGG, search=search)
    best_N, half_N = best_score(samples_NGG), weakest_half(samples_NGG)
    return Audit(found, best_N, half_N, calibration, membership, len(train_MGG), len(held))


@dataclass(frozen=True)
class _Search:
    device: torch.device | None
    counter: Meter

    def __call__(self, pictures: np.ndarray, patches: np.ndarray) -> Nearest:
        return nearest(pictures, patches, device=self.device, advance=self.counter.advance)


def drawn(n: int, most: int, *, seed: int, what: str) -> np.ndarray:
    return np.sort(permutation(seed, "originality", what, n=n)[:most])


def _membership(
    members_NGG: np.ndarray, others_HGG: np.ndarray, samples_NGG: np.ndarray, *, search: _Search
) -> Auc | None:
    """Whether training patches are nearer to the samples than held-out ones are."""
    if min(len(members_NGG), len(others_HGG)) < 2:
        return None
    return auc(search(members_NGG, samples_NGG).score_N, search(others_HGG, samples_NGG).score_N)


def _calibration(
    slide_H: Sequence[str], holdout_HGG: np.ndarray, train_MGG: np.ndarray, *, search: _Search
) -> Calibration | None:
    """A threshold from one part of the held-out slides, tested on the other; None for too few patches."""
    if not can_calibrate(slide_H):
        search.counter.advance(len(holdout_HGG))
        return None
    return calibrated(slide_H, search(holdout_HGG, train_MGG).score_N)


def calibrated(slide_H: Sequence[str], score_H: np.ndarray) -> Calibration | None:
    """A threshold from the scores of one part of the held-out slides, tested on the other; None for too few patches."""
    if not can_calibrate(slide_H):
        return None
    first, second = halves(slide_H)
    rate = RATE / MARGIN if len(first) >= least_images(RATE / MARGIN) else RATE
    limit = threshold(score_H[first], rate=rate)
    tested = Share(int((score_H[second] > limit).sum()), len(second))
    names = [{slide_H[row] for row in part} for part in (first, second)]
    slides = len(names[0]), len(names[1] - names[0])
    return Calibration(limit, rate, len(first), slides, tested)


def can_calibrate(slide_H: Sequence[str]) -> bool:
    """Whether there are held-out patches enough to set a threshold, and to test it."""
    return min(len(part) for part in halves(slide_H)) >= LEAST_A_PART


def summary(found: Audit) -> dict[str, Any]:
    """The numbers as JSON-like data, without the samples."""
    copies, calibration, membership = found.copies, found.calibration, found.membership
    return {
        "version": VERSION,
        "n": copies.n,
        "copies": copies.count if calibration else None,
        "copy_rate": copies.value if calibration else None,
        "interval": copies.interval if calibration else None,
        "false_alarm_rate": calibration.tested.value if calibration else None,
        "false_alarm_interval": calibration.tested.interval if calibration else None,
        "threshold": calibration.threshold if calibration else None,
        "threshold_set_for": calibration.rate if calibration else None,
        "n_train": found.n_train,
        "n_calibration": calibration.calibration if calibration else 0,
        "n_test": calibration.tested.n if calibration else 0,
        "slides": list(calibration.slides) if calibration else [0, 0],
        "too_plain": int(found.plain_N.sum()),
        "plain_half": int(found.plain_half_N.sum()),
        "membership": None
        if membership is None
        else {"auc": membership.value, "interval": [membership.low, membership.high], "n": list(membership.n)},
        "notes": notes(found),
    }


def notes(found: Audit) -> list[str]:
    """What the numbers leave open, in sentences."""
    calibration = found.calibration
    if calibration is None:
        return [
            f"nothing could be calibrated: a threshold with a false-alarm rate of {RATE:.0%}, and its test on other "
            f"slides, need two groups of held-out slides of at least {LEAST_A_PART} patches each, and there are "
            f"{found.n_holdout} held-out patches in all; scores are given, copies are not counted"
        ]
    said = _limits(calibration)
    plain = int(found.plain_N.sum())
    if plain:
        said.append(
            f"{plain} of {found.copies.n} samples show so little (empty glass, a few cells) that a changed copy might "
            "not be known"
        )
    halves_too = int(found.plain_half_N.sum()) - plain
    if halves_too > 0:
        said.append(f"{halves_too} others have a half that shows so little that a copy of it alone might not be known")
    if found.copies.interval[0] <= calibration.tested.interval[1]:
        said.append("the copy rate is within what false alarms alone may give")
    return said


def _limits(calibration: Calibration) -> list[str]:
    low, high = calibration.tested.interval
    first, second = calibration.slides
    said = [
        f"threshold from {calibration.calibration} held-out patches, tested on {calibration.tested.n} others: "
        f"{calibration.tested.count} false alarms, so that the true rate may be anything from {low:.1%} to {high:.1%}, "
        "and further off on slides unlike these"
    ]
    if second == 0:
        said.append(
            "all held-out patches count as one slide, so that threshold and test are not independent; in folders, give "
            "each slide a subfolder"
        )
    elif min(first, second) < 3:
        said.append(
            f"the threshold comes from {first} slide(s) and the test from {second}: so few say little about others, "
            "since patches of one slide are alike"
        )
    return said
