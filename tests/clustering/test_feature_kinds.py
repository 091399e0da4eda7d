"""Every kind of features of images keeps its promises: its shape, the patch alone, repeatable, the same when loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from histoloom import pipeline
from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.lpips import LPIPS, Trunk
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.bank import CHUNK, FEATURES, KINDS, load_features, make_bank
from histoloom.clustering.features.base import EncoderRecord, Features, Sources
from histoloom.clustering.stage import run
from histoloom.config import load_config, make_config, with_settings
from histoloom.errors import UserError
from histoloom.run.directory import Run, read_json, write_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import permutation
from histoloom.setup import change_settings
from histoloom.slides.patch_set import PatchSet

ROWS = 40
OF_IMAGES = [kind for kind in KINDS if kind != "files"]  # features from files are tested in test_tile_files.py
VECTORS = [kind for kind in OF_IMAGES if kind != "latents"]
NO_TRANSFORMERS = find_spec("transformers") is None
ON_VIEWS = (
    "clusters.positives=views",
    "clusters.surroundings=0",
    "clusters.independence=0",
    "clusters.validity_features=pooled",
)
"""Clusters of the patches alone, by two views of each."""

Context = Callable[[str, Path], StageContext]


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision transformer of random weights, as Hugging Face saves one; its input is not of the patches' size."""
    transformers = pytest.importorskip("transformers", reason="the extra encoders is not installed")
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    shape = transformers.ViTConfig(image_size=48, patch_size=8, **sizes)
    transformers.ViTModel(shape, add_pooling_layer=False).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {"image_mean": [0.7, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2]})
    return folder


@pytest.fixture
def context(tiny_run: Path, request: pytest.FixtureRequest) -> Context:
    """A stage ``clusters`` of the tiny run, of a kind and in a folder."""

    def made(kind: str, out: Path) -> StageContext:
        settings = [f"clusters.features={kind}", *ON_VIEWS]
        if kind == "encoder":
            settings.append(f"clusters.encoder=hf:{request.getfixturevalue('tiny_encoder')}")
        values = load_config(tiny_run / "config.yaml").model_dump(mode="json")
        out.mkdir(exist_ok=True)
        inputs = {stage: tiny_run / stage for stage in ("patches", "latents", "autoencoder")}
        config = make_config(with_settings(values, [*settings, "clusters.restarts=2"]))
        return StageContext(tiny_run, config, out, inputs, EventLog(out / "log.jsonl"))

    return made


