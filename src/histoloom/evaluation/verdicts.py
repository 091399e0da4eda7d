"""What all checks of samples show together: ``verdicts.json``, of the chosen k.

A difference that was not found is not equality. Samples are called like real only where a check bounds their
difference: its 95 % interval must end within a margin of the floor (a test of equivalence). A verdict rests on the
two-sample test, which needs no trained weights. Further checks, where they were made, can only make it worse. Copies
are another question, on which a verdict says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from histoloom.evaluation.images import SampleFolder
from histoloom.evaluation.results import (
    Check,
    CheckWord,
    Distribution,
    Faithfulness,
    Recognition,
    Separation,
    SetComparison,
    TwoSample,
    Verdict,
    Verdicts,
    VerdictWord,
)
from histoloom.evaluation.statistics import Interval, difference_interval
from histoloom.run.stage import StageContext

AUC_MARGIN = 0.05
"""samples are like real where their AUC ends at most so much above the floor's mean"""
RECALL_MARGIN = 0.1
"""samples are recognised like real patches where at most this share fewer of them is"""
MAX_FLOOR = 0.85
"""real patches of other slides that are told apart as well as this leave no room for a comparison"""
DISTANCE_FACTOR = 2.0
"""samples are farther than real patches of other slides where their distance begins at so many times the floor's end"""
CHECKED_DISTANCE = "kid"
"""the distance of sets that serves as a check: unlike Frechet's it does not depend on the number of images"""

_ORDER: tuple[VerdictWord, ...] = ("different", "too few", "like real")  # the worst first


def make_verdicts(
    *,
    k: int,
    two_sample: TwoSample | None,
    faithfulness: Faithfulness | None,
    distribution: Distribution | None,
    clusters: Sequence[int],
) -> Verdicts:
    """The verdicts at ``k``, on all samples and on those of each of ``clusters``, from what was measured."""
    if faithfulness is not None and faithfulness.k != k:
        faithfulness = None

    def checks(cluster: int | None) -> list[Check]:
        distances = () if distribution is None else distribution.select(k=k, cluster=cluster)
        return [
            *two_sample_checks(two_sample, cluster=cluster),
            *recognition_checks(faithfulness, cluster=cluster),
            *distance_checks(distances),
        ]

    by_cluster = {cluster: verdict(checks(cluster)) for cluster in clusters}
    overall = checks(None)
    bad = [cluster for cluster, one in by_cluster.items() if one.word == "different"]
    if bad:
        which = f"cluster {bad[0]}" if len(bad) == 1 else f"{len(bad)} of {len(clusters)} clusters"
        sentence = f"the samples of {which} differ from real patches"
        overall.append(Check(name="clusters", word="different", short=sentence, sentence=sentence))
    return Verdicts(k=k, overall=verdict(overall), clusters=by_cluster)


def two_sample_checks(result: TwoSample | None, *, cluster: int | None) -> list[Check]:
    """The checks by texture and by colour, of a cluster or (None) of all."""
    if result is None or result.note is not None:
        reason = "the two-sample test was not made" if result is None else f"the two-sample test: {result.note}"
        return [Check(name="two-sample test", word="not measured", short=reason, sentence=reason)]
    checks = []
    for aspect, told in (("texture", result.texture), ("colour", result.colour)):
        if told is not None:
            samples, floor = told.samples, told.floor
            if cluster is not None:
                samples, floor = told.clusters.get(cluster), told.floor_clusters.get(cluster)
            telling = "" if cluster is not None or not told.telling else told.telling[0].name
            checks.append(two_sample_check(samples, floor=floor, aspect=aspect, telling=telling))
    return checks


def write_verdicts(context: StageContext, *, samples: SampleFolder, k: int) -> None:
    """Write ``verdicts.json`` of the chosen ``k``, from the other files of the stage; nothing without samples of it."""
    if k not in samples.ks:
        return
    verdicts = make_verdicts(
        k=k,
        two_sample=TwoSample.load(context.out),
        faithfulness=Faithfulness.load(context.out),
        distribution=Distribution.load(context.out),
        clusters=sorted(samples.rows(k)),
    )
    verdicts.save(context.out)
    context.say(f"k = {k}: the samples are judged {verdicts.overall.text.rstrip('.')}")


def verdict(checks: Sequence[Check]) -> Verdict:
    """The worst of the checks, in one sentence; the first is the two-sample test, without which none is "like real"."""
    words = [check.word for check in checks]
    if "different" in words:
        word: VerdictWord = "different"
    elif checks[0].word == "not measured":
        word = "not measured"
    else:
        word = next(word for word in _ORDER if word in words)
    sentence = "; ".join(check.short for check in checks if check.word == word)
    return Verdict(word=word, sentence=f"{sentence[:1].upper()}{sentence[1:]}.", checks=tuple(checks))


