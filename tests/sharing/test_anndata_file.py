"""A run's patches as an AnnData: every column and matrix belongs to its patch."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from command_line import histoloom
from safetensors.numpy import load_file, save_file

from histoloom.names import add_label
from histoloom.names.corrections import NO_TISSUE, correct
from histoloom.run.directory import Run
from histoloom.sharing.anndata_file import annotate
from histoloom.sharing.coordinate_files import export_coordinates
from histoloom.slides.patch_set import PatchSet


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("h5ad") / "run"))
    for k, name in ((2, "bone"), (3, "marrow")):
        add_label(folder, cluster=1, k=k, rater="Dr A", name=name, flag="unsure")
    return Run.open(folder)


def test_every_patch_has_its_place_its_clusters_and_its_features(run: Run) -> None:
    made, patches = annotate(run), PatchSet.open(run.folder("patches"))
    assert made.obs.index.tolist() == patches.table["patch_id"].tolist()
    x, extent = patches.table["x"].to_numpy(), patches.table["extent"].to_numpy()
    np.testing.assert_array_equal(made.obsm["spatial"][:, 0], x + extent / 2)
    for k, name in ((2, "bone"), (3, "marrow")):
        labels = pd.read_parquet(run.folder("clusters") / "index.parquet").set_index("patch_id")[f"k{k}"]
        assert made.obs[f"k{k}"].astype(int).tolist() == labels[made.obs.index].tolist()
        assert ((made.obs[f"k{k}"] == "1") == (made.obs[f"k{k}_tissue"] == name)).all()
        np.testing.assert_array_equal(made.obsm[f"k{k}_probabilities"].argmax(axis=1), made.obs[f"k{k}"].astype(int))
    assert (made.obs["tissue"] == made.obs[f"k{made.k}_tissue"]).all()
    assert made.obsm["features"].shape[0] == len(patches)
    for slide_id, picture in made.pictures.items():
        row = patches.slides.set_index("slide_id").loc[slide_id]
        height, width = picture.image_hw3.shape[:2]
        assert abs(picture.scale * row["width"] - width) < 1
        assert abs(picture.scale * row["height"] - height) < 1
        assert picture.patch_extent == made.obs.loc[made.obs["slide_id"] == slide_id, "extent"].iloc[0]
    assert set(made.pictures) == set(made.obs["slide_id"])


def test_rows_are_joined_by_patch_and_not_by_their_order(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    clusters, expected = copy / "clusters", annotate(run)
    table, features = pd.read_parquet(clusters / "index.parquet"), np.load(clusters / "features.npy")
    order = np.random.default_rng(0).permutation(len(table))
    table.iloc[order].to_parquet(clusters / "index.parquet")
    np.save(clusters / "features.npy", features[order])
    probabilities = load_file(clusters / "probabilities.safetensors")
    save_file({k: values[order] for k, values in probabilities.items()}, clusters / "probabilities.safetensors")
    made = annotate(Run.open(copy))
    pd.testing.assert_frame_equal(made.obs, expected.obs)
    for key, values in expected.obsm.items():
        np.testing.assert_array_equal(made.obsm[key], values, err_msg=key)
    (clusters / "features.npy").unlink()
    latents = annotate(Run.open(copy)).obsm["latents"]
    assert len(latents) == len(table)
    assert latents.std(axis=0).min() > 0


def test_corrected_patches_have_the_corrected_tissue_at_their_k(run: Run, tmp_path: Path) -> None:
    """Here and in the files of places; the clusters stay as they are."""
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    before, k = annotate(run), annotate(run).k
    new, none = before.obs.index[:2]
    correct(copy, patches=[new], target="vessel", k=k, rater="A")
    correct(copy, patches=[none], target="", k=k, rater="A")
    obs = annotate(Run.open(copy)).obs
    assert obs[[f"k{k}_tissue", "tissue", "correction"]].loc[[new, none]].to_numpy().tolist() == [
        ["vessel"] * 3,
        [NO_TISSUE] * 3,
    ]
    assert obs["flag"][none] == "artefact"
    rest = obs.index.drop([new, none])
    assert (obs["tissue"][rest].astype(str) == before.obs["tissue"][rest].astype(str)).all()
    assert (obs["cluster_tissue"].astype(str) == before.obs["tissue"].astype(str)).all()
    for column in ("k2", "k3"):
        assert (obs[column] == before.obs[column]).all()
    other = f"k{5 - k}_tissue"
    assert (obs[other].astype(str) == before.obs[other].astype(str)).all()

    export_coordinates(Run.open(copy), tmp_path / "places", program="clam")
    numbers = []
    for path in sorted((tmp_path / "places" / "patches").iterdir()):
        with h5py.File(path) as file:
            assert set(file) - {"coords", "split", "k2", "k3"} == {f"k{k}_corrected"}
            assert file[f"k{k}_corrected"].attrs["tissue"][-1] == "vessel"
            differing = np.flatnonzero(file[f"k{k}"][:] != file[f"k{k}_corrected"][:])
            numbers += file[f"k{k}_corrected"][:][differing].tolist()
    assert sorted(numbers) == [-1, k]


def test_without_the_extra_it_says_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anndata", None)
    for out, more, words in (
        ("a.h5ad", (), 'pip install "histoloom[scverse]"'),
        ("folder", (), ".h5ad"),
        ("a.h5ad", ("--half",), "--half"),
    ):
        done = histoloom("export", run.path, tmp_path / out, "--to", "h5ad", *more)
        assert (done.returncode, words in done.stderr) == (2, True), done
    assert not list(tmp_path.iterdir())


def test_anndata_reads_the_file(run: Run, tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata", reason="the extra scverse is not installed")
    done = histoloom("export", run.path, tmp_path / "a.h5ad", "--to", "h5ad")
    assert done.returncode == 0, done.stderr
    table, made = anndata.read_h5ad(tmp_path / "a.h5ad"), annotate(run)
    assert table.obs["k3_tissue"].tolist() == made.obs["k3_tissue"].tolist()
    assert table.obs_names.tolist() == made.obs.index.tolist()
    for key, values in made.obsm.items():
        np.testing.assert_array_equal(table.obsm[key], values, err_msg=key)
    for slide_id, picture in made.pictures.items():
        library = table.uns["spatial"][slide_id]
        np.testing.assert_array_equal(library["images"]["hires"], picture.image_hw3)
        assert library["scalefactors"]["tissue_hires_scalef"] == picture.scale
        assert library["scalefactors"]["spot_diameter_fullres"] == picture.patch_extent
    again = histoloom("export", run.path, tmp_path / "a.h5ad", "--to", "h5ad")
    assert (again.returncode, "which stays" in again.stderr) == (2, True)
