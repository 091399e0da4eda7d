"""The quality of the samples in tables and sentences: pairs, distributions, recognition, and a verdict on each cluster.

Every number stands beside its floor: the same number of real patches against other real patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from histoloom.atlas.report.paper import BETTER, METRIC_TITLES
from histoloom.evaluation.results import (
    Accuracy,
    Distribution,
    DistributionEntry,
    Faithfulness,
    Originality,
    Recognition,
    Similarity,
    SimilarityEntry,
)

DISTRIBUTION_TITLES = {
    "frechet": "Frechet distance",
    "fid": "FID",
    "kid": "kernel distance (KID)",
    "precision": "precision: samples that lie among real patches",
    "recall": "recall: real patches that lie among samples",
}
"""The numbers that are shown, in this order; all others are in the file."""

EXTRACTOR_TITLES = {
    "pixels": "colours and coarse layout (pixels)",
    "encoder": "the run's own encoder, which is not independent",
}

TEXTURE_EXTRACTORS = ("lpips-alex", "lpips-squeeze", "lpips-vgg")
"""Extractors that respond to sharpness and texture, which generators lose first; the first that was measured counts."""


@dataclass(frozen=True)
class SimilarityRow:
    """One metric: synthetic against real, the floor (real against real), synthetic against other clusters.

    ``missing`` is the reason where the metric was not measured; ``reading`` states what the numbers mean.
    """

    title: str
    synthetic: SimilarityEntry | None
    floor: SimilarityEntry | None
    other: SimilarityEntry | None
    missing: str | None
    reading: str


@dataclass(frozen=True)
class DistributionRow:
    """One number by one extractor. ``reading`` states how samples compare with the floor."""

    title: str
    extractor: str
    numbers: DistributionEntry
    reading: str


@dataclass(frozen=True)
class DistributionTable:
    """The rows of one k, or of a cluster of it; ``sentences`` state what was compared, and the limits."""

    rows: tuple[DistributionRow, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class RecognitionLine:
    """Whether a cluster's samples are recognised like real tissue: the ``verdict``, and the numbers behind it."""

    verdict: str
    details: str


def similarity_rows(similarity: Similarity, *, k: int, cluster: int | None) -> list[SimilarityRow]:
    """SSIM, MS-SSIM and LPIPS of one cluster, or of all clusters of ``k`` together where ``cluster`` is None."""
    entries = {(entry.metric, entry.comparison): entry for entry in similarity.select(k=k, cluster=cluster)}
    rows = []
    for metric, title in METRIC_TITLES.items():
        synthetic, floor = entries.get((metric, "synthetic_real")), entries.get((metric, "real_real"))
        reason = similarity.missing.get(metric, "there is no number for it in this run")
        rows.append(
            SimilarityRow(
                title=title,
                synthetic=synthetic,
                floor=floor,
                other=entries.get((metric, "synthetic_other")),
                missing=None if synthetic else reason,
                reading=(
                    similarity_reading(synthetic, floor=floor, other=entries.get((metric, "synthetic_other")))
                    if synthetic and floor
                    else ""
                ),
            )
        )
    return rows


def similarity_reading(
    synthetic: SimilarityEntry, *, floor: SimilarityEntry, other: SimilarityEntry | None = None
) -> str:
    """How synthetic against real compares with real against real, and with real patches of other clusters (``other``).

    Intervals that overlap show no difference, which is not the same as equality.
    """
    larger_is_better = BETTER[synthetic.metric] == "larger"
    if synthetic.interval[0] <= floor.interval[1] and floor.interval[0] <= synthetic.interval[1]:
        reading = f"no difference from real pairs is seen with {synthetic.pairs:,} pairs"
    elif (synthetic.value > floor.value) == larger_is_better:
        reading = "more alike than real patches are to one another"
    else:
        reading = "less alike than real patches are to one another"
    if other is not None and (other.value > synthetic.value) == larger_is_better:
        reading += "; no more alike than with other clusters, so this number does not tell the clusters apart"
    return reading


def distribution_table(distribution: Distribution | None, *, k: int, cluster: int | None = None) -> DistributionTable:
    """The comparison of distributions, over all clusters where ``cluster`` is None.

    It has no rows where nothing was compared at this k.
    """
    if distribution is None:
        return DistributionTable((), ())
    entries = distribution.select(k=k, cluster=cluster)
    rows = [
        DistributionRow(
            title, EXTRACTOR_TITLES.get(entry.extractor, entry.extractor), entry, distribution_reading(entry)
        )
        for metric, title in DISTRIBUTION_TITLES.items()
        for entry in entries
        if entry.metric == metric
    ]
    return DistributionTable(tuple(rows), tuple(_comparison(entries, distribution=distribution, cluster=cluster)))


def distribution_reading(entry: DistributionEntry) -> str:
    """How samples compare with other real patches; intervals that overlap show no difference."""
    if entry.interval[0] <= entry.floor_interval[1] and entry.floor_interval[0] <= entry.interval[1]:
        return f"no difference from other real patches is seen with {entry.n_synthetic:,} samples"
    smaller = entry.interval[1] < entry.floor_interval[0]
    return (
        "better than other real patches" if smaller == (entry.better == "smaller") else "worse than other real patches"
    )


