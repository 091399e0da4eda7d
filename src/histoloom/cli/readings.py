"""The command that prints what blinded readings showed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from histoloom.cli.runs import AsJson, RunArgument

if TYPE_CHECKING:
    from histoloom.evaluation.reading.results import Result


def readings(run: RunArgument, as_json: AsJson = False) -> None:
    """What blinded readings of a run showed: each reader's numbers, with intervals (docs/how-to/blinded-reading.md)."""
    from histoloom.evaluation.reading.results import results
    from histoloom.run.directory import Run

    opened = Run.open(run)
    found = results(opened.path)
    if as_json:
        typer.echo(json.dumps({"readings": [result.as_json() for result in found]}, allow_nan=False))
        return
    if not found:
        typer.echo(f"no readings yet; begin one on the page: histoloom atlas {run}")
    for result in found:
        typer.echo("\n".join(_lines(result)))


def _lines(result: Result) -> Iterator[str]:
    from histoloom.evaluation.reading.tables import spread, table

    yield f"{result.id}: {result.question} ({result.trials} pictures, k = {result.k}, seed {result.seed})"
    yield from (f"    {note}" for note in result.notes)
    titles, rows = table(result)
    if rows:
        yield from (f"    {line}" for line in _aligned([titles, *rows]))
    yield from (f"    {row['sentence']}" for row in result.readers)
    if result.together is not None:
        yield f"    these {result.together['readers']} readers together: accuracy {spread(result.together['accuracy'])}"
    for row in result.unfinished:
        yield f"    {row['reader']}: {row['answered']} of {row['trials']} answered, not counted yet"
    if not result.readers and not result.unfinished:
        yield "    nobody has read it yet"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
