"""Encoded dihedral copies: of rotated and flipped patches, resumable, and what the diffusion model is trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from histoloom import pipeline
from histoloom.autoencoder.augment import dihedral
from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.latents_stage import CHUNK
from histoloom.autoencoder.latents_stage import run as encode
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering.clustering_set import Clustering
from histoloom.config import Config
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.model.unet import make_unet
from histoloom.diffusion.stage import make_task
from histoloom.run.directory import Run, write_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import full_precision


def with_copies(run: Path, copies: int) -> Config:
    """The run's settings, with so many copies of each patch."""
    config = Run.open(run).config
    return config.model_copy(update={"latents": config.latents.model_copy(update={"copies": copies})})


def context(run: Path, *, out: Path, config: Config) -> StageContext:
    inputs = {name: run / name for name in pipeline.STAGE_NAMES}
    return StageContext(run, config, out, inputs, EventLog(out / "log.jsonl"))


@pytest.fixture(scope="module")
def copied(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's stage ``latents``, with eight copies."""
    out = tmp_path_factory.mktemp("copied")
    encode(context(tiny_run, out=out, config=with_copies(tiny_run, 8)))
    return out


def test_copies_are_the_latents_of_dihedral_patches_not_dihedral_latents(tiny_run: Path, copied: Path) -> None:
    latents, patches = LatentSet.open(copied), PatchSet.open(tiny_run / "patches")
    assert latents.copies is not None
    assert latents.copies.shape == (7 * len(latents), *latents.shape)
    rows, copies_n = np.array([3, 70, 3, 5, 9, 11, 12, 13]), np.arange(8)
    model = Autoencoder.load(tiny_run / "autoencoder")
    copies_NCHW = dihedral(to_float(torch.from_numpy(patches.images(rows))), torch.from_numpy(copies_n))
    with torch.no_grad(), full_precision():
        expected = model.encode(copies_NCHW)
    encoded = latents.raw_copies(rows, copies_n=copies_n)
    torch.testing.assert_close(encoded, expected, rtol=2e-3, atol=2e-3)
    assert torch.equal(encoded[0], latents.raw(rows)[0])
    apart = (dihedral(latents.raw(rows), torch.from_numpy(copies_n)) - expected)[1:].pow(2).mean()
    assert apart > 100 * (encoded - expected).pow(2).mean()


def test_encoding_that_was_stopped_goes_on_to_the_same_bytes(tiny_run: Path, copied: Path, tmp_path: Path) -> None:
    shutil.copytree(copied, tmp_path / "out")
    names = ("latents", "copies", "histograms", "stain_views")
    for name in names:
        array = np.load(tmp_path / "out" / f"{name}.npy", mmap_mode="r+")
        assert len(array) > CHUNK
        array[CHUNK:] = 7
        array.flush()
    write_json(tmp_path / "out" / "encoded.json", {"rows": CHUNK})
    encode(context(tiny_run, out=tmp_path / "out", config=with_copies(tiny_run, 8)))
    for name in names:
        assert (tmp_path / "out" / f"{name}.npy").read_bytes() == (copied / f"{name}.npy").read_bytes()


def test_copies_change_nothing_else(tiny_run: Path, copied: Path) -> None:
    assert LatentSet.open(tiny_run / "latents").copies is None
    for name in ("latents.npy", "histograms.npy", "stain_views.npy", "moments.json"):
        assert (copied / name).read_bytes() == (tiny_run / "latents" / name).read_bytes()


@pytest.mark.parametrize("versions", [8, 1])
def test_the_generator_learns_from_copies_with_the_clusters_of_the_patch(
    tiny_run: Path, copied: Path, versions: int
) -> None:
    spec = GeneratorSpec.load(tiny_run / "diffusion")
    latents = LatentSet.open(copied)
    task = make_task(
        context(tiny_run, out=copied, config=with_copies(tiny_run, versions)),
        latents=latents,
        clustering=Clustering.open(tiny_run / "clusters"),
        spec=spec,
        unet=make_unet(spec.diffusion, shape=spec.shape, conditions=spec.conditions.count),
    )
    rows = latents.rows(split="train")
    assert (task.n, task.versions) == (len(rows), versions)
    z, numbers = task.batch(np.array([4, 4 + task.n * (versions - 1)]))
    copies_n = np.array([0, versions - 1])
    torch.testing.assert_close(z, spec.space.encode(latents.raw_copies(rows[[4, 4]], copies_n=copies_n)))
    assert torch.equal(z[0], z[1]) == (versions == 1)
    assert torch.equal(numbers[0], numbers[1])
