"""slides.parquet as records: what is saved is loaded, and tables of earlier versions are read."""

from __future__ import annotations

import pandas as pd

from histoloom.slides.patch_set import SlideRow

USED = SlideRow(
    slide_id="a",
    file="/slides/a.svs",
    patient="P1",
    slide="a",
    width=2048,
    height=1024,
    mpp=0.25,
    mpp_source="openslide.mpp-x",
    split="train",
    patches=7,
    status="ok",
    rejected={"blur": 2, "pen": 0},
    extra={"grade": "3", "site": None},
)
LEFT_OUT = SlideRow(
    slide_id="b",
    file="/slides/b.tif",
    patient="P2",
    slide="b",
    width=0,
    height=0,
    mpp=None,
    mpp_source="",
    split="",
    patches=0,
    status="cannot be read",
    rejected={"blur": 0, "pen": 0},
    extra={"grade": None, "site": "skin"},
)


def test_what_is_saved_is_loaded(tmp_path):
    SlideRow.save([USED, LEFT_OUT], tmp_path)
    assert SlideRow.load(tmp_path) == [USED, LEFT_OUT]
    assert [row.usable for row in SlideRow.load(tmp_path)] == [True, False]


def test_the_columns_are_those_of_the_documentation(tmp_path):
    SlideRow.save([USED, LEFT_OUT], tmp_path)
    table = pd.read_parquet(tmp_path / "slides.parquet")
    assert list(table.columns) == [
        *("slide_id", "file", "patient", "slide", "width", "height", "source_mpp", "mpp_source", "split", "patches"),
        *("status", "rejected_blur", "rejected_pen", "table_grade", "table_site"),
    ]
    assert table["source_mpp"].dtype == float


def test_slides_without_a_known_scale_keep_a_column_of_numbers(tmp_path):
    SlideRow.save([LEFT_OUT], tmp_path)
    assert pd.read_parquet(tmp_path / "slides.parquet")["source_mpp"].dtype == float
    assert SlideRow.load(tmp_path) == [LEFT_OUT]


def test_a_table_of_an_earlier_version_is_read(tmp_path):
    """It has neither filters nor the source of the scale."""
    columns = {
        "slide_id": ["a", "b"],
        "file": ["/slides/a.svs", "/slides/b.tif"],
        "patient": ["P1", "P2"],
        "width": [2048, 0],
        "height": [1024, 0],
        "source_mpp": [0.25, float("nan")],
        "split": ["train", ""],
        "patches": [7, 0],
        "status": ["ok", "cannot be read"],
    }
    pd.DataFrame(columns).to_parquet(tmp_path / "slides.parquet", index=False)
    used, left_out = SlideRow.load(tmp_path)
    assert (used.mpp, used.mpp_source, used.slide) == (0.25, "", "")
    assert (used.rejected, used.extra, used.usable) == ({}, {}, True)
    assert (left_out.mpp, left_out.status, left_out.usable) == (None, "cannot be read", False)
