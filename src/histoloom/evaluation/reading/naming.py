"""Results of the readings that ask which tissue a picture shows.

Legend of shapes: N pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import confusion_matrix

from histoloom.evaluation.reading.detection import Mistake, answer_arrays, mistakes
from histoloom.evaluation.reading.folder import Answer
from histoloom.evaluation.reading.plan import Plan
from histoloom.evaluation.statistics import Estimate, difference_interval, kappa, kappa_interval, share_estimate
from histoloom.seeding import numpy_generator

SENTENCES = {
    "fewer": "samples show it less clearly than real patches do",
    "more": "samples show it more clearly than real patches do",
    "open": "no difference is shown by so many pictures",
}


@dataclass(frozen=True)
class NamedPictures:
    """The answers to one kind of pictures, samples or real patches.

    ``confusion``: rows are the true tissues, columns the answers, the last one ``cannot tell``. ``recalls``: for each
    tissue, None where none was shown. ``kappa``: None where it is not defined. ``seconds``: the median.
    """

    n: int
    right: int
    accuracy: Estimate
    kappa: Estimate | None
    confusion: tuple[tuple[int, ...], ...]
    recalls: tuple[Estimate | None, ...]
    seconds: float


@dataclass(frozen=True)
class NamingResult:
    """The numbers of one reader: of samples, and of real patches as their measure.

    ``difference``: accuracy of samples less that of real patches, with Newcombe's interval. ``verdict``: ``fewer``,
    ``more`` or ``open``: whether samples are named as requested less often than real patches.
    """

    reader: str
    n: int
    tissues: tuple[str, ...]
    samples: NamedPictures
    real: NamedPictures
    difference: Estimate
    chance: float
    seconds: float
    mistaken: tuple[Mistake, ...]
    finished: str
    verdict: str = ""
    sentence: str = ""


def naming(plan: Plan, answers: Mapping[int, Answer], *, reader: str) -> NamingResult:
    """The numbers of one reader who answered every picture.

    ``cannot tell`` counts as another name than the right one. The truth of a sample is the tissue for which it was
    generated, of a real patch the name of its cluster.
    """
    synthetic_N, answer_N, seconds_N = answer_arrays(plan, answers)
    truth_N = np.array([trial.tissue for trial in plan.trials])

    def pictures(which_N: np.ndarray, kind: str) -> NamedPictures:
        truth, answer = truth_N[which_N], answer_N[which_N]
        confusion = confusion_matrix(truth, answer, labels=np.arange(len(plan.choices)))[: len(plan.names)]
        rng = numpy_generator(plan.seed, "reading", "kappa", plan.id, reader, kind)
        interval, agreement = kappa_interval(truth, answer, rng=rng), kappa(truth, answer)
        recalls: list[Estimate | None] = []
        for tissue in range(len(plan.names)):
            is_named_n = answer[truth == tissue] == tissue
            recalls.append(share_estimate(is_named_n) if len(is_named_n) else None)
        return NamedPictures(
            n=len(truth),
            right=int(np.sum(truth == answer)),
            accuracy=share_estimate(truth == answer),
            kappa=None if agreement is None or interval is None else Estimate(agreement, interval),
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            recalls=tuple(recalls),
            seconds=float(np.median(seconds_N[which_N])),
        )

    samples, real = pictures(synthetic_N, "samples"), pictures(~synthetic_N, "real")
    low, high = difference_interval((samples.accuracy.value, samples.n), (real.accuracy.value, real.n))
    result = NamingResult(
        reader=reader,
        n=len(truth_N),
        tissues=tuple(plan.names),
        samples=samples,
        real=real,
        difference=Estimate(samples.accuracy.value - real.accuracy.value, (low, high)),
        chance=1 / len(plan.names),
        seconds=float(np.median(seconds_N)),
        mistaken=mistakes(plan, (truth_N == answer_N).astype(float)),
        finished=max(answer.time for answer in answers.values()),
    )

    verdict = "fewer" if high < 0 else "more" if low > 0 else "open"
    shares = [
        f"{part.accuracy.value:.0%} ({part.accuracy.interval[0]:.0%} to {part.accuracy.interval[1]:.0%})"
        for part in (samples, real)
    ]
    points = [f"{100 * number:+.0f} points" for number in (result.difference.value, low, high)]
    sentence = (
        f"{reader} named {shares[0]} of the samples as what they were drawn for, and {shares[1]} of the real patches "
        f"as their group: {SENTENCES[verdict]} "
        f"(difference {points[0]}, {points[1]} to {points[2]}; by chance {result.chance:.0%})."
    )
    return replace(result, verdict=verdict, sentence=sentence)
