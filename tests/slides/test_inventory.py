"""Which slides are found, what tables add, and what messages say about the rest."""

from __future__ import annotations

import shutil
import zlib

import pytest
from PIL import Image

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.slides.inventory.find import find_slides, inventory_fingerprint


def config(*paths, **settings):
    return SlidesConfig(paths=tuple(str(path) for path in paths), **settings)


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32(str(path).encode())  # each another, since copies count as one slide
    Image.fromarray(picture(64, 64, seed=seed)).save(path, **options)
    return path


def test_folder_is_searched_through_without_side_files(tmp_path, picture):
    for name in ("b.png", "deep/er/a.jpg", "b.truth.png", ".hidden.png", "._b.png"):
        save(tmp_path / name, picture)
    (tmp_path / "notes.txt").write_text("no slide", encoding="utf-8")
    entries = find_slides(config(tmp_path, mpp=1.0))
    assert [entry.file.name for entry in entries] == ["b.png", "a.jpg"]
    assert [(e.slide_id, e.slide, e.patient, e.mpp_source) for e in entries] == [
        ("b", "b", "b", "slides.mpp"),
        ("a", "a", "a", "slides.mpp"),
    ]


def test_same_file_given_twice_is_one_slide(tmp_path, picture):
    path = save(tmp_path / "a.png", picture)
    assert len(find_slides(config(tmp_path, path, mpp=1.0))) == 1


def test_ids_are_unique_and_safe_and_stems_do_not_merge_patients(tmp_path, picture):
    for name in ("x/S 1ä.png", "y/S 1ä.png", "z/s-1a.png"):
        save(tmp_path / name, picture)
    entries = find_slides(config(tmp_path, mpp=1.0))
    assert [entry.slide_id for entry in entries] == ["S-1a", "S-1a-2", "s-1a-3"]
    assert len({entry.patient for entry in entries}) == 3


def test_table_in_the_folder_is_joined(tmp_path, picture):
    save(tmp_path / "in" / "a.png", picture, dpi=(50_800, 50_800))
    save(tmp_path / "in" / "b.png", picture, dpi=(50_800, 50_800))
    text = "\ufefffile,patient,slide,mpp,diagnosis\nin/a.png,P1,S1,1.5,x\nin/b.png,P1,,,y\n"
    (tmp_path / "slides.csv").write_text(text, encoding="utf-8")
    first, second = find_slides(config(tmp_path))
    assert (first.patient, first.slide, first.mpp, first.mpp_source) == ("P1", "S1", 1.5, "table")
    assert (second.patient, second.slide, second.mpp_source) == ("P1", "b", "image resolution")
    assert second.mpp == pytest.approx(0.5, rel=1e-3)


def test_configured_table_wins_and_semicolons_work(tmp_path, picture):
    save(tmp_path / "in" / "a.png", picture)
    (tmp_path / "in" / "slides.csv").write_text("file,mpp\na.png,1\n", encoding="utf-8")
    table = tmp_path / "mine.csv"
    table.write_text("File;Patient;mpp\nin/a.png;P7;2\n", encoding="utf-8")
    (entry,) = find_slides(config(tmp_path / "in", table=str(table)))
    assert (entry.patient, entry.mpp) == ("P7", 2.0)


def test_csv_as_path_names_the_slides(tmp_path, picture):
    for name in ("a.png", "b.png"):
        save(tmp_path / name, picture)
    (tmp_path / "some.csv").write_text("file,mpp\nb.png,1\n", encoding="utf-8")
    assert [entry.slide_id for entry in find_slides(config(tmp_path / "some.csv"))] == ["b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,mpp\na.png,1\n", "has no column file"),
        ("", "has no column file"),
        ("file,mpp\na.png,fine\n", "line 2: mpp must be a number of um/px from 0.01 to 100, got 'fine'"),
        ("file,mpp\na.png,-1\n", "mpp must be a number"),
        ("file,patient\na.png,1\na.png,2\n", "line 3: a.png is listed twice"),
        ("file,patient\n,1\n", "column file is empty"),
    ],
)
def test_wrong_tables_get_one_line(tmp_path, picture, text, message):
    save(tmp_path / "a.png", picture)
    (tmp_path / "slides.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        find_slides(config(tmp_path))


def test_broken_ones_among_good_ones_carry_reasons(tmp_path, picture, pyramid):
    save(tmp_path / "good.png", picture, dpi=(50_800, 50_800))
    save(tmp_path / "silent.png", picture)
    (tmp_path / "text.svs").write_text("hello", encoding="utf-8")
    data = pyramid(tmp_path / "cut.tif", picture(128, 128), mpp=0.5).read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[:300])
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "slides.csv").write_text("file,patient\ngood.png,P\ngone.svs,P\n", encoding="utf-8")
    status = {entry.file.name: entry.status for entry in find_slides(config(tmp_path))}
    assert status["good.png"] == "ok"
    assert status["gone.svs"] == "the file does not exist"
    assert "is not a slide or image" in status["text.svs"]
    assert "is not a slide or image" in status["empty.tif"]
    assert "cut short" in status["cut.tif"]
    assert "--mpp" in status["silent.png"]
    assert "column mpp" in status["silent.png"]


def test_nothing_usable_is_one_line_with_reasons(tmp_path, picture):
    for name in "abcde":
        save(tmp_path / f"{name}.png", picture)
    with pytest.raises(UserError, match=r"none of the 5 slides .* a\.png .*--mpp.*; and 2 more$") as caught:
        find_slides(config(tmp_path))
    assert "\n" not in str(caught.value)


def test_empty_folder_and_missing_path(tmp_path):
    with pytest.raises(UserError, match=r"no slides in .*\.svs"):
        find_slides(config(tmp_path))
    with pytest.raises(UserError, match="does not exist; give files or folders"):
        find_slides(config(tmp_path / "nowhere"))


def test_fingerprint_sees_content_names_and_tables_but_not_the_place(tmp_path, picture):
    here = tmp_path / "here"
    save(here / "a.png", picture)
    save(here / "b.png", picture)
    first = inventory_fingerprint(config(here))
    shutil.copytree(here, tmp_path / "there")
    assert inventory_fingerprint(config(tmp_path / "there")) == first
    (here / "slides.csv").write_text("file,mpp\na.png,1\n", encoding="utf-8")
    with_table = inventory_fingerprint(config(here))
    with (here / "a.png").open("ab") as file:
        file.write(b"x")
    changed = inventory_fingerprint(config(here))
    (here / "b.png").rename(here / "c.png")
    assert len({first, with_table, changed, inventory_fingerprint(config(here))}) == 4


def test_real_slides(real_data):
    with_mpp = {entry.slide_id: entry for entry in find_slides(config(real_data / "slides", mpp=0.5))}
    without = {entry.slide_id: entry for entry in find_slides(config(real_data / "slides"))}
    assert with_mpp["CMU-1-Small-Region"].mpp == 0.499
    assert with_mpp["her2-B1"].mpp == pytest.approx(0.688)
    assert (with_mpp["tcga-cr-7395"].mpp, with_mpp["tcga-cr-7395"].status) == (0.5, "ok")
    assert "--mpp" in without["tcga-cr-7395"].status
