"""The faithfulness and usefulness of a finished run's samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histoloom.run.directory import read_json


def test_a_run_measures_what_is_recognised_and_its_reference(tiny_run: Path) -> None:
    result = read_json(tiny_run / "evaluation" / "faithfulness.json")
    k = result["k"]
    for who, reference in (("clusterer", "reconstructions"), ("judge", "held_out")):
        for images in ("samples", reference):
            confusion = np.array(result[who][images]["confusion"])
            assert confusion.shape == (k, k)
            assert confusion.sum() == result[who][images]["n"]
    assert result["clusterer"]["samples"]["n"] == result["n_synthetic"] == 3 * k
    assert set(result["usefulness"]) == {"real", "synthetic", "both"}
    assert result["usefulness"]["real"]["accuracy"] == result["judge"]["held_out"]["accuracy"]
    assert not list((tiny_run / "evaluation").rglob("checkpoints"))
