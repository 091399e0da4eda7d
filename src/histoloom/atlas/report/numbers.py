"""The numbers of the report: tables over k, similarity with its floor, and what they say in words.

Everything here is a pure function of what the stages ``clusters`` and ``evaluation`` published as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from histoloom.atlas.report.paper import BETTER, INDEX_TITLES, METRIC_TITLES, ROWS

Entries = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """A number of a table; ``value`` is None where there is none. ``best`` marks the best of its column."""

    value: float | None
    best: bool = False


@dataclass(frozen=True)
class ValidityRow:
    """One k: the five indices, in the order of ``INDEX_TITLES``, of both methods."""

    k: int
    chosen: bool
    votes: int
    infomax: tuple[Cell, ...]
    kmeans: tuple[Cell, ...]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``pairs`` image pairs and its interval."""

    value: float
    low: float
    high: float
    pairs: int
    extractor: str


@dataclass(frozen=True)
class SimilarityRow:
    """One metric: synthetic against real, the floor (real against real), synthetic against other clusters.

    ``missing`` is the reason where the metric was not measured; ``reading`` says what the numbers mean.
    """

    metric: str
    title: str
    synthetic: Estimate | None
    floor: Estimate | None
    other: Estimate | None
    missing: str | None
    reading: str


@dataclass(frozen=True)
class PaperRows:
    """One k of a table of the paper: pairs of (theirs, ours), ours None where this run has no such number."""

    k: int
    pairs: tuple[tuple[float | None, float | None], ...]


def validity_rows(validity: Entries, *, choice: Mapping[str, Any]) -> list[ValidityRow]:
    """A row for each k, by rising k; the best of each column is marked for each method on its own."""
    by_method = {method: {e["k"]: e for e in validity if e["method"] == method} for method in ("infomax", "kmeans")}
    votes = {int(k): int(n) for k, n in choice.get("votes", {}).items()}
    marked = {method: _marked(entries) for method, entries in by_method.items()}
    nothing = tuple(Cell(None) for _ in INDEX_TITLES)
    return [
        ValidityRow(
            k=k,
            chosen=k == choice["k"],
            votes=votes.get(k, 0),
            infomax=marked["infomax"].get(k, nothing),
            kmeans=marked["kmeans"].get(k, nothing),
        )
        for k in sorted({entry["k"] for entry in validity})
    ]


def similarity_rows(
    similarity: Entries, *, missing: Mapping[str, str], k: int, cluster: int | None
) -> list[SimilarityRow]:
    """SSIM, MS-SSIM and LPIPS of one cluster, or of all clusters of ``k`` together where ``cluster`` is None."""
    rows = []
    for metric, title in METRIC_TITLES.items():
        found = {
            entry["comparison"]: _estimate(entry)
            for entry in similarity
            if (entry["k"], entry["cluster"], entry["metric"]) == (k, cluster, metric)
        }
        synthetic, floor = found.get("synthetic_real"), found.get("real_real")
        reason = None if synthetic else missing.get(metric, "there is no number for it in this run")
        rows.append(
            SimilarityRow(
                metric=metric,
                title=title,
                synthetic=synthetic,
                floor=floor,
                other=found.get("synthetic_other"),
                missing=reason,
                reading=reading(metric, synthetic=synthetic, floor=floor) if synthetic and floor else "",
            )
        )
    return rows


def reading(metric: str, *, synthetic: Estimate, floor: Estimate) -> str:
    """How synthetic against real compares with real against real, as far as the intervals tell them apart."""
    if synthetic.low <= floor.high and floor.low <= synthetic.high:
        return "as alike as real patches are to one another"
    nearer = (synthetic.value > floor.value) == (BETTER[metric] == "larger")
    return "more alike than real patches are to one another" if nearer else "less alike than real patches are"


