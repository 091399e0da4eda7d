"""Training steps a second of our loop against a plain loop around diffusers' own models.

Same widths, batch, precision, optimizer and data in memory. VQ-GAN: ours with moving-average codebook, restarts and
dihedral copies, against ``diffusers.VQModel`` with its codebook loss; both minimise L1 and commitment, without
perceptual or adversarial terms, which the plain loop does not have. Three rows: ``same network`` (no folding of pixels
on either side: a level of the first width for every halving), ``stock`` (ours as the preset has it, which folds pixels
first, against that stock network of the same factor), ``folded`` (the plain network is given folded pixels as well, but
not the convolutions that unfold them again without a grid). ``cLDM``: ours with conditions of every k, condition
dropout and averaged weights, against a stock ``UNet2DModel`` of the same widths on noise prediction. Ours also
prefetch, log and check for divergence. The two take turns in one process; the ratio is of the medians of turns. Memory
is what a turn adds at its peak; reading is the time to read a batch (on a thread beside the training) over a step's.

    python benchmarks/training_speed.py [--preset cpu] [--steps 40] [--turns 5] [--device auto] [--precision auto]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from diffusers import DDPMScheduler, UNet2DModel, VQModel
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.losses import VQGANLosses
from histoloom.autoencoder.stage import make_objectives, make_task
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.config import Config, RuntimeConfig, make_config, read_preset
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import make_unet
from histoloom.run.stage import EventLog
from histoloom.seeding import torch_generator
from histoloom.training.devices import accelerator, autocast
from histoloom.training.loop import Objective, Task, train

N = 512
COMPONENTS = 4  # latent directions that the cLDM sees, where it sees principal components
SKIPPED = 3  # steps at the start of a turn: they make optimizers and buffers


@dataclass(frozen=True)
class Measured:
    """Seconds a step, from the request for the data of the first counted step; seconds to read a batch."""

    step: float
    reading: float = 0.0


Turn = Callable[[int], Measured]
"""Makes so many steps."""


def _seconds(started: list[float]) -> float:
    return (started[-1] - started[SKIPPED]) / (len(started) - 1 - SKIPPED)


class Enough(Exception):
    """So many steps were made."""


def rehearsed(task: Task, *, config: Config, training: str, steps: int) -> Measured:
    """The first ``steps`` of our loop as the preset has it: its warm-up, and checks as often as in the whole of it."""
    started: list[float] = []
    reading: list[float] = []

    def batch(rows: np.ndarray) -> Any:
        if len(started) > steps:
            raise Enough
        started.append(time.perf_counter())
        read = task.batch(rows)
        reading.append(time.perf_counter() - started[-1])
        return read

    settings = getattr(config, training).training
    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        log = EventLog(Path(folder) / "log.jsonl")
        train(replace(task, batch=batch), config=settings, runtime=config.runtime, seed=0, out=Path(folder), log=log)
    return Measured(_seconds(started), reading=statistics.median(reading))


def our_vqgan(config: Config, *, images_NHWC: np.ndarray) -> Turn:
    settings = config.autoencoder
    task = make_task(settings, seed=0, n=N)
    autoencoder = task.modules["autoencoder"]
    assert isinstance(autoencoder, Autoencoder), "made by make_task"
    losses = VQGANLosses(settings, autoencoder=autoencoder, discriminator=None, perceptual=None)
    ready = replace(
        task, objectives=make_objectives(losses, n=N), batch=lambda rows: torch.from_numpy(images_NHWC[rows])
    )
    return lambda steps: rehearsed(ready, config=config, training="autoencoder", steps=steps)


def plain_vqgan(config: Config, *, images_NHWC: np.ndarray) -> Turn:
    settings, device = config.autoencoder, accelerator(config.runtime).device
    widths = tuple(settings.channels * multiplier for multiplier in settings.multipliers)
    model = VQModel(
        in_channels=3 * settings.stem**2,
        out_channels=3 * settings.stem**2,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=settings.blocks,
        latent_channels=settings.code_dim,
        num_vq_embeddings=settings.codes,
        norm_num_groups=settings.groups,
        mid_block_add_attention=settings.attention,
    ).to(device)

    def loss(images: Tensor) -> Tensor:
        x = F.pixel_unshuffle(to_float(images), settings.stem)
        out = model(x)
        return F.l1_loss(out.sample.float(), x) + settings.commitment * out.commit_loss.mean()

    return plain(model, loss, data=[torch.from_numpy(images_NHWC)], config=config, batch=batch_of(settings))


def our_cldm(config: Config, *, z_NCHW: Tensor, numbers_NS: Tensor) -> Turn:
    settings, conditions = config.diffusion, Conditions(config.clusters.k)
    shape = (int(z_NCHW.shape[1]), int(z_NCHW.shape[2]), int(z_NCHW.shape[3]))
    unet = make_unet(settings, shape=shape, conditions=conditions.count)
    loss = DiffusionLoss(settings, unet=unet, conditions=conditions)
    objective = Objective("unet", ("unet",), loss, settings.training.phases)
    data = lambda rows: (z_NCHW[rows], numbers_NS[rows])  # noqa: E731
    task = Task("diffusion", {"unet": unet}, (objective,), N, data, ema=("unet",), compiled=(unet,))
    return lambda steps: rehearsed(task, config=config, training="diffusion", steps=steps)


def plain_cldm(config: Config, *, z_NCHW: Tensor, numbers_NS: Tensor) -> Turn:
    settings, device = config.diffusion, accelerator(config.runtime).device
    scheduler = DDPMScheduler(settings.steps)
    channels, height, width = z_NCHW.shape[1:]
    unet = make_unet(settings, shape=(channels, height, width), conditions=Conditions(config.clusters.k).count)
    model = UNet2DModel.from_config(unet.config).to(device)

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        noise = torch.randn_like(z)
        steps = torch.randint(settings.steps, (len(z),), device=device)
        predicted = model(scheduler.add_noise(z, noise, steps), steps, class_labels=labels).sample
        return F.mse_loss(predicted.float(), noise)

    return plain(model, loss, data=[z_NCHW, numbers_NS[:, 0]], config=config, batch=batch_of(settings))


def plain(model: nn.Module, loss: Callable[..., Tensor], *, data: list[Tensor], config: Config, batch: int) -> Turn:
    """What one writes first: a loop over random batches, AdamW as it comes."""
    device = accelerator(config.runtime).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def turn(steps: int) -> Measured:
        model.train()
        started = []
        for _ in range(steps):
            started.append(time.perf_counter())
            rows = torch.randint(N, (batch,))
            with autocast(config.runtime):
                value = loss(*(part[rows].to(device) for part in data))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return Measured(_seconds(started))

    return turn


def batch_of(settings: object) -> int:
    return settings.training.batch_size  # type: ignore[attr-defined]


def compared(name: str, *, ours: Turn, theirs: Turn, steps: int, turns: int, batch: int) -> str:
    """A line: images a second of both, by the median turn, the ratio, memory and reading."""
    found: dict[str, list[tuple[Measured, int]]] = {"ours": [], "plain": []}
    for turn in range(-1, turns):
        for who, work in (("ours", ours), ("plain", theirs)):
            with Peak() as peak:
                measured = work(steps)
            if turn >= 0:  # the first turn warms up
                found[who].append((measured, peak.added))
    step = {who: statistics.median(m.step for m, _ in some) for who, some in found.items()}
    memory = {who: max(added for _, added in some) // 2**20 for who, some in found.items()}
    reading = statistics.median(m.reading for m, _ in found["ours"]) / step["ours"]
    return (
        f"{name:21} ours {batch / step['ours']:8.1f} images/s, plain {batch / step['plain']:8.1f}, "
        f"ratio {step['plain'] / step['ours']:.2f}; memory {memory['ours']} and {memory['plain']} MB; "
        f"reading {reading:.1%} of a step"
    )


class Peak:
    """Bytes that the process has more at its peak than at the start: on the GPU where there is one, else of RAM."""

    def __enter__(self) -> Peak:
        self.added, self._stop = 0, threading.Event()
        gc.collect()
        if sys.platform == "linux":  # else memory that an earlier turn freed hides what this one takes
            ctypes.CDLL(None).malloc_trim(0)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._before = self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.added = max(self.added, self._now() - self._before)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.added = max(self.added, self._now() - self._before)

    def _now(self) -> int:
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return int(psutil.Process().memory_info().rss)


def unfolded(config: Config) -> Config:
    """The same factor without folding pixels: a level of the first width for every halving."""
    settings = config.autoencoder
    multipliers = (settings.multipliers[0],) * (settings.stem.bit_length() - 1) + settings.multipliers
    return config.model_copy(
        update={"autoencoder": settings.model_copy(update={"stem": 1, "multipliers": multipliers})}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--fast", default="auto", choices=["auto", "on", "off"], help="channels-last and compiled")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    given = parser.parse_args()
    values = read_preset(given.preset) | {"slides": {"paths": ["/unused"]}}
    config = make_config(values)
    quiet = config.autoencoder.model_copy(
        update={"perceptual": "none", "perceptual_weight": 0.0, "l1_weight": 1.0, "mse_weight": 0.0}
    )
    how_to = {"device": given.device, "precision": given.precision, "fast": given.fast}
    runtime = RuntimeConfig(**how_to, checkpoint_seconds=3600)
    config = config.model_copy(update={"autoencoder": quiet, "runtime": runtime})
    side, factor = config.patches.size, config.autoencoder.factor
    generator = torch_generator(0, "benchmark", "training")
    images = torch.randint(256, (N, side, side, 3), generator=generator, dtype=torch.uint8).numpy()
    channels = COMPONENTS if config.diffusion.whiten else config.autoencoder.code_dim
    side = side // factor
    z = torch.randn(N, channels, side, side, generator=generator)
    ks = config.clusters.k
    numbers = torch.from_numpy(Conditions(ks).numbers(np.zeros((N, len(ks)), dtype=np.int64)))
    how = {"steps": given.steps, "turns": given.turns}
    batch = batch_of(config.autoencoder)
    for name, mine, plainly in (
        ("VQ-GAN, same network", unfolded(config), unfolded(config)),
        ("VQ-GAN, stock", config, unfolded(config)),
        ("VQ-GAN, folded", config, config),
    ):
        ours, theirs = our_vqgan(mine, images_NHWC=images), plain_vqgan(plainly, images_NHWC=images)
        print(compared(name, ours=ours, theirs=theirs, batch=batch, **how), flush=True)
    batch = batch_of(config.diffusion)
    ours = our_cldm(config, z_NCHW=z, numbers_NS=numbers)
    theirs = plain_cldm(config, z_NCHW=z, numbers_NS=numbers)
    print(compared("cLDM", ours=ours, theirs=theirs, batch=batch, **how), flush=True)


if __name__ == "__main__":
    main()
