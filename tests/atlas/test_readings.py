"""Readings in the report, in the model card and in the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from histoloom.atlas.report.page import render
from histoloom.atlas.report.read_run import STAGES, read_page
from histoloom.atlas.report.sample_checks import readings_of
from histoloom.cli.app import app
from histoloom.evaluation.reading.folder import Reading
from histoloom.evaluation.reading.make import create_reading
from histoloom.evaluation.reading.plan import Request
from histoloom.evaluation.reading.results import write_results
from histoloom.evaluation.reading.session import Session
from histoloom.names import add_name
from histoloom.pipeline import wanted_fingerprints
from histoloom.run.directory import Run, read_json, write_json
from histoloom.sharing.model_card import _readings

READER = "<b>Ann</b>"


def read(reading: Reading, *, run: Path, n: int | None = None, reader: str = READER) -> None:
    """Right in all real pictures, and in no sample."""
    session = Session.open(reading, reader=reader)
    for trial in session.order[:n]:
        naming = reading.plan.kind == "naming"
        answer = reading.plan.trials[trial].tissue if naming else 0
        session.answer(session.tokens[trial], answer=answer, seconds=2, at_most=None, scaling="smooth")
    write_results(reading, run=run)


def page(run: Run) -> str:
    inputs = {stage: run.folder(stage) for stage in STAGES}
    return render(read_page(run.path, config=run.config, inputs=inputs, maps=run.folder("report") / "maps"))


@pytest.fixture(autouse=True)
def _slides_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished run was made without slides."""
    monkeypatch.setattr("histoloom.slides.inventory.find.inventory_fingerprint", lambda _config, **_samples: "slides")


def report_fingerprint(run: Run) -> str:
    return wanted_fingerprints(run)["report"]


def test_a_report_without_readings_has_no_section(finished: Run) -> None:
    assert 'id="readings"' not in page(finished)
    before = report_fingerprint(finished)
    reading = create_reading(finished, Request("real-or-synthetic", 12))
    read(reading, run=finished.path, n=11)
    assert readings_of(finished.path) == ()
    assert report_fingerprint(finished) == before


def test_the_report_shows_what_readers_reached_and_their_names_are_inert(finished: Run) -> None:
    reading = create_reading(finished, Request("real-or-synthetic", 12))
    read(reading, run=finished.path)
    html = page(finished)
    assert 'id="readings"' in html
    assert READER not in html
    assert "&lt;b&gt;Ann&lt;/b&gt; was right in 6 of 12: 50%" in html
    assert html.count("that was taken for real") == 6
    before = report_fingerprint(finished)
    read(reading, run=finished.path, reader="Ben")
    assert report_fingerprint(finished) != before


def test_the_card_has_readings_of_the_present_samples_only(finished: Run) -> None:
    for cluster in range(4):
        add_name(finished.path, cluster=cluster, name=f"tissue {'abcd'[cluster]}", k=4, rater="x")
    for kind in ("real-or-synthetic", "naming"):
        read(create_reading(finished, Request(kind, 8)), run=finished.path)
    read(create_reading(finished, Request("real-or-synthetic", 4, feedback=True)), run=finished.path)
    lines = _readings(finished, k=4).splitlines()
    assert sum(line.startswith("- ") for line in lines) == 2
    assert "- 8 pictures, half samples and half real patches: a reader was right in 50% (22% to 78%)" in lines[3]
    assert "a reader named 100%" in lines[4]
    assert "Ann" not in "".join(lines)
    path = finished.folder("samples") / "artifact.json"
    write_json(path, read_json(path) | {"fingerprint": "another"})
    assert _readings(finished, k=4) == ""


def test_the_command_prints_tables_and_json(finished: Run) -> None:
    runner = CliRunner()
    assert "no readings yet" in runner.invoke(app, ["readings", str(finished.path)]).output
    reading = create_reading(finished, Request("real-or-synthetic", 8))
    assert "nobody has read it yet" in runner.invoke(app, ["readings", str(finished.path)]).output
    read(reading, run=finished.path)
    read(reading, run=finished.path, reader="Ben", n=3)
    text = runner.invoke(app, ["readings", str(finished.path)]).output
    assert "accuracy" in text
    assert "0.50 (0.22 to 0.78)" in text
    assert "Ben: 3 of 8 answered, not counted yet" in text
    printed = json.loads(runner.invoke(app, ["readings", str(finished.path), "--json"]).output)
    assert printed["readings"][0]["readers"][0]["accuracy"]["value"] == pytest.approx(0.5)