def two_sample_check(samples: Separation | None, *, floor: Separation | None, aspect: str, telling: str = "") -> Check:
    """Whether a classifier tells samples better than it tells real patches of other slides.

    ``telling`` names the features that tell them most.
    """
    name = f"two-sample test, {aspect}"
    if samples is None or floor is None:
        what = "samples or held-out patches" if samples is None else "patches of other slides"
        short = f"there are too few {what} for a two-sample test by {aspect}"
        return Check(name=name, word="too few", short=short, sentence=short)
    real, synthetic = samples.n
    limit = floor.auc + AUC_MARGIN
    auc = f"AUC {samples.auc:.2f} ({_range(samples.interval)}); real patches of other slides: {floor.auc:.2f}"
    sentence = (
        f"by {aspect}, a classifier tells {synthetic:,} samples from {real:,} real patches with an AUC of "
        f"{samples.auc:.2f} ({_range(samples.interval)}), and real patches of other slides with {floor.auc:.2f} "
        f"({_range(floor.interval)})"
    )
    word: CheckWord = "too few"
    if samples.interval[0] > floor.interval[1]:
        word = "different"
        short = f"a classifier tells samples from real patches by {aspect} ({auc})"
        sentence += telling and f"; most by {telling}"
    elif floor.auc > MAX_FLOOR:
        short = f"slides differ so much in {aspect} that more of them are needed ({auc})"
    elif samples.interval[1] <= limit:
        word = "like real"
        short = f"a classifier tells samples by {aspect} no better than it tells real patches of other slides ({auc})"
        sentence += f", which is within the margin of {AUC_MARGIN}"
    else:
        short = f"{synthetic:,} samples do not decide by {aspect} ({auc})"
        if samples.auc < limit:
            # Intervals narrow with the root of the number.
            needed = synthetic * ((samples.interval[1] - samples.auc) / (limit - samples.auc)) ** 2
            if needed < 100 * synthetic:
                digits = 10 ** max(0, int(math.log10(needed)) - 1)
                short += f", and about {math.ceil(needed / digits) * digits:,} could be enough"
    return Check(name=name, word=word, short=short, sentence=sentence)


def recognition_checks(faithfulness: Faithfulness | None, *, cluster: int | None) -> list[Check]:
    """Whether networks recognise the samples of a cluster (None: of all) as often as real patches of it."""
    if faithfulness is None:
        return []
    measured: list[tuple[str, Recognition, Recognition, str]] = []
    if faithfulness.clusterer is not None:
        of_run = faithfulness.clusterer
        words = "real patches after the VQ-GAN"
        measured.append(("the run's clusterer", of_run.samples, of_run.reconstructions, words))
    if faithfulness.classifier is not None:
        independent = faithfulness.classifier
        words = "held-out real patches"
        measured.append(("an independent classifier", independent.samples, independent.held_out, words))
    checks = []
    for name, samples, real, of_real in measured:
        found, reference = _recall(samples, cluster), _recall(real, cluster)
        if found is None:
            continue
        sentence = f"{name} recognises {found[0]:.0%} of the samples"
        if reference is None:
            short = sentence = f"{sentence}, and there are no {of_real} to compare with"
            checks.append(Check(name=name, word="too few", short=short, sentence=sentence))
            continue
        low, high = difference_interval(found, reference)
        short = f"{sentence} and {reference[0]:.0%} of {of_real}"
        word: VerdictWord = "like real" if low >= -RECALL_MARGIN else "different" if high < 0 else "too few"
        if cluster is not None and word != "like real":
            short += _mistaken_for(samples, cluster)
        sentence = f"{short} (difference {_range((low, high), signed=True)})"
        checks.append(Check(name=name, word=word, short=short, sentence=sentence))
    return checks


def _recall(recognition: Recognition, cluster: int | None) -> tuple[float, int] | None:
    """The share of a cluster's images that is recognised (None: the balanced accuracy), and their number."""
    if cluster is None:
        return recognition.accuracy, recognition.n
    recall = recognition.recall[cluster]
    return None if recall is None else (recall, sum(recognition.confusion[cluster]))


def _mistaken_for(recognition: Recognition, cluster: int) -> str:
    """The other cluster that at least a tenth of the samples are taken for, as the end of a sentence."""
    counts = recognition.confusion[cluster]
    others = {other: count for other, count in enumerate(counts) if other != cluster}
    if not others:
        return ""
    commonest = max(others, key=lambda other: others[other])
    often = others[commonest] >= max(1, sum(counts) / 10)
    return f", and most often mistakes them for cluster {commonest}" if often else ""


def distance_checks(entries: Sequence[SetComparison]) -> Iterator[Check]:
    """Distances of sets that are far larger than their floor. They can only show a difference.

    The floor's interval is of the same few slides. Real patches of further slides can be farther, so the distance
    counts from ``DISTANCE_FACTOR`` on. Distances by the run's own encoder are left out, since it is not independent.
    """
    for entry in entries:
        if entry.metric == CHECKED_DISTANCE and entry.extractor != "encoder":
            differs = entry.interval[0] > DISTANCE_FACTOR * max(0.0, entry.floor_interval[1])
            sentence = (
                f"the kernel distance by {entry.extractor} is {entry.value:.3g} ({_range(entry.interval, digits=3)}), "
                f"and {entry.floor:.3g} ({_range(entry.floor_interval, digits=3)}) for other real patches"
            )
            word: CheckWord = "different" if differs else "no difference seen"
            short = f"samples are farther from real patches than these from one another by {entry.extractor}"
            yield Check(name=f"distance by {entry.extractor}", word=word, short=short, sentence=sentence)


def _range(interval: Interval, *, digits: int = 2, signed: bool = False) -> str:
    """``0.43 to 0.57``; or, signed, ``-5 % to +3 %``."""
    low, high = interval
    return f"{low:+.0%} to {high:+.0%}" if signed else f"{low:.{digits}g} to {high:.{digits}g}"
