"""The tables over k: validity indices, comparison with data without clusters, and the paper's numbers beside the run's.

The records are those of the stages ``clusters`` and ``evaluation``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from histoloom.atlas.report.paper import BETTER, INDEX_TITLES, METRIC_TITLES, ROWS
from histoloom.evaluation.results import Similarity

Entries = Sequence[Mapping[str, Any]]


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
class ExcessCell:
    """How much better the data are than a null, with an interval; ``clear`` where the interval lies above 0."""

    value: float
    low: float
    high: float
    clear: bool


@dataclass(frozen=True)
class StabilityCell:
    """The agreement between clusters of two parts of the data, and the same of two parts of each null, 0..1."""

    real: float
    gaussian: float
    permuted: float


@dataclass(frozen=True)
class NullRow:
    """One k: the excess of each index, in the order of ``INDEX_TITLES``, over the null that comes closer.

    ``smallest`` and ``largest`` are the shares of the patches in these clusters. ``restarts`` is the adjusted Rand
    index of restarts of information maximisation, from least to most, empty where there was one restart.
    ``objections`` are the reasons why the rule rejects this k.
    """

    k: int
    chosen: bool
    excess: tuple[ExcessCell, ...]
    agreement: StabilityCell
    weakest: StabilityCell
    smallest: float
    largest: float
    restarts: str
    objections: str


@dataclass(frozen=True)
class PaperComparison:
    """One k of a table of the paper: pairs of (paper, run), None where there is no such number."""

    k: int
    pairs: tuple[tuple[float | None, float | None], ...]


def validity_rows(validity: Entries, *, choice: Mapping[str, Any]) -> list[ValidityRow]:
    """A row for each k, by rising k. The best of each column is marked, for each method on its own."""
    votes = {int(k): int(n) for k, n in choice.get("votes", {}).items()}
    cells: dict[tuple[str, int], tuple[Cell, ...]] = {}
    for method in ("infomax", "kmeans"):
        entries = [entry for entry in validity if entry["method"] == method]
        best = {}
        for index in INDEX_TITLES:
            values = [entry[index] for entry in entries if entry.get(index) is not None]
            best[index] = (max if BETTER[index] == "larger" else min)(values, default=None)
        for entry in entries:
            cells[method, entry["k"]] = tuple(
                Cell(entry.get(index), best=entry.get(index) is not None and entry[index] == best[index])
                for index in INDEX_TITLES
            )
    empty = tuple(Cell(None) for _ in INDEX_TITLES)
    return [
        ValidityRow(
            k=k,
            chosen=k == choice["k"],
            votes=votes.get(k, 0),
            infomax=cells.get(("infomax", k), empty),
            kmeans=cells.get(("kmeans", k), empty),
        )
        for k in sorted({entry["k"] for entry in validity})
    ]


def null_rows(choice: Mapping[str, Any]) -> list[NullRow]:
    """A row for each k; none where the run did not compare with data without clusters."""
    rows = []
    for comparison in choice.get("nulls", ()):
        excess = []
        for index in INDEX_TITLES:
            closest = min(comparison["indices"][index]["excess"].values(), key=lambda one: one["low"])
            excess.append(ExcessCell(closest["value"], closest["low"], closest["high"], clear=closest["low"] > 0))
        agreement, weakest = (
            StabilityCell(stability["real"], stability["null"]["gaussian"], stability["null"]["permuted"])
            for stability in (comparison["stability"][name] for name in ("agreement", "weakest"))
        )
        restarts = choice.get("restarts", {}).get(str(comparison["k"]), ())
        least_to_most = dict.fromkeys(f"{bound(restarts):.2f}" for bound in (min, max) if restarts)
        rows.append(
            NullRow(
                k=comparison["k"],
                chosen=comparison["k"] == choice["k"],
                excess=tuple(excess),
                agreement=agreement,
                weakest=weakest,
                smallest=comparison["smallest"],
                largest=comparison["largest"],
                restarts=" to ".join(least_to_most),
                objections="; ".join(comparison["objections"]),
            )
        )
    return rows


def paper_validity(validity: Entries) -> list[PaperComparison]:
    """The paper's five indices over k, and this run's of its information-maximisation clusters."""
    run = {entry["k"]: {i: entry.get(i) for i in INDEX_TITLES} for entry in validity if entry["method"] == "infomax"}
    return _beside_paper(run, columns=INDEX_TITLES)


def paper_similarity(similarity: Similarity) -> list[PaperComparison]:
    """The paper's SSIM, MS-SSIM and LPIPS over k, and this run's over all clusters of each k."""
    run: dict[int, dict[str, float | None]] = {}
    for entry in similarity.entries:
        if entry.cluster is None and entry.comparison == "synthetic_real":
            run.setdefault(entry.k, {})[entry.metric] = entry.value
    return _beside_paper(run, columns=METRIC_TITLES)


def _beside_paper(
    run: Mapping[int, Mapping[str, float | None]], *, columns: Mapping[str, str]
) -> list[PaperComparison]:
    """Every k of the paper and of this run."""
    return [
        PaperComparison(k, tuple((ROWS.get(k, {}).get(name), run.get(k, {}).get(name)) for name in columns))
        for k in sorted(ROWS.keys() | run.keys())
    ]
