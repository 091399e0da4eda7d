"""Features from files: every format gives the same numbers, patches find their tile, and bad files say what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from histoloom import pipeline
from histoloom.atlas.maps.tissue_map import map_slide
from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.bank import FEATURES, make_bank
from histoloom.clustering.features.base import ImagesUnsupported
from histoloom.clustering.features.from_files import FileFeatures, find_features
from histoloom.clustering.features.tile_files import TileFiles
from histoloom.config import load_config, make_config, with_settings
from histoloom.errors import UserError
from histoloom.run.directory import Run, read_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import numpy_generator
from histoloom.setup import change_settings, init_run
from histoloom.slides.patch_set import PatchSet

WIDTH, SIDE = 6, 40

Place = Callable[..., StageContext]


@dataclass(frozen=True)
class Tiles:
    """A grid of tiles over a slide: upper left corners (N, 2) in level-0 px and features (N, D)."""

    corner_N2: np.ndarray
    value_ND: np.ndarray

    def of(self, middle_M2: np.ndarray) -> np.ndarray:
        """Features of the tile that each place lies on, found without a tree."""
        inside_MN = (self.corner_N2 <= middle_M2[:, None]) & (middle_M2[:, None] < self.corner_N2 + SIDE)
        return self.value_ND[inside_MN.all(axis=2).argmax(axis=1)]


def tiles_of(number: int) -> Tiles:
    """Tiles from edge to edge of a tiny slide; their features are of three kinds, which follow the place."""
    ticks = np.arange(0, 512, SIDE)
    corner_N2 = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    rng = numpy_generator(0, "tiles", number)
    kind_N = corner_N2.sum(axis=1) // 256 % 3
    centre_3D = numpy_generator(0, "kinds").standard_normal((3, WIDTH)) * 4
    return Tiles(corner_N2, (centre_3D[kind_N] + rng.standard_normal((len(kind_N), WIDTH))).astype(np.float32))


def write_trident(file: Path, tiles: Tiles, *, leading: bool = False) -> None:
    """As ``WSI.extract_patch_features`` and ``save_h5`` of TRIDENT write it; older programs have a leading axis."""
    attributes: Mapping[str, Mapping[str, object]] = {
        "features": {"name": file.stem, "savetodir": str(file.parent), "encoder": "uni_v2"},
        "coords": {
            "patch_size": 20,
            "patch_size_level0": SIDE,
            "level0_magnification": 20,
            "target_magnification": 10,
            "overlap": 0,
            "name": file.stem,
            "savetodir": str(file.parent),
            "level0_width": 512,
            "level0_height": 512,
        },
    }
    assets = {"features": tiles.value_ND, "coords": tiles.corner_N2.astype(np.int64)}
    with h5py.File(file, "w") as opened:
        for key, value in assets.items():
            value = value[None] if leading else value
            shape = value.shape
            data = opened.create_dataset(
                key, shape=shape, maxshape=(None, *shape[1:]), chunks=(1, *shape[1:]), dtype=value.dtype
            )
            data[:] = value
            for name, attribute in attributes[key].items():
                data.attrs[name] = attribute


def write_anndata(file: Path, tiles: Tiles, *, obsm: bool) -> None:
    """What AnnData writes of X and obsm, as far as it is read."""
    with h5py.File(file, "w") as opened:
        opened["obsm/spatial"] = tiles.corner_N2 + SIDE / 2
        opened["X"] = np.zeros((len(tiles.corner_N2), 2), np.float32) if obsm else tiles.value_ND
        if obsm:
            opened["obsm/X_uni"] = tiles.value_ND


def write_table(file: Path, tiles: Mapping[str, Tiles]) -> None:
    """One ``.npy`` of all slides and its table."""
    np.save(file, np.concatenate([one.value_ND for one in tiles.values()]))
    parts = [
        pd.DataFrame({"slide": slide, "x": one.corner_N2[:, 0], "y": one.corner_N2[:, 1], "extent": SIDE})
        for slide, one in tiles.items()
    ]
    pd.concat(parts).to_csv(file.with_suffix(".csv"), index=False)


@pytest.fixture(scope="module")
def tiles(tiny_run: Path) -> dict[str, Tiles]:
    """The tiles of each slide of the tiny run."""
    return {slide_id: tiles_of(n) for n, slide_id in enumerate(PatchSet.open(tiny_run / "patches").slides["slide_id"])}


@pytest.fixture
def folder(tiles: dict[str, Tiles], tmp_path: Path) -> Path:
    """Features of all slides, a file each, as TRIDENT's folder ``features_uni_v2``."""
    made = tmp_path / "features_uni_v2"
    made.mkdir()
    for slide_id, one in tiles.items():
        write_trident(made / f"{slide_id}.h5", one)
    return made


