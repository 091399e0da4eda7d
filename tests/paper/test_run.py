"""A tiny run of the preset ``paper``: every stage works, and a run that was stopped ends with the same bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from histoloom import pipeline
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.validity.indices import validity_indices
from histoloom.diffusion.distillation import DistillConfig, distil
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.joint import JointLoss
from histoloom.errors import UserError
from histoloom.run.directory import Run
from histoloom.setup import change_settings, init_run
from histoloom.sharing.export import export_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.loop import StepContext

PHASES = (("adam", 0.003, 96), ("adam", 0.0001, 24), ("adadelta", 0.003, 24))
TINY = (
    "patches.size=32",
    "patches.mpp=1.0",
    "patches.count=64",
    "autoencoder.channels=16",
    "autoencoder.perceptual=pyramid",
    "autoencoder.adversarial.channels=8",
    "autoencoder.adversarial.layers=2",
    "autoencoder.training.batch_size=8",
    # With the preset's, a training as short as this leaves one code in use.
    "autoencoder.code_dim=2",
    "autoencoder.codes=64",
    "autoencoder.commitment=0.02",
    "autoencoder.training.phases=[{optimizer: adam, lr: 0.003, images: 640}]",
    "clusters.k=[2, 3]",
    "clusters.channels=16",
    "clusters.null_draws=2",
    "diffusion.channels=[16, 16, 16]",
    "diffusion.attention=[true, true, true]",
    "diffusion.norm_groups=8",
    "diffusion.training.batch_size=8",
    "diffusion.training.phases=" + json.dumps([{"optimizer": o, "lr": lr, "images": n} for o, lr, n in PHASES]),
    "diffusion.steps=10",
    "samples.per_cluster=2",
    "samples.sampler.steps=10",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.workers=1",
)
CHECKPOINTS = ["runtime.checkpoint_seconds=0"]  # after each step


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, tiny_slides: Path) -> Path:
    """A run with patches, autoencoder and latents; tests must not change it."""
    run = init_run(tmp_path_factory.mktemp("paper") / "run", slides=[tiny_slides], preset="paper", settings=TINY)
    pipeline.execute(run, until="latents")
    return run.path


@pytest.fixture(scope="module")
def finished(encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with clusters, generator and samples; tests must not change it."""
    path = tmp_path_factory.mktemp("paper-finished") / "run"
    shutil.copytree(encoded, path)
    pipeline.execute(Run.open(path), until="samples")
    return path


def payload(run: Path) -> dict[str, bytes]:
    """Results by name, without what holds times."""
    files = [path for stage in ("clusters", "diffusion") for path in (run / stage).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.name != "artifact.json"}


class Interrupted(Exception):
    """Stands for a kill: nothing after it runs."""


def test_latents_are_quantised_and_unscaled(encoded: Path) -> None:
    latents = torch.from_numpy(np.load(encoded / "latents" / "latents.npy"))
    quantizer = Autoencoder.load(encoded / "autoencoder").quantizer
    assert quantizer is not None
    codebook_KC = quantizer.codebook_KC
    positions = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    assert (positions[:, None] == codebook_KC).all(dim=2).any(dim=1).all()
    assert len(positions.unique(dim=0)) > 4


