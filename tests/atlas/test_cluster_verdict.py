"""The verdict on a cluster's samples."""

from __future__ import annotations

from typing import Any

from histoloom.atlas.report.cluster_verdict import cluster_verdict
from histoloom.atlas.report.distribution_table import DistributionRow

FAITHFUL = "Recognised like real tissue: the run's clusterer recognises 90% of the samples."


def row(**changed: Any) -> DistributionRow:
    values: dict[str, Any] = {
        "metric": "kid", "title": "", "extractor": "lpips-alex", "value": 1.0, "low": 1.0, "high": 1.0, "floor": 0.0,
        "floor_low": 0.0, "floor_high": 0.0, "reading": "worse than other real patches",
    }  # fmt: skip
    return DistributionRow(**values | changed)


def found(*copies: bool, rate: float | None = 0.5) -> dict[str, Any]:
    return {"copy_rate": rate, "samples": [{"file": f"{n}.png", "copy": copy} for n, copy in enumerate(copies)]}


def test_recognition_texture_and_copies_in_one_line() -> None:
    rows = [row(extractor="pixels", reading="like other real patches"), row(metric="frechet", reading="?"), row()]
    said = cluster_verdict(
        faithful=FAITHFUL, distribution=rows, originality=found(True, False, True), files=["0.png", "1.png"]
    )
    assert said == (
        "Recognised like real tissue; texture worse than other real patches; 1 of 2 samples looks like a copy."
    )


def test_what_was_not_judged_is_left_out() -> None:
    nothing = cluster_verdict(faithful="", distribution=(), originality={}, files=["0.png"])
    assert nothing == ""
    said = cluster_verdict(faithful="", distribution=(), originality=found(True), files=["7.png"])
    assert said == "No sample looks like a copy."
    assert cluster_verdict(faithful="", distribution=(), originality=found(True, rate=None), files=["0.png"]) == ""
