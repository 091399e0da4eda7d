"""The stage and the command: real networks on real files, from slides to maps and the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from PIL import Image

from histoloom.atlas import stage
from histoloom.atlas.maps import embedding
from histoloom.atlas.maps.corrections import import_map
from histoloom.atlas.maps.tissue_map import map_slide, run_slide
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.clustering.clusterer import Architecture, build
from histoloom.config import dump_config
from histoloom.errors import UserError
from histoloom.names import add_label, add_name
from histoloom.names.corrections import FILE, correct, undo_correction
from histoloom.run.directory import Run, read_json, write_json, write_text
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import derive
from histoloom.slides.entries import SlideError
from histoloom.slides.inventory.pseudonyms import FOLDER_VARIABLE, PrivateRecord, SlideNames
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.readers.open import FlatSlide

STAGES = ("patches", "autoencoder", "latents", "clusters", "diffusion", "samples", "evaluation")


@pytest.fixture
def run(finished: Run) -> Run:
    """A finished run with networks (of random weights) and with its numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(0, "test networks"))
        Autoencoder(finished.config.autoencoder).save(finished.folder("autoencoder"))
        architecture = Architecture(finished.config.autoencoder.code_dim, channels=8, ks=finished.config.clusters.k)
        build(architecture).save(finished.folder("clusters"))
    channels = finished.config.autoencoder.code_dim
    moments = {"mean": [0.0] * channels, "std": [0.5] * channels}
    write_json(finished.folder("latents") / "moments.json", moments)
    return finished


def context(run: Run) -> StageContext:
    out = run.path / ".building" / "report"
    out.mkdir(parents=True, exist_ok=True)
    inputs = {name: run.folder(name) for name in STAGES}
    return StageContext(run.path, run.config, out, inputs, EventLog(out / "log.jsonl"))


def page(run: Run) -> str:
    return (run.building("report") / "report.html").read_text(encoding="utf-8")


def test_the_stage_draws_maps_and_writes_the_page(run: Run) -> None:
    index = run.folder("patches") / "index.parquet"
    table = pd.read_parquet(index)
    table.assign(region=np.where(table["x"] % 2, "Stroma", "")).to_parquet(index, index=False)
    report_context = context(run)
    stage.run(report_context)
    html = page(run)
    for name in ("slide-0", "slide-1", "slide-2"):
        with Image.open(report_context.out / "maps" / f"{name}.png") as image:
            assert image.size == (160, 128)
        assert read_json(report_context.out / "maps" / f"{name}.json")["patches"] == 4 * 5 * 16
        assert f"{name}: 320 patches classified on a grid" in html
    assert "Groups in regions" in html
    assert '<th scope="row" class="text anywhere">(no name)</th>' in html
    figures = report_context.out / "figures"
    names = {path.stem for path in figures.glob("*.svg")}
    assert names == {path.stem for path in figures.glob("*.csv")}
    assert names >= {"why-this-k", "patches-by-group", "patches-by-slide", "patches-by-patient"}
    drawn = pd.read_csv(figures / "patches-by-slide.csv")
    assert list(drawn.columns) == ["patch_id", "slide", "pca_x", "pca_y", "tsne_x", "tsne_y"]
    assert drawn["slide"].value_counts().to_dict() == dict.fromkeys(("slide-0", "slide-1", "slide-2"), 24)


def test_a_slide_that_went_away_has_no_map_and_says_why(run: Run) -> None:
    (run.path.parent / "slides" / "slide-1.png").unlink()
    stage.run(context(run))
    html = page(run)
    assert "Slide slide-1 has no map: the file does not exist" in html


