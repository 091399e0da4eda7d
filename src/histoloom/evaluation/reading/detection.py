"""Results of the readings that ask whether a picture is real or synthetic.

Legend of shapes: N pictures, R readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import roc_auc_score

from histoloom.evaluation.reading.folder import Answer
from histoloom.evaluation.reading.plan import LEVELS, Plan
from histoloom.evaluation.statistics import (
    Estimate,
    area_interval,
    binomial_p,
    bootstrap_interval,
    detectable_accuracy,
    share_estimate,
)
from histoloom.seeding import numpy_generator

MIDDLE = len(LEVELS) // 2
"""``cannot tell``: half right, as a coin would be on average"""


@dataclass(frozen=True)
class Seconds:
    """Median seconds for an answer: to all pictures, to real and to synthetic ones."""

    all: float
    real: float
    synthetic: float


@dataclass(frozen=True)
class Levels:
    """How often each of the five levels was the answer, to real and to synthetic pictures."""

    real: tuple[int, ...]
    synthetic: tuple[int, ...]


@dataclass(frozen=True)
class CorrectAnswers:
    """How many of ``n`` answers are correct; ``cannot tell`` counts half. ``told`` is the key in ``results.json``."""

    told: float
    n: int


@dataclass(frozen=True)
class TissueResult:
    """How often samples and real patches of one tissue were recognised."""

    tissue: str
    synthetic: CorrectAnswers
    real: CorrectAnswers


@dataclass(frozen=True)
class Mistake:
    """A picture with a wrong answer: the number of its trial, its ``sample_id`` or ``patch_id``, and what it is."""

    trial: int
    name: str
    synthetic: bool


@dataclass(frozen=True)
class DetectionResult:
    """The numbers of one reader; "positive" is synthetic.

    ``cannot tell`` counts as half right. Intervals are 95 %: of shares Wilson's, of the AUC Newcombe's. ``p``: exact,
    of as many right among the decided answers by guessing; None without decided answers. ``verdict``: ``better``,
    ``worse`` or ``open``: on which side of chance the accuracy's interval lies. ``finished``: time of the last answer.
    """

    reader: str
    n: int
    right: int
    unsure: int
    accuracy: Estimate
    sensitivity: Estimate
    specificity: Estimate
    auc: Estimate
    p: float | None
    seconds: Seconds
    levels: Levels
    tissues: tuple[TissueResult, ...]
    mistaken: tuple[Mistake, ...]
    finished: str
    verdict: str = ""
    sentence: str = ""


@dataclass(frozen=True)
class TogetherResult:
    """Several readers together: mean accuracy with its interval over pictures, and what most of them took wrongly."""

    readers: int
    accuracy: Estimate
    tissues: tuple[TissueResult, ...]
    mistaken: tuple[Mistake, ...]


def detection(plan: Plan, answers: Mapping[int, Answer], *, reader: str) -> DetectionResult:
    """The numbers of one reader who answered every picture."""
    synthetic_N, level_N, seconds_N = answer_arrays(plan, answers)
    right_N = credits(synthetic_N, level_N)
    n, unsure = len(right_N), int(np.sum(level_N == MIDDLE))
    decided_right = int(np.sum(right_N == 1))
    auc = float(roc_auc_score(synthetic_N, level_N))
    positives = int(synthetic_N.sum())
    result = DetectionResult(
        reader=reader,
        n=n,
        right=decided_right,
        unsure=unsure,
        accuracy=share_estimate(right_N),
        sensitivity=share_estimate(right_N[synthetic_N]),
        specificity=share_estimate(right_N[~synthetic_N]),
        auc=Estimate(auc, area_interval(auc, positives=positives, negatives=n - positives)),
        p=binomial_p(decided_right, n - unsure - decided_right),
        seconds=Seconds(
            all=float(np.median(seconds_N)),
            real=float(np.median(seconds_N[~synthetic_N])),
            synthetic=float(np.median(seconds_N[synthetic_N])),
        ),
        levels=Levels(
            real=tuple(np.bincount(level_N[~synthetic_N], minlength=len(LEVELS)).tolist()),
            synthetic=tuple(np.bincount(level_N[synthetic_N], minlength=len(LEVELS)).tolist()),
        ),
        tissues=_tissues(plan, right_N),
        mistaken=mistakes(plan, right_N),
        finished=max(answer.time for answer in answers.values()),
    )

    low, high = result.accuracy.interval
    verdict = "better" if low > 0.5 else "worse" if high < 0.5 else "open"
    unsure_text = f" and could not tell {unsure}, which count half" if unsure else ""
    share = f"{result.accuracy.value:.0%} ({low:.0%} to {high:.0%})"
    sentence = f"{reader} was right in {decided_right} of {n}{unsure_text}: {share}"
    if verdict == "better":
        sentence += ", better than chance: this reader tells samples from real ones."
    elif verdict == "worse":
        sentence += ", worse than chance: this reader tells them apart and takes them for each other."
    else:
        detectable = detectable_accuracy(n)
        bound = "" if detectable is None else f", which would mostly miss a true accuracy below {detectable:.0%}"
        sentence += f": not shown to be better than chance by {n} pictures{bound}."
    return replace(result, verdict=verdict, sentence=sentence)


def detection_together(plan: Plan, answers: Mapping[str, Mapping[int, Answer]]) -> TogetherResult:
    """All readers: the mean accuracy, its interval over pictures, and which pictures most of them took for the other.

    The interval is by bootstrap over pictures, which all readers share: it says what these readers would reach on
    other pictures of this run, not what other readers would.
    """
    right_RN = np.stack([credits(*answer_arrays(plan, of_reader)[:2]) for of_reader in answers.values()])
    mean_N = right_RN.mean(axis=0)
    rng = numpy_generator(plan.seed, "reading", "together", plan.id)
    return TogetherResult(
        readers=len(right_RN),
        accuracy=Estimate(float(mean_N.mean()), bootstrap_interval(mean_N, rng=rng)),
        tissues=_tissues(plan, mean_N),
        mistaken=mistakes(plan, mean_N),
    )


def credits(synthetic_N: np.ndarray, level_N: np.ndarray) -> np.ndarray:
    """How right each answer is: 1, 0, or 1/2 for ``cannot tell``."""
    right_N = np.where(synthetic_N, level_N > MIDDLE, level_N < MIDDLE).astype(float)
    return np.where(level_N == MIDDLE, 0.5, right_N)


def answer_arrays(plan: Plan, answers: Mapping[int, Answer]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each trial is synthetic (bool), the answer's place in the plan's choices, and seconds, (N,) each."""
    trials = range(len(plan.trials))
    return (
        np.array([trial.synthetic for trial in plan.trials]),
        np.array([answers[trial].answer for trial in trials]),
        np.array([answers[trial].seconds for trial in trials]),
    )


def _tissues(plan: Plan, right_N: np.ndarray) -> tuple[TissueResult, ...]:
    """Of each tissue that was shown, how often its samples and its real pictures were recognised."""
    results = []
    for tissue, name in enumerate(plan.names):
        correct = {}
        for synthetic in (True, False):
            rows = [i for i, t in enumerate(plan.trials) if t.tissue == tissue and t.synthetic == synthetic]
            correct[synthetic] = CorrectAnswers(float(right_N[rows].sum()), len(rows))
        if correct[True].n:
            results.append(TissueResult(name, synthetic=correct[True], real=correct[False]))
    return tuple(results)


def mistakes(plan: Plan, right_N: np.ndarray) -> tuple[Mistake, ...]:
    """The pictures with a wrong answer; of several readers, of most of them."""
    wrong = np.flatnonzero(right_N < 0.5).tolist()
    return tuple(Mistake(i, plan.trials[i].name, plan.trials[i].synthetic) for i in wrong)
