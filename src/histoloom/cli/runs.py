"""Commands that make a run and bring it up to date, and the options that commands share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from histoloom.cli.paths import RunArgument, check_out_folder
from histoloom.errors import UserError

if TYPE_CHECKING:
    from histoloom.run.directory import Run

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
OtherK = Annotated[int | None, typer.Option(help="Another number of clusters than the chosen one.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as patches.size=128; may be repeated."),
]


def print_json(value: object) -> None:
    """Print one JSON object, in ASCII, which every terminal can show; NaN is an error rather than invalid JSON."""
    typer.echo(json.dumps(value, allow_nan=False))


@contextmanager
def continues_after_interrupt() -> Iterator[None]:
    """Ctrl-C within says in one line that the same command continues, and exits with 130, the shells' status for it."""
    from histoloom.processes import is_main_process

    try:
        yield
    except KeyboardInterrupt:
        if is_main_process():
            typer.echo("histoloom: stopped; the same command continues where it stopped", err=True)
        raise typer.Exit(130) from None


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the slides and the run.", callback=check_out_folder)] = Path(
        "histoloom-demo"
    ),
    seed: Seed = 0,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Random weights, not those of the starter generator.")
    ] = False,
    set_: Settings = None,
) -> None:
    """Run the whole pipeline on small slides that the program makes itself; minutes on a CPU."""
    from histoloom.demo import next_steps, run_demo

    with continues_after_interrupt():
        page = run_demo(out, seed=seed, settings=set_ or [], from_scratch=from_scratch)
    typer.echo(next_steps(page))


def init(
    run: RunArgument,
    more_slides: Annotated[list[Path] | None, typer.Argument(hidden=True, help="More slides.")] = None,
    slides: Annotated[
        list[Path] | None, typer.Option(metavar="PATH...", help="Slides and folders of slides, one or more.")
    ] = None,
    preset: Annotated[str, typer.Option(help="paper, modern, cpu, starter or tune.")] = "modern",
    table: Annotated[Path | None, typer.Option(help="CSV with columns file, patient, slide, mpp, split.")] = None,
    regions: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER_OR_FILE",
            help="Regions to draw patches from: GeoJSON of QuPath or masks, called as the slides.",
        ),
    ] = None,
    mpp: Annotated[float | None, typer.Option(help="um/px of slides whose files do not state it.")] = None,
    pseudonymise: Annotated[
        bool, typer.Option("--pseudonymise", help="Keep the names of slides and patients out of the run.")
    ] = False,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="GENERATOR", help="Fine-tune: a run, an export or `starter` to start from."),
    ] = None,
    set_: Settings = None,
) -> None:
    """Make a run directory for slides, with a preset and your settings."""
    from histoloom.setup import init_run

    if not slides:
        raise UserError("no slides given; type: histoloom init RUN --slides PATH...")
    created = init_run(
        run,
        slides=[*slides, *(more_slides or [])],
        preset=preset,
        table=table,
        regions=regions,
        mpp=mpp,
        settings=set_ or [],
        pseudonymise=pseudonymise,
        start=from_,
    )
    typer.echo(f"{created.path} is ready; next: histoloom run {created.path}")

    from histoloom.cost import describe

    typer.echo(describe(created.config), err=True)
    if created.config.runtime.device != "cpu":
        from histoloom import memory_cost

        if line := memory_cost.describe(created.config):
            typer.echo(line, err=True)


def run(
    run: RunArgument,
    until: Annotated[str, typer.Option(metavar="STAGE", help="The last stage to bring up to date.")] = "report",
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="tcp://HOST:PORT", help="Let a Dask cluster read the slides (docs/how-to/several-machines.md)."
        ),
    ] = None,
    set_: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")] = False,
) -> None:
    """Bring every stage of a run up to date; a run that was stopped continues where it was."""
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
    with continues_after_interrupt():
        pipeline.execute(opened, until=until)

    from histoloom.processes import is_main_process

    if until == pipeline.STAGE_NAMES[-1] and is_main_process():
        typer.echo((opened.path / "report.html").resolve())


def report(run: RunArgument) -> None:
    """Make the report of a finished run again, with the present names, flags and readings; nothing is trained."""
    from histoloom import pipeline
    from histoloom.run.directory import Run

    opened = Run.open(run)
    pipeline.refresh_report(opened)
    typer.echo((opened.path / "report.html").resolve())


def status(run: RunArgument, as_json: AsJson = False) -> None:
    """Print which stages of a run are done, stale, partial or missing."""
    from histoloom import pipeline
    from histoloom.run.directory import Run

    opened = Run.open(run)
    if as_json:
        print_json({"stages": [vars(entry) for entry in pipeline.status(opened)]})
    else:
        _print_status(opened)


def _print_status(run: Run) -> None:
    from histoloom import pipeline

    for entry in pipeline.status(run):
        seconds = "" if entry.seconds is None else f"{entry.seconds:,.0f} s"
        typer.echo(f"{entry.stage:12} {entry.state:8} {seconds}")
