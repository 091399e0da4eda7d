"""Commands that name clusters, and list, exchange and compare what raters named."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from histoloom.cli.runs import AsJson, RunArgument
from histoloom.errors import UserError

if TYPE_CHECKING:
    from histoloom.clustering.clustering_set import Clustering
    from histoloom.names import LabelState

MAX_PRINTED = 60  # characters of a name in the list


def name(
    run: RunArgument,
    cluster: Annotated[int, typer.Argument(metavar="CLUSTER", help="The cluster's number.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it shows, in words.")],
    k: Annotated[int | None, typer.Option(help="Another k than the chosen one.")] = None,
    rater: Annotated[str | None, typer.Option(help="Who names it; this computer's user if not given.")] = None,
    colour: Annotated[str | None, typer.Option(metavar="#rrggbb", help="Its colour on maps and pages.")] = None,
    flag: Annotated[str | None, typer.Option(help="artefact, mixed or unsure.")] = None,
) -> None:
    """Name a cluster; samples, report and `sample --tissue` use the name."""
    from histoloom.diffusion.model.conditions import Conditions
    from histoloom.names import add_label, current_names, normalised, refresh_sample_names
    from histoloom.run.directory import Run

    opened = Run.open(run)
    clustering = _clustering(opened)
    k = clustering.chosen if k is None else k
    Conditions(tuple(clustering.ks)).number(k=k, cluster=cluster)
    who = rater or getpass.getuser()
    add_label(opened.path, cluster=cluster, k=k, rater=who, name=name, colour=colour, flag=flag)
    refresh_sample_names(opened.path)
    counts = current_names(opened.path, k=k)[cluster]
    if normalised(counts) == normalised(name):
        typer.echo(f"cluster {cluster} of k = {k} is {name.strip()!r}; new report: histoloom run {run}")
    else:
        typer.echo(f"kept for {who!r}, but {counts!r} counts for cluster {cluster} of k = {k}: histoloom names {run}")


def names(
    run: RunArgument,
    k: Annotated[int | None, typer.Option(help="Another k than the chosen one; for --export, only this one.")] = None,
    export: Annotated[Path | None, typer.Option("--export", metavar="FILE.csv", help="Write the names.")] = None,
    import_: Annotated[Path | None, typer.Option("--import", metavar="FILE.csv", help="Take names over.")] = None,
    rater: Annotated[str | None, typer.Option(help="Whose names: for --export only these, for --import all.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Import also names of another clustering.")] = False,
    reference: Annotated[str | None, typer.Option(metavar="RATER", help="From now on only these names count.")] = None,
    latest: Annotated[bool, typer.Option("--latest", help="From now on the latest names by anyone count.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what clusters are called, by whom, and how far raters agree; export and import names as CSV."""
    from histoloom.names import choose_reference, read_label_state, refresh_sample_names
    from histoloom.run.directory import Run

    opened = Run.open(run)
    clustering = _clustering(opened)
    if k is not None and k not in clustering.ks:
        raise UserError(f"k = {k} is not in this run's sweep; allowed: {', '.join(map(str, clustering.ks))}")
    _check_together(asked=[export is not None, import_ is not None, reference is not None, latest])
    if force and import_ is None:
        raise UserError("--force goes with --import FILE.csv")
    if rater is not None and export is None and import_ is None:
        raise UserError("--rater goes with --export or --import; the list shows all raters")
    if export is not None:
        _export(opened.path, export, clustering=clustering, rater=rater, k=k)
    elif import_ is not None:
        _import(opened.path, import_, clustering=clustering, rater=rater, force=force)
    else:
        if reference is not None or latest:
            choose_reference(opened.path, reference=reference or "", by=getpass.getuser())
            refresh_sample_names(opened.path)
        shown = clustering.chosen if k is None else k
        _list(read_label_state(opened.path, k=shown), sizes=clustering.sizes[shown], as_json=as_json)


def _check_together(*, asked: list[bool]) -> None:
    if sum(asked) > 1:
        raise UserError("--export, --import, --reference and --latest are different things; ask for one at a time")


def _clustering(opened: Any) -> Clustering:
    from histoloom.clustering.clustering_set import Clustering

    return Clustering.open(opened.require("clusters"))


def _export(run: Path, file: Path, *, clustering: Clustering, rater: str | None, k: int | None) -> None:
    from histoloom.names.table import export_table
    from histoloom.run.directory import disk_errors_explained, write_text

    text = export_table(run, sizes=clustering.sizes, rater=rater, k=k)
    with disk_errors_explained(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, text)
    typer.echo(file.resolve())


def _import(run: Path, file: Path, *, clustering: Clustering, rater: str | None, force: bool) -> None:
    from histoloom.names import refresh_sample_names
    from histoloom.names.table import TableError, import_table

    if not file.is_file():
        raise UserError(f"{file} does not exist; write one to fill in: histoloom names {run} --export {file}")
    try:
        taken = import_table(run, file.read_bytes(), sizes=clustering.sizes, rater=rater, force=force)
    except TableError as error:
        for line in error.lines:
            typer.echo(f"histoloom: {file.name}: {line}", err=True)
        raise typer.Exit(2) from None
    refresh_sample_names(run)
    typer.echo(f"{taken.rows} rows with names, {taken.changes} changes, {taken.empty} empty rows left out")


def _list(book: LabelState, *, sizes: list[int], as_json: bool) -> None:
    from histoloom.atlas.browse.agreement import agreements, sentence
    from histoloom.names import display_labels

    counting = display_labels(book.effective())
    found = agreements(book, sizes=sizes)
    by_rater = {rater: book.labels(rater) for rater in book.raters}
    if as_json:
        clusters = [
            {"cluster": cluster, "patches": sizes[cluster], "name": label.name, "flag": label.flag}
            | {"colour": label.colour, "names": {rater: said[cluster].name for rater, said in by_rater.items()}}
            for cluster, label in counting.items()
        ]
        about = {"k": book.k, "clustering": book.clustering, "reference": book.reference, "raters": book.raters}
        agreed = [asdict(agreement) for agreement in found]
        typer.echo(json.dumps(about | {"clusters": clusters, "agreement": agreed}, allow_nan=False, ensure_ascii=False))
        return
    whose = f"only the names of {book.reference!r} count" if book.reference else "the latest name by anyone counts"
    typer.echo(f"k = {book.k}; {whose}")
    for cluster, label in counting.items():
        typer.echo(f"{cluster:>4} {sizes[cluster]:>9,}  {label.colour:8} {label.flag:9} {label.name[:MAX_PRINTED]}")
    for rater, said in by_rater.items():
        typer.echo(f"{rater!r} named {sum(bool(label.name) for label in said.values())} of {book.k} clusters")
    for agreement in found:
        typer.echo(sentence(agreement))
    if found:
        typer.echo("names are compared without case and spaces, on the clusters that all of them named")
