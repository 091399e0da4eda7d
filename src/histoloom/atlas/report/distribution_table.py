"""How near the samples, taken together, are to real tissue: a table of the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TITLES = {
    "frechet": "Frechet distance",
    "fid": "FID",
    "kid": "kernel distance (KID)",
    "precision": "precision: samples that lie among real patches",
    "recall": "recall: real patches that lie among samples",
}
"""What is shown, in this order; all other numbers are in the file."""
EXTRACTOR_TITLES = {
    "pixels": "colours and coarse layout (pixels)",
    "encoder": "the run's own encoder, a friendly judge",
}


@dataclass(frozen=True)
class DistributionRow:
    """One number by one extractor. ``reading``: what it says beside its floor."""

    metric: str
    title: str
    extractor: str
    value: float
    low: float
    high: float
    floor: float
    floor_low: float
    floor_high: float
    reading: str


@dataclass(frozen=True)
class DistributionTable:
    """All rows of one k, or of a cluster of it; ``sentences`` say what was compared, and what to beware of."""

    rows: tuple[DistributionRow, ...]
    sentences: tuple[str, ...]


def distribution_table(content: Mapping[str, Any], *, k: int, cluster: int | None = None) -> DistributionTable:
    """The table of what ``evaluation/distribution.json`` holds; without rows where nothing was compared at this k.

    Over all clusters where ``cluster`` is None.
    """
    entries = [entry for entry in content.get("entries", ()) if (entry["k"], entry["cluster"]) == (k, cluster)]
    shown = [entry for title in TITLES for entry in entries if entry["metric"] == title]
    sentences = _sentences(entries, content=content) if cluster is None else _of_cluster(entries, content=content)
    return DistributionTable(tuple(_row(entry) for entry in shown), tuple(sentences))


def reading(*, value: Sequence[float], floor: Sequence[float], better: str) -> str:
    """How samples compare with other real patches, as far as the two intervals tell them apart."""
    if value[0] <= floor[1] and floor[0] <= value[1]:
        return "like other real patches"
    smaller = value[1] < floor[0]
    return "better than other real patches" if smaller == (better == "smaller") else "worse than other real patches"


def _row(entry: Mapping[str, Any]) -> DistributionRow:
    low, high = entry["interval"]
    floor_low, floor_high = entry["floor_interval"]
    return DistributionRow(
        metric=entry["metric"],
        title=TITLES[entry["metric"]],
        extractor=EXTRACTOR_TITLES.get(entry["extractor"], entry["extractor"]),
        value=entry["value"],
        low=low,
        high=high,
        floor=entry["floor"],
        floor_low=floor_low,
        floor_high=floor_high,
        reading=reading(value=(low, high), floor=(floor_low, floor_high), better=entry["better"]),
    )


def _sentences(entries: Sequence[Mapping[str, Any]], *, content: Mapping[str, Any]) -> Iterable[str]:
    if entries:
        first = entries[0]
        real = "held-out" if first["real_split"] == "holdout" else "training"
        yield (
            f"{first['n_synthetic']:,} samples, every cluster by its frequency in real tissue, against "
            f"{first['n_real']:,} {real} patches; mean of {first['draws']} such draws. The floor is "
            f"{first['floor_from']}: {first['n_floor'][1]:,} against {first['n_floor'][0]:,}."
        )
    elif "entries" in content:
        yield "Distributions were not compared: there are too few samples or real patches, or no extractor is at hand."
    yield from dict.fromkeys(note for entry in entries for note in entry["notes"])
    for name, reason in content.get("missing", {}).items():
        yield f"Not measured by {name}: {reason}"


def _of_cluster(entries: Sequence[Mapping[str, Any]], *, content: Mapping[str, Any]) -> Iterable[str]:
    if entries:
        first = entries[0]
        real = "held-out" if first["real_split"] == "holdout" else "training"
        yield (
            f"{first['n_synthetic']:,} samples against {first['n_real']:,} {real} patches of the cluster; the floor is "
            f"{first['n_floor'][1]:,} {first['floor_from']} against them."
        )
    elif content.get("entries"):
        yield "Distributions of this cluster were not compared: it has too few samples or real patches."
    yield from dict.fromkeys(note for entry in entries for note in entry["notes"])
