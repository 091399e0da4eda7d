"""The names that the paper's expert gave its 14 clusters, imported onto a run of 14 clusters."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import histoloom

from histoloom.clustering.results import Decision
from histoloom.run.directory import Run, write_json
from histoloom.setup import init_run

DOCS = Path(__file__).parents[2] / "docs"
TABLE = DOCS / "how-to" / "paper-names.csv"


@pytest.fixture
def run(tmp_path: Path, tiny_slides: Path) -> Run:
    """A run with the published clusters of 140 patches, k = 13 and 14."""
    run = init_run(tmp_path / "run", slides=[tiny_slides], preset="demo")
    folder = run.path / "clusters"
    folder.mkdir()
    n = 140
    table = {"patch_id": [f"p{i}" for i in range(n)], "k13": np.arange(n) % 13, "k14": np.arange(n) % 14}
    pd.DataFrame(table).to_parquet(folder / "index.parquet", index=False)
    Decision(k=14, rule="plain").save(folder)
    about = {"stage": "clusters", "format": 1, "fingerprint": "f1", "config": {}, "inputs": {}}
    write_json(folder / "artifact.json", about | {"seconds": 1.0, "peak_memory_mb": 1.0})
    return run


def test_the_papers_names_come_onto_a_run_with_one_command(run: Run) -> None:
    done = histoloom("names", run.path, "--import", TABLE, "--force")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("14 rows with names, 14 changes")
    listing = json.loads(histoloom("names", run.path, "--json").stdout)
    assert (listing["k"], listing["raters"]) == (14, ["Rumman et al. 2025"])
    names = [cluster["name"] for cluster in listing["clusters"]]
    assert (names[0], names[6], names[13]) == (
        "tissue with high cancer cell density",
        "surrounding empty space",
        "edge of the liver",
    )
    assert len(set(names)) == 14


def test_another_clustering_must_be_forced(run: Run) -> None:
    """Cluster 3 of another run is other tissue; the table does not pretend to know it."""
    done = histoloom("names", run.path, "--import", TABLE)
    assert done.returncode == 2
    assert "force" in done.stderr
    assert not (run.path / "names.jsonl").exists()


def test_the_table_has_the_names_of_the_design_page_in_their_order() -> None:
    page = (DOCS / "explanation" / "design.md").read_text(encoding="utf-8")
    quoted = re.search(r"The expert's names of the 14: (.+?)\.\n", page, flags=re.DOTALL)
    assert quoted is not None
    wanted = [" ".join(name.split()) for name in quoted[1].split(";")]
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == wanted
    assert [(row["k"], row["cluster"]) for row in rows] == [("14", str(cluster)) for cluster in range(14)]
