"""What a search of folders passes by, and what it says of that; which slide a table's row is for."""

from __future__ import annotations

import itertools
import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from histoloom.config import SlidesConfig, SplitConfig
from histoloom.errors import SlidesAbsent, UserError
from histoloom.run.own_output import png_text
from histoloom.setup import init_run
from histoloom.slides.inventory.find import find_slides, inventory_fingerprint
from histoloom.slides.inventory.search import find_files
from histoloom.slides.patches.sampling import splits_of


@pytest.fixture
def save(tmp_path, picture):
    """Writes a small picture below ``tmp_path``, each another."""

    seeds = itertools.count()

    def write(name, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(32, 32, seed=next(seeds))).save(path, dpi=(25_400, 25_400), **options)
        return path

    return write


def config(*paths, **settings):
    return SlidesConfig(paths=tuple(map(str, paths)), **settings)


def names(*paths, **settings):
    return [item.name for item in find_files(config(*paths, **settings)).slides]


# --- own results


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("config.yaml", "seed: 0\npreset: cpu\nslides:\n  paths: [x]\n"),
        ("artifact.json", '{"stage": "samples", "format": 2, "fingerprint": "0"}'),
        ("metadata.csv", "file_name,sample_id,k,cluster,tissue\n"),
        ("field.json", '{"synthetic": true, "generator": "0", "size": [64, 64], "tissues": ["bone"]}'),
    ],
)
def test_runs_stages_samples_and_painted_fields_are_no_slides(tmp_path, save, marker, text):
    save("s/a.png")
    before = inventory_fingerprint(config(tmp_path / "s"))
    save("s/out/patches/thumbnails/a.png")
    (tmp_path / "s/out/slides.csv").write_text("file\n", encoding="utf-8")
    assert names(tmp_path / "s") == ["a.png", "out/patches/thumbnails/a.png"]
    (tmp_path / "s/out" / marker).write_text(text, encoding="utf-8")
    assert names(tmp_path / "s") == ["a.png"]
    assert inventory_fingerprint(config(tmp_path / "s")) == before
    said: list[str] = []
    find_slides(config(tmp_path / "s"), say=said.append)
    assert said == [f"not searched for slides: Histoloom's own results: 1 ({tmp_path}/s/out)"]
    with pytest.raises(SlidesAbsent, match=r"no slides in .*own results: 1"):
        find_slides(config(tmp_path / "s/out"))


def test_a_new_run_in_the_slides_folder_is_said_and_not_searched(tmp_path, save, caplog):
    save("s/a.png")
    run = init_run(tmp_path / "s/run", slides=[tmp_path / "s"], preset="cpu")
    assert f"{tmp_path}/s/run lies in a folder of slides" in caplog.text
    save("s/run/patches/thumbnails/a.png")
    assert names(*run.config.slides.paths) == ["a.png"]


def test_other_files_of_these_names_hide_nothing(tmp_path, save):
    save("s/a.png")
    (tmp_path / "s/config.yaml").write_text("model: unet\nslides: 3\n", encoding="utf-8")
    (tmp_path / "s/artifact.json").write_text("[]", encoding="utf-8")
    (tmp_path / "s/field.json").write_text("{}", encoding="utf-8")
    (tmp_path / "s/metadata.csv").write_text("file_name,label\n", encoding="utf-8")
    assert names(tmp_path / "s") == ["a.png"]


def test_a_picture_of_ours_is_no_slide_wherever_it_lies(tmp_path, save):
    save("s/a.png")
    own = save("s/map.png", pnginfo=png_text())
    assert names(tmp_path / "s") == ["a.png"]
    with pytest.raises(UserError, match=r"map\.png is a picture that Histoloom wrote, not a slide"):
        find_slides(config(own))


# --- copies


def test_a_copy_is_said_and_counts_as_the_same_slide_and_patient(tmp_path, save):
    a, _ = save("s/a.png"), save("s/b.png")
    shutil.copy(a, tmp_path / "s" / "a (1).png")
    said: list[str] = []
    entries = find_slides(config(tmp_path / "s"), say=said.append)
    assert [(entry.slide_id, entry.slide, entry.patient) for entry in entries] == [
        ("a-1", "a (1)", "a (1)"),
        ("a", "a (1)", "a (1)"),
        ("b", "b", "b"),
    ]
    assert said == [
        f"1 of 3 slides are copies of others, by their content: {a} of {tmp_path}/s/a (1).png; copies stay on one "
        "side of the split, and their tissue counts more than once: take them out"
    ]


