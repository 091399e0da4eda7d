"""A look at what a diffusion model draws while it trains: a small set, decoded, shown to the run's judge."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from diffusers import UNet2DModel

from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.diffusion.generation.generator import Generator, GeneratorSpec
from histoloom.run.stage import CheckResult, StageContext
from histoloom.seeding import derive
from histoloom.training.tasks import Callback, Modules, Task

LOOKS, IMAGES = 4, 64
"""at equal distances, the last one at the end; images drawn for each, by the clusters' frequencies"""


def watched(task: Task, context: StageContext, *, facts: GeneratorSpec) -> Task:
    """The task with looks at what it draws, where the run has a judge; of the same noise every time."""
    judge = context.judge
    if judge is None:
        return task
    autoencoder = Autoencoder.load(context.inputs["autoencoder"])
    seed = derive(context.config.seed, "diffusion", "watch")

    def look(modules: Modules, _images: int) -> CheckResult:
        unet = modules["unet"]
        assert isinstance(unet, UNet2DModel), "the task's module keeps its kind"
        generator = Generator(
            facts,
            unet=copy.deepcopy(unet),
            autoencoder=autoencoder,
            home=context.run,
            runtime=context.config.runtime,
        )
        orders = generator.orders(None, n=IMAGES, seed=seed)
        return judge(np.stack([drawn.image for drawn in generator.draw(orders, sampler=facts.sampler)]))

    return replace(task, watch=Callback(look, LOOKS))
