"""The tables over k: the validity indices, and the paper's numbers next to the run's.

The records are those of the stages ``clusters`` and ``evaluation``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

from histoloom.atlas.report.paper import BETTER, INDEX_TITLES, METRIC_TITLES, ROWS
from histoloom.clustering.results import Decision, ValidityEntry, ValidityTable
from histoloom.evaluation.results import PaperSimilarity, Similarity, SimilarityEntry


@dataclass(frozen=True)
class Cell:
    """A number of a table; ``value`` is None where there is none. ``best`` marks the best of its column."""

    value: float | None
    best: bool = False


@dataclass(frozen=True)
class ValidityRow:
    """One k: the five indices of both methods, in the order of ``INDEX_TITLES``."""

    k: int
    chosen: bool
    votes: int
    infomax: tuple[Cell, ...]
    kmeans: tuple[Cell, ...]


@dataclass(frozen=True)
class PaperComparison:
    """One k of a table of the paper: pairs of (paper, run), None where there is no such number."""

    k: int
    pairs: tuple[tuple[float | None, float | None], ...]


@dataclass(frozen=True)
class RegionTable:
    """How clusters lie over the regions from which patches were drawn.

    ``rows``: each region's name, its patches, and the share of each cluster among them, 0..1, by falling number of
    patches. ``agreement``: adjusted mutual information of clusters and regions, None with a single region.
    """

    rows: tuple[tuple[str, int, tuple[float, ...]], ...]
    agreement: float | None


def region_table(region_N: np.ndarray, label_N: np.ndarray, *, k: int) -> RegionTable:
    """The table of each patch's region and cluster; patches without a cluster (-1) are left out."""
    region_N, label_N = region_N[label_N >= 0], label_N[label_N >= 0]
    names, code_N = np.unique(region_N.astype(str), return_inverse=True)
    counts_RK = np.bincount(code_N * k + label_N, minlength=len(names) * k).reshape(len(names), k)
    sizes_R = counts_RK.sum(axis=1)
    rows = tuple(
        (str(names[r]) or "(no name)", int(sizes_R[r]), tuple((counts_RK[r] / sizes_R[r]).tolist()))
        for r in np.argsort(-sizes_R, kind="stable")
    )
    agreement = float(adjusted_mutual_info_score(code_N, label_N)) if len(names) > 1 else None
    return RegionTable(rows, agreement)


def reason_for_k(decision: Decision) -> str:
    """Why this k, in plain sentences."""
    if decision.has_clusters is not None:
        return decision.text
    best = [INDEX_TITLES.get(name, name) for name, best_k in decision.by_index.items() if best_k == decision.k]
    named = f" ({', '.join(best)})" if best else ""
    return (
        f"That number was chosen by this rule: {decision.rule.rstrip('.')}. {len(best)} of "
        f"{len(decision.by_index)} validity indices are best at k = {decision.k}{named}."
    )


def validity_rows(validity: ValidityTable, *, decision: Decision) -> list[ValidityRow]:
    """A row for each k, by rising k. The best of each column is marked, for each method on its own."""
    infomax, kmeans = _cells(validity.of("infomax")), _cells(validity.of("kmeans"))
    empty = tuple(Cell(None) for _ in INDEX_TITLES)
    return [
        ValidityRow(
            k=k,
            chosen=k == decision.k,
            votes=decision.votes.get(k, 0),
            infomax=infomax.get(k, empty),
            kmeans=kmeans.get(k, empty),
        )
        for k in sorted({entry.k for entry in validity.entries})
    ]


def _cells(entries: Mapping[int, ValidityEntry]) -> dict[int, tuple[Cell, ...]]:
    """The five indices of one method by k."""
    best = {}
    for index in INDEX_TITLES:
        values = [value for entry in entries.values() if (value := entry.index(index)) is not None]
        best[index] = (max if BETTER[index] == "larger" else min)(values, default=None)
    return {
        k: tuple(
            Cell(entry.index(index), best=entry.index(index) is not None and entry.index(index) == best[index])
            for index in INDEX_TITLES
        )
        for k, entry in entries.items()
    }


def paper_validity(validity: ValidityTable) -> list[PaperComparison]:
    """The paper's five indices over k, and this run's of its information-maximisation clusters."""
    run = {k: {name: entry.index(name) for name in INDEX_TITLES} for k, entry in validity.of("infomax").items()}
    return _beside_paper(run, columns=INDEX_TITLES)


def paper_similarity(similarity: Similarity) -> list[PaperComparison]:
    """The paper's SSIM, MS-SSIM and LPIPS over k, and this run's over all clusters of each k."""
    run: dict[int, dict[str, float | None]] = {}
    for entry in similarity.entries:
        if entry.cluster is None and entry.comparison == "synthetic_real":
            run.setdefault(entry.k, {})[entry.metric] = entry.value
    return _beside_paper(run, columns=METRIC_TITLES)


@dataclass(frozen=True)
class DefinitionRow:
    """Pairs of one kind: SSIM, MS-SSIM and LPIPS by the paper's definition, then as usual; None: not measured."""

    pairs: str
    by_paper: tuple[float | None, ...]
    usual: tuple[float | None, ...]


def definition_rows(similarity: Similarity, by_paper: PaperSimilarity | None, *, k: int) -> list[DefinitionRow]:
    """The paper's row for ``k``, and this run's pairs beside their floor; empty where the run has not measured it."""
    if by_paper is None:
        return []

    def values(entries: Iterable[SimilarityEntry], comparison: str) -> tuple[float | None, ...]:
        found = {entry.metric: entry.value for entry in entries if entry.comparison == comparison}
        return tuple(found.get(name) for name in METRIC_TITLES)

    overall = [entry for entry in similarity.entries if (entry.k, entry.cluster) == (k, None) and not entry.same_slide]
    published = [
        DefinitionRow(
            f"the paper, k = {k}", tuple(ROWS[k][name] for name in METRIC_TITLES), (None,) * len(METRIC_TITLES)
        )
        for k in {k} & ROWS.keys()
    ]
    titles = {
        "synthetic_real": "synthetic and real, same cluster",
        "real_real": "real and real, same cluster (the floor)",
        "synthetic_other": "synthetic and real, other clusters",
    }
    rows = [
        DefinitionRow(title, values(by_paper.of(k=k), comparison), values(overall, comparison))
        for comparison, title in titles.items()
    ]
    return [*published, *rows]


def _beside_paper(
    run: Mapping[int, Mapping[str, float | None]], *, columns: Mapping[str, str]
) -> list[PaperComparison]:
    """Every k of the paper and of this run."""
    return [
        PaperComparison(k, tuple((ROWS.get(k, {}).get(name), run.get(k, {}).get(name)) for name in columns))
        for k in sorted(ROWS.keys() | run.keys())
    ]
