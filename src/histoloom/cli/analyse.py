"""Commands that measure: any clustering, any two folders of images, this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from histoloom.cli.paths import check_out_folder
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
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for evaluate.json, .csv and .html.", callback=check_out_folder),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two folders of images; beside every number stands the same number for real against real images."""
    from histoloom.evaluation.folders import EXTRACTORS, evaluate_folders

    result = evaluate_folders(
        real, synthetic, seed=seed, extractors=tuple(extractor or EXTRACTORS), floor=floor, out=out
    )
    if as_json:
        print_json(result.as_json())
        return
    typer.echo(f"{result.n_real} real, {result.n_synthetic} synthetic images")
    if result.verdict is not None:
        typer.echo(result.verdict.text)
    for name, metric in result.metrics.items():
        low, high = metric.interval
        typer.echo(
            f"{name.partition('/')[0]:10} {metric.value:<9.4g} [{low:.4g}, {high:.4g}]  real against real "
            f"{metric.floor:.4g}  ({metric.extractor})"
        )
    for name, reason in result.missing.items():
        typer.echo(f"{name:10} not measured: {reason}")
    for note in (*result.notes, *result.metric_notes):
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
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for audit.json, .csv, .html and suspicious.png.", callback=check_out_folder
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for copies of training images among synthetic ones, calibrated on held-out real images."""
    from histoloom.evaluation.originality.report import EXTRACTORS, audit_folders

    names = tuple(extractor or EXTRACTORS)
    result = audit_folders(synthetic, train=train, holdout=holdout, seed=seed, extractors=names, out=out)
    if as_json:
        print_json(result.as_json())
        return
    assert result.interval is not None, "an audit of folders is calibrated"
    low, high = result.interval
    typer.echo(f"{result.copies} of {result.n} images look like copies: {low:.1%} to {high:.1%}")
    typer.echo(f"false alarms among held-out images: {result.false_alarm_rate:.1%} of {result.n_test}")
    for by_extractor in result.by_features:
        typer.echo(by_extractor.sentence)
    for sample in result.samples[:10]:
        typer.echo(f"{'COPY ' if sample.is_copy else ''}{sample.file}  nearest {sample.nearest}  {sample.score:.3f}")
    for note in result.notes:
        typer.echo(f"note: {note}")


def doctor(
    as_json: AsJson = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Download the LPIPS weights that are missing (0.8 GB), and check them all.")
    ] = False,
) -> None:
    """Print what this machine can do, what is missing, and what to type."""
    from histoloom.doctor import examine, fetch_weights

    findings = []
    for finding in fetch_weights() if fetch else examine():
        findings.append(finding)
        if not as_json:
            typer.echo(f"{'ok ' if finding.ok else 'no '} {finding.subject:24} {finding.detail}")
            if finding.advice:
                typer.echo(f"    -> {finding.advice}")
    if as_json:
        print_json({"findings": [vars(finding) for finding in findings]})
    if fetch and not all(finding.ok for finding in findings):
        raise typer.Exit(2)
