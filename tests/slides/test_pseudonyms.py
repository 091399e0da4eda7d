"""No name gets into a pseudonymised run: not from files, folders, tables or what a scanner wrote into a slide."""

from __future__ import annotations

import json
import os
import shutil
import stat

import openslide
import pandas as pd
import pytest
import tifffile
from PIL import Image

from histoloom import pipeline
from histoloom.config import load_config
from histoloom.errors import UserError
from histoloom.run.directory import Run
from histoloom.setup import change_settings, init_run
from histoloom.sharing.export import export_generator
from histoloom.slides.entries import SlideError
from histoloom.slides.inventory import pseudonyms
from histoloom.slides.patch_set import PatchSet

NAMES = ("Mustermann", "19991231", "MRN-778812", "Dr-Acula", "1999-12-31", "Secret-Ward", "Onkel-Tumor")
SMALL = ("patches.size=32", "patches.count=48", "clusters.k=[2, 3]", "runtime.workers=1")


@pytest.fixture(autouse=True)
def _private_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(pseudonyms.FOLDER_VARIABLE, str(tmp_path / "private"))
    monkeypatch.delenv(pseudonyms.KEY_VARIABLE, raising=False)


@pytest.fixture
def ward(tmp_path, picture, dicom_level):
    """Slides with names in their folder, file names, tags and table; one is spoiled, one too small, one silent."""
    folder = tmp_path / "Secret-Ward"
    folder.mkdir()
    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib", "metadata": None}
    scale = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    tags = {
        "description": "Patient Mustermann|MRN-778812|Date = 1999-12-31",
        "extratags": [(315, "s", 0, "Dr-Acula", True)],
        "datetime": "1999:12:31 00:00:00",
    }
    for i in range(3):
        pixels = picture(200, 180, seed=i)
        tifffile.imwrite(folder / f"Mustermann_{i}_MRN-778812.tif", pixels, **(options | scale | tags))
    tifffile.imwrite(folder / "Mustermann-small.tif", picture(16, 16), **(options | scale | tags))
    Image.fromarray(picture(64, 64)).save(folder / "Mustermann-silent.png")
    whole = (folder / "Mustermann_0_MRN-778812.tif").read_bytes()
    (folder / "Mustermann-cut.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "Mustermann-dicom").mkdir()
    scan = {"series": "1.2.3", "instance": "1.2.3.1", "mpp": 1.0}
    dicom_level(folder / "Mustermann-dicom" / "a.dcm", picture(200, 180, seed=9), **scan)
    rows = [f"Mustermann_{i}_MRN-778812.tif,Mustermann-{i},Onkel-Tumor" for i in range(3)]
    (folder / "slides.csv").write_text("file,patient,diagnosis\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return folder


def leaks(run):
    """Names in the run, in its files' names and bytes (those of parquet and npz as they are read back)."""
    leaked = []
    for path in sorted(run.rglob("*")):
        texts = [str(path.relative_to(run)).encode()]
        if path.is_file():
            texts.append(path.read_bytes())
            if path.suffix == ".parquet":
                texts.append(pd.read_parquet(path).to_json().encode())
        leaked += [(path.name, name) for name in NAMES for text in texts if name.lower().encode() in text.lower()]
    return leaked


def test_no_name_is_anywhere_in_a_whole_run(tmp_path, ward, tiny_settings):
    short = (*tiny_settings, "autoencoder.training.phases.0.images=96", "diffusion.training.phases.0.images=64")
    run = init_run(tmp_path / "run", slides=[ward], preset="demo", settings=short, pseudonymise=True)
    pipeline.execute(run)
    export_generator(run, tmp_path / "export")
    assert leaks(run.path) == []
    assert leaks(tmp_path / "export") == []
    slides = pd.read_parquet(run.path / "patches" / "slides.parquet")
    assert (slides["status"] == "ok").sum() == 4
    assert slides["slide_id"].str.fullmatch("s[0-9a-f]{16}").all()
    assert slides["patient"].str.fullmatch("p[0-9a-f]{16}").all()
    assert list((run.path / "report" / "maps").glob("s*.png"))
    assert any("cannot be read" in status for status in slides["status"])


def test_the_private_folder_gives_the_names_back(tmp_path, ward):
    run = init_run(tmp_path / "run", slides=[ward], preset="demo", settings=SMALL, pseudonymise=True)
    pipeline.execute(run, until="patches")
    slides = pd.read_parquet(run.path / "patches" / "slides.parquet")
    used = [pseudonyms.real_file(file) for file in slides.loc[slides["status"] == "ok", "file"]]
    assert {file.name for file in used} == {f"Mustermann_{i}_MRN-778812.tif" for i in range(3)} | {"a.dcm"}
    folder = tmp_path / "private"
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (record,) = (json.loads(file.read_text()) for file in folder.glob("*.json"))
    assert {names["patient"] for names in record["slides"].values()} >= {"Mustermann-0", "Mustermann-2"}
    assert pipeline.status(run)[0].state == "done"
    shutil.rmtree(folder)
    pipeline.execute(run, until="patches")  # finished patches need no names
    assert pipeline.status(run)[0].state == "done"
    with pytest.raises(UserError, match="HISTOLOOM_PRIVATE"):
        pipeline.execute(change_settings(run, ["seed=1"], save=False), until="patches")
    with pytest.raises(SlideError, match="HISTOLOOM_PRIVATE"):
        pseudonyms.real_file(slides["file"][0])


def test_regions_are_found_and_named_nowhere(tmp_path, ward):
    """They lie beside the slides, of which those in TIFF are no masks of themselves."""
    for number, text in enumerate(("[]", "Onkel-Tumor")):
        (ward / f"Mustermann_{number}_MRN-778812.geojson").write_text(text, encoding="utf-8")
    settings = ["patches.mpp=1.0", *SMALL]
    run = init_run(tmp_path / "run", slides=[ward], preset="cpu", regions=ward, settings=settings, pseudonymise=True)
    slides = load_config(run.path / "config.yaml").slides
    assert slides.regions == slides.paths[0]
    pipeline.execute(run, until="patches")
    status = PatchSet.open(run.require("patches")).slides["status"]
    assert (status == "ok").sum() == 1
    assert status.str.startswith("its regions cannot be read").sum() == 1
    assert leaks(run.path) == []


def test_keys_decide_about_hashes(tmp_path, ward, monkeypatch):
    ids = {}
    for name, key in (("a", "k" * 32), ("b", "k" * 32), ("c", "l" * 32)):
        monkeypatch.setenv(pseudonyms.KEY_VARIABLE, key)
        run = init_run(tmp_path / name, slides=[ward], preset="demo", settings=SMALL, pseudonymise=True)
        pipeline.execute(run, until="patches")
        ids[name] = set(pd.read_parquet(run.path / "patches" / "slides.parquet")["slide_id"])
    assert ids["a"] == ids["b"]
    assert ids["a"].isdisjoint(ids["c"])
    assert not (tmp_path / "private" / "key").exists()
    with pytest.raises(UserError, match="another key"):
        pipeline.execute(Run.open(tmp_path / "a"), until="patches")
    monkeypatch.setenv(pseudonyms.KEY_VARIABLE, "short")
    with pytest.raises(UserError, match="openssl rand"):
        init_run(tmp_path / "d", slides=[ward], preset="demo", settings=SMALL, pseudonymise=True)


def test_further_columns_are_kept_when_named(tmp_path, ward):
    settings = (*SMALL, "slides.columns=[diagnosis]")
    run = init_run(tmp_path / "run", slides=[ward], preset="demo", settings=settings, pseudonymise=True)
    pipeline.execute(run, until="patches")
    slides = pd.read_parquet(run.path / "patches" / "slides.parquet")
    assert set(slides["table_diagnosis"].dropna()) == {"Onkel-Tumor"}


def test_names_do_not_come_back_by_settings(tmp_path, ward, monkeypatch):
    run = init_run(tmp_path / "run", slides=[ward], preset="demo", settings=SMALL, pseudonymise=True)
    with pytest.raises(UserError, match="takes no names of files"):
        change_settings(run, [f"slides.table={ward}/slides.csv"], save=True)
    assert load_config(run.path / "config.yaml").slides.paths[0].startswith("private:")
    monkeypatch.setenv(pseudonyms.FOLDER_VARIABLE, str(tmp_path / "other" / "inside"))
    with pytest.raises(UserError, match="lies in the run"):
        init_run(tmp_path / "other", slides=[ward], preset="demo", settings=SMALL, pseudonymise=True)


def test_label_and_macro_are_never_read(tmp_path, real_data, monkeypatch):
    """The Aperio slide holds both; to touch them fails here."""
    source = real_data / "slides" / "CMU-1-Small-Region.svs"
    with openslide.OpenSlide(str(source)) as slide:
        assert {"label", "macro"} <= set(slide.associated_images)

    def touched(_slide):
        raise AssertionError("an associated image was read")

    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(touched))
    run = init_run(tmp_path / "run", slides=[source], preset="demo", settings=SMALL)
    pipeline.execute(run, until="patches")
    with Image.open(run.path / "patches" / "thumbnails" / f"{source.stem}.jpg") as thumbnail:
        assert set(thumbnail.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert len(thumbnail.getexif()) == 0
    slides = (run.path / "patches" / "slides.parquet").read_bytes()
    assert b"ScanScope" not in slides
    assert os.fsencode("CPAPERIOCS") not in slides
