"""What ``histoloom evaluate`` and ``histoloom audit`` leave in a folder: JSON, a table, and a page to read."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from histoloom.evaluation.originality.by_features import features_said
from histoloom.run.directory import disk_errors_explained, write_bytes, write_json, write_text

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-size: 0.9rem }} th, td {{ padding: 0.25rem 0.6rem; text-align: right }}
th {{ text-align: left; font-weight: 600 }} tr {{ border-bottom: 1px solid #ddd }} img {{ max-width: 100% }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def write_evaluation(result: Mapping[str, Any], out: Path) -> None:
    """``evaluate.json``, ``evaluate.csv`` (a row a number) and ``evaluate.html``."""
    table = evaluation_table(result)
    sentences = [
        f"{result['n_real']:,} real and {result['n_synthetic']:,} synthetic images. A number says something only "
        "beside its floor: what other real images reach.",
        *(f"{name} was not measured: {reason}" for name, reason in result["missing"].items()),
        *result["notes"],
        *dict.fromkeys(note for entry in result["metrics"].values() for note in entry.get("notes", ())),
    ]
    _write(out, name="evaluate", title="Synthetic and real images", result=result, table=table, sentences=sentences)


def evaluation_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each number: metric, extractor, value, its interval, the floor and its interval."""
    rows = [
        {
            "metric": name.partition("/")[0],
            "extractor": entry["extractor"],
            "value": entry["value"],
            "low": entry["interval"][0],
            "high": entry["interval"][1],
            "floor": entry["floor"],
            "floor_low": entry["floor_interval"][0],
            "floor_high": entry["floor_interval"][1],
        }
        for name, entry in result["metrics"].items()
    ]
    return pd.DataFrame(rows)


def write_audit(result: Mapping[str, Any], out: Path, *, sheet: bytes) -> None:
    """``audit.json``, ``audit.csv`` (a row a sample), ``audit.html`` and ``suspicious.png``."""
    low, high = result["interval"]
    sentences = [
        f"{result['copies']} of {result['n']} images look like copies of training images ({low:.1%} to {high:.1%}); of "
        f"{result['n_test']} held-out images, which cannot be copies, {result['false_alarm_rate']:.1%} do.",
        *map(features_said, result["by_features"]),
        *result["notes"],
        *(f"{name} was not asked: {reason}" for name, reason in result["missing"].items()),
    ]
    picture = base64.b64encode(sheet).decode()
    with disk_errors_explained(out):
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / "suspicious.png", sheet)
    _write(
        out,
        name="audit",
        title="Are synthetic images copies?",
        result=result,
        table=audit_table(result),
        sentences=sentences,
        figure=f'<p><img alt="The most suspicious images, each beside its nearest training image" '
        f'src="data:image/png;base64,{picture}"></p>',
    )


def audit_table(result: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each sample, the most suspicious first; two columns for each extractor."""
    rows = []
    for entry in result["samples"]:
        row = {name: entry[name] for name in ("file", "nearest", "score", "copy", "too_plain")}
        for extractor, said in entry["by"].items():
            row |= {f"{extractor} nearest": said["nearest"], f"{extractor} distance": said["distance"]}
        rows.append(row)
    return pd.DataFrame(rows)


def _write(
    out: Path,
    *,
    name: str,
    title: str,
    result: Mapping[str, Any],
    table: pd.DataFrame,
    sentences: Sequence[str],
    figure: str = "",
) -> None:
    said = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    shown = table.to_html(index=False, border=0, float_format="{:.4g}".format, escape=True)
    with disk_errors_explained(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{name}.json", result)
        write_text(out / f"{name}.csv", table.to_csv(index=False))
        write_text(out / f"{name}.html", _PAGE.format(title=title, body=f"{said}\n{figure}\n{shown}"))
