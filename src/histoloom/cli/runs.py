"""Commands that make a run and bring it forward."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from histoloom.errors import UserError

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as patches.size=128.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def demo(
    out: Annotated[Path, typer.Option(help="Where slides and run go.")] = Path("histoloom-demo"),
    seed: Annotated[int, typer.Option(min=0)] = 0,
    set_: Settings = None,
) -> None:
    """The whole pipeline, small, on slides that it makes itself; minutes on a CPU."""
    from histoloom.demo import run_demo

    typer.echo(run_demo(out, seed=seed, settings=set_ or []))


def init(
    run: RunArgument,
    more_slides: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    slides: Annotated[
        list[Path] | None, typer.Option(metavar="PATH...", help="Slides: files and folders, one or more.")
    ] = None,
    preset: Annotated[str, typer.Option(help="paper, modern, cpu or starter.")] = "modern",
    table: Annotated[Path | None, typer.Option(help="CSV with columns file, patient, slide, mpp, split.")] = None,
    mpp: Annotated[float | None, typer.Option(help="um/px of slides that do not say it themselves.")] = None,
    pseudonymise: Annotated[
        bool, typer.Option("--pseudonymise", help="Keep names of slides and patients out of the run; see docs.")
    ] = False,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="GENERATOR", help="A run, an export or `starter` to begin with: fine-tuning."),
    ] = None,
    set_: Settings = None,
) -> None:
    """Make a run directory for slides, with a preset and your settings."""
    from histoloom.setup import init_run

    if not slides:
        raise UserError("no slides given; type: histoloom init RUN --slides PATH...")
    made = init_run(
        run,
        slides=[*slides, *(more_slides or [])],
        preset=preset,
        table=table,
        mpp=mpp,
        settings=set_ or [],
        pseudonymise=pseudonymise,
        start=from_,
    )
    typer.echo(f"{made.path} is ready; next: histoloom run {made.path}")


def run(
    run: RunArgument,
    until: Annotated[str, typer.Option(metavar="STAGE", help="The last stage to bring up to date.")] = "report",
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="tcp://HOST:PORT", help="A Dask cluster reads the slides (docs/how-to/several-machines.md)."
        ),
    ] = None,
    set_: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
) -> None:
    """Bring every stage of a run up to date; a run that was stopped continues by itself."""
    from histoloom import pipeline
    from histoloom.run.directory import Run
    from histoloom.setup import change_settings

    opened = Run.open(run)
    settings = [*(set_ or []), *([f"runtime.scheduler={scheduler}"] if scheduler is not None else [])]
    if settings:
        opened = change_settings(opened, settings, save=not dry_run)
    if dry_run:
        _print_status(opened)
        return
    pipeline.execute(opened, until=until)
    if until == pipeline.STAGE_NAMES[-1] and int(os.environ.get("RANK", "0")) == 0:
        typer.echo((opened.path / "report.html").resolve())


def status(run: RunArgument, as_json: AsJson = False) -> None:
    """Say which stages of a run are done, stale, partial or missing."""
    from histoloom import pipeline
    from histoloom.run.directory import Run

    opened = Run.open(run)
    if as_json:
        typer.echo(json.dumps({"stages": [vars(entry) for entry in pipeline.status(opened)]}))
    else:
        _print_status(opened)


def _print_status(run: object) -> None:
    from histoloom import pipeline
    from histoloom.run.directory import Run

    assert isinstance(run, Run), "opened by the command"
    for entry in pipeline.status(run):
        seconds = "" if entry.seconds is None else f"{entry.seconds:,.0f} s"
        typer.echo(f"{entry.stage:12} {entry.state:8} {seconds}")
