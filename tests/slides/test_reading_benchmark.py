"""The benchmark of reading still runs: its rows that need no other tool, on a slide made here."""

import json
from pathlib import Path

import pytest
from forked import run_forked

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OPTIONS = ("--size", "64", "--mpp", "1.3", "--rounds", "1")


@pytest.mark.parametrize("layout", ["grid", "random"])
def test_rows_without_other_tools(tiny_slides, layout):
    slide = sorted(tiny_slides.glob("*.tif"))[0]
    done = run_forked(BENCHMARKS / "slide_reading.py", slide, *OPTIONS, "--layout", layout)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [row["tool"] for row in rows] == ["decoding", "histoloom", "histoloom_reading", "by_hand"]
    assert len({row["patches"] for row in rows}) == 1
    assert rows[0]["patches"] > 5
    assert all(row["cpu"] > 0 for row in rows)
