"""The stage on latents of four separated kinds: what it writes, and that restarts and runs repeat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering import stage
from histoloom.clustering.clusterer import Clusterer
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.bank import Bank
from histoloom.clustering.results import Confounding
from histoloom.clustering.stage import run
from histoloom.config import Config, make_config, read_preset, with_settings
from histoloom.errors import UserError
from histoloom.run.directory import write_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import numpy_generator

N = 200
SETTINGS = (
    "clusters.features=latents",
    "clusters.positives=views",
    "clusters.surroundings=0",
    "clusters.independence=0",
    "clusters.validity_features=pooled",
    "clusters.k=[3, 4]",
    "clusters.channels=16",
    "clusters.restarts=2",
    "clusters.validity_points=100",
    "clusters.null_draws=3",
    "clusters.training.batch_size=80",
    "clusters.training.phases.0.images=3200",
    "runtime.device=cpu",
    "runtime.threads=1",
)


def kinds() -> np.ndarray:
    """Of uneven sizes: 80, 60, 40 and 20."""
    return np.repeat(np.arange(4), (80, 60, 40, 20))[numpy_generator(0, "kinds").permutation(N)]


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published stage ``latents``, as docs/reference/run-directory.md has it."""
    folder = tmp_path_factory.mktemp("latents")
    rng = numpy_generator(0, "latents")
    z_NChw = rng.standard_normal((N, 4, 8, 8)) + 4 * np.eye(4)[kinds()][:, :, None, None] + 10
    np.save(folder / "latents.npy", z_NChw.astype(np.float32))
    np.save(folder / "histograms.npy", rng.dirichlet(np.ones(16), N).astype(np.float32))
    train_N = np.arange(N) % 5 > 0
    write_json(
        folder / "moments.json",
        {"mean": z_NChw[train_N].mean((0, 2, 3)).tolist(), "std": z_NChw[train_N].std((0, 2, 3)).tolist()},
    )
    slides = [f"s{i % 4}" for i in range(N)]
    table = {
        "patch_id": [f"p{i}" for i in range(N)],
        "split": np.where(train_N, "train", "holdout"),
        "slide_id": slides,
    }
    pd.DataFrame(table).to_parquet(folder / "index.parquet")
    write_patches(folder / "patches", table=pd.DataFrame(table))
    return folder


def write_patches(folder: Path, *, table: pd.DataFrame) -> None:
    """The stage ``patches`` behind it: four slides of two patients."""
    (folder / "images").mkdir(parents=True)
    for number, (slide_id, rows) in enumerate(table.groupby("slide_id")):
        images = numpy_generator(0, "images", number).integers(0, 256, (len(rows), 8, 8, 3))
        np.save(folder / "images" / f"{slide_id}.npy", images.astype(np.uint8))
    table = table.assign(slide=table["slide_id"], patient=table["slide_id"].map({"s0": "a", "s1": "a"}).fillna("b"))
    table.to_parquet(folder / "index.parquet")
    write_json(folder / "meta.json", {"size": 8, "mpp": 1.0, "n": len(table)})


def config(*settings: str) -> Config:
    values = read_preset("demo") | {"slides": {"paths": ["unused"]}}
    return make_config(with_settings(values, (*SETTINGS, *settings)))


def finished(folder: Path, *, latents: Path, settings: tuple[str, ...] = ()) -> Path:
    folder.mkdir()
    inputs = {"patches": latents / "patches", "latents": latents}
    run(StageContext(folder, config(*settings), folder, inputs, EventLog(folder / "log.jsonl")))
    return folder


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory, latents: Path) -> Path:
    return finished(tmp_path_factory.mktemp("run") / "clusters", latents=latents)


def test_labels_probabilities_and_clusterer_say_the_same(clusters: Path, latents: Path) -> None:
    clustering, latent_set = Clustering.open(clusters), LatentSet.open(latents)
    assert clustering.ks == [3, 4]
    assert clustering.table["patch_id"].tolist() == latent_set.table["patch_id"].tolist()
    predicted = Clusterer.load(clusters).probabilities(latent_set.normalised(np.arange(N)))
    for k in clustering.ks:
        p_NK = clustering.probabilities(k)
        assert p_NK.dtype == np.float32
        np.testing.assert_allclose(p_NK.sum(1), 1, rtol=1e-5)
        np.testing.assert_array_equal(p_NK.argmax(1), clustering.labels(k))
        torch.testing.assert_close(predicted[k], torch.from_numpy(p_NK), atol=1e-5, rtol=1e-4)