@pytest.fixture(params=OF_IMAGES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def features(kind: str, context: Context, tmp_path: Path) -> Features:
    return KINDS[kind].make(context(kind, tmp_path / "made"))


@pytest.fixture
def patches(tiny_run: Path) -> PatchSet:
    return PatchSet.open(tiny_run / "patches")


def test_shape_and_type_are_as_promised(features: Features, patches: PatchSet) -> None:
    rows = np.arange(5)
    own, views = features.compute_rows(rows), features.compute_views(rows)
    from_images = features.compute_images(patches.images(rows))
    assert own.shape == from_images.shape == (5, *features.shape)
    assert views.shape == (5, features.views, *features.shape)
    assert own.dtype == views.dtype == from_images.dtype == torch.float32
    assert bool(torch.isfinite(views).all())
    assert features.views > 0


def test_features_do_not_depend_on_order_or_batch(features: Features, patches: PatchSet) -> None:
    order = permutation(0, "order", n=len(patches))[:ROWS]
    sorted_rows = np.sort(order)
    back = np.argsort(np.argsort(order))
    whole = features.compute_images(patches.images(sorted_rows))[back]
    for size in (1, 7, 33):
        parts = [features.compute_images(patches.images(order[i : i + size])) for i in range(0, ROWS, size)]
        assert torch.equal(torch.cat(parts), whole)
        rows = torch.cat([features.compute_rows(order[i : i + size]) for i in range(0, ROWS, size)])
        assert torch.equal(rows, features.compute_rows(sorted_rows)[back])
    alone = torch.cat([features.compute_views(order[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, features.compute_views(order[:6]), atol=1e-5, rtol=1e-4)


def test_features_of_rows_agree_with_features_of_their_images(features: Features, patches: PatchSet) -> None:
    """Up to rounding: in another batch size a few latent positions may get another code."""
    rows = np.arange(ROWS)
    from_pictures, from_rows = features.compute_images(patches.images(rows)), features.compute_rows(rows)
    assert float((from_pictures - from_rows).abs().mean()) < 1e-3


def test_loaded_features_give_the_same_bytes(kind: str, features: Features, context: Context, tmp_path: Path) -> None:
    stage = context(kind, tmp_path / "saved")
    record = features.save(stage.out)
    write_json(stage.out / "record.json", record.model_dump(mode="json"))
    encoder = EncoderRecord(**read_json(stage.out / "record.json"))
    sources = Sources(stage.inputs, stage.out, encoder, torch.device("cpu"))
    images = PatchSet.open(stage.inputs["patches"]).images(np.arange(9))
    assert torch.equal(KINDS[kind].load(sources).compute_images(images), features.compute_images(images))


def test_features_made_twice_give_the_same_bytes(
    kind: str, features: Features, context: Context, tmp_path: Path
) -> None:
    again = KINDS[kind].make(context(kind, tmp_path / "again"))
    rows = np.arange(9)
    assert torch.equal(again.compute_rows(rows), features.compute_rows(rows))
    assert torch.equal(again.compute_views(rows), features.compute_views(rows))


@pytest.mark.parametrize(("kind", "positives"), [*((kind, "views") for kind in VECTORS), ("perceptual", "neighbours")])
def test_clusters_of_any_features_are_reproducible_and_predicted_from_images(
    kind: str, positives: Literal["views", "neighbours"], context: Context, patches: PatchSet, tmp_path: Path
) -> None:
    one, two = (context(kind, tmp_path / name) for name in ("one", "two"))
    for made in (one, two):
        clusters = made.config.clusters.model_copy(update={"positives": positives})
        made = replace(made, config=made.config.model_copy(update={"clusters": clusters}))
        run(made)
    names = ("features.npy", "features.json", "clusterer.safetensors", "probabilities.safetensors", "choice.json")
    for name in names:
        assert (one.out / name).read_bytes() == (two.out / name).read_bytes()
    folders = {stage: one.inputs[stage] for stage in ("autoencoder", "latents")}
    labels = Classifier.load(**folders, clusters=one.out, device=torch.device("cpu")).labels(
        patches.images(np.arange(len(patches)))
    )
    for k in Clustering.open(one.out).ks:
        published = Clustering.open(one.out).table[f"k{k}"].to_numpy()
        # Rows of pooled latents and codes were encoded in batches of another size.
        assert (labels[k] == published).mean() > (0.97 if kind in ("pooled", "codes") else 0.9999)


def test_vectors_are_centred_and_scaled_by_one_number_over_the_training_split(context: Context, tmp_path: Path) -> None:
    stage = context("pooled", tmp_path / "pooled")
    latents = LatentSet.open(stage.inputs["latents"])
    bank = make_bank(stage, latents=latents)
    rows_T, rows_N = latents.rows("train"), np.arange(len(latents))
    x_ND, raw_ND = np.load(stage.out / FEATURES), KINDS["pooled"].make(stage).compute_rows(rows_N).numpy()
    np.testing.assert_array_equal(x_ND, bank.own(rows_N).numpy())
    np.testing.assert_allclose(x_ND[rows_T].mean(0), 0, atol=1e-4)
    assert float(x_ND[rows_T].var(0).mean()) == pytest.approx(1, rel=1e-3)
    ratio_D = raw_ND.std(0) / x_ND.std(0)
    np.testing.assert_allclose(ratio_D, ratio_D[0], rtol=1e-3)
    record = read_json(stage.out / "features.json")
    assert list(record) == ["kind", "shape", "views", "mean", "parts"]
    assert record["parts"][0]["encoder"] == {}  # only the networks that the run does not have elsewhere
    loaded = load_features(stage.out, inputs=stage.inputs, device=torch.device("cpu"))
    from_images = loaded.compute_images(PatchSet.open(stage.inputs["patches"]).images(rows_N[:9]))
    np.testing.assert_allclose(from_images.numpy(), x_ND[:9], atol=1e-3)
    versions = bank.versions(rows_T[[5, 0]])
    np.testing.assert_array_equal(versions[:, 0].numpy(), x_ND[rows_T[[5, 0]]])


def test_features_that_were_interrupted_continue(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, torn = context("codes", tmp_path / "whole"), context("codes", tmp_path / "torn")
    latents = LatentSet.open(whole.inputs["latents"])
    assert len(latents) > CHUNK
    make_bank(whole, latents=latents)
    computed: list[int] = []

    def stop(_self: Features, rows: np.ndarray) -> torch.Tensor:
        computed.append(len(rows))
        if len(computed) == 2:
            raise KeyboardInterrupt
        return original(_self, rows)

    kind = KINDS["codes"]
    original = kind.compute_rows
    monkeypatch.setattr(kind, "compute_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        make_bank(torn, latents=latents)
    make_bank(torn, latents=latents)
    assert sum(computed[2:]) == len(latents) - CHUNK
    assert (torn.out / FEATURES).read_bytes() == (whole.out / FEATURES).read_bytes()


def test_a_missing_encoder_is_an_error_and_is_not_downloaded(context: Context, tiny_run: Path, tmp_path: Path) -> None:
    values = load_config(tiny_run / "config.yaml").model_dump(mode="json")

    def refused(name: str) -> str:
        settings = ["clusters.features=encoder", f"clusters.encoder={name}"]
        stage = context("latents", tmp_path / "absent")
        config = make_config(with_settings(values, settings))
        with pytest.raises(UserError) as error:
            KINDS["encoder"].make(replace(stage, config=config))
        return str(error.value)

    assert "hf download nobody/nothing-at-all" in refused("hf:nobody/nothing-at-all")
    assert "config.json" in refused(f"timm:{tmp_path}")
    if NO_TRANSFORMERS:
        write_json(tmp_path / "config.json", {})
        assert 'pip install "histoloom[encoders]"' in refused(f"hf:{tmp_path}")


@pytest.mark.usefixtures("tiny_encoder")
def test_a_replaced_encoder_is_refused(context: Context, tmp_path: Path) -> None:
    stage = context("encoder", tmp_path / "made")
    record = KINDS["encoder"].make(stage).save(stage.out).model_copy(update={"digest": "another"})
    sources = Sources(stage.inputs, stage.out, record, torch.device("cpu"))
    with pytest.raises(UserError, match="put that one back"):
        KINDS["encoder"].load(sources)


@pytest.mark.parametrize("trunk", ["alex", "squeeze"])
def test_a_trunk_of_lpips_gives_its_last_three_taps(
    trunk: Trunk, context: Context, tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch, patches: PatchSet
) -> None:
    monkeypatch.setenv("HISTOLOOM_WEIGHTS", str(real_data / "weights"))
    stage = context("perceptual", tmp_path / "made")
    clusters = stage.config.clusters.model_copy(update={"trunk": trunk})
    made = KINDS["perceptual"].make(replace(stage, config=stage.config.model_copy(update={"clusters": clusters})))
    images_NHW3 = patches.images(np.arange(3))
    x_N3HW = torch.from_numpy(images_NHW3).permute(0, 3, 1, 2) / 127.5 - 1
    lpips = LPIPS.load(trunk, download=False)
    turns = [lpips.features(x_N3HW.rot90(quarters, dims=(2, 3)))[-3:] for quarters in (0, 1)]
    means = [torch.cat([tap_NCHW.mean(dim=(2, 3)) for tap_NCHW in taps], dim=1) for taps in turns]
    expected_ND = torch.stack(means).mean(dim=0)
    torch.testing.assert_close(made.compute_images(images_NHW3), expected_ND, rtol=1e-3, atol=2e-4)
    assert made.shape == (expected_ND.shape[1],)


def test_other_weights_of_a_trunk_are_refused(context: Context, tmp_path: Path) -> None:
    stage = context("perceptual", tmp_path / "made")
    record = KINDS["perceptual"].make(stage).save(stage.out).model_copy(update={"digest": "another"})
    with pytest.raises(UserError, match="not those that the clusters were made with; put them back"):
        KINDS["perceptual"].load(Sources(stage.inputs, stage.out, record, torch.device("cpu")))


def test_a_whole_run_on_other_features_with_maps_and_report(
    tiny_run: Path, tmp_path: Path, brief_settings: tuple[str, ...]
) -> None:
    """The earlier stages are kept under their fingerprints, so that going back needs no work."""
    shutil.copytree(tiny_run, tmp_path / "run")
    settings = ["clusters.features=codes", "clusters.surroundings=0", "report.map_patches=16", *brief_settings]
    changed = change_settings(Run.open(tmp_path / "run"), settings, save=True)
    pipeline.execute(changed)
    assert read_json(tmp_path / "run" / "clusters" / "features.json")["kind"] == "codes"
    assert not (tmp_path / "run" / "clusters" / "checkpoints").exists()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "the features that the clusters are made of" in page
    maps = [read_json(path) for path in (tmp_path / "run" / "report" / "maps").glob("*.json")]
    assert maps
    assert all("missing" not in drawn for drawn in maps)
    original = load_config(tiny_run / "config.yaml")
    wanted = pipeline.wanted_fingerprints(Run(tmp_path / "run", original))
    for stage in ("clusters", "diffusion"):
        assert (tmp_path / "run" / "superseded" / f"{stage}-{wanted[stage]}").is_dir()
