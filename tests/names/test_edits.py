"""Merge, undo, redo, and whose names count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from histoloom.errors import UserError
from histoloom.names import (
    add_label,
    add_name,
    artefacts_of,
    choose_reference,
    clustering_of,
    clusters_of_tissue,
    current_labels,
    current_names,
    flags_of,
    merge,
    raters_of,
    read_events,
    read_label_state,
    redo,
    undo,
    without_artefacts,
)


def names(run: Path, *, k: int = 3) -> list[str]:
    return list(current_names(run, k=k).values())


def own(run: Path, rater: str, *, k: int = 3) -> list[str]:
    return [label.name for label in read_label_state(run, k=k).labels(rater).values()]


def test_merged_clusters_are_one_tissue(run: Path) -> None:
    add_name(run, cluster=2, name="voids within the tissue", k=5, rater="A")
    event = merge(run, clusters=[0, 2, 4], k=5, rater="A")
    assert (event.members, event.value) == ((0, 2, 4), "voids within the tissue")
    assert clusters_of_tissue(run, "Voids within the  tissue", k=5) == [0, 2, 4]
    undo(run, k=5, rater="A")
    assert clusters_of_tissue(run, "voids within the tissue", k=5) == [2]
    redo(run, k=5, rater="A")
    assert clusters_of_tissue(run, "voids within the tissue", k=5) == [0, 2, 4]
    merge(run, clusters=[1, 3], k=5, rater="A", name="fat")
    assert clusters_of_tissue(run, "fat", k=5) == [1, 3]


@pytest.mark.parametrize(
    ("clusters", "name", "message"),
    [
        ([1], "bone", "at least two"),
        ([1, 1], "bone", "at least two"),
        ([0, 3], "bone", "no cluster 3"),
        ([0, 1], None, "name one of them first"),
        ([0, 1], "cluster 1", "reads as a cluster's number"),
        ([0, 1], "  ", "empty"),
    ],
)
def test_an_invalid_merge_writes_nothing(run: Path, clusters: list[int], name: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        merge(run, clusters=clusters, k=3, rater="A", name=name)
    assert not (run / "names.jsonl").exists()


def test_undo_goes_back_step_by_step_and_redo_forward(run: Path) -> None:
    add_name(run, cluster=0, name="bone", k=3, rater="A")
    add_label(run, cluster=0, k=3, rater="A", colour="#112233")
    add_label(run, cluster=0, k=3, rater="A", flag="unsure")
    add_name(run, cluster=0, name="fat", k=3, rater="A")

    def now() -> tuple[str, str, str]:
        label = current_labels(run, k=3)[0]
        return label.name, label.colour, label.flag

    steps = [now()]
    for _ in range(4):
        undo(run, k=3, rater="A")
        steps.append(now())
    expected = [("fat", "#112233", "unsure"), ("bone", "#112233", "unsure"), ("bone", "#112233", "")]
    assert steps == [*expected, ("bone", "", ""), ("cluster 0", "", "")]
    with pytest.raises(UserError, match="nothing to undo"):
        undo(run, k=3, rater="A")
    for expected_label in reversed(steps[:-1]):
        redo(run, k=3, rater="A")
        assert now() == expected_label
    with pytest.raises(UserError, match="nothing to redo"):
        redo(run, k=3, rater="A")
    undo(run, k=3, rater="A")
    add_name(run, cluster=1, name="new", k=3, rater="A")
    with pytest.raises(UserError, match="nothing to redo"):
        redo(run, k=3, rater="A")


def test_one_edit_is_undone_as_one(run: Path) -> None:
    add_name(run, cluster=0, name="old", k=3, rater="A")
    for text in ("b", "bo", "bone"):
        add_label(run, cluster=0, k=3, rater="A", name=text, edit="e1")
    add_label(run, cluster=1, k=3, rater="A", name="fat", edit="e2")
    assert undo(run, k=3, rater="A").of == (read_events(run)[4].id,)
    assert len(undo(run, k=3, rater="A").of) == 3
    assert names(run)[0] == "old"
    redo(run, k=3, rater="A")
    assert names(run)[0] == "bone"


def test_edits_of_two_fields_are_two_steps(run: Path) -> None:
    for cluster, text, edit in ((0, "b", "e1"), (1, "f", "e2"), (0, "bone", "e1"), (1, "fat", "e2")):
        add_label(run, cluster=cluster, k=3, rater="A", name=text, edit=edit)
    undo(run, k=3, rater="A")
    assert own(run, "A") == ["bone", "", ""]
    undo(run, k=3, rater="A")
    assert own(run, "A") == ["", "", ""]
    redo(run, k=3, rater="A")
    redo(run, k=3, rater="A")
    assert own(run, "A") == ["bone", "fat", ""]


def test_undo_is_limited_to_ones_own_events_at_one_k(run: Path) -> None:
    add_name(run, cluster=0, name="bone", k=3, rater="A")
    add_name(run, cluster=0, name="other k", k=5, rater="A")
    add_name(run, cluster=0, name="fat", k=3, rater="B")
    undo(run, k=3, rater="A")
    assert (names(run)[0], names(run, k=5)[0]) == ("fat", "other k")
    with pytest.raises(UserError, match="nothing to undo for 'A' at k = 3"):
        undo(run, k=3, rater="A")


def test_the_latest_name_by_anyone_counts_and_a_removed_one_does_not(run: Path) -> None:
    add_label(run, cluster=0, k=3, rater="A", name="bone", flag="mixed")
    add_name(run, cluster=0, name="fat", k=3, rater="B")
    assert (own(run, "A")[0], own(run, "B")[0], names(run)[0]) == ("bone", "fat", "fat")
    assert current_labels(run, k=3)[0].flag == ""
    undo(run, k=3, rater="B")
    assert names(run)[0] == "bone"
    redo(run, k=3, rater="B")
    add_name(run, cluster=0, name="Cluster  0", k=3, rater="B")
    assert (own(run, "B")[0], names(run)[0]) == ("", "bone")
    add_name(run, cluster=0, name="fat", k=3, rater="B")
    add_name(run, cluster=0, name="bone", k=3, rater="A")
    assert names(run)[0] == "bone"
    assert read_label_state(run, k=3).raters == ["A", "B"]


def test_only_the_names_of_the_reference_count(run: Path) -> None:
    add_name(run, cluster=0, name="bone", k=3, rater="A")
    add_label(run, cluster=1, k=3, rater="B", name="fat", flag="unsure")
    with pytest.raises(UserError, match="no rater 'C'; there are 'A', 'B'"):
        choose_reference(run, reference="C", by="A")
    choose_reference(run, reference="A", by="B")
    assert names(run) == ["bone", "cluster 1", "cluster 2"]
    assert current_labels(run, k=3)[1].flag == ""
    with pytest.raises(UserError, match="no tissue 'fat'"):
        clusters_of_tissue(run, "fat", k=3)
    assert raters_of(read_events(run)) == ["A", "B"]
    choose_reference(run, reference="", by="B")
    assert names(run) == ["bone", "fat", "cluster 2"]


def test_clusters_of_one_tissue_share_a_colour(run: Path) -> None:
    merge(run, clusters=[1, 3], k=5, rater="A", name="bone")
    add_label(run, cluster=3, k=5, rater="A", colour="#0072b2")
    add_label(run, cluster=4, k=5, rater="A", colour="#ff0000")
    colours = [label.colour for label in current_labels(run, k=5).values()]
    assert colours == ["", "#0072b2", "", "#0072b2", "#ff0000"]
    add_label(run, cluster=1, k=5, rater="A", colour="#111111")
    assert current_labels(run, k=5)[1].colour == "#111111"
    assert current_labels(run, k=5)[3].colour == "#111111"


def test_another_clustering_has_names_of_its_own(run: Path, recluster: Callable[..., None]) -> None:
    add_name(run, cluster=0, name="bone", k=3, rater="A")
    recluster(run, fingerprint="f2")
    assert names(run)[0] == "cluster 0"
    with pytest.raises(UserError, match="nothing to undo"):
        undo(run, k=3, rater="A")
    recluster(run, fingerprint="f1")
    assert names(run)[0] == "bone"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"colour": "red"}, "#rrggbb"),
        ({"colour": "#12345"}, "#rrggbb"),
        ({"flag": "bad"}, "artefact, mixed, unsure"),
        ({"name": "bone", "edit": "a b"}, "letters, digits and hyphens"),
        ({"name": "bone", "rater": "  "}, "rater is empty"),
        ({"name": "bone", "flag": "bad"}, "no flag"),
    ],
)
def test_an_invalid_label_writes_nothing(run: Path, label: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_label(run, cluster=0, k=3, **{"rater": "A"} | label)
    assert not (run / "names.jsonl").exists()


def test_runs_do_not_share(make_run: Callable[..., Path]) -> None:
    one, two = make_run("one"), make_run("two")
    add_name(one, cluster=0, name="bone", k=3, rater="A")
    assert names(two)[0] == "cluster 0"


def test_artefacts_are_those_of_the_present_clusters_unless_all_are(run: Path, recluster: Callable[..., None]) -> None:
    add_label(run, cluster=2, k=3, rater="A", name="pen", flag="artefact")
    add_label(run, cluster=1, k=3, rater="A", flag="mixed")
    labels = current_labels(run, k=3)
    assert without_artefacts(labels) == [0, 1]
    present = clustering_of(run)
    assert artefacts_of(read_events(run), clustering=present) == {3: [2]}
    for cluster in range(3):
        add_label(run, cluster=cluster, k=3, rater="A", flag="artefact")
    assert without_artefacts(current_labels(run, k=3)) == [0, 1, 2]
    assert artefacts_of(read_events(run), clustering=present) == {}
    undo(run, k=3, rater="A")
    recluster(run, fingerprint="f2")
    assert artefacts_of(read_events(run), clustering=clustering_of(run)) == {}


def test_a_flag_of_a_part_of_a_group_says_which(run: Path) -> None:
    add_label(run, cluster=0, k=3, rater="A", flag="artefact")
    add_label(run, cluster=2, k=3, rater="A", flag="unsure")
    labels = current_labels(run, k=3)
    assert flags_of(labels, clusters=[0]) == ("artefact",)
    assert flags_of(labels, clusters=[0, 1, 2]) == ("artefact (only 0)", "unsure (only 2)")
    assert flags_of(labels, clusters=[1]) == ()