def test_maps_use_the_stain_that_the_run_knows_by_the_slides_name(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by its file, which a private run does not name."""
    names = []

    def classify(*_args: object, name: str, **_kwargs: object) -> None:
        names.append(name)
        raise SlideError("cannot be read")

    monkeypatch.setattr(stage, "classify_slide", classify)
    stage.run(context(run))
    assert sorted(names) == ["slide-0", "slide-1", "slide-2"]
    assert page(run).count("has no map: cannot be read") == 3


def test_maps_of_the_last_report_are_reused_until_the_clusters_change(run: Run) -> None:
    stage.run(context(run))
    (run.path / ".building" / "report").rename(run.folder("report"))
    for path in (run.path.parent / "slides").iterdir():
        path.unlink()
    add_name(run.path, cluster=0, name="bone & marrow", k=4, rater="A")
    stage.run(context(run))
    html = page(run)
    assert "0 · bone &amp; marrow" in html
    assert html.count("patches classified on a grid") == 3
    artifact = read_json(run.folder("clusters") / "artifact.json")
    write_json(run.folder("clusters") / "artifact.json", artifact | {"fingerprint": "another"})
    stage.run(context(run))
    assert page(run).count("has no map") == 3


def test_a_chosen_colour_is_drawn_without_the_slide(run: Run) -> None:
    stage.run(context(run))
    (run.path / ".building" / "report").rename(run.folder("report"))
    before = {path.name: path.read_bytes() for path in (run.folder("report") / "maps").glob("*.png")}
    for path in (run.path.parent / "slides").iterdir():
        path.unlink()
    for cluster in range(4):
        add_label(run.path, cluster=cluster, k=4, rater="A", colour="#123456", flag="artefact")
    stage.run(context(run))
    html = page(run)
    assert html.count("patches classified on a grid") == 3
    assert html.count('style="background: #123456"') >= 8
    assert '<span class="flag">artefact</span>' in html
    maps = run.building("report") / "maps"
    assert all((maps / name).read_bytes() != data for name, data in before.items())
    for name in ("slide-0", "slide-1"):
        thumbnail = np.asarray(Image.open(run.folder("patches") / "thumbnails" / f"{name}.jpg")).astype(float)
        drawn = np.asarray(Image.open(maps / f"{name}.png")).astype(float)
        colour = np.array([0x12, 0x34, 0x56])
        is_tinted = (np.abs(drawn - (0.65 * thumbnail + 0.35 * colour)) <= 0.51).all(axis=2)
        is_outline = (drawn == colour).all(axis=2) | (drawn == 255).all(axis=2)
        assert (is_tinted | is_outline).all()
        assert is_tinted.mean() > 0.3


def test_the_map_of_patches_is_reused_until_the_latents_change(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    report_context = context(run)
    stage.run(report_context)
    assert 'id="patch-map"' in page(run)
    first = read_json(report_context.out / "embedding.json")
    assert len(first["patch_ids"]) == len(first["maps"]["pca"]) == len(first["maps"]["tsne"]) == 72
    (run.path / ".building" / "report").rename(run.folder("report"))
    monkeypatch.setattr(embedding, "embed", lambda *_args, **_kwargs: pytest.fail("the map was made again"))
    stage.run(context(run))
    assert read_json(run.building("report") / "embedding.json") == first
    artifact = read_json(run.folder("latents") / "artifact.json")
    write_json(run.folder("latents") / "artifact.json", artifact | {"fingerprint": "another"})
    with pytest.raises(pytest.fail.Exception, match="made again"):
        stage.run(context(run))


def test_a_slide_is_mapped_for_qupath(run: Run, tmp_path: Path) -> None:
    add_label(run.path, cluster=0, k=2, rater="A", name="bone", colour="#010203", flag="mixed")
    out = tmp_path / "maps" / "map.geojson"
    map_slide(run.path, tmp_path / "slides" / "slide-0.png", out=out, k=2, mpp=1.0)
    drawn = json.loads(out.read_text(encoding="utf-8"))
    assert {f["properties"]["classification"]["name"] for f in drawn["features"]} <= {"bone", "cluster 1"}
    for feature in drawn["features"]:
        named, properties = feature["properties"]["classification"]["name"] == "bone", feature["properties"]
        assert (properties["classification"]["color"] == [1, 2, 3]) == named
        assert properties["metadata"].get("flag") == ("mixed" if named else None)
        assert properties["metadata"]["histoloom"].startswith("2 0 0+0 " if named else "2 1 0+0 ")
    assert (run.path / "maps" / "slide-0-k2.geojson").read_bytes() == out.read_bytes()
    areas = [shapely.geometry.shape(f["geometry"]).area for f in drawn["features"]]
    assert sum(areas) == pytest.approx(160 * 128)
    with Image.open(out.with_suffix(".png")) as image:
        assert image.size == (160, 128)


def test_maps_follow_corrections_of_patches(run: Run, tmp_path: Path) -> None:
    """The map for QuPath and the report's maps; the former comes back without anything new."""
    patches = PatchSet.open(run.folder("patches")).table.set_index("patch_id")
    away, gone = patches.index[:2]
    correct(run.path, patches=[away], target="lacuna", k=2, rater="A")
    correct(run.path, patches=[gone], target="", k=2, rater="A")
    slide, out = tmp_path / "slides" / "slide-0.png", tmp_path / "map.geojson"
    map_slide(run.path, slide, out=out, k=2, mpp=None)
    features = json.loads(out.read_text(encoding="utf-8"))["features"]
    by_name: dict[str, list[shapely.Geometry]] = {}
    for feature in features:
        name = feature["properties"]["classification"]["name"]
        by_name.setdefault(name, []).append(shapely.geometry.shape(feature["geometry"]))
    shown = {name: shapely.union_all(parts) for name, parts in by_name.items()}
    middle = {patch: shapely.Point(patches["x"][patch] + 16, patches["y"][patch] + 16) for patch in (away, gone)}
    assert shown["lacuna"].contains(middle[away])
    assert not any(area.intersects(middle[gone]) for area in shown.values())
    assert np.asarray(Image.open(out.with_suffix(".png"))).shape == (128, 160, 3)
    journal = (run.path / FILE).read_bytes()
    assert import_map(run.path, out, patches=PatchSet.open(run.folder("patches")), rater="B").corrected == 0
    assert (run.path / FILE).read_bytes() == journal

    stage.run(context(run))
    drawn = run.building("report") / "maps" / "slide-0.png"
    before = drawn.read_bytes()
    stage.run(context(run))
    assert drawn.read_bytes() == before
    correct(run.path, patches=[away], target="lacuna", k=4, rater="A")
    stage.run(context(run))
    assert drawn.read_bytes() != before
    html = page(run)
    assert "The maps show the corrections of 1 patch, made one by one." in html
    assert html.count("</span>lacuna</li>") == 2, "in both legends"
    undo_correction(run.path, k=4, rater="A")
    stage.run(context(run))
    assert drawn.read_bytes() == before


def test_a_slide_of_the_run_has_the_runs_scale(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its file, a PNG, has none; ``--mpp`` still goes before the run's, and the log tells a difference."""
    slide = tmp_path / "slides" / "slide-0.png"
    maps = {}
    for mpp in (None, 1.0, 2.0):
        out = tmp_path / f"map-{mpp}.geojson"
        map_slide(run.path, slide, out=out, k=2, mpp=mpp)
        maps[mpp] = out.read_bytes()
    assert maps[None] == maps[1.0]
    assert maps[None] != maps[2.0]
    (said,) = caplog.messages
    assert "slide-0.png: mapped at --mpp 2, but the run uses 1 um/px (given)" in said


def test_another_slide_has_the_scale_that_the_run_gives_to_all(run: Run, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "slides" / "slide-0.png", tmp_path / "other.png")
    slides, report = run.config.slides, run.config.report
    smaller = {"slides": slides.model_copy(update={"mpp": 2.0}), "report": report.model_copy(update={"map_patches": 9})}
    edited = run.config.model_copy(update=smaller)
    write_text(run.path / "config.yaml", dump_config(edited))
    for name, mpp in (("all", None), ("given", 2.0)):
        map_slide(run.path, tmp_path / "other.png", out=tmp_path / f"{name}.geojson", k=2, mpp=mpp)
    assert (tmp_path / "all.geojson").read_bytes() == (tmp_path / "given.geojson").read_bytes()


def test_a_slide_of_a_private_run_has_the_runs_scale(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide, table = tmp_path / "slides" / "slide-0.png", run.folder("patches") / "slides.parquet"
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "private"))
    names = SlideNames(file=str(slide), slide="", patient="", patient_id="")
    (tmp_path / "private").mkdir()
    PrivateRecord(paths=(), table=None, slides={"slide-0": names}).save(tmp_path / "private" / "token.json")
    rows = pd.read_parquet(table)
    rows.loc[0, "file"] = "private:token/slide-0"
    rows.loc[1, "file"] = "private:elsewhere/slide-1"
    rows.to_parquet(table, index=False)
    found = run_slide(slide, patches=run.folder("patches"))
    assert found is not None
    assert (found.slide_id, found.mpp) == ("slide-0", 1.0)
    assert run_slide(tmp_path / "slides" / "slide-1.png", patches=run.folder("patches")) is None


def test_a_map_counts_from_where_the_scan_begins(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QuPath crops a slide to its scanned part; a flat image plays a slide that has such a part."""
    monkeypatch.setattr(FlatSlide, "origin", (30, 20))
    out = tmp_path / "map.geojson"
    map_slide(run.path, tmp_path / "slides" / "slide-0.png", out=out, k=2, mpp=1.0)
    features = json.loads(out.read_text(encoding="utf-8"))["features"]
    whole = shapely.union_all([shapely.geometry.shape(f["geometry"]) for f in features])
    assert whole.bounds == (-30, -20, 130, 108)


@pytest.mark.parametrize(
    ("slide", "out", "k", "mpp", "message"),
    [
        ("slide-0.png", "map.geojson", 3, 1.0, "allowed: 2, 4"),
        ("slide-0.png", "map.txt", None, 1.0, "ends in .geojson"),
        ("other.png", "map.geojson", None, None, "does not say its mpp .*: give it with --mpp"),
        ("absent.png", "map.geojson", None, 1.0, "does not exist"),
        ("slide-0.png", "map.geojson", None, 0.01, "smaller than one patch"),
        ("slide-0.png", "map.geojson", None, 0.0, "--mpp must be um/px from 0.01 to 100, got 0"),
    ],
)
def test_a_slide_that_cannot_be_mapped_gives_one_line(
    run: Run, tmp_path: Path, slide: str, out: str, k: int | None, mpp: float | None, message: str
) -> None:
    shutil.copy(tmp_path / "slides" / "slide-0.png", tmp_path / "slides" / "other.png")
    with pytest.raises(UserError, match=message) as raised:
        map_slide(run.path, tmp_path / "slides" / slide, out=tmp_path / out, k=k, mpp=mpp)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / out).exists()
