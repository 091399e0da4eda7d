"""Clusters of patches with their surroundings: each part on its scale, and a second answer from the patch alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.bank import FEATURES, Scale, load_features
from histoloom.clustering.features.base import FeaturesRecord
from histoloom.clustering.neighbours import LinearNet
from histoloom.clustering.patch_alone import teach
from histoloom.clustering.results import PatchAlone
from histoloom.clustering.stage import run
from histoloom.config import load_config, make_config, with_settings
from histoloom.run.directory import read_json, write_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet

CPU = torch.device("cpu")


def classifier(run: Path, *, clusters: Path | None = None) -> Classifier:
    return Classifier.load(
        autoencoder=run / "autoencoder", latents=run / "latents", clusters=clusters or run / "clusters", device=CPU
    )


def test_each_part_has_the_variance_of_its_weight(tiny_run: Path) -> None:
    weight = load_config(tiny_run / "config.yaml").clusters.surroundings
    parts = FeaturesRecord.load(tiny_run / "clusters").parts  # type: ignore[union-attr]
    assert [part.kind for part in parts] == ["perceptual", "surroundings"]
    rows_T = LatentSet.open(tiny_run / "latents").rows(split="train")
    variance_D = np.load(tiny_run / "clusters" / FEATURES)[rows_T].var(axis=0)
    of_patch, around = variance_D[: parts[0].dimensions], variance_D[parts[0].dimensions :]
    assert weight > 0
    assert around.mean() / of_patch.mean() == pytest.approx(weight**2, rel=1e-3)
    assert variance_D.mean() == pytest.approx(1, rel=1e-3)


def test_parts_of_one_variance_and_weight_are_divided_by_one_number() -> None:
    x_ND = numpy_generator(0, "x").standard_normal((500, 6)) * [1, 2, 3, 10, 20, 30]
    scale = Scale.fit(x_ND, rows_T=np.arange(500), dimensions=(3, 3), weights=(1.0, 1.0))
    scaled_ND = scale(torch.from_numpy(x_ND)).numpy()
    np.testing.assert_allclose([scaled_ND[:, :3].var(0).mean(), scaled_ND[:, 3:].var(0).mean()], 1, rtol=1e-5)
    first = scale(torch.from_numpy(x_ND[:, :3])).numpy()
    np.testing.assert_array_equal(first, scaled_ND[:, :3])


def test_published_clusters_are_predicted_from_patches_and_their_surroundings(tiny_run: Path) -> None:
    patches, clustering = PatchSet.open(tiny_run / "patches"), Clustering.open(tiny_run / "clusters")
    rows = np.arange(len(patches))
    labels = classifier(tiny_run).labels(patches.images(rows), patches.surroundings(rows))
    for k in clustering.ks:
        assert (labels[k] == clustering.table[f"k{k}"].to_numpy()).mean() > 0.99


def test_the_agreement_of_the_patch_alone_is_that_of_held_out_patches(tiny_run: Path) -> None:
    patches, table = PatchSet.open(tiny_run / "patches"), Clustering.open(tiny_run / "clusters").table
    rows = LatentSet.open(tiny_run / "latents").rows(split="holdout")
    alone = PatchAlone.load(tiny_run / "clusters")
    assert alone is not None
    assert (alone.n, alone.split) == (len(rows), "holdout")
    labels = classifier(tiny_run).labels(patches.images(patches.rows_of(table["patch_id"].to_numpy()[rows])))
    for k, share in alone.agreement.items():
        assert (labels[k] == table[f"k{k}"].to_numpy()[rows]).mean() == pytest.approx(share, abs=0.02)


def test_heads_for_the_patch_alone_learn_what_a_patch_shows_and_no_more() -> None:
    generator = numpy_generator(0, "planted")
    own_N, around_N = generator.integers(0, 2, 600), generator.integers(0, 2, 600)
    places_ND = np.stack([2.0 * own_N - 1, 2.0 * around_N - 1], axis=1)
    x_ND = torch.from_numpy(places_ND + 0.1 * generator.standard_normal((600, 2))).float()
    network = LinearNet(2, ks=(2,), of_patch=1)
    for cluster_N, low, high in ((own_N, 0.99, 1.0), (around_N, 0.35, 0.65)):
        targets = torch.nn.functional.one_hot(torch.from_numpy(cluster_N), 2).float()
        teach(network, x_ND[:400, :1], targets={2: targets[:400]})
        predicted_N = network(x_ND[400:, :1])[2].argmax(dim=1).numpy()
        assert low <= (predicted_N == cluster_N[400:]).mean() <= high


def test_clusters_without_surroundings_refuse_them(tiny_run: Path, tmp_path: Path) -> None:
    values = load_config(tiny_run / "config.yaml").model_dump(mode="json")
    config = make_config(with_settings(values, ["clusters.features=[perceptual, codes]", "clusters.surroundings=0"]))
    inputs = {stage: tiny_run / stage for stage in ("patches", "latents", "autoencoder")}
    run(StageContext(tiny_run, config, tmp_path, inputs, EventLog(tmp_path / "log.jsonl")))
    assert [part["kind"] for part in read_json(tmp_path / "features.json")["parts"]] == ["perceptual", "codes"]
    assert PatchAlone.load(tmp_path) is None
    patches, clustering = PatchSet.open(tiny_run / "patches"), Clustering.open(tmp_path)
    made = classifier(tiny_run, clusters=tmp_path)
    labels = made.labels(patches.images(np.arange(len(patches))))
    for k in clustering.ks:  # codes were counted in batches of another size
        assert (labels[k] == clustering.table[f"k{k}"].to_numpy()).mean() > 0.95
    with pytest.raises(ValueError, match="made without surroundings"):
        made.labels(patches.images(np.arange(2)), patches.surroundings(np.arange(2)))


def test_features_of_one_part_of_an_earlier_version_are_read(tiny_run: Path, tmp_path: Path) -> None:
    values = {"kind": "codes", "shape": [3], "views": 4, "mean": [1.0, 2.0, 3.0], "deviation": 2.0, "said": {}}
    write_json(tmp_path / "features.json", values)
    inputs = {stage: tiny_run / stage for stage in ("latents", "autoencoder")}
    loaded = load_features(tmp_path, inputs=inputs, device=CPU)
    assert not loaded.with_surroundings
    assert loaded.scale is not None
    scaled_N3 = loaded.scale(torch.tensor([[3.0, 4.0, 5.0]]))
    assert scaled_N3.tolist() == [[1.0, 1.0, 1.0]]