@pytest.fixture
def context(tiny_run: Path, tmp_path: Path) -> Place:
    """A stage ``clusters`` of the tiny run on features in a place."""

    def made(place: Path, *settings: str) -> StageContext:
        values = load_config(tiny_run / "config.yaml").model_dump(mode="json")
        config = make_config(with_settings(values, ["clusters.features=files", f"clusters.files={place}", *settings]))
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        inputs = {stage: tiny_run / stage for stage in ("patches", "latents", "autoencoder")}
        return StageContext(tiny_run, config, out, inputs, EventLog(out / "log.jsonl"))

    return made


def expected(tiny_run: Path, tiles: Mapping[str, Tiles]) -> np.ndarray:
    """The features of every patch of the run, in their order."""
    table = PatchSet.open(tiny_run / "patches").table
    middle_N2 = table[["x", "y"]].to_numpy(float) + table[["extent"]].to_numpy(float) / 2
    parts = [tiles[slide_id].of(middle_N2[[row]]) for row, slide_id in enumerate(table["slide_id"])]
    return np.concatenate(parts)


@pytest.mark.parametrize("form", ["trident", "leading axis", "X", "obsm", "table", "tables", "index.parquet"])
def test_every_format_gives_each_patch_the_features_of_its_tile(
    form: str, tiny_run: Path, tiles: dict[str, Tiles], context: Place, tmp_path: Path
) -> None:
    place, settings = tmp_path / "features", []
    place.mkdir()
    wanted_ND = expected(tiny_run, tiles)
    for slide_id, one in tiles.items():
        if form in ("trident", "leading axis"):
            write_trident(place / f"{slide_id}.h5", one, leading=form == "leading axis")
        elif form in ("X", "obsm"):
            write_anndata(place / f"{slide_id}.h5ad", one, obsm=form == "obsm")
        elif form == "tables":
            np.save(place / f"{slide_id}.npy", one.value_ND)
            corners = pd.DataFrame(one.corner_N2, columns=["x", "y"])
            corners.to_parquet(place / f"{slide_id}.parquet")
    if form == "obsm":
        settings = ["clusters.obsm=X_uni"]
    if form == "table":
        place /= "all.npy"
        write_table(place, tiles)
    if form == "index.parquet":  # features of the patches themselves, in their order
        wanted_ND = numpy_generator(0, "own").standard_normal(wanted_ND.shape).astype(np.float32)
        np.save(place / "index.npy", wanted_ND)
        shutil.copy(tiny_run / "patches" / "index.parquet", place)
    features = FileFeatures.make(context(place, *settings))
    assert features.shape == (WIDTH,)
    order = numpy_generator(0, "order").permutation(len(wanted_ND))
    np.testing.assert_array_equal(features.compute_rows(order).numpy(), wanted_ND[order])


def clustered(run: Path, *, tiny_run: Path, folder: Path, settings: Sequence[str]) -> Path:
    """A copy of the tiny run, clustered by the features in ``folder``, with all that follows."""
    shutil.copytree(tiny_run, run)
    changes = ["clusters.features=files", f"clusters.files={folder}", "clusters.surroundings=0", *settings]
    pipeline.execute(change_settings(Run.open(run), changes, save=True))
    return run


def one_cluster_a_tile(run: Path, raw_ND: np.ndarray) -> bool:
    """Whether all patches with the same features have the same cluster."""
    tile_N = np.unique(raw_ND, axis=0, return_inverse=True)[1].ravel()
    assert len(np.unique(tile_N)) < len(tile_N)
    pairs = pd.DataFrame({"tile": tile_N, "label": Clustering.open(run / "clusters").labels(3).to_numpy()})
    return len(pairs.drop_duplicates()) == len(np.unique(tile_N))


