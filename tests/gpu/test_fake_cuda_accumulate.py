"""A VQ-GAN in micro-batches on the stand-in for a GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from fake_cuda import fake_cuda
from torch import Tensor

from histoloom.autoencoder import stage
from histoloom.autoencoder.losses import PyramidLoss, VQGANLosses
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.config import RuntimeConfig, make_config, read_preset, with_settings
from histoloom.run.stage import EventLog
from histoloom.training.loop import train

SMALL = (
    "patches.size=32",
    "autoencoder.channels=16",
    "autoencoder.multipliers=[1, 2]",
    "autoencoder.blocks=1",
    "autoencoder.attention=false",
    "autoencoder.adversarial={channels: 8, layers: 1, start: 0, warmup: 0}",
    "autoencoder.training={batch_size: 4, phases: [{optimizer: adam, lr: 0.001, images: 12}]}",
)


def fit(out: Path, *, accumulate: int) -> dict[str, Tensor]:
    config = make_config(with_settings(read_preset("modern") | {"slides": {"paths": ["/slides"]}}, SMALL)).autoencoder
    images_NHWC = torch.randint(256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    def batch(rows: np.ndarray) -> Tensor:
        return images_NHWC[rows]

    task = stage.make_task(config, seed=0, n=8)
    autoencoder = task.modules["autoencoder"]
    assert isinstance(autoencoder, Autoencoder)
    discriminator, perceptual = task.modules["discriminator"], PyramidLoss(levels=1).to("cuda")
    losses = VQGANLosses(config, autoencoder=autoencoder, discriminator=discriminator, perceptual=perceptual)
    task = dataclasses.replace(task, objectives=stage.make_objectives(losses, n=8), batch=batch)
    runtime = RuntimeConfig(device="cuda", precision="fp32", fast="off", accumulate=accumulate)
    out.mkdir()
    trained = train(task, config=config.training, runtime=runtime, seed=5, out=out, log=EventLog(out / "log.jsonl"))
    return {name: value.cpu() for name, value in trained.modules["autoencoder"].state_dict().items()}


def test_micro_batches_end_with_the_weights_of_the_whole_batch(tmp_path: Path) -> None:
    with fake_cuda():
        whole = fit(tmp_path / "whole", accumulate=1)
        parts = fit(tmp_path / "parts", accumulate=2)
    assert whole.keys() == parts.keys()
    # The gradient of a bias before a normalisation is nothing but rounding, which Adam scales up.
    names = [name for name in whole if not name.endswith(".bias")]
    assert any(name.startswith("quantizer") for name in names)
    assert all(torch.allclose(whole[name].float(), parts[name].float(), atol=1e-4) for name in names)
    written = torch.load(tmp_path / "parts/checkpoints/last.pt", weights_only=True)
    assert (written["images"], written["accumulate"]) == (12, 2)
