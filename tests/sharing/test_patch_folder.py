"""Real patches that a run gives to other programs: image folders and tar shards."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoloom.config import SlidesConfig
from histoloom.errors import UserError
from histoloom.names import add_label, merge
from histoloom.names.corrections import NO_TISSUE, correct, undo_correction
from histoloom.run.directory import Run
from histoloom.sharing import patch_folder
from histoloom.sharing.patch_folder import write_patches
from histoloom.slides.inventory.find import find_slides
from histoloom.slides.patch_set import PatchSet


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which two of three clusters have one name."""
    folder = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("patches") / "run"))
    merge(folder, clusters=[0, 2], k=3, rater="Dr A", name="Bone, dense")
    add_label(folder, cluster=1, k=3, rater="Dr A", name="marrow", flag="unsure", colour="#0072b2")
    return Run.open(folder)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != ".lock"}


def test_an_image_folder_holds_every_patch_with_its_name(run: Run, tmp_path: Path) -> None:
    n = write_patches(run, tmp_path / "out", k=3)
    table = pd.read_csv(tmp_path / "out" / "metadata.csv", keep_default_na=False)
    patches = PatchSet.open(run.folder("patches"))
    assert n == len(table) == len(patches)
    images = [np.asarray(Image.open(tmp_path / "out" / file)) for file in table["file_name"]]
    np.testing.assert_array_equal(images, patches.images(patches.rows_of(table["patch_id"])))
    labels = pd.read_parquet(run.folder("clusters") / "index.parquet").set_index("patch_id")["k3"]
    assert table["cluster"].tolist() == labels[table["patch_id"]].tolist()
    assert set(zip(table["cluster"], table["tissue"], table["flag"], strict=True)) == {
        (0, "Bone, dense", ""),
        (1, "marrow", "unsure"),
        (2, "Bone, dense", ""),
    }
    folders = table["file_name"].str.partition("/")[0]
    assert folders.tolist() == table["tissue"].map({"Bone, dense": "bone-dense", "marrow": "marrow"}).tolist()
    assert table["probability"].between(1 / 3, 1).all(), "of the most probable of three clusters"
    with pytest.raises(UserError, match="no slides"):
        find_slides(SlidesConfig(paths=(str(tmp_path / "out"),), mpp=1.0))


def test_a_region_is_a_column_and_corrected_patches_have_the_corrected_tissue(run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    index, clusters = folder / "patches" / "index.parquet", pd.read_parquet(folder / "clusters" / "index.parquet")
    patches = pd.read_parquet(index)
    patches.assign(region="Stroma").to_parquet(index, index=False)
    new, none, other = clusters["patch_id"][clusters["k3"] == 1].iloc[:3]
    moved = clusters["patch_id"][clusters["k3"] == 2].iloc[0]
    correct(folder, patches=[new], target="vessel", k=3, rater="A")
    correct(folder, patches=[moved], target="Marrow", k=3, rater="A")
    correct(folder, patches=[none, other], target="", k=3, rater="B")
    correct(folder, patches=[other], target=None, k=3, rater="B")
    write_patches(Run.open(folder), tmp_path / "out", k=3)
    table = pd.read_csv(tmp_path / "out" / "metadata.csv", keep_default_na=False).set_index("patch_id")
    assert set(table["region"]) == {"Stroma"}
    expected = {
        new: ("vessel", "", 1, 3, "marrow", "vessel", "vessel"),
        none: (NO_TISSUE, "artefact", 1, -1, "marrow", NO_TISSUE, "no-tissue"),
        moved: ("marrow", "unsure", 2, 1, "Bone, dense", "marrow", "marrow"),
        other: ("marrow", "unsure", 1, 1, "marrow", "", "marrow"),
    }
    table["folder"] = table["file_name"].str.partition("/")[0]
    columns = ["tissue", "flag", "cluster", "number", "cluster_tissue", "correction", "folder"]
    assert {patch: tuple(table.loc[patch, columns]) for patch in expected} == expected
    assert set(table["correction"].drop([new, none, moved])) == {""}

    for tissues, corrected in (("vessel",), {new}), (("marrow",), {moved}), (("1", NO_TISSUE), {none, moved}):
        out = tmp_path / "-".join(tissues)
        write_patches(Run.open(folder), out, k=3, tissues=tissues, image_format="webdataset")
        some = pd.read_csv(out / "metadata.csv", keep_default_na=False).set_index("patch_id")
        assert corrected == set(some.index) & {new, none, moved}
        assert (len(some) > 2) == (tissues != ("vessel",))
    with tarfile.open(tmp_path / "vessel" / "patches-000000.tar") as tar:
        (number,) = [tar.extractfile(member) for member in tar if member.name.endswith(".cls")]
        assert number is not None
        assert number.read() == b"3"
    undo_correction(folder, k=3, rater="A")
    with pytest.raises(UserError, match="another request"):
        write_patches(Run.open(folder), tmp_path / "out", k=3)


def test_a_job_continues_and_another_is_refused(run: Run, tmp_path: Path) -> None:
    n = write_patches(run, tmp_path / "out", k=3, tissues=["marrow"], image_format="jpeg")
    whole = files_of(tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "metadata.csv")
    assert set(table["cluster"]) == {1}
    assert {name for name in whole if name.endswith(".jpg")} == set(table["file_name"])
    assert len(table) == n
    (tmp_path / "out" / table["file_name"][0]).unlink()
    write_patches(run, tmp_path / "out", k=3, tissues=["1"], image_format="jpeg")
    assert files_of(tmp_path / "out") == whole
    for other in ({"image_format": "png", "tissues": ["marrow"]}, {"image_format": "jpeg"}):
        with pytest.raises(UserError, match="another request"):
            write_patches(run, tmp_path / "out", k=3, **other)
    with pytest.raises(UserError, match="no tissue 'fat'"):
        write_patches(run, tmp_path / "new", k=3, tissues=["fat"])
    assert not (tmp_path / "new").exists()


def test_shards_hold_every_patch_once_in_samples_of_three_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_folder, "SHARD_PATCHES", 40)
    write_patches(run, tmp_path / "out", k=3, image_format="webdataset")
    patches, seen = PatchSet.open(run.folder("patches")), []
    for shard in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(shard) as tar:
            files = [(member.name.split(".", 1), tar.extractfile(member)) for member in tar]
            members = [(name, file.read()) for name, file in files if file is not None]
        samples = [members[start : start + 3] for start in range(0, len(members), 3)]
        records = []
        for sample in samples:
            assert len({key for (key, _), _ in sample}) == 1
            png, cluster, record = (data for _, data in sample)
            records.append(json.loads(record))
            assert [suffix for (_, suffix), _ in sample] == ["png", "cls", "json"]
            assert int(cluster) == records[-1]["cluster"]
            row = patches.rows_of([records[-1]["patch_id"]])
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), patches.images(row)[0])
        assert len({record["slide_id"] for record in records}) > 1, "patches are shuffled over the slides"
        seen += [record["patch_id"] for record in records]
    assert sorted(seen) == sorted(patches.table["patch_id"])
    whole = files_of(tmp_path / "out")
    assert len(whole) == 5
    (tmp_path / "out" / "patches-000001.tar").unlink()
    write_patches(run, tmp_path / "out", k=3, image_format="webdataset")
    assert files_of(tmp_path / "out") == whole


def test_clusters_of_other_patches_are_refused(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    index = pd.read_parquet(copy / "clusters" / "index.parquet")
    index.iloc[1:].to_parquet(copy / "clusters" / "index.parquet")
    with pytest.raises(UserError, match="of other patches"):
        write_patches(Run.open(copy), tmp_path / "out")
