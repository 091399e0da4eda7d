"""The report's section of blinded readings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histoloom.atlas.report.figures import Picture, picture
from histoloom.evaluation.reading.folder import Reading, readings
from histoloom.evaluation.reading.results import Result, result
from histoloom.evaluation.reading.tables import spread, table

_PICTURES = 8
_TITLES = {
    "real-or-synthetic": "Real or synthetic",
    "reconstruction-or-synthetic": "Reconstruction or synthetic",
    "naming": "Naming samples",
}


@dataclass(frozen=True)
class ReadingBlock:
    """A reading as the report shows it; ``rows`` has a line of texts for each reader, below ``titles``.

    ``fooled``: samples that were taken for real ones (by most readers, where there are several).
    """

    id: str
    title: str
    about: str
    notes: tuple[str, ...]
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]
    fooled: tuple[Picture, ...]


def readings_of(run: Path) -> tuple[ReadingBlock, ...]:
    """The readings that at least one reader finished, the newest first."""
    found = [(reading, result(reading, run=run)) for reading in reversed(readings(run))]
    return tuple(_block(reading, shown) for reading, shown in found if shown.readers)


def _block(reading: Reading, shown: Result) -> ReadingBlock:
    titles, rows = table(shown)
    half = shown.trials // 2
    return ReadingBlock(
        id=shown.id,
        title=_TITLES[shown.kind],
        about=f"{half} real pictures and {half} samples, as many of each tissue, at k = {shown.k}: {shown.question}",
        notes=shown.notes,
        titles=titles,
        rows=tuple(rows),
        sentences=(*(str(row["sentence"]) for row in shown.readers), *_together(shown)),
        fooled=_fooled(reading, shown.together or shown.readers[0]) if shown.kind != "naming" else (),
    )


def _together(shown: Result) -> tuple[str, ...]:
    if shown.together is None:
        return ()
    return (f"These {shown.together['readers']} readers together: accuracy {spread(shown.together['accuracy'])}.",)


def _fooled(reading: Reading, found: Mapping[str, Any]) -> tuple[Picture, ...]:
    plan = reading.plan
    names = [plan.names[trial.tissue] for trial in plan.trials]
    trials = [mistake["trial"] for mistake in found["mistaken"] if mistake["synthetic"]][:_PICTURES]
    return tuple(
        picture(reading.picture(trial), text=f"Sample of {names[trial]} that was taken for real") for trial in trials
    )
