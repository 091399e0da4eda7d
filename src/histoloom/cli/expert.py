"""Commands for the expert: the atlas as a web page, the clusters' names, and the results of blinded readings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from histoloom.cli.paths import RunArgument, check_out_file, check_out_folder, check_run
from histoloom.cli.runs import AsJson, OtherK, print_json
from histoloom.errors import UserError

if TYPE_CHECKING:
    from histoloom.clustering.clustering_set import Clustering
    from histoloom.evaluation.reading.results import Result
    from histoloom.names import LabelState

MAX_PRINTED = 60  # characters of a name in the list


def atlas(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_GENERATOR",
            help="A run; or an exported generator, or `starter`, to generate from it.",
            callback=check_run,
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of the page; 0: any free one.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any other than the default lets other computers in.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="HISTOLOOM_TOKEN", help="Secret of 16 or more characters; needed where other computers are let in."
        ),
    ] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in this computer's browser.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the pictures of an exported generator go; NAME-generated in this folder if not given.",
            callback=check_out_folder,
        ),
    ] = None,
) -> None:
    """Show the atlas as a web page: look at clusters, name them, generate and compare."""
    from histoloom.atlas.web.app import create_app, create_export_app
    from histoloom.atlas.web.security import Access
    from histoloom.atlas.web.serve import serve

    access = Access(host, token)
    if (run / "config.yaml").is_file():
        if out is not None:
            raise UserError(f"a run keeps its pictures in {run}/drawn; leave --out out")
        app = create_app(run, access=access)
    else:
        from histoloom.diffusion.generation.generator_spec import generator_home  # loads torch

        generator = generator_home(run)
        drawn = out or Path(f"{generator.resolve().name}-generated")
        app = create_export_app(generator, drawn=drawn, access=access)
        typer.echo(f"pictures go to {drawn}", err=True)

    def announce(address: str) -> None:
        typer.echo(f"the atlas is at {address}")
        typer.echo("it stays open until you press Ctrl+C", err=True)

    try:
        serve(app, access=access, port=port, say=announce, open_browser=open_)
    except KeyboardInterrupt:
        typer.echo("the atlas is closed")


def name(
    run: RunArgument,
    cluster: Annotated[int, typer.Argument(metavar="CLUSTER", help="The cluster's number.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tissue that it shows, in words.")],
    k: OtherK = None,
    rater: Annotated[str | None, typer.Option(help="Who names it; this computer's user if not given.")] = None,
    colour: Annotated[str | None, typer.Option(metavar="#rrggbb", help="Its colour on maps and pages.")] = None,
    flag: Annotated[str | None, typer.Option(help="artefact, mixed or unsure.")] = None,
) -> None:
    """Name a cluster; samples, report and `sample --tissue` use the name."""
    from histoloom.diffusion.model.conditions import Conditions
    from histoloom.names import add_label, current_names, normalised, refresh_sample_names
    from histoloom.run.user import user_name

    clustering = _clustering(run)
    k = clustering.chosen if k is None else k
    Conditions(tuple(clustering.ks)).number(k=k, cluster=cluster)  # refuses what is not in the sweep
    rater = rater or user_name()
    add_label(run, cluster=cluster, k=k, rater=rater, name=name, colour=colour, flag=flag)
    refresh_sample_names(run)
    effective = current_names(run, k=k)[cluster]
    if normalised(effective) == normalised(name):
        typer.echo(f"cluster {cluster} of k = {k} is {name.strip()!r}; new report: histoloom run {run}")
    else:
        where = f"cluster {cluster} of k = {k}"
        typer.echo(f"kept for {rater!r}, but {effective!r} counts for {where}: histoloom names {run}")


def names(
    run: RunArgument,
    k: Annotated[
        int | None, typer.Option(help="Another number of clusters than the chosen one; --export: only this one.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE.csv", help="Write the names.", callback=check_out_file),
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="FILE", help="Import names (.csv), or what was corrected on a map in QuPath (.geojson)."
        ),
    ] = None,
    rater: Annotated[
        str | None, typer.Option(help="The rater: --export writes only their names, --import makes all names theirs.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Import also names of another clustering.")] = False,
    reference: Annotated[str | None, typer.Option(metavar="RATER", help="Let only this rater's names count.")] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Let the latest names by anyone count.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the clusters' names and how far raters agree; export and import names as CSV."""
    from histoloom.names import choose_reference, read_label_state, refresh_sample_names
    from histoloom.names.corrections import counts_by_name, current_corrections
    from histoloom.names.table import TableError, export_table, import_table
    from histoloom.run.directory import disk_errors_explained, write_text
    from histoloom.run.user import user_name

    clustering = _clustering(run)
    if k is not None and k not in clustering.ks:
        raise UserError(f"k = {k} is not in this run's sweep; allowed: {', '.join(map(str, clustering.ks))}")
    if sum([export is not None, import_ is not None, reference is not None, latest]) > 1:
        raise UserError("--export, --import, --reference and --latest exclude each other; give one at a time")
    if force and import_ is None:
        raise UserError("--force goes with --import FILE.csv")
    if rater is not None and export is None and import_ is None:
        raise UserError("--rater goes with --export or --import; the list shows all raters")

    if export is not None:
        text = export_table(run, sizes=clustering.sizes, rater=rater, k=k)
        with disk_errors_explained(export.parent):
            export.parent.mkdir(parents=True, exist_ok=True)
            write_text(export, text)
        typer.echo(export.resolve())
    elif import_ is not None:
        if not import_.is_file():
            raise UserError(f"{import_} does not exist; write one to fill in: histoloom names {run} --export {import_}")
        if import_.suffix.lower() in (".geojson", ".json"):
            _import_map(run, import_, rater=rater or user_name())
            return
        try:
            result = import_table(run, import_.read_bytes(), sizes=clustering.sizes, rater=rater, force=force)
        except TableError as error:
            error.lines = [f"{import_.name}: {line}" for line in error.lines]
            raise
        refresh_sample_names(run)
        typer.echo(f"{result.rows} rows with names, {result.changes} changes, {result.empty} empty rows left out")
    else:
        if reference is not None or latest:
            choose_reference(run, reference=reference or "", by=user_name())
            refresh_sample_names(run)
        shown = clustering.chosen if k is None else k
        _list_names(read_label_state(run, k=shown), sizes=clustering.sizes[shown], as_json=as_json)
        if not as_json and (corrections := current_corrections(run, k=shown)):
            by_name = (f"{n} {name}" for name, n in counts_by_name(corrections).items())
            typer.echo(f"{len(corrections)} patches are corrected one by one: {', '.join(by_name)}")


