"""The report's section on copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from histoloom.atlas.report.page import render
from histoloom.atlas.report.read_run import STAGES, read_page
from histoloom.evaluation.results import Originality
from histoloom.run.directory import Run, write_json

AUDIT: dict[str, Any] = {
    "n": 24,
    "copies": 1,
    "copy_rate": 1 / 24,
    "interval": [0.001, 0.211],
    "false_alarm_rate": 0.005,
    "false_alarm_interval": [0.0001, 0.028],
    "threshold": 0.512,
    "n_test": 200,
    "membership": {"auc": 0.53, "interval": [0.5, 0.56], "n": [200, 200]},
    "notes": ["the threshold comes from 1 slide(s) & the test from 1"],
    "samples": [
        {"file": "k4/<b>.png", "nearest": "slide-1_x3_y4", "score": 0.91, "copy": True, "too_plain": False},
        {"file": "k4/b.png", "nearest": "slide-1_x8_y4", "score": 0.31, "copy": False, "too_plain": False},
    ],
}
UNKNOWN = dict.fromkeys(("copies", "copy_rate", "interval", "false_alarm_rate", "false_alarm_interval", "threshold"))


def write(folder: Path, content: dict[str, Any]) -> None:
    write_json(folder / "originality.json", content)
    pictures = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    np.savez(folder / "suspicious.npz", sample=pictures, nearest=pictures)


def page(run: Run) -> str:
    inputs = {stage: run.folder(stage) for stage in STAGES}
    return render(read_page(run.path, config=run.config, inputs=inputs, maps=run.folder("report") / "maps"))


def test_rates_pairs_and_limits_are_shown(finished: Run) -> None:
    write(finished.folder("evaluation"), AUDIT)
    html = page(finished)
    assert 'id="originality"' in html
    assert "1 of 24 samples look like copies of a training patch: 4.2% (0.1% to 21.1%)" in html
    assert "0.5% do (0.0% to 2.8%)" in html
    assert "0.910, counted as a copy" in html
    assert "does not prove that patients cannot be recognised" in html
    assert "<b>.png" not in html


def test_a_missing_threshold_is_reported(finished: Run) -> None:
    write(finished.folder("evaluation"), AUDIT | UNKNOWN | {"membership": None})
    assert "No threshold could be set, so that none of the 24 samples is called a copy." in page(finished)


def test_older_runs_have_no_such_section(finished: Run) -> None:
    assert Originality.load(finished.folder("evaluation")) is None
    assert 'id="originality"' not in page(finished)