def test_a_table_may_give_a_copy_another_patient_and_the_split_still_keeps_them_together(tmp_path, save):
    for name in "abcdef":
        save(f"s/{name}.png")
    shutil.copy(tmp_path / "s/a.png", tmp_path / "s/z.png")
    (tmp_path / "s/slides.csv").write_text("file,patient\na.png,X\nb.png,Y\nz.png,Y\n", encoding="utf-8")
    entries = find_slides(config(tmp_path / "s"), say=lambda _: None)
    assert {entry.slide_id: entry.patient for entry in entries if entry.slide_id in "az"} == {"a": "X", "z": "Y"}
    counts = {entry.slide_id: 10 for entry in entries}
    held = set()
    for seed in range(20):
        splits = splits_of(entries, counts=counts, config=SplitConfig(holdout=0.4), seed=seed, say=lambda _: None)
        assert splits["a"] == splits["b"] == splits["z"]
        held.add(splits["a"])
    assert held == {"train", "holdout"}


def test_a_table_that_tears_copies_apart_is_an_error(tmp_path, save):
    shutil.copy(save("s/a.png"), tmp_path / "s/b.png")
    (tmp_path / "s/slides.csv").write_text("file,patient,split\na.png,X,train\nb.png,Y,holdout\n", encoding="utf-8")
    entries = find_slides(config(tmp_path / "s"), say=lambda _: None)
    with pytest.raises(UserError, match=r"puts patient X in both train and holdout \(a copy"):
        splits_of(entries, counts={"a": 1, "b": 1}, config=SplitConfig(), seed=0, say=lambda _: None)


def test_a_change_in_the_middle_of_a_slide_is_noticed(tmp_path, save):
    """Uncompressed files are of equal size, and their ends are glass."""
    glass, path = np.full((400, 400, 3), 244, np.uint8), save("s/a.bmp")
    prints = set()
    for value in (100, 180):
        glass[100:300] = value
        Image.fromarray(glass).save(path)
        prints.add(inventory_fingerprint(config(tmp_path / "s")))
    assert len(prints) == 2


# --- what cannot be searched


def test_what_is_passed_by_is_counted_in_one_line(tmp_path, save, monkeypatch):
    save("s/a.png")
    save("elsewhere/b.png")
    save("s/locked/c.png")
    (tmp_path / "s/P1").symlink_to(tmp_path / "elsewhere")
    for name in ("c.vsi", "d.qptiff", "e.isyntax", "f.VSI"):
        (tmp_path / "s" / name).touch()
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    said: list[str] = []
    assert len(find_slides(config(tmp_path / "s"), say=said.append)) == 1
    assert said == [
        "not searched for slides: files of formats that are not read: 4 (.isyntax .qptiff .vsi); convert to "
        "OME-TIFF, with the scanner's software or Bio-Formats; linked folders outside the given paths: 1 "
        f"({tmp_path}/s/P1); to follow them: --set slides.follow_links=true; folders that cannot be read: 1 "
        f"({tmp_path}/s/locked: Permission denied)"
    ]


def test_a_file_of_a_format_that_is_not_read_says_what_to_convert_it_to(tmp_path, save):
    save("s/a.png")
    (tmp_path / "b.isyntax").write_bytes(b"?")
    _, entry = find_slides(config(tmp_path / "s", tmp_path / "b.isyntax"), say=lambda _: None)
    assert entry.status.endswith("can open; convert to OME-TIFF, with the scanner's software or Bio-Formats")