def test_clusters_are_numbered_by_falling_size_on_the_training_split(clusters: Path, latents: Path) -> None:
    rows = LatentSet.open(latents).rows("train")
    for k in (3, 4):
        sizes_K = np.bincount(Clustering.open(clusters).labels(k).to_numpy()[rows], minlength=k)
        assert sizes_K.tolist() == sorted(sizes_K, reverse=True)
        assert sizes_K.min() > 0


def test_finds_the_kinds_also_in_the_holdout(clusters: Path, latents: Path) -> None:
    rows = LatentSet.open(latents).rows("holdout")
    found_N = Clustering.open(clusters).labels(4).to_numpy()
    assert normalized_mutual_info_score(kinds()[rows], found_N[rows]) > 0.85


def test_validity_is_there_for_both_methods_and_every_k(clusters: Path) -> None:
    entries = Clustering.open(clusters).validity.entries
    assert sorted((e.k, e.method) for e in entries) == [(k, m) for k in (3, 4) for m in ("infomax", "kmeans")]
    assert all(e.n == 100 and sum(e.sizes) == 100 and len(e.sizes) == e.k for e in entries)
    best = {e.k: e.calinski_harabasz or 0.0 for e in entries if e.method == "kmeans"}
    assert best[4] > best[3]
    assert Clustering.open(clusters).chosen in (3, 4)


@pytest.fixture
def fallen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The k whose patches all fall into their first cluster, whatever was learnt."""
    ks: list[int] = []

    def predicted(clusterer: Clusterer, bank: Bank, *, rows: np.ndarray) -> stage.Probabilities:
        result = predict(clusterer, bank, rows=rows)
        certain = {k: np.eye(k, dtype=np.float32)[np.zeros(len(rows), np.int64)] for k in ks}
        return result | certain

    predict = stage.predict
    monkeypatch.setattr(stage, "predict", predicted)
    return ks


def test_a_k_that_fell_into_one_cluster_is_passed_over(fallen: list[int], latents: Path, tmp_path: Path) -> None:
    fallen += [4]
    clustering = Clustering.open(finished(tmp_path / "clusters", latents=latents))
    assert clustering.chosen == 3
    assert clustering.decision.passed_over == (4,)
    values = {(e.k, e.method): (e.dunn, e.sizes) for e in clustering.validity.entries}
    assert values[4, "infomax"] == (None, (100, 0, 0, 0))
    assert (values[4, "kmeans"][0] or 0) > 0
    assert (values[3, "infomax"][0] or 0) > 0


def test_a_sweep_that_fell_into_one_cluster_throughout_is_refused(
    fallen: list[int], latents: Path, tmp_path: Path
) -> None:
    fallen += [3, 4]
    with pytest.raises(UserError, match=r"one cluster at every k \(3, 4\); cut more patches"):
        finished(tmp_path / "clusters", latents=latents)


def test_the_same_settings_give_the_same_bytes(clusters: Path, latents: Path, tmp_path: Path) -> None:
    again = finished(tmp_path / "again", latents=latents)
    names = ("clusterer.safetensors", "probabilities.safetensors", "validity.json", "choice.json", "confounding.json")
    for name in names:
        assert (again / name).read_bytes() == (clusters / name).read_bytes()


def test_no_warning_about_slides_that_clusters_do_not_follow(clusters: Path) -> None:
    confounding = Confounding.load(clusters)
    assert confounding is not None
    assert confounding.warnings == {}
    assert {(entry.k, entry.factor) for entry in confounding.associations} >= {(3, "slide"), (4, "patient")}
    messages = [str(event.get("message", "")) for event in EventLog(clusters / "log.jsonl").read()]
    assert not any(message.startswith("warning") for message in messages)


def test_independence_of_the_slide_is_logged_and_repeats(latents: Path, tmp_path: Path) -> None:
    one, two = (
        finished(
            tmp_path / name,
            latents=latents,
            settings=("clusters.independence=4", "clusters.k=[3]", "clusters.restarts=1"),
        )
        for name in ("one", "two")
    )
    assert (one / "clusterer.safetensors").read_bytes() == (two / "clusterer.safetensors").read_bytes()
    assert any("network.slide_information" in event for event in EventLog(one / "log.jsonl").read())
