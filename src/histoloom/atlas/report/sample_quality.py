"""The quality of the samples in tables and sentences: pairs, distributions, and recognition.

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
    Similarity,
    SimilarityEntry,
)
from histoloom.evaluation.verdicts import recognition_checks

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
        reading += "; no more alike than with other groups, so this number does not tell the groups apart"
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
    return DistributionTable(tuple(rows), tuple(_comparison(entries, cluster=cluster)))


def distribution_reading(entry: DistributionEntry) -> str:
    """How samples compare with other real patches; intervals that overlap show no difference."""
    if entry.interval[0] <= entry.floor_interval[1] and entry.floor_interval[0] <= entry.interval[1]:
        return f"no difference from other real patches is seen with {entry.n_synthetic:,} samples"
    smaller = entry.interval[1] < entry.floor_interval[0]
    return (
        "better than other real patches" if smaller == (entry.better == "smaller") else "worse than other real patches"
    )


def _comparison(entries: Sequence[DistributionEntry], *, cluster: int | None) -> Iterator[str]:
    """What was compared with what, and the limits of the numbers."""
    if entries:
        first = entries[0]
        real = f"{first.n_real:,} {'held-out' if first.real_split == 'holdout' else 'training'} patches"
        n_left, n_right = first.n_floor
        if cluster is None:
            yield (
                f"{first.n_synthetic:,} samples, every group by its frequency in real tissue, against {real}; mean "
                f"of {first.draws} such draws. The floor is {first.floor_from}: {n_right:,} against {n_left:,}."
            )
        else:
            yield (
                f"{first.n_synthetic:,} samples against {real} of the group; the floor is {n_right:,} "
                f"{first.floor_from} against them."
            )
    yield from dict.fromkeys(note for entry in entries for note in entry.notes)


def recognition_details(faithfulness: Faithfulness | None, *, cluster: int, k: int) -> str:
    """How often two networks recognise the samples of a cluster; empty where it was not measured at this k."""
    if faithfulness is None or faithfulness.k != k:
        return ""
    return "; ".join(check.sentence for check in recognition_checks(faithfulness, cluster=cluster))


def usefulness_sentences(faithfulness: Faithfulness | None, *, k: int) -> tuple[str, ...]:
    """How well classifiers learn from all samples together, and why the run's own clusterer says nothing of them."""
    if faithfulness is None or faithfulness.k != k:
        return ()
    if faithfulness.note is not None:
        return (f"Whether samples are recognised as their group was not measured: {faithfulness.note}.",)
    useful = faithfulness.usefulness
    if useful is None:
        return ()

    def score(accuracy: Accuracy) -> str:
        low, high = accuracy.interval
        return f"{accuracy.accuracy:.0%} ({low:.0%} to {high:.0%})"

    sentences = [
        "A small classifier of the groups, tested on real patches of held-out slides, recognises "
        f"{score(useful.real)} trained on real patches, {score(useful.synthetic)} trained on samples alone and "
        f"{score(useful.both)} trained on both ({faithfulness.n_real:,} real patches, {faithfulness.n_synthetic:,} "
        "samples; balanced over groups)."
    ]
    if faithfulness.no_clusterer is not None:
        sentences.append(f"The run's own clusterer does not judge the samples: {faithfulness.no_clusterer}.")
    return tuple(sentences)