def test_linked_folders_are_followed_when_asked_even_in_circles(tmp_path, save):
    save("s/a.png")
    save("elsewhere/b.png")
    (tmp_path / "s/P1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "s")
    assert names(tmp_path / "s", follow_links=True) == ["P1/b.png", "a.png"]
    # Inside the given paths a link leads to nothing new.
    assert names(tmp_path / "s", tmp_path / "elsewhere") == ["a.png", "b.png"]


def test_slides_that_are_folders_of_tiles_are_not_taken_apart(tmp_path, save):
    save("s/a.png")
    save("s/b_files/0/0_0.png")
    save("s/c.zarr/0/0.png")
    save("s/d_files/e.png")
    (tmp_path / "s/b.dzi").touch()
    found = find_files(config(tmp_path / "s"))
    assert [item.name for item in found.slides] == ["a.png", "d_files/e.png"]
    assert found.passed_by.unread == {".dzi": 1, ".zarr": 1}


def test_the_files_that_a_slide_is_made_of_are_no_slides(tmp_path, save):
    """Hamamatsu's VMS and 3DHISTECH's MIRAX; the macro of the first shows the label."""
    for name in ("s/a.jpg", "s/a(1,0).jpg", "s/a_macro.jpg", "s/other.jpg", "s/m/x.jpg"):
        save(name)
    (tmp_path / "s/a.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=a.jpg\nImageFile(1,0)=a(1,0).jpg\n"
        "MacroImage=a_macro.jpg\nMapFile=gone.jpg\nOptimisationFile=../other.jpg\n",
        encoding="utf-8",
    )
    (tmp_path / "s/m.mrxs").touch()
    assert names(tmp_path / "s") == ["a.vms", "m.mrxs", "other.jpg"]
    assert names(tmp_path / "s/a_macro.jpg", tmp_path / "s/a.vms") == ["a.vms"]
    before = inventory_fingerprint(config(tmp_path / "s"))
    (tmp_path / "s/a_macro.jpg").write_bytes(b"")
    assert inventory_fingerprint(config(tmp_path / "s")) != before


# --- tables


@pytest.mark.parametrize(
    "spelled",
    ["P1/Über.png", "p1/über.PNG", "P1\\Über.png", "Über", unicodedata.normalize("NFD", "Über.png"), "./Über.png"],
)
def test_a_row_is_for_the_slide_whose_path_ends_so(tmp_path, save, spelled):
    save("s/P1/Über.png")
    save("s/P2/b.png")
    (tmp_path / "meta").mkdir()
    table = tmp_path / "meta" / "clinical.csv"
    table.write_text(f"file,patient,mpp\n{spelled},X,0.25\n", encoding="utf-8")
    said: list[str] = []
    first, second = find_slides(config(tmp_path / "s", table=str(table)), say=said.append)
    assert (first.patient, first.mpp, first.mpp_source) == ("X", 0.25, "table")
    assert second.patient == "b"
    assert said == ["1 of 2 slides are in no table: each counts as a patient of its own"]


@pytest.mark.parametrize(
    "row",
    [
        "gone.png",
        "P3/a.png",  # another patient's
        "a.png",  # two are called so
        "../s/a.png",
        "/old/disk/s/P1/a.png",
        "other/P1/a.png",  # exists, and is not among the slides
        "ng",
    ],
)
def test_a_table_that_fits_no_slide_is_an_error(tmp_path, save, row):
    for name in ("s/P1/a.png", "s/P2/a.png", "meta/other/P1/a.png"):
        save(name)
    table = tmp_path / "meta" / "clinical.csv"
    table.write_text(f"file,patient\n{row},X\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"clinical\.csv fits no slide: none of its 1 rows names one of the 2"
    ) as caught:
        find_slides(config(tmp_path / "s", table=str(table)))
    assert row in str(caught.value)


def test_two_rows_for_one_slide_must_agree(tmp_path, save):
    save("s/a.png")
    table = tmp_path / "t.csv"
    table.write_text("file,patient\na.png,X\nA,Y\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"t\.csv: A and a\.png both name .*a\.png"):
        find_slides(config(tmp_path / "s", table=str(table)))


def test_what_a_table_alone_names_is_no_slide_without_a_row(tmp_path, save):
    save("s/a.png")
    save("s/b.png")
    (tmp_path / "s/slides.csv").write_text("file,patient\na.png,X\ngone1.png,Y\ngone2.png,Z\n", encoding="utf-8")
    said: list[str] = []
    entries = find_slides(config(tmp_path / "s"), say=said.append)
    assert [entry.usable for entry in entries] == [True, True, False, False]
    assert said == ["1 of 2 slides are in no table: each counts as a patient of its own"]


def test_a_table_of_slides_none_of_which_exists(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("file\nx/gone.svs\n", encoding="utf-8")
    with pytest.raises(SlidesAbsent, match=r"none of the files listed there exists \(the first: .*x/gone\.svs\)"):
        find_slides(config(table))
