"""The cost of each preset on this machine, as ``histoloom init`` prints it; and the error of that estimate.

A table: operations an image, how many times an image is trained on, encoded or drawn, seconds an image and hours. With
``--steps``, real training steps are timed too: of random images and latents, with random weights under LPIPS, and with
the discriminator from the first step on. All times are processor time of one thread, so that other work on the machine
counts little.

    python benchmarks/cost.py [--presets cpu demo ...] [--steps 10] [--batch-size 8]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from histoloom import paper
from histoloom.autoencoder.losses import PyramidLoss, VQGANLosses
from histoloom.autoencoder.lpips import LPIPS, FeatureTrunk
from histoloom.autoencoder.stage import make_objectives, make_task
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.clustering.clusterer import Architecture, build
from histoloom.clustering.infomax import Network
from histoloom.clustering.losses import InfoMaxLoss
from histoloom.config import Config, TrainingConfig, make_config, read_preset, with_settings
from histoloom.cost import estimate
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import make_unet
from histoloom.run.stage import EventLog
from histoloom.training.loop import Objective, Task, train

PRESETS = ("demo", "cpu", "starter", "modern", "paper")
N = 256
"""random images and latents"""
SKIPPED = 1
"""steps at the start that make optimizers and buffers"""


class Enough(Exception):
    """So many steps were made."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--steps", type=int, default=0, help="real training steps to time")
    parser.add_argument("--batch-size", type=int, default=1024, help="largest batch of these steps")
    given = parser.parse_args()
    torch.set_num_threads(1)
    configs = []
    for preset in given.presets:
        values = read_preset(preset) | {"slides": {"paths": ["/unused"]}}
        configs.append(make_config(with_settings(values, ["runtime.device=cpu"])))

    print("| preset | stage | GFLOP an image | images | seconds an image | hours |\n|---|---|---|---|---|---|")
    for config in configs:
        cost = estimate(config, clock=time.process_time)
        for stage in cost.stages:
            work = f"{stage.work.operations / 1e9:,.2f} | {stage.images:,} | {stage.work.seconds:,.4f}"
            print(f"| `{config.preset}` | {stage.stage} | {work} | {stage.hours:,.2f} |")
        print(f"| `{config.preset}` | all | | | | {cost.hours:,.2f} |", flush=True)

    if given.steps:
        print("\n| preset | stage | estimated seconds an image | real | real / estimated |\n|---|---|---|---|---|")
    for config in configs if given.steps else ():
        print_error(config, steps=given.steps, batch_size=given.batch_size)


def print_error(config: Config, *, steps: int, batch_size: int) -> None:
    """Rows: real steps beside the estimates before and after them."""
    adversarial = config.autoencoder.adversarial.model_copy(update={"start": 0.0, "warmup": 0.0})
    autoencoder = config.autoencoder.model_copy(update={"adversarial": adversarial})
    config = config.model_copy(update={"autoencoder": autoencoder})
    for stage, task, training in tasks(config):
        training = training.model_copy(update={"batch_size": min(batch_size, training.batch_size)})
        before = seconds_estimated(config, stage)
        real = seconds_an_image(task, config=config, training=training, steps=steps)
        after = seconds_estimated(config, stage)
        ratio = 2 * real / (before + after)
        print(f"| `{config.preset}` | {stage} | {before:.4f} and {after:.4f} | {real:.4f} | {ratio:.2f} |", flush=True)


def seconds_estimated(config: Config, stage: str) -> float:
    stages = estimate(config, clock=time.process_time).stages
    return next(one.work.seconds for one in stages if one.stage == stage)


def seconds_an_image(task: Task, *, config: Config, training: TrainingConfig, steps: int) -> float:
    """Processor time an image in ``steps`` steps of the training loop."""
    times: list[float] = []

    def batch(rows: np.ndarray) -> Any:
        times.append(time.process_time())
        if len(times) > SKIPPED + steps + 1:  # a batch is read one step ahead
            raise Enough
        return task.batch(rows)

    with tempfile.TemporaryDirectory() as folder, suppress(Enough):
        log = EventLog(Path(folder) / "log.jsonl")
        train(replace(task, batch=batch), config=training, runtime=config.runtime, seed=0, out=Path(folder), log=log)
    return (times[-1] - times[SKIPPED]) / (len(times) - 1 - SKIPPED) / training.batch_size


