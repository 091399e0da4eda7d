"""A reading's numbers as a table of texts, for the terminal, the report and the page alike."""

from __future__ import annotations

from dataclasses import dataclass

from histoloom.evaluation.reading.detection import DetectionResult
from histoloom.evaluation.reading.naming import NamingResult
from histoloom.evaluation.reading.plan import Plan
from histoloom.evaluation.reading.results import Result
from histoloom.evaluation.statistics import Estimate

NAMING_TITLES = ("reader", "samples named as requested", "real patches", "kappa, samples", "kappa, real", "seconds")
DETECTION_TITLES = (
    *("reader", "accuracy", "sensitivity", "specificity", "AUC"),
    *("p", "seconds", "seconds, real", "seconds, synthetic"),
)


def table(result: Result) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Titles of columns, and a row for each finished reader; an interval stands behind its number."""
    rows: list[tuple[str, ...]] = []
    for row in result.readers:
        if isinstance(row, NamingResult):
            named = (row.samples.accuracy, row.real.accuracy, row.samples.kappa, row.real.kappa)
            rows.append((row.reader, *map(format_estimate, named), f"{row.seconds:.1f}"))
        else:
            rates = (row.accuracy, row.sensitivity, row.specificity, row.auc)
            p = "–" if row.p is None else "< 0.001" if row.p < 0.001 else f"{row.p:.3f}"
            seconds = (row.seconds.all, row.seconds.real, row.seconds.synthetic)
            rows.append((row.reader, *map(format_estimate, rates), p, *(f"{value:.1f}" for value in seconds)))
    return (NAMING_TITLES if result.kind == "naming" else DETECTION_TITLES), rows


def format_estimate(estimate: Estimate | None) -> str:
    """``0.62 (0.47 to 0.76)``; a dash where there is none."""
    if estimate is None:
        return "–"
    low, high = estimate.interval
    # 0.975 is a little less in binary, and is 98 % in the sentence of the result.
    return f"{estimate.value + 1e-9:.2f} ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Counts:
    """How often each answer (columns) was the answer to each truth (rows)."""

    title: str
    truths: tuple[str, ...]
    numbers: tuple[tuple[int, ...], ...]


def counts(plan: Plan, row: DetectionResult | NamingResult) -> list[Counts]:
    """A reader's answers, counted; of a naming once for samples and once for real patches, where these were shown."""
    if isinstance(row, DetectionResult):
        return [Counts("Answers", ("real", "synthetic"), (row.levels.real, row.levels.synthetic))]
    result = []
    for part, title in ((row.samples, "Samples"), (row.real, "Real patches")):
        shown = [(name, line) for name, line in zip(plan.names, part.confusion, strict=True) if sum(line)]
        result.append(Counts(title, tuple(name for name, _ in shown), tuple(line for _, line in shown)))
    return result
