"""Alignment of the U-Net's features with those of a classifier: the features, the targets, and the training."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from histoloom import pipeline
from histoloom.autoencoder.augment import dihedral
from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.efficientnet import EfficientNetLite0
from histoloom.config import Config, DiffusionConfig, identity
from histoloom.diffusion import alignment
from histoloom.diffusion.alignment import COMPONENTS, AlignedUNet, activations, target_maps
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import make_unet
from histoloom.diffusion.stage import make_task
from histoloom.errors import UserError
from histoloom.run.directory import Run, write_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.setup import change_settings
from histoloom.slides.patch_set import PatchSet
from histoloom.training.loop import StepContext, train


def aligned_config(run: Path, *more: str) -> Config:
    return change_settings(Run.open(run), ["diffusion.alignment=0.5", *more], save=False).config


def context(run: Path, *, out: Path, config: Config) -> StageContext:
    out.mkdir(exist_ok=True)
    inputs = {name: run / name for name in pipeline.STAGE_NAMES}
    return StageContext(run, config, out, inputs, EventLog(out / "log.jsonl"))


def a_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=(16, 16),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16, 24),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=3,
    )


@pytest.mark.parametrize(
    ("block", "side"), [("down-0", 16), ("down-1", 8), ("down-2", 4), ("middle", 4), ("up-2", 4), ("up-1", 8)]
)
def test_an_aligned_unet_predicts_as_before_and_gives_its_features(block: str, side: int) -> None:
    unet = a_unet()
    names = set(unet.state_dict())
    inputs = (torch.randn(2, 3, 16, 16), torch.tensor([3, 500]))
    labels = torch.tensor([0, 2])
    expected = unet(*inputs, class_labels=labels).sample
    aligned = AlignedUNet(unet, block=block)
    output = aligned(*inputs, class_labels=labels)
    assert torch.equal(output.sample, expected)
    assert output.projected.shape == (2, COMPONENTS, side, side)
    assert aligned.side == side
    assert set(unet.state_dict()) == names
    # Features come before the prediction: those of the U-Net's last layers do not reach them.
    output.projected.sum().backward()
    assert unet.conv_in.weight.grad is not None
    assert unet.conv_out.weight.grad is None
    copy.deepcopy(unet).eval()(*inputs, class_labels=labels)
    assert not aligned.kept


def test_the_loss_goes_with_maps_of_conditions() -> None:
    values = {"channels": [8, 16], "attention": [False, True], "blocks": 1, "condition_maps": True, "alignment": 0.5}
    training = {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 8}]}
    config = DiffusionConfig.model_validate(values | {"training": training})
    conditions = Conditions((3,))
    unet = make_unet(config, shape=(4, 8, 8), conditions=conditions.count)
    assert isinstance(unet, UNet2DModel)
    loss = DiffusionLoss(config, unet=AlignedUNet(unet, block="down-1"), conditions=conditions)
    step = StepContext(0, 0, 0.0, torch.device("cpu"), torch.Generator().manual_seed(0), slice(0, 4), 4)
    numbers = torch.tensor([[0], [1], [2], [0]])
    maps = torch.randint(3, (4, 1, 4, 4))
    target = torch.randn(4, COMPONENTS, 4, 4)
    value, metrics = loss((torch.randn(4, 4, 8, 8), numbers, maps, target), step)
    assert value.item() == pytest.approx(metrics["mse"].item() - 0.5 * metrics["similarity"].item())
    assert abs(metrics["similarity"].item()) < 0.5


def test_targets_of_copies_are_those_of_rotated_and_flipped_patches(tiny_run: Path, tmp_path: Path) -> None:
    """What the trunk has of a copy is nearer to the copy of the map than to the map itself or to another copy."""
    patches = PatchSet.open(tiny_run / "patches")
    trunk, rows = EfficientNetLite0.load(), np.arange(24)
    images = torch.from_numpy(patches.images(rows)).movedim(3, 1)
    upright = activations(trunk, patches.images(rows), device=torch.device("cpu"))
    for number in (1, 4, 7):
        copies = torch.full((len(rows),), number)
        of_copies = activations(trunk, dihedral(images, copies).movedim(1, 3).numpy(), device=torch.device("cpu"))
        near = (dihedral(upright, copies) - of_copies).square().mean()
        for other in {0, 1, 4, 7} - {number}:
            assert near < 0.9 * (dihedral(upright, torch.full_like(copies, other)) - of_copies).square().mean()

    maps = target_maps(context(tiny_run, out=tmp_path, config=aligned_config(tiny_run)), rows_N=rows, side=2)
    copied = maps(rows, copies_B=np.full(24, 5))
    assert torch.equal(copied, dihedral(maps(rows, copies_B=np.zeros(24, int)), torch.full((24,), 5)))


def test_targets_that_were_stopped_are_continued_to_the_same_bytes(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "CHUNK", 16)
    monkeypatch.setattr(alignment, "SAVED_CHUNKS", 1)
    rows = LatentSet.open(tiny_run / "latents").rows(split="train")
    config = aligned_config(tiny_run)
    whole, parts = (context(tiny_run, out=tmp_path / name, config=config) for name in ("whole", "parts"))
    target_maps(whole, rows_N=rows, side=2)
    target_maps(parts, rows_N=rows, side=2)
    path = parts.out / "checkpoints" / "alignment.npy"
    array = np.load(path, mmap_mode="r+")
    array[16:] = 7
    array.flush()
    write_json(path.with_suffix(".json"), {"rows": 16})
    maps = target_maps(parts, rows_N=rows, side=2)
    assert path.read_bytes() == (whole.out / "checkpoints" / "alignment.npy").read_bytes()
    # Centred, and reduced to components of falling variance.
    values = maps(np.arange(len(rows)), copies_B=np.zeros(len(rows), int)).float()
    assert values.mean(dim=(0, 2, 3)).abs().max() < 0.5
    assert values[:, :8].var() > 2 * values[:, -8:].var()


def test_a_training_draws_the_features_to_their_targets(tiny_run: Path, tmp_path: Path) -> None:
    """The similarity rises; the generator's network has no more weights than without."""
    settings = "diffusion.training.phases.0={optimizer: adamw, lr: 0.005, images: 160}"
    config = aligned_config(tiny_run, settings)
    stage = context(tiny_run, out=tmp_path / "out", config=config)
    spec = GeneratorSpec.load(tiny_run / "diffusion")
    latents = LatentSet.open(tiny_run / "latents")
    torch.manual_seed(0)
    unet = make_unet(spec.diffusion, shape=spec.shape, conditions=spec.conditions.count)
    names = set(unet.state_dict())
    clustering = Clustering.open(tiny_run / "clusters")
    task = make_task(stage, latents=latents, clustering=clustering, spec=spec, unet=unet)
    trained = train(
        task, config=config.diffusion.training, runtime=config.runtime, seed=0, out=stage.out, log=stage.log
    )
    events = [event for event in stage.log.read() if "unet.similarity" in event]
    similarity = [float(str(event["unet.similarity"])) for event in events]
    assert np.mean(similarity[-4:]) > np.mean(similarity[:2]) + 0.1
    loss = [float(str(event["unet.mse"])) - 0.5 * s for event, s in zip(events, similarity, strict=True)]
    assert loss == pytest.approx([float(str(event["unet.loss"])) for event in events], abs=1e-4)
    assert set(trained.modules["unet"].state_dict()) == names


def test_runs_without_it_keep_their_fingerprints(tiny_run: Path) -> None:
    config = Run.open(tiny_run).config
    assert not {"alignment", "alignment_block"} & set(identity(config)["diffusion"])
    assert identity(aligned_config(tiny_run))["diffusion"]["alignment"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["diffusion.alignment_block=down-3"], "has 2 levels"),
        (["diffusion.alignment_block=side-1"], "alignment_block"),
        (["diffusion.architecture=paper", "diffusion.attention=[true, true]"], "alignment needs architecture"),
    ],
)
def test_what_does_not_fit_is_one_line(tiny_run: Path, settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        aligned_config(tiny_run, *settings)
