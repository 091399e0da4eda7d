"""Results of the readings that ask whether a picture is real or synthetic.

Legend of shapes: N pictures, R readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from histoloom.evaluation.intervals import bootstrap_interval, wilson_interval
from histoloom.evaluation.reading.folder import Answer
from histoloom.evaluation.reading.plan import LEVELS, Plan
from histoloom.evaluation.reading.statistics import area, area_interval, chance_p, noticed_from
from histoloom.seeding import numpy_generator

MIDDLE = len(LEVELS) // 2
"""``cannot tell``: half right, as a coin would be on average"""


def detection(plan: Plan, given: Mapping[int, Answer], *, reader: str) -> dict[str, Any]:
    """The numbers of one reader who answered every picture; "positive" is synthetic.

    ``cannot tell`` counts as half right. Intervals are 95 %: of shares Wilson's, of the area Newcombe's. ``p``: exact,
    of as many right among the decided answers by guessing. Seconds are medians.
    """
    synthetic_N, level_N, seconds_N = _arrays(plan, given)
    right_N = credits(synthetic_N, level_N)
    n, unsure = len(right_N), int(np.sum(level_N == MIDDLE))
    decided = int(np.sum(right_N == 1))
    value = area(synthetic_N, level_N)
    positives = int(synthetic_N.sum())
    found = {
        "reader": reader,
        "n": n,
        "right": decided,
        "unsure": unsure,
        "accuracy": share(right_N),
        "sensitivity": share(right_N[synthetic_N]),
        "specificity": share(right_N[~synthetic_N]),
        "auc": {"value": value, "interval": list(area_interval(value, positives=positives, negatives=n - positives))},
        "p": chance_p(decided, n - unsure - decided),
        "seconds": {
            "all": float(np.median(seconds_N)),
            "real": float(np.median(seconds_N[~synthetic_N])),
            "synthetic": float(np.median(seconds_N[synthetic_N])),
        },
        "levels": {
            "real": np.bincount(level_N[~synthetic_N], minlength=len(LEVELS)).tolist(),
            "synthetic": np.bincount(level_N[synthetic_N], minlength=len(LEVELS)).tolist(),
        },
        "tissues": _tissues(plan, right_N),
        "mistaken": _mistaken(plan, right_N),
        "finished": max(answer.time for answer in given.values()),
    }
    return found | {"verdict": verdict(found), "sentence": sentence(found)}


def detection_together(plan: Plan, given: Mapping[str, Mapping[int, Answer]]) -> dict[str, Any]:
    """All readers: the mean accuracy, its interval over pictures, and which pictures most of them took for the other.

    The interval is by bootstrap over pictures, which all readers share: it says what these readers would reach on
    other pictures of this run, not what other readers would.
    """
    right_RN = np.stack([credits(*_arrays(plan, answers)[:2]) for answers in given.values()])
    mean_N = right_RN.mean(axis=0)
    rng = numpy_generator(plan.seed, "reading", "together", plan.id)
    return {
        "readers": len(right_RN),
        "accuracy": {"value": float(mean_N.mean()), "interval": list(bootstrap_interval(mean_N, rng=rng))},
        "tissues": _tissues(plan, mean_N),
        "mistaken": _mistaken(plan, mean_N),
    }


def credits(synthetic_N: np.ndarray, level_N: np.ndarray) -> np.ndarray:
    """How right each answer is: 1, 0, or 1/2 for ``cannot tell``."""
    right_N = np.where(synthetic_N, level_N > MIDDLE, level_N < MIDDLE).astype(float)
    return np.where(level_N == MIDDLE, 0.5, right_N)


def share(right_N: np.ndarray) -> dict[str, Any]:
    """A mean with Wilson's interval."""
    return {"value": float(right_N.mean()), "interval": list(wilson_interval(float(right_N.sum()), len(right_N)))}


def verdict(found: Mapping[str, Any]) -> str:
    """``better``, ``worse`` or ``open``: on which side of chance the accuracy's interval lies."""
    low, high = found["accuracy"]["interval"]
    return "better" if low > 0.5 else "worse" if high < 0.5 else "open"


def sentence(found: Mapping[str, Any]) -> str:
    """Whether the reader does better than chance, in words."""
    low, high = found["accuracy"]["interval"]
    unsure = f" and could not tell {found['unsure']}, which count half" if found["unsure"] else ""
    begin = (
        f"{found['reader']} was right in {found['right']} of {found['n']}{unsure}: {found['accuracy']['value']:.0%} "
        f"({low:.0%} to {high:.0%})"
    )
    kind = verdict(found)
    if kind == "better":
        return f"{begin}, better than chance: this reader tells samples from real ones."
    if kind == "worse":
        return f"{begin}, worse than chance: this reader tells them apart and takes them for each other."
    noticed = noticed_from(found["n"])
    bound = "" if noticed is None else f", which would mostly miss a true accuracy below {noticed:.0%}"
    return f"{begin}: not shown to be better than chance by {found['n']} pictures{bound}."


def _arrays(plan: Plan, given: Mapping[int, Answer]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth (bool), level 0..4 and seconds of each trial, (N,) each."""
    trials = range(len(plan.trials))
    return (
        np.array([trial.synthetic for trial in plan.trials]),
        np.array([given[trial].answer for trial in trials]),
        np.array([given[trial].seconds for trial in trials]),
    )


def _tissues(plan: Plan, right_N: np.ndarray) -> list[dict[str, Any]]:
    """Of each tissue that was shown, how often its samples and its real pictures were told."""
    rows = []
    for tissue, name in enumerate(plan.names):
        of = {
            synthetic: [i for i, t in enumerate(plan.trials) if t.tissue == tissue and t.synthetic == synthetic]
            for synthetic in (True, False)
        }
        if of[True]:
            rows.append(
                {
                    "tissue": name,
                    "synthetic": {"told": float(right_N[of[True]].sum()), "n": len(of[True])},
                    "real": {"told": float(right_N[of[False]].sum()), "n": len(of[False])},
                }
            )
    return rows


def _mistaken(plan: Plan, right_N: np.ndarray) -> list[dict[str, Any]]:
    """The pictures that were taken for the other kind; of several readers, by most of them."""
    wrong = np.flatnonzero(right_N < 0.5).tolist()
    return [{"trial": i, "name": plan.trials[i].name, "synthetic": plan.trials[i].synthetic} for i in wrong]