def tasks(config: Config) -> Iterator[tuple[str, Task, TrainingConfig]]:
    """Each training of a run, on random data, with the stage that it is of."""
    auto, size = config.autoencoder, config.patches.size
    shape = (auto.code_dim, size // auto.factor, size // auto.factor)
    images_NHW3 = torch.randint(256, (N, size, size, 3), dtype=torch.uint8)
    z_NChw = torch.randn(N, *shape)
    yield "autoencoder", autoencoder_task(config, images_NHW3=images_NHW3), auto.training
    if config.clusters.joint is not None:
        yield "clusters", joint_task(config, images_NHW3=images_NHW3, z_NChw=z_NChw), config.diffusion.training
        return
    training = config.clusters.training
    assert training is not None, "the clusters have a training of their own"
    yield "clusters", clusters_task(config, shape=shape), training
    yield "diffusion", diffusion_task(config, z_NChw=z_NChw), config.diffusion.training


def autoencoder_task(config: Config, *, images_NHW3: torch.Tensor) -> Task:
    """Autoencoder and discriminator, with a perceptual loss of random weights."""
    auto = config.autoencoder
    perceptual: nn.Module | None = None
    if auto.perceptual == "pyramid":
        perceptual = PyramidLoss()
    elif auto.perceptual != "none":
        trunk = FeatureTrunk(auto.perceptual_trunk)
        widths = [tap_NCHW.shape[1] for tap_NCHW in trunk(torch.zeros(1, 3, 64, 64))]
        perceptual = LPIPS(trunk, heads=[torch.ones(width) for width in widths])
    n = config.patches.count or N
    task = make_task(auto, seed=0, n=n)
    autoencoder = task.modules["autoencoder"]
    assert isinstance(autoencoder, Autoencoder), "made by make_task"
    discriminator = task.modules.get("discriminator")
    losses = VQGANLosses(auto, autoencoder=autoencoder, discriminator=discriminator, perceptual=perceptual)
    batch = lambda rows: images_NHW3[rows % N]  # noqa: E731
    return replace(task, objectives=make_objectives(losses, n=n), batch=batch, compiled=losses.compiled)


def clusters_task(config: Config, *, shape: tuple[int, ...]) -> Task:
    """The clusterer of latents, with their stain views."""
    clusters = config.clusters
    assert clusters.training is not None, "the clusters have a training of their own"
    network = build(Architecture(shape[0], clusters.channels, clusters.k)).network
    assert isinstance(network, Network), "one network for all k"
    z_NVChw = torch.randn(N, 1 + config.latents.stain_views, *shape)
    loss = InfoMaxLoss(clusters, network=network)
    return Task(
        "clusters",
        {"network": network},
        (Objective("network", ("network",), loss, clusters.training.phases),),
        config.patches.count or N,
        batch=lambda rows: z_NVChw[rows % N],
        whole_batch=True,
        compiled=loss.compiled,
    )


def diffusion_task(config: Config, *, z_NChw: torch.Tensor) -> Task:
    """The U-Net of all k, on all channels of the latents."""
    training, conditions = config.diffusion.training, Conditions(config.clusters.k)
    channels, height, width = z_NChw.shape[1:]
    unet = make_unet(config.diffusion, shape=(channels, height, width), conditions=conditions.count)
    numbers_NS = torch.zeros(N, len(conditions.ks), dtype=torch.int64)
    loss = DiffusionLoss(config.diffusion, unet=unet, conditions=conditions)
    return Task(
        "diffusion",
        {"unet": unet},
        (Objective("unet", ("unet",), loss, training.phases),),
        config.patches.count or N,
        batch=lambda rows: (z_NChw[rows % N], numbers_NS[rows % N]),
        ema=("unet",) if training.averages else (),
        compiled=(unet,),
    )


def joint_task(config: Config, *, images_NHW3: torch.Tensor, z_NChw: torch.Tensor) -> Task:
    """Clusterer and U-Net of the largest k, in the first phase, in which both learn."""
    from histoloom.diffusion.joint import JointLoss, affine_view  # it needs what a bare machine lacks (gpu_day.py)

    joint, training = config.clusters.joint, config.diffusion.training
    assert joint is not None, "the run trains both together"
    k, n = max(config.clusters.k), config.patches.count or N
    channels, height, width = z_NChw.shape[1:]
    unet = make_unet(config.diffusion, shape=(channels, height, width), conditions=k)
    clusterer = paper.Clusterer(channels, channels=config.clusters.channels, k=k, side=height)
    loss = JointLoss(
        config,
        k=k,
        n=n,
        unet=unet,
        clusterer=clusterer,
        space=LatentSpace.unscaled(channels),
        view=lambda x_B3HW, context: affine_view(x_B3HW, context, config=joint, fill_3=torch.zeros(3)),
        encode=Autoencoder(config.autoencoder).eval().latents,
    )
    return Task(
        "joint",
        {"unet": unet, "clusterer": clusterer},
        (Objective("pair", ("unet", "clusterer"), loss, training.phases),),
        n,
        batch=lambda rows: (z_NChw[rows % N], images_NHW3[rows % N]),
        ema=("unet",) if training.averages else (),
        whole_batch=True,
        compiled=(unet,),
    )


if __name__ == "__main__":
    main()