def _import_map(run: Path, file: Path, *, rater: str) -> None:
    from histoloom.atlas.maps.corrections import import_map
    from histoloom.names import refresh_sample_names
    from histoloom.names.corrections import FILE
    from histoloom.run.directory import Run
    from histoloom.slides.patch_set import PatchSet

    patches = PatchSet.open(Run.open(run).require("patches"))
    result = import_map(run, file, patches=patches, rater=rater)
    refresh_sample_names(run)
    for cluster, name in sorted(result.renamed.items()):
        typer.echo(f"cluster {cluster} of k = {result.k} is {name!r}")
    corrected = f"{result.corrected} of {result.patches} patches of {result.slide} have another name than their cluster"
    typer.echo(f"{corrected}{f': {run / FILE}' if result.corrected else ''}")


def _clustering(run: Path) -> Clustering:
    from histoloom.clustering.clustering_set import Clustering
    from histoloom.run.directory import Run

    return Clustering.open(Run.open(run).require("clusters"))


def _list_names(state: LabelState, *, sizes: list[int], as_json: bool) -> None:
    from histoloom.atlas.browse.agreement import agreements, sentence
    from histoloom.names import display_labels

    effective = display_labels(state.effective())
    compared = agreements(state, sizes=sizes)
    by_rater = {rater: state.labels(rater) for rater in state.raters}
    if as_json:
        clusters = [
            {"cluster": cluster, "patches": sizes[cluster], "name": label.name, "flag": label.flag}
            | {"colour": label.colour, "names": {rater: labels[cluster].name for rater, labels in by_rater.items()}}
            for cluster, label in effective.items()
        ]
        head = {"k": state.k, "clustering": state.clustering, "reference": state.reference, "raters": state.raters}
        print_json(head | {"clusters": clusters, "agreement": [asdict(agreement) for agreement in compared]})
        return
    rule = f"only the names of {state.reference!r} count" if state.reference else "the latest name by anyone counts"
    typer.echo(f"k = {state.k}; {rule}")
    for cluster, label in effective.items():
        typer.echo(f"{cluster:>4} {sizes[cluster]:>9,}  {label.colour:8} {label.flag:9} {label.name[:MAX_PRINTED]}")
    for rater, labels in by_rater.items():
        typer.echo(f"{rater!r} named {sum(bool(label.name) for label in labels.values())} of {state.k} clusters")
    for agreement in compared:
        typer.echo(sentence(agreement))
    if compared:
        typer.echo("names are compared without case and spaces, on the clusters that all of them named")


def readings(run: RunArgument, as_json: AsJson = False) -> None:
    """Print the results of blinded readings of a run, by reader, with intervals (docs/how-to/blinded-reading.md)."""
    from histoloom.evaluation.reading.results import results
    from histoloom.run.directory import Run

    finished = results(Run.open(run).path)
    if as_json:
        print_json({"readings": [result.as_json() for result in finished]})
        return
    if not finished:
        typer.echo(f"no readings yet; begin one on the page: histoloom atlas {run}")
    for result in finished:
        _print_reading(result)


def _print_reading(result: Result) -> None:
    from histoloom.evaluation.reading.tables import format_estimate, table

    typer.echo(f"{result.id}: {result.question} ({result.trials} pictures, k = {result.k}, seed {result.seed})")
    lines = list(result.notes)
    titles, rows = table(result)
    if rows:
        widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
        for cells in (titles, *rows):
            lines.append("  ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)).rstrip())
    lines += [row.sentence for row in result.readers]
    if result.together is not None:
        accuracy = format_estimate(result.together.accuracy)
        lines.append(f"these {result.together.readers} readers together: accuracy {accuracy}")
    for progress in result.unfinished:
        lines.append(f"{progress.reader}: {progress.answered} of {progress.trials} answered, not counted yet")
    if not result.readers and not result.unfinished:
        lines.append("nobody has read it yet")
    for line in lines:
        typer.echo(f"    {line}")
