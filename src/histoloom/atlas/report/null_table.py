"""The table of the report that holds k-means on the run's features against k-means on data without clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from histoloom.atlas.report.paper import INDEX_TITLES


@dataclass(frozen=True)
class ExcessCell:
    """How much better the data are than a null, with an interval; ``clear`` where the interval lies above 0."""

    value: float
    low: float
    high: float
    clear: bool


@dataclass(frozen=True)
class StabilityCell:
    """What two parts of the data share, and what two parts of each null do, 0..1."""

    real: float
    gaussian: float
    permuted: float


@dataclass(frozen=True)
class NullRow:
    """One k: the excess of each index, in the order of ``INDEX_TITLES``, over the null that comes closer.

    ``smallest`` and ``largest``: shares of the patches in these clusters. ``restarts``: the adjusted Rand index of
    restarts of information maximisation, from least to most, empty where there was one only. ``objections``: why this
    k does not stand.
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


def null_rows(choice: Mapping[str, Any]) -> list[NullRow]:
    """A row for each k of ``choice.json``; none where the run did not look for evidence."""
    return [
        NullRow(
            k=found["k"],
            chosen=found["k"] == choice["k"],
            excess=tuple(_closest(found["indices"][name]) for name in INDEX_TITLES),
            agreement=_stability(found["stability"]["agreement"]),
            weakest=_stability(found["stability"]["weakest"]),
            smallest=found["smallest"],
            largest=found["largest"],
            restarts=_range(choice.get("restarts", {}).get(str(found["k"]), ())),
            objections="; ".join(found["objections"]),
        )
        for found in choice.get("nulls", ())
    ]


def _closest(compared: Mapping[str, Any]) -> ExcessCell:
    least = min(compared["excess"].values(), key=lambda excess: excess["low"])
    return ExcessCell(least["value"], least["low"], least["high"], clear=least["low"] > 0)


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    least, most = min(values), max(values)
    return f"{least:.2f}" if len(values) == 1 else f"{least:.2f} to {most:.2f}"


def _stability(compared: Mapping[str, Any]) -> StabilityCell:
    return StabilityCell(compared["real"], compared["null"]["gaussian"], compared["null"]["permuted"])