def test_a_trident_folder_is_clustered_end_to_end(
    tiny_run: Path, tiles: dict[str, Tiles], folder: Path, tmp_path: Path, brief_settings: tuple[str, ...]
) -> None:
    """Clusters follow the files alone. A second classifier tells them of images, by features that made none of them."""
    run = clustered(tmp_path / "run", tiny_run=tiny_run, folder=folder, settings=brief_settings)
    parts = read_json(run / "clusters" / "features.json")["parts"]
    assert [part["kind"] for part in parts] == ["perceptual", "files"]
    assert (parts[1]["dimensions"], parts[1]["encoder"]) == (WIDTH, {"encoder": "uni_v2"})
    x_ND, raw_ND = np.load(run / "clusters" / FEATURES), expected(tiny_run, tiles)
    train = LatentSet.open(run / "latents").rows("train")
    np.testing.assert_allclose(x_ND, (raw_ND - raw_ND[train].mean(0)) / parts[1]["deviation"], atol=1e-4)
    assert float(x_ND[train].var(0).mean()) == pytest.approx(1, rel=1e-3)
    assert one_cluster_a_tile(run, raw_ND)
    said = [str(event.get("message", "")) for event in EventLog(run / "clusters" / "log.jsonl").read()]
    assert [line for line in said if "by uni_v2, 6 numbers a tile; a tile is 1.2 times as wide as a patch" in line]

    # What the second classifier tells of images is what was measured
    alone = read_json(run / "clusters" / "patch_alone.json")["agreement"]
    patches, clustering = PatchSet.open(run / "patches"), Clustering.open(run / "clusters")
    rows = patches.rows("holdout")
    folders = {stage: run / stage for stage in ("autoencoder", "latents", "clusters")}
    labels = Classifier.load(**folders, device=torch.device("cpu")).labels(patches.images(rows))
    for k in (2, 3):
        same = float((labels[k] == clustering.labels(k).to_numpy()[rows]).mean())
        assert same == pytest.approx(alone[str(k)], abs=0.02)
    assert "clusterer" in read_json(run / "evaluation" / "faithfulness.json")
    assert "does not judge the samples" not in (run / "report.html").read_text(encoding="utf-8")
    slide = next(Path(file) for file in patches.slides["file"])
    map_slide(run, slide, out=tmp_path / "map.geojson", k=None, mpp=None)
    assert read_json(tmp_path / "map.geojson")["features"]


def test_without_a_second_classifier_new_images_get_no_cluster_and_that_is_said_once(
    tiny_run: Path, tiles: dict[str, Tiles], folder: Path, tmp_path: Path, brief_settings: tuple[str, ...]
) -> None:
    settings = [*brief_settings, "clusters.positives=views"]
    run = clustered(tmp_path / "run", tiny_run=tiny_run, folder=folder, settings=settings)
    assert [part["kind"] for part in read_json(run / "clusters" / "features.json")["parts"]] == ["files"]
    assert one_cluster_a_tile(run, expected(tiny_run, tiles))
    faithfulness = read_json(run / "evaluation" / "faithfulness.json")
    assert "clusterer" not in faithfulness
    assert "judge" in faithfulness
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("own clusterer does not judge the samples") == 1
    slide = next(Path(file) for file in PatchSet.open(run / "patches").slides["file"])
    with pytest.raises(ImagesUnsupported, match="the cluster of a new image is not known"):
        map_slide(run, slide, out=tmp_path / "map.geojson", k=None, mpp=None)


def test_kinds_of_the_patch_stand_before_those_of_the_slide(context: Place, folder: Path) -> None:
    stage = context(folder, "clusters.features=[files, perceptual]", "clusters.surroundings=0.5")
    bank = make_bank(stage, latents=LatentSet.open(stage.inputs["latents"]))
    parts = read_json(stage.out / "features.json")["parts"]
    assert [part["kind"] for part in parts] == ["perceptual", "files", "surroundings"]
    assert (bank.of_patch, bank.unseen) == (parts[0]["dimensions"], 0)
    assert np.load(stage.out / FEATURES).shape[1] == sum(part["dimensions"] for part in parts)


def test_patches_beside_all_tiles_take_the_nearest_while_they_are_few(
    tiny_run: Path, tiles: dict[str, Tiles], context: Place, tmp_path: Path
) -> None:
    table = PatchSet.open(tiny_run / "patches").table
    middle_N2 = table[["x", "y"]].to_numpy(float) + table[["extent"]].to_numpy(float) / 2
    first = table["slide_id"].iloc[0]
    corner_2 = middle_N2[0] // SIDE * SIDE
    kept = {}
    for slide_id, one in tiles.items():
        keep_N = ~(one.corner_N2 == corner_2).all(axis=1) if slide_id == first else np.ones(len(one.corner_N2), bool)
        kept[slide_id] = Tiles(one.corner_N2[keep_N], one.value_ND[keep_N])
    write_table(tmp_path / "some.npy", kept)
    stage = context(tmp_path / "some.npy")
    values_D = FileFeatures.make(stage).compute_rows(np.array([0])).numpy()[0]
    distance_N = np.abs(kept[first].corner_N2 + SIDE / 2 - middle_N2[0]).max(axis=1)
    np.testing.assert_array_equal(values_D, kept[first].value_ND[distance_N.argmin()])
    [message] = [str(event["message"]) for event in stage.log.read()]
    assert "patches lie on no tile and take the nearest, up to" in message
    assert "tiles away" in message


