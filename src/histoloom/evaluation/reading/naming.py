"""Results of the readings that ask which tissue a picture shows.

Legend of shapes: N pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from histoloom.evaluation.intervals import wilson_interval
from histoloom.evaluation.reading.folder import Answer
from histoloom.evaluation.reading.plan import Plan
from histoloom.evaluation.reading.statistics import difference_interval, kappa, kappa_interval
from histoloom.seeding import numpy_generator


def naming(plan: Plan, given: Mapping[int, Answer], *, reader: str) -> dict[str, Any]:
    """The numbers of one reader who answered every picture: of samples, and of real patches as their measure.

    ``cannot tell`` counts as another name than the right one. The truth of a sample is the tissue that it was drawn
    for, of a real patch the name of its cluster. ``difference``: samples less real patches, Newcombe's interval.
    """
    synthetic_N = np.array([trial.synthetic for trial in plan.trials])
    truth_N = np.array([trial.tissue for trial in plan.trials])
    said_N = np.array([given[trial].answer for trial in range(len(plan.trials))])
    seconds_N = np.array([given[trial].seconds for trial in range(len(plan.trials))])
    parts = {
        name: _part(plan, truth_N[which], said_N[which], what=[reader, name]) | {"seconds": _median(seconds_N[which])}
        for name, which in (("samples", synthetic_N), ("real", ~synthetic_N))
    }
    pairs = [(parts[name]["accuracy"]["value"], parts[name]["n"]) for name in ("samples", "real")]
    low, high = difference_interval(*pairs)
    found = {
        "reader": reader,
        "n": len(truth_N),
        "tissues": list(plan.names),
        **parts,
        "difference": {"value": pairs[0][0] - pairs[1][0], "interval": [low, high]},
        "chance": 1 / len(plan.names),
        "seconds": _median(seconds_N),
        "mistaken": [
            {"trial": int(i), "name": plan.trials[i].name, "synthetic": plan.trials[i].synthetic}
            for i in np.flatnonzero(truth_N != said_N)
        ],
        "finished": max(answer.time for answer in given.values()),
    }
    return found | {"verdict": verdict(found), "sentence": sentence(found)}


def verdict(found: Mapping[str, Any]) -> str:
    """``fewer``, ``more`` or ``open``: whether samples are named as meant less often than real patches."""
    low, high = found["difference"]["interval"]
    return "fewer" if high < 0 else "more" if low > 0 else "open"


def sentence(found: Mapping[str, Any]) -> str:
    """Whether samples show what they were drawn for, in words."""
    words = {
        "fewer": "samples show it less clearly than real patches do",
        "more": "samples show it more clearly than real patches do",
        "open": "no difference is shown by so many pictures",
    }
    low, high = found["difference"]["interval"]
    return (
        f"{found['reader']} named {_percent(found['samples'])} of the samples as what they were drawn for, and "
        f"{_percent(found['real'])} of the real patches as their cluster: {words[verdict(found)]} "
        f"(difference {_points(found['difference']['value'])}, {_points(low)} to {_points(high)}; by chance "
        f"{found['chance']:.0%})."
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.0f} points"


def _part(plan: Plan, truth_N: np.ndarray, said_N: np.ndarray, *, what: list[str]) -> dict[str, Any]:
    """Accuracy, kappa, confusion (rows: what it is, columns: the answers, the last ``cannot tell``) and recalls."""
    right, n = int(np.sum(truth_N == said_N)), len(truth_N)
    confusion = confusion_matrix(truth_N, said_N, labels=np.arange(len(plan.choices)))[: len(plan.names)]
    rng = numpy_generator(plan.seed, "reading", "kappa", plan.id, *what)
    interval = kappa_interval(truth_N, said_N, rng=rng)
    value = kappa(truth_N, said_N)
    return {
        "n": n,
        "right": right,
        "accuracy": {"value": right / n, "interval": list(wilson_interval(right, n))},
        "kappa": None if value is None or interval is None else {"value": value, "interval": list(interval)},
        "confusion": confusion.tolist(),
        "recalls": [_recall(row, tissue=tissue) for tissue, row in enumerate(confusion)],
    }


def _recall(row: np.ndarray, *, tissue: int) -> dict[str, Any] | None:
    n = int(row.sum())
    return None if not n else {"value": int(row[tissue]) / n, "interval": list(wilson_interval(int(row[tissue]), n))}


def _percent(part: Mapping[str, Any]) -> str:
    low, high = part["accuracy"]["interval"]
    return f"{part['accuracy']['value']:.0%} ({low:.0%} to {high:.0%})"


def _median(seconds: np.ndarray) -> float:
    return float(np.median(seconds))