def paper_validity(validity: Entries) -> list[PaperRows]:
    """The paper's five indices over k, and this run's of its information-maximisation clusters."""
    ours = {entry["k"]: entry for entry in validity if entry["method"] == "infomax"}
    return [
        PaperRows(k, tuple((theirs.get(name), _optional(ours.get(k, {}).get(name))) for name in INDEX_TITLES))
        for k, theirs in _rows_of_paper(ours, INDEX_TITLES)
    ]


def paper_similarity(similarity: Entries) -> list[PaperRows]:
    """The paper's SSIM, MS-SSIM and LPIPS over k, and this run's over all clusters of each k."""
    ours: dict[int, dict[str, float]] = {}
    for entry in similarity:
        if entry["cluster"] is None and entry["comparison"] == "synthetic_real":
            ours.setdefault(entry["k"], {})[entry["metric"]] = entry["value"]
    return [
        PaperRows(k, tuple((theirs.get(name), ours.get(k, {}).get(name)) for name in METRIC_TITLES))
        for k, theirs in _rows_of_paper(ours, METRIC_TITLES)
    ]


def verdict(*, choice: Mapping[str, Any], similarity: Sequence[SimilarityRow], patches: int, slides: int) -> list[str]:
    """The run in a few plain sentences."""
    k = choice["k"]
    agreed = [INDEX_TITLES.get(name, name) for name, best in choice["by_index"].items() if best == k]
    which = f" ({', '.join(agreed)})" if agreed else ""
    sentences = [
        f"The {patches:,} patches of {count(slides, 'slide')} were sorted, without labels, into {k} clusters.",
        str(choice["evidence"])
        if "found" in choice
        else f"That number was chosen by this rule: {str(choice['rule']).rstrip('.')}. {len(agreed)} of "
        f"{len(choice['by_index'])} validity indices are best at k = {k}{which}.",
    ]
    by_reading: dict[str, list[str]] = {}
    for row in similarity:
        if row.reading:
            by_reading.setdefault(row.reading, []).append(row.title)
    if by_reading:
        parts = [f"by {' and '.join(titles)} they are {words}" for words, titles in by_reading.items()]
        sentences.append("Synthetic patches against real ones of the same cluster: " + "; ".join(parts) + ".")
    else:
        sentences.append("How alike synthetic and real patches are was not measured against a floor in this run.")
    return sentences


def count(n: int, noun: str) -> str:
    """``1 slide``, ``2 slides``, ``2 patches``."""
    ending = "es" if noun.endswith("ch") else "s"
    return f"{n:,} {noun}" + ("" if n == 1 else ending)


def number(value: float) -> str:
    """A number as the tables print it: about four digits that mean something."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.1f}"
    if size >= 10:
        return f"{value:.2f}"
    if size >= 0.01 or size == 0:
        return f"{value:.4f}"
    return f"{value:.5f}" if size >= 0.0001 else f"{value:.2e}"


def _marked(entries: Mapping[int, Mapping[str, Any]]) -> dict[int, tuple[Cell, ...]]:
    best = {}
    for name in INDEX_TITLES:
        values = [entry[name] for entry in entries.values() if entry.get(name) is not None]
        if values:
            best[name] = max(values) if BETTER[name] == "larger" else min(values)
    return {
        k: tuple(
            Cell(_optional(entry.get(name)), best=entry.get(name) is not None and entry[name] == best[name])
            for name in INDEX_TITLES
        )
        for k, entry in entries.items()
    }


def _estimate(entry: Mapping[str, Any]) -> Estimate:
    low, high = entry["interval"]
    return Estimate(float(entry["value"]), float(low), float(high), int(entry["pairs"]), str(entry["extractor"]))


def _rows_of_paper(ours: Mapping[int, Any], columns: Mapping[str, str]) -> list[tuple[int, dict[str, float]]]:
    """Every k of the paper and of this run, with the paper's numbers where it has them."""
    theirs = {row.k: {name: row.value(name) for name in columns} for row in ROWS}
    return [(k, theirs.get(k, {})) for k in sorted(theirs.keys() | ours.keys())]


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