def test_many_patches_beside_all_tiles_are_an_error_with_slides_and_counts(
    tiles: dict[str, Tiles], context: Place, tmp_path: Path
) -> None:
    half = {slide_id: Tiles(one.corner_N2[:80], one.value_ND[:80]) for slide_id, one in tiles.items()}
    write_table(tmp_path / "half.npy", half)
    with pytest.raises(
        UserError, match=r"of 96 patches \(\d+%\) lie on no tile of .*half.npy: .* \(\d+ of 32\), "
    ) as no:
        FileFeatures.make(context(tmp_path / "half.npy"))
    assert "patches.tissue=detect" in str(no.value)


def test_tiles_of_another_width_than_the_patches_are_warned_of(
    tiles: dict[str, Tiles], context: Place, tmp_path: Path
) -> None:
    write_table(tmp_path / "wide.npy", tiles)
    table = pd.read_csv(tmp_path / "wide.csv").assign(extent=4 * SIDE)
    table.to_csv(tmp_path / "wide.csv", index=False)
    stage = context(tmp_path / "wide.npy")
    FileFeatures.make(stage)
    assert "warning: tiles are 5 times as wide as patches" in str(stage.log.read()[-1]["message"])


def _remove_key(folder: Path, key: str) -> None:
    with h5py.File(next(folder.glob("*.h5")), "a") as file:
        del file[key]


def _replace(folder: Path, key: str, value: np.ndarray) -> None:
    _remove_key(folder, key)
    with h5py.File(next(folder.glob("*.h5")), "a") as file:
        file[key] = value


def _truncate(folder: Path) -> None:
    file = next(folder.glob("*.h5"))
    file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: [file.unlink() for file in folder.glob("*")], "give the folder that holds them itself"),
        (lambda folder: next(folder.glob("*.h5")).unlink(), "no features of 1 of 3 slides"),
        (_truncate, "cannot be read as HDF5"),
        (lambda folder: _remove_key(folder, "coords"), "coords"),
        (lambda folder: _replace(folder, "features", np.zeros(4, np.float32)), "one row of features and one"),
        (lambda folder: _replace(folder, "features", np.zeros((169, 3), np.float32)), "one encoder for all slides"),
        (lambda folder: _replace(folder, "features", np.full((169, WIDTH), np.nan)), "not finite"),
        (lambda folder: shutil.copy(next(folder.glob("*.h5")), next(folder.glob("*.h5")).with_suffix(".hdf5")), "both"),
        (lambda folder: np.save(folder / "more.npy", np.zeros((2, 2))), "has no table beside it"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(
    damage: Callable[[Path], object], message: str, folder: Path, context: Place
) -> None:
    damage(folder)
    stage = context(folder)
    with pytest.raises(UserError, match=message) as error:
        make_bank(stage, latents=LatentSet.open(stage.inputs["latents"]))
    assert "\n" not in str(error.value)
    assert "features" in str(error.value)


def test_two_slides_of_one_name_are_not_given_the_same_features(folder: Path) -> None:
    name = next(folder.glob("*.h5")).stem
    slides = {name: (f"/one/{name}.tif", name), f"{name}-2": (f"/two/{name}.tif", f"{name}-2")}
    with pytest.raises(UserError, match=rf"features of {name} fit 2 slides: {name}, {name}-2; give each slide"):
        find_features(slides, files=TileFiles(folder, obsm=None))


def test_features_are_looked_up_when_the_run_is_made(
    folder: Path, tiny_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not hours later; a relative place is one of the folder in which the command is typed."""
    monkeypatch.chdir(folder.parent)

    def made(name: str, *, pseudonymise: bool = False) -> Run:
        settings = ["clusters.features=files", f"clusters.files={name}"]
        run = tmp_path / ("private-run" if pseudonymise else "new")
        return init_run(run, slides=[tiny_slides], preset="demo", settings=settings, pseudonymise=pseudonymise)

    monkeypatch.setenv("HISTOLOOM_PRIVATE", str(tmp_path / "private"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        made("nowhere")
    assert made(folder.name).config.clusters.files == str(folder)
    made(folder.name, pseudonymise=True)  # its slides have other names, and are found by those of their files
    next(folder.glob("*.h5")).unlink()
    with pytest.raises(UserError, match="no features of 1 of 3 slides"):
        made(folder.name)
