"""What ``histoloom evaluate`` and ``histoloom audit`` write into a folder: JSON, a table, and a page to read."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from histoloom.evaluation.results import FolderEvaluation, Originality
from histoloom.run.directory import disk_errors_explained, write_bytes, write_json, write_text
from histoloom.run.own_output import png_text

PAIRS_PER_ROW, GAP, MARGIN = 4, 2, 12
"""pairs in a row of the sheet; px between the images of a pair, and between pairs"""

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


def write_evaluation(result: FolderEvaluation, out: Path) -> None:
    """``evaluate.json``, ``evaluate.csv`` (a row a number) and ``evaluate.html``."""
    table = pd.DataFrame(
        [
            {
                "metric": name.partition("/")[0],
                "extractor": metric.extractor,
                "value": metric.value,
                "low": metric.interval[0],
                "high": metric.interval[1],
                "floor": metric.floor,
                "floor_low": metric.floor_interval[0],
                "floor_high": metric.floor_interval[1],
            }
            for name, metric in result.metrics.items()
        ]
    )
    sentences = [
        *([] if result.verdict is None else [result.verdict.text]),
        f"{result.n_real:,} real and {result.n_synthetic:,} synthetic images. Compare a number only with its floor: "
        "what other real images reach.",
        *(f"{name} was not measured: {reason}" for name, reason in result.missing.items()),
        *result.notes,
        *result.metric_notes,
    ]
    title = "Synthetic and real images"
    _write(out, name="evaluate", title=title, content=result.as_json(), table=table, sentences=sentences)


def write_audit(result: Originality, out: Path, *, pairs: tuple[np.ndarray, np.ndarray]) -> None:
    """``audit.json``, ``audit.csv`` (a row a sample), ``audit.html`` and ``suspicious.png``.

    ``pairs``: the most suspicious samples and the nearest training image of each, uint8 (P, S, S, 3).
    """
    rows = []
    for sample in result.samples:
        row = {"file": sample.file, "nearest": sample.nearest, "score": sample.score}
        row |= {"copy": sample.is_copy, "too_plain": sample.too_plain}
        for extractor, match in sample.by_extractor.items():
            row |= {f"{extractor} nearest": match.nearest, f"{extractor} distance": match.distance}
        rows.append(row)
    assert result.interval is not None, "an audit of folders is calibrated"
    low, high = result.interval
    sentences = [
        f"{result.copies} of {result.n} images look like copies of training images ({low:.1%} to {high:.1%}); of "
        f"{result.n_test} held-out images, which cannot be copies, {result.false_alarm_rate:.1%} do.",
        *(one.sentence for one in result.by_features),
        *result.notes,
        *(f"{name} was not used: {reason}" for name, reason in (result.missing or {}).items()),
    ]
    sheet = _sheet_png(*pairs)
    with disk_errors_explained(out):
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / "suspicious.png", sheet)
    _write(
        out,
        name="audit",
        title="Are synthetic images copies?",
        content=result.as_json(),
        table=pd.DataFrame(rows),
        sentences=sentences,
        figure=f'<p><img alt="The most suspicious images, each beside its nearest training image" '
        f'src="data:image/png;base64,{base64.b64encode(sheet).decode()}"></p>',
    )


def _sheet_png(samples_PSS3: np.ndarray, patches_PSS3: np.ndarray) -> bytes:
    """All pairs as one PNG, each sample with its nearest training image to the right of it."""
    side = samples_PSS3.shape[1]
    rows = -(-len(samples_PSS3) // PAIRS_PER_ROW)
    across, down = 2 * side + GAP + MARGIN, side + MARGIN
    page = np.full((rows * down + MARGIN, PAIRS_PER_ROW * across + MARGIN, 3), 255, np.uint8)
    for number, (sample, patch) in enumerate(zip(samples_PSS3, patches_PSS3, strict=True)):
        row, column = divmod(number, PAIRS_PER_ROW)
        top, left = MARGIN + row * down, MARGIN + column * across
        page[top : top + side, left : left + side] = sample
        page[top : top + side, left + side + GAP : left + 2 * side + GAP] = patch
    buffer = io.BytesIO()
    Image.fromarray(page).save(buffer, format="PNG", optimize=True, pnginfo=png_text())
    return buffer.getvalue()


def _write(
    out: Path,
    *,
    name: str,
    title: str,
    content: object,
    table: pd.DataFrame,
    sentences: Sequence[str],
    figure: str = "",
) -> None:
    text = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    shown = table.to_html(index=False, border=0, float_format="{:.4g}".format, escape=True)
    with disk_errors_explained(out):
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{name}.json", content)
        write_text(out / f"{name}.csv", table.to_csv(index=False))
        write_text(out / f"{name}.html", _PAGE.format(title=title, body=f"{text}\n{figure}\n{shown}"))
