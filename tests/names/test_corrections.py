"""Corrections of single patches: events that can be undone, and whose names count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from histoloom.errors import UserError
from histoloom.names import add_name, choose_reference
from histoloom.names.corrections import (
    FILE,
    NO_TISSUE,
    correct,
    corrections_journal,
    counts_by_name,
    current_corrections,
    redo_correction,
    undo_correction,
)


def test_a_correction_means_a_cluster_a_name_no_tissue_or_nothing(run: Path) -> None:
    correct(run, patches=["a", "b", "a"], target=1, k=3, rater="A")
    correct(run, patches=["c"], target=" lacuna ", k=3, rater="A")
    correct(run, patches=["d"], target="", k=3, rater="A")
    correct(run, patches=["b"], target=None, k=3, rater="A")
    assert current_corrections(run, k=3) == {"a": "cluster 1", "c": "lacuna", "d": NO_TISSUE}
    add_name(run, cluster=1, name="fat", k=3, rater="A")
    add_name(run, cluster=2, name="Lacuna", k=3, rater="A")
    assert current_corrections(run, k=3) == {"a": "fat", "c": "Lacuna", "d": NO_TISSUE}
    assert counts_by_name({"a": "fat", "b": "bone", "c": "bone"}) == {"bone": 2, "fat": 1}
    assert current_corrections(run, k=2) == {}


def test_a_step_is_undone_and_redone_by_its_own_rater(run: Path) -> None:
    correct(run, patches=["a"], target="bone", k=3, rater="A", edit="one")
    first = correct(run, patches=["b"], target="fat", k=3, rater="A", edit="one")
    correct(run, patches=["c"], target="bone", k=3, rater="B")
    with pytest.raises(UserError, match="undone already, or of another rater"):
        undo_correction(run, k=3, rater="B", step=first.id)
    undo_correction(run, k=3, rater="A", step=first.id)
    assert current_corrections(run, k=3) == {"c": "bone"}
    redo_correction(run, k=3, rater="A")
    assert current_corrections(run, k=3) == {"a": "bone", "b": "fat", "c": "bone"}
    correct(run, patches=["a"], target="fat", k=3, rater="A")
    with pytest.raises(UserError, match="1 of its patches were corrected again since"):
        undo_correction(run, k=3, rater="A", step=first.id)
    undo_correction(run, k=3, rater="A")
    undo_correction(run, k=3, rater="A")
    assert current_corrections(run, k=3) == {"c": "bone"}
    with pytest.raises(UserError, match="nothing to undo for 'A' at k = 3"):
        undo_correction(run, k=3, rater="A")


def test_the_latest_by_anyone_counts_or_the_references(run: Path) -> None:
    add_name(run, cluster=0, name="bone", k=3, rater="A")
    correct(run, patches=["a"], target=1, k=3, rater="A")
    correct(run, patches=["a"], target=2, k=3, rater="B")
    assert current_corrections(run, k=3) == {"a": "cluster 2"}
    choose_reference(run, reference="A", by="A")
    assert current_corrections(run, k=3) == {"a": "cluster 1"}


def test_corrections_are_of_one_clustering(run: Path, recluster: Callable[..., None]) -> None:
    recluster(run, fingerprint="one")
    correct(run, patches=["a"], target=1, k=3, rater="A")
    recluster(run, fingerprint="two")
    assert current_corrections(run, k=3) == {}
    assert len(corrections_journal(run).events()) == 1


@pytest.mark.parametrize(
    ("target", "patches", "message"),
    [
        (3, ["a"], "no cluster 3 at k = 3"),
        (-1, ["a"], "no cluster -1"),
        ("cluster 1", ["a"], "reads as a cluster's number"),
        ("a\nb", ["a"], "control character"),
        ("bone", [], "no patches are selected"),
    ],
)
def test_what_is_refused_writes_nothing(run: Path, target: int | str, patches: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        correct(run, patches=patches, target=target, k=3, rater="A")
    assert not (run / FILE).exists()


def test_lines_that_are_no_events_are_left_out(run: Path) -> None:
    event = correct(run, patches=["a"], target=1, k=3, rater="A")
    whole = (run / FILE).read_text(encoding="utf-8")
    bad = [whole.replace('"cluster": 1', f'"cluster": {value}') for value in ("7", '"x"', "[]")]
    (run / FILE).write_text("".join([*bad, '["correct"]\n', "3\n", whole, whole[:20]]), encoding="utf-8")
    assert corrections_journal(run).events() == [event]