def test_a_run_stopped_in_every_phase_ends_with_the_same_bytes(
    encoded: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = change_settings(Run.open(shutil.copytree(encoded, tmp_path / "run")), CHECKPOINTS, save=False)
    loss = JointLoss.__call__
    ends = np.cumsum([images for _, _, images in PHASES])
    for at in (8, ends[0] - 8, ends[0] + 8, ends[1] + 8):

        def stopping(self: JointLoss, batch: tuple[Tensor, Tensor], context: StepContext, at: int = at) -> object:
            # k = 3: k = 2 is trained then, and its networks are read back.
            if self.denoising.conditions.ks == (3,) and context.images >= at:
                raise Interrupted
            return loss(self, batch, context)

        monkeypatch.setattr(JointLoss, "__call__", stopping)
        with pytest.raises(Interrupted):
            pipeline.execute(run, until="diffusion")
        torch.rand(3)  # what runs in between draws other numbers
    monkeypatch.undo()
    pipeline.execute(run, until="diffusion")
    whole, resumed = payload(finished), payload(run.path)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []


def test_clusters_are_numbered_by_size_and_predicted_again_from_pixels(finished: Path) -> None:
    patches = PatchSet.open(finished / "patches")
    table = pd.read_parquet(finished / "clusters" / "index.parquet")
    rows = patches.rows(split="train")
    classifier = Classifier.load(
        autoencoder=finished / "autoencoder",
        latents=finished / "latents",
        clusters=finished / "clusters",
        device=torch.device("cpu"),
    )
    predicted = classifier.labels(patches.images(np.arange(len(patches))))
    for k in (2, 3):
        assert predicted[k].tolist() == table[f"k{k}"].tolist()
        sizes = np.bincount(table[f"k{k}"].to_numpy()[rows], minlength=k)
        assert sizes.tolist() == sorted(sizes, reverse=True)


def test_indices_are_computed_on_the_softmax_of_quantised_latents(finished: Path) -> None:
    latents = torch.from_numpy(np.load(finished / "latents" / "latents.npy"))
    labels = torch.from_numpy(
        pd.read_parquet(finished / "clusters" / "index.parquet")["k3"].to_numpy().astype(np.int64)
    )
    wanted = validity_indices(latents.softmax(1).mean(dim=(2, 3)), labels)
    entries = json.loads((finished / "clusters" / "validity.json").read_text())
    entry = next(entry for entry in entries if (entry["k"], entry["method"]) == (3, "infomax"))
    assert entry["calinski_harabasz"] == pytest.approx(wanted.calinski_harabasz, rel=1e-6)
    assert entry["dunn"] == pytest.approx(wanted.dunn, rel=1e-6)


def test_a_generator_draws_for_every_k_whatever_it_draws_with_it(finished: Path) -> None:
    generator = Generator.load(finished)
    alone = generator.sample(n=2, k=3, seed=4)
    again = generator.sample(n=2, k=3, seed=4)
    assert [a.image.tobytes() for a in alone] == [b.image.tobytes() for b in again]
    assert len(generator.sample(n=2, k=2, seed=4)) == 2
    assert len(pd.read_csv(finished / "samples" / "metadata.csv")) == 2 * (2 + 3)


def test_the_last_latent_is_decoded_without_quantising(finished: Path) -> None:
    autoencoder = Autoencoder.load(finished / "autoencoder")
    z_1Chw = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = autoencoder.decode(z_1Chw)
        assert torch.equal(decoded, 2 * autoencoder.decoder(z_1Chw) - 1)
        # A reconstruction is quantised.
        x_1CHW = to_float(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
        codes = autoencoder.codes(autoencoder.encode(x_1CHW))
        assert torch.equal(autoencoder.reconstruct(x_1CHW), autoencoder.decode_codes(codes))


def test_what_needs_one_unet_of_diffusers_is_refused_in_one_line(
    finished: Path, tiny_slides: Path, tmp_path: Path
) -> None:
    generator = Generator.load(finished)
    sampler = generator.spec.sampler.model_copy(update={"guidance": 2.0})
    with pytest.raises(UserError, match="no null condition"):
        generator.sample(n=1, seed=0, sampler=sampler)
    with pytest.raises(UserError, match="those of the paper"):
        export_generator(Run.open(finished), tmp_path / "export")
    assert not (tmp_path / "export").exists()
    with pytest.raises(UserError, match="those of the paper"):
        init_run(tmp_path / "run", slides=[tiny_slides], preset="cpu", start=finished)
    with pytest.raises(UserError, match="those of the paper"):
        distil(Run.open(finished), DistillConfig(steps=2, images=8))


def test_a_change_of_the_diffusion_model_makes_the_clusters_stale(finished: Path) -> None:
    run = Run.open(finished)
    training = run.config.diffusion.training.model_copy(update={"batch_size": 16})
    diffusion = run.config.diffusion.model_copy(update={"training": training})
    changed = Run(run.path, run.config.model_copy(update={"diffusion": diffusion}))
    before, after = pipeline.wanted_fingerprints(run), pipeline.wanted_fingerprints(changed)
    assert before["latents"] == after["latents"]
    assert before["clusters"] != after["clusters"]
