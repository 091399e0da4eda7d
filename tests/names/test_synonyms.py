"""The raters' table of synonyms."""

from __future__ import annotations

from pathlib import Path

import pytest

from histoloom.errors import UserError
from histoloom.names import add_name, read_label_state
from histoloom.names.synonyms import FILE, canonical_names, read_synonyms, write_synonyms


def test_what_is_written_is_read_and_a_spreadsheet_computes_nothing(run: Path) -> None:
    assert read_synonyms(run) == []
    rows = [("adipose tissue", "fat"), ("=1+1", "Fat")]
    write_synonyms(run, rows)
    assert read_synonyms(run) == rows
    assert "'=1+1" in (run / FILE).read_text(encoding="utf-8-sig")
    write_synonyms(run, [])
    assert read_synonyms(run) == []


def test_chains_are_one_name_whatever_their_order_and_case(run: Path) -> None:
    for rows in (
        [("Adipose  tissue", "fat"), ("lipocytes", "adipose tissue")],
        [("lipocytes", "adipose tissue"), ("adipose tissue", "FAT")],
        [("fat", "lipocytes"), ("lipocytes", "adipose tissue"), ("adipose tissue", "fat")],
    ):
        names = canonical_names(rows)
        assert set(names) == {"fat", "adipose tissue", "lipocytes"}
        assert len(set(names.values())) == 1
    write_synonyms(run, [("lipocytes", "fat")])
    add_name(run, cluster=0, name="Lipocytes", k=3, rater="A")
    state = read_label_state(run, k=3)
    assert state.compared("Lipocytes") == state.compared("FAT") != state.compared("bone")
    assert state.labels("A")[0].name == "Lipocytes", "the name itself stays"


def test_what_cannot_be_is_one_line(run: Path) -> None:
    for rows, problem in (
        ([("", "fat")], "is empty"),
        ([("a", "b"), ("A", "c")], "cannot mean both"),
        ([("a", "b")] * 501, "at most 500"),
    ):
        with pytest.raises(UserError, match=problem):
            write_synonyms(run, rows)
    assert not (run / FILE).exists()
    (run / FILE).write_text("one,two\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected a CSV file in UTF-8 with the columns name, means"):
        read_synonyms(run)
