"""What tables say is carried through: splits, which count more than drawn ones, and further columns."""

from __future__ import annotations

import pytest

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.slides import stage
from histoloom.slides.inventory.find import find_slides
from histoloom.slides.patch_set import PatchSet


def test_further_columns_come_through(slide_folder, configured, context):
    text = "file;Diagnosis, final;grade\na.tif;tumour;3\nb.tif;;2\n"
    (slide_folder / "slides.csv").write_text(text, encoding="utf-8")
    job = context(configured(slide_folder))
    stage.run(job)
    slides = PatchSet.open(job.out).slides.set_index("slide_id")
    assert list(slides.columns[-2:]) == ["table_Diagnosis, final", "table_grade"]
    assert slides["table_grade"].fillna("-").tolist() == ["3", "2", "-"]
    assert slides["table_Diagnosis, final"].fillna("-").tolist() == ["tumour", "-", "-"]
    some = context(configured(slide_folder, slides={"columns": ["grade"]}), name="some")
    stage.run(some)
    assert list(PatchSet.open(some.out).slides.columns[-1:]) == ["table_grade"]
    with pytest.raises(UserError, match=r"slides\.columns names 'grad', which no table has"):
        find_slides(configured(slide_folder, slides={"columns": ["grad"]}).slides)


def test_a_split_of_the_table_wins(slide_folder, configured, context):
    """b follows its patient a; c has no split and is trained on."""
    text = "file,patient,split\na.tif,P,holdout\nb.tif,P,\nc.tif,Q,\n"
    (slide_folder / "slides.csv").write_text(text, encoding="utf-8")
    job = context(configured(slide_folder, patches={"split": {"by": "patient", "holdout": 0.9}}))
    stage.run(job)
    slides = PatchSet.open(job.out).slides.set_index("slide_id")
    assert slides["split"].tolist() == ["holdout", "holdout", "train"]
    assert any("what the table says" in event["message"] for event in job.log.read())


def test_a_split_that_leaks_is_refused(slide_folder, configured, context):
    text = "file,patient,split\na.tif,P,holdout\nb.tif,P,train\nc.tif,Q,train\n"
    (slide_folder / "slides.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="puts patient P in both train and holdout"):
        stage.run(context(configured(slide_folder)))
    job = context(configured(slide_folder, patches={"split": {"by": "slide"}}), name="by-slide")
    stage.run(job)
    assert PatchSet.open(job.out).slides["split"].tolist() == ["holdout", "train", "train"]


def test_slides_without_mpp_are_named_with_what_to_type(slide_folder, pyramid, picture, caplog):
    pyramid(slide_folder / "silent.tif", picture(64, 64), mpp=None)
    entries = find_slides(SlidesConfig(paths=(str(slide_folder),)))
    assert [entry.usable for entry in entries] == [True, True, True, False]
    (line,) = (record.getMessage() for record in caplog.records)
    for word in ("1 of 4", "silent.tif", "--mpp 0.5", "--table"):
        assert word in line
