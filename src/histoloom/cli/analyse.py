"""Commands that measure: any clustering, any two folders of images, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histoloom.cli.runs import AsJson, Seed, print_json


def validity(
    features: Annotated[Path, typer.Argument(metavar="FEATURES", help=".npy, .csv or .parquet with a row per point.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help=".npy, .csv or .parquet with a label per point.")],
    as_json: AsJson = False,
) -> None:
    """Compute five internal validity indices of a clustering."""
    from histoloom.clustering.validity.validity_file import MEANING, validity_of_files

    result = validity_of_files(features, labels)
    if as_json:
        print_json(result.as_json())
        return
    typer.echo(f"{result.validity.n} points, {result.validity.k} clusters")
    for index, meaning in MEANING.items():
        typer.echo(f"{index:18} {getattr(result.validity, index):<14.6g} {meaning}")
    for note in result.notes:
        typer.echo(f"note: {note}")


def evaluate(
    real: Annotated[Path, typer.Argument(metavar="REAL", help="A folder of real images.")],
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTHETIC", help="A folder of synthetic images.")],
    seed: Seed = 0,
    extractor: Annotated[
        list[str] | None,
        typer.Option(help="Feature extractor for the distribution metrics; may be repeated. [pixels, lpips-alex]"),
    ] = None,
    floor: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Other real images, best of other slides, to compare real with real."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for evaluate.json, .csv and .html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two folders of images; beside every number stands the same number for real against real images."""
    from histoloom.evaluation.folders import EXTRACTORS, evaluate_folders

    result = evaluate_folders(
        real, synthetic, seed=seed, extractors=tuple(extractor or EXTRACTORS), floor=floor, out=out
    )
    if as_json:
        print_json(result)
        return
    typer.echo(f"{result['n_real']} real, {result['n_synthetic']} synthetic images")
    for metric, row in result["metrics"].items():
        low, high = row["interval"]
        name = metric.partition("/")[0]
        typer.echo(
            f"{name:10} {row['value']:<9.4g} [{low:.4g}, {high:.4g}]  real against real {row['floor']:.4g}"
            f"  ({row['extractor']})"
        )
    for metric, reason in result.get("missing", {}).items():
        typer.echo(f"{metric:10} not measured: {reason}")
    for note in dict.fromkeys(note for row in result["metrics"].values() for note in row.get("notes", ())):
        typer.echo(f"note: {note}")


def audit(
    synthetic: Annotated[Path, typer.Argument(metavar="SYNTHETIC", help="A folder of synthetic images.")],
    train: Annotated[Path, typer.Option(metavar="DIR", help="The images that the generator was trained on.")],
    holdout: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Real images of other slides, a subfolder per slide; for calibration."),
    ],
    seed: Seed = 0,
    extractor: Annotated[
        list[str] | None, typer.Option(help="Feature extractor for a second test; may be repeated. [lpips-alex]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for audit.json, .csv, .html and suspicious.png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for copies of training images among synthetic ones, calibrated on held-out real images."""
    from histoloom.evaluation.originality.by_features import features_said
    from histoloom.evaluation.originality.folders import EXTRACTORS, audit_folders

    names = tuple(extractor or EXTRACTORS)
    result = audit_folders(synthetic, train=train, holdout=holdout, seed=seed, extractors=names, out=out)
    if as_json:
        print_json(result)
        return
    low, high = result["interval"]
    typer.echo(f"{result['copies']} of {result['n']} images look like copies: {low:.1%} to {high:.1%}")
    typer.echo(f"false alarms among held-out images: {result['false_alarm_rate']:.1%} of {result['n_test']}")
    for other in result["by_features"]:
        typer.echo(features_said(other))
    for entry in result["samples"][:10]:
        typer.echo(
            f"{'COPY ' if entry['copy'] else ''}{entry['file']}  nearest {entry['nearest']}  {entry['score']:.3f}"
        )
    for note in result["notes"]:
        typer.echo(f"note: {note}")


def doctor(as_json: AsJson = False) -> None:
    """Print what this machine can do, what is missing, and what to type."""
    from histoloom.doctor import examine

    findings = examine()
    if as_json:
        print_json({"findings": [vars(finding) for finding in findings]})
        return
    for finding in findings:
        typer.echo(f"{'ok ' if finding.ok else 'no '} {finding.subject:24} {finding.detail}")
        if finding.advice:
            typer.echo(f"    -> {finding.advice}")
