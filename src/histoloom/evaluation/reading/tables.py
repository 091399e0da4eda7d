"""A reading's numbers as a table of texts, for the terminal, the report and the page alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from histoloom.evaluation.reading.plan import Plan
from histoloom.evaluation.reading.results import Result

NAMING_TITLES = ("reader", "samples named as meant", "real patches", "kappa, samples", "kappa, real", "seconds")
DETECTION_TITLES = (
    *("reader", "accuracy", "sensitivity", "specificity", "AUC"),
    *("p", "seconds", "seconds, real", "seconds, synthetic"),
)
DETECTION = ("accuracy", "sensitivity", "specificity", "auc")


def table(result: Result) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Titles of columns, and a row for each finished reader; an interval stands behind its number."""
    if result.kind == "naming":
        return NAMING_TITLES, [_named(row) for row in result.readers]
    return DETECTION_TITLES, [_detected(row) for row in result.readers]


def spread(value: Mapping[str, Any] | None) -> str:
    """``0.62 (0.47 to 0.76)``; a dash where there is none."""
    if value is None:
        return "–"
    low, high = value["interval"]
    # 0.975 is a little less in binary, and is called 98 % in the sentence beside.
    return f"{value['value'] + 1e-9:.2f} ({low:.2f} to {high:.2f})"


def _detected(row: Mapping[str, Any]) -> tuple[str, ...]:
    p = "–" if row["p"] is None else "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
    seconds = [f"{row['seconds'][of]:.1f}" for of in ("all", "real", "synthetic")]
    return (row["reader"], *(spread(row[name]) for name in DETECTION), p, *seconds)


def _named(row: Mapping[str, Any]) -> tuple[str, ...]:
    parts = [row["samples"], row["real"]]
    return (
        row["reader"],
        *(spread(part["accuracy"]) for part in parts),
        *(spread(part["kappa"]) for part in parts),
        f"{row['seconds']:.1f}",
    )


@dataclass(frozen=True)
class Counts:
    """How often each answer (columns) was given to each truth (rows)."""

    title: str
    truths: tuple[str, ...]
    numbers: tuple[tuple[int, ...], ...]


def counts(plan: Plan, row: Mapping[str, Any]) -> list[Counts]:
    """A reader's answers, counted; of a naming once for samples and once for real patches, where these were shown."""
    if plan.kind != "naming":
        truths = ("real", "synthetic")
        return [Counts("Answers", truths, tuple(tuple(row["levels"][truth]) for truth in truths))]
    found = []
    for part, title in (("samples", "Samples"), ("real", "Real patches")):
        shown = [(name, line) for name, line in zip(plan.names, row[part]["confusion"], strict=True) if sum(line)]
        found.append(Counts(title, tuple(name for name, _ in shown), tuple(tuple(line) for _, line in shown)))
    return found
