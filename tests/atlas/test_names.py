"""The expert's names: they are kept, resolved and checked."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest

from histoloom.errors import UserError
from histoloom.names import (
    MAX_LENGTH,
    add_label,
    add_name,
    clusters_of_tissue,
    current_names,
    default_name,
    read_events,
    refresh_sample_names,
    undo,
)
from histoloom.run.directory import Run


def test_names_come_back_in_order_and_the_latest_counts(tmp_path: Path) -> None:
    add_name(tmp_path, cluster=1, name="  voids within the tissue ", k=3, rater="A")
    add_name(tmp_path, cluster=1, name="Größere Hohlräume, “gross”", k=3, rater="B")
    add_name(tmp_path, cluster=1, name="another k", k=5, rater="B")
    events = read_events(tmp_path)
    assert [(e.rater, e.k, *e.members, e.value) for e in events] == [
        ("A", 3, 1, "voids within the tissue"),
        ("B", 3, 1, "Größere Hohlräume, “gross”"),
        ("B", 5, 1, "another k"),
    ]
    assert events[0].time <= events[1].time
    assert current_names(tmp_path, k=3) == {0: "cluster 0", 1: "Größere Hohlräume, “gross”", 2: "cluster 2"}


def test_a_torn_line_is_left_out_and_the_next_name_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_name(tmp_path, cluster=0, name="bone", k=2, rater="A")
    path = tmp_path / "names.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:25])
    with caplog.at_level(logging.WARNING):
        assert [e.value for e in read_events(tmp_path)] == ["bone"]
    assert "line 2 is torn" in caplog.text
    add_name(tmp_path, cluster=1, name="fat", k=2, rater="A")
    assert [e.value for e in read_events(tmp_path)] == ["bone", "fat"]
    assert path.read_bytes().startswith(whole + whole[:25])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("   ", "empty"),
        ("x" * (MAX_LENGTH + 1), "at most 200"),
        ("two\nlines", "control character"),
        ("bell\x07", "control character"),
        ("next\x85line", "control character"),
        ("line\u2028separator", "control character"),
        ("turned \u202earound", "control character"),
        ("lone \ud800", "control character"),
        ("2", "cluster's number"),
        ("Cluster 2", "cluster's number"),
    ],
)
def test_invalid_names_write_nothing(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_name(tmp_path, cluster=1, name=name, k=3, rater="A")
    assert not (tmp_path / "names.jsonl").exists()


def test_a_cluster_gets_its_own_default_name_back(tmp_path: Path) -> None:
    add_name(tmp_path, cluster=1, name="bone", k=3, rater="A")
    add_name(tmp_path, cluster=1, name=default_name(1), k=3, rater="A")
    assert current_names(tmp_path, k=3)[1] == "cluster 1"


@pytest.mark.parametrize("cluster", [-1, 3])
def test_a_cluster_that_is_not_there(tmp_path: Path, cluster: int) -> None:
    with pytest.raises(UserError, match="from 0 to 2"):
        add_name(tmp_path, cluster=cluster, name="bone", k=3, rater="A")


NAMES = {0: "Voids within the tissue", 1: "cluster 1", 2: "normal liver", 3: "voids within the tissue", 4: "cluster 4"}


@pytest.mark.parametrize(
    ("tissue", "clusters"),
    [
        ("VOIDS  within the tissue", [0, 3]),
        ("normal liver", [2]),
        ("2", [2]),
        ("cluster 2", [2]),
        ("cluster 4", [4]),
        (" 0 ", [0]),
    ],
)
def test_a_tissue_is_a_name_or_a_number(tissue: str, clusters: list[int]) -> None:
    assert clusters_of_tissue(NAMES, tissue, k=5) == clusters


def test_an_unknown_tissue_lists_what_there_is() -> None:
    with pytest.raises(UserError) as raised:
        clusters_of_tissue(NAMES, "normal livver", k=5)
    message = str(raised.value)
    assert "did you mean 'normal liver'?" in message
    assert "'voids within the tissue'" in message
    assert "from 0 to 4" in message
    assert "\n" not in message
    with pytest.raises(UserError, match="no tissue '5' at k = 5"):
        clusters_of_tissue(NAMES, "5", k=5)


def test_a_tissue_is_resolved_in_a_run(tmp_path: Path) -> None:
    add_name(tmp_path, cluster=2, name="bone", k=4, rater="A")
    assert clusters_of_tissue(tmp_path, "Bone", k=4) == [2]
    with pytest.raises(UserError):
        clusters_of_tissue(tmp_path, "bone", k=3)


def test_the_samples_table_follows_the_names(finished: Run) -> None:
    path = finished.folder("samples") / "metadata.csv"
    with path.open(newline="") as file:
        before = list(csv.DictReader(file))
    name = 'bone, "old"; <b>x</b>'
    add_name(finished.path, cluster=3, name=name, k=4, rater="A")
    refresh_sample_names(finished.path)
    with path.open(newline="") as file:
        after = list(csv.DictReader(file))
    for old, new in zip(before, after, strict=True):
        named = (old["k"], old["cluster"]) == ("4", "3")
        assert new == old | {"tissue": name if named else f"cluster {old['cluster']}"}
    assert sum(row["tissue"] == name for row in after) == 3
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_flags_and_colours_reach_the_samples_table(finished: Run) -> None:
    path = finished.folder("samples") / "metadata.csv"
    refresh_sample_names(finished.path)
    before = path.read_bytes()
    add_label(finished.path, cluster=3, k=4, rater="A", name="bone", colour="#0072b2", flag="unsure")
    refresh_sample_names(finished.path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["tissue"], row["flag"], row["colour"]) for row in rows if (row["k"], row["cluster"]) == ("4", "3")}
    assert found == {("bone", "unsure", "#0072b2")}
    assert {row["flag"] for row in rows} == {"", "unsure"}
    undo(finished.path, k=4, rater="A")
    refresh_sample_names(finished.path)
    assert b"unsure" not in path.read_bytes()
    assert len(path.read_bytes().splitlines()) == len(before.splitlines())