def _comparison(
    entries: Sequence[DistributionEntry], *, distribution: Distribution, cluster: int | None
) -> Iterator[str]:
    """What was compared with what, or why nothing was, and the limits of the numbers."""
    if entries:
        first = entries[0]
        real = f"{first.n_real:,} {'held-out' if first.real_split == 'holdout' else 'training'} patches"
        n_left, n_right = first.n_floor
        if cluster is None:
            yield (
                f"{first.n_synthetic:,} samples, every cluster by its frequency in real tissue, against {real}; mean "
                f"of {first.draws} such draws. The floor is {first.floor_from}: {n_right:,} against {n_left:,}."
            )
        else:
            yield (
                f"{first.n_synthetic:,} samples against {real} of the cluster; the floor is {n_right:,} "
                f"{first.floor_from} against them."
            )
    elif cluster is None:
        yield "Distributions were not compared: there are too few samples or real patches, or no extractor."
    elif distribution.entries:
        yield "Distributions of this cluster were not compared: it has too few samples or real patches."
    yield from dict.fromkeys(note for entry in entries for note in entry.notes)
    if cluster is None:
        for extractor, reason in distribution.missing.items():
            yield f"Not measured by {extractor}: {reason}"


def recognition_line(faithfulness: Faithfulness | None, *, cluster: int, k: int) -> RecognitionLine | None:
    """Whether the samples of a cluster are recognised like real tissue; None where it was not measured at this k."""
    if faithfulness is None or faithfulness.k != k:
        return None
    clusterer, classifier = faithfulness.clusterer, faithfulness.classifier
    measured: list[tuple[str, Recognition, Recognition, str]] = []
    if clusterer is not None:
        reference = clusterer.reconstructions
        measured.append(("the run's clusterer", clusterer.samples, reference, "of real patches after the VQ-GAN"))
    if classifier is not None:
        words = "of real patches of held-out slides"
        measured.append(("the independent classifier", classifier.samples, classifier.held_out, words))

    details, worse = [], []
    for name, samples, real, of_what in measured:
        recall, interval = samples.recall[cluster], samples.intervals[cluster]
        if recall is None or interval is None:
            continue
        real_recall, real_interval = real.recall[cluster], real.intervals[cluster]
        reference_text = f"{of_what}: none" if real_recall is None else f"{real_recall:.0%} {of_what}"
        detail = f"{name} recognises {recall:.0%} of the samples ({reference_text})"
        worse.append(real_interval is not None and interval[1] < real_interval[0])

        # The other cluster that at least a tenth of the samples are taken for
        counts = samples.confusion[cluster]
        others = {other: count for other, count in enumerate(counts) if other != cluster}
        commonest = max(others, key=lambda other: others[other])
        if others[commonest] >= max(1, sum(counts) / 10):
            detail += f", and most often mistakes them for cluster {commonest}"
        details.append(detail)
    if not details:
        return None
    if not any(worse):
        verdict = "Recognised like real tissue"
    else:
        verdict = (
            "Recognised less often than real tissue" if all(worse) else "Recognised like real tissue by one of two"
        )
    return RecognitionLine(verdict, "; ".join(details))


def usefulness_sentences(faithfulness: Faithfulness | None, *, k: int) -> tuple[str, ...]:
    """How well classifiers learn from all samples together, and why the run's own clusterer says nothing of them."""
    if faithfulness is None or faithfulness.k != k:
        return ()
    if faithfulness.note is not None:
        return (f"Whether samples are recognised as their cluster was not measured: {faithfulness.note}.",)
    useful = faithfulness.usefulness
    if useful is None:
        return ()

    def score(accuracy: Accuracy) -> str:
        low, high = accuracy.interval
        return f"{accuracy.accuracy:.0%} ({low:.0%} to {high:.0%})"

    sentences = [
        "A small classifier of the clusters, tested on real patches of held-out slides, recognises "
        f"{score(useful.real)} trained on real patches, {score(useful.synthetic)} trained on samples alone and "
        f"{score(useful.both)} trained on both ({faithfulness.n_real:,} real patches, {faithfulness.n_synthetic:,} "
        "samples; balanced over clusters)."
    ]
    if faithfulness.no_clusterer is not None:
        sentences.append(f"The run's own clusterer does not judge the samples: {faithfulness.no_clusterer}.")
    return tuple(sentences)


def cluster_verdict(
    *,
    recognition: RecognitionLine | None,
    distribution: Sequence[DistributionRow],
    originality: Originality | None,
    files: Sequence[str],
) -> str:
    """Recognition, texture and copies of a cluster's samples in one line; empty where none of them was measured.

    ``files`` are the names of the cluster's samples.
    """
    parts = [] if recognition is None else [recognition.verdict]
    by_extractor = {row.numbers.extractor: row.reading for row in distribution if row.numbers.metric == "kid"}
    texture = next((by_extractor[name] for name in TEXTURE_EXTRACTORS if name in by_extractor), None)
    if texture is not None:
        parts.append(f"texture {texture}")
    if originality is not None and originality.copy_rate is not None and files:
        names = set(files)
        copies = sum(sample.is_copy for sample in originality.samples if sample.file in names)
        some = f"{copies} of {len(names)} samples {'look' if copies > 1 else 'looks'} like a copy"
        parts.append(some if copies else "no sample looks like a copy")
    line = "; ".join(parts)
    return line[:1].upper() + line[1:] + "." if line else ""
