"""The stage ``diffusion``: latents and their clusters in, a conditional generator out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import UNet2DModel
from torch import Tensor

from histoloom.autoencoder.augment import DIHEDRAL
from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.diffusion.generation.generator import GeneratorSpec
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.losses import DiffusionLoss
from histoloom.diffusion.model.unet import CONDITIONS, begin_from, make_unet, open_unet, save_unet
from histoloom.diffusion.model.warm_start import closest, denoising_errors
from histoloom.diffusion.watch import watched
from histoloom.run.directory import read_json, write_json
from histoloom.run.pretrained import start_folder
from histoloom.run.stage import StageContext
from histoloom.seeding import derive, numpy_generator, torch_generator
from histoloom.training import distributed
from histoloom.training.devices import accelerator, autocast, is_main_process
from histoloom.training.loop import Objective, Task, train

COMPARED = 512
"""training patches by which new clusters are compared with a given generator's"""


def run(context: StageContext) -> None:
    """Train one model for every k of the sweep on the training split; keep its averaged weights."""
    latents = LatentSet.open(context.inputs["latents"])
    clustering = Clustering.open(context.inputs["clusters"])
    rows = latents.rows(split="train")
    config = context.config.diffusion
    start = start_folder(context.run, context.config)
    space = _space(context, latents=latents, rows=rows, start=start)
    facts = make_facts(context, latents=latents, clustering=clustering, space=space)
    before, after = (" x ".join(map(str, shape)) for shape in (latents.shape, facts.shape))
    context.say(f"latents of {before} enter the diffusion model as {after}")
    torch.manual_seed(derive(context.config.seed, "diffusion", "weights"))
    stains = 2 if config.stain_augment else 1
    unet = make_unet(config, shape=facts.shape, conditions=stains * facts.conditions.count)
    if start is not None:
        parents_c = _parents(context, latents=latents, clustering=clustering, facts=facts, start=start)
        begin_from(unet, source=open_unet(start), parents=parents_c.repeat(stains))
    task = make_task(context, latents=latents, clustering=clustering, facts=facts, unet=unet)
    task = watched(task, context, facts=facts)
    trained = train(
        task,
        config=config.training,
        runtime=context.config.runtime,
        seed=context.config.seed,
        out=context.out,
        log=context.log,
    )
    if is_main_process():
        save_unet(trained.modules["unet"], context.out / "unet", conditions=facts.conditions.count)
        write_json(context.out / "generator.json", facts.as_json())


def make_task(
    context: StageContext, *, latents: LatentSet, clustering: Clustering, facts: GeneratorSpec, unet: UNet2DModel
) -> Task:
    """The U-Net, its loss and its data: patches of the training split, or copies of them, and their clusters.

    An image comes in ``copies`` ways, and with ``stain_augment`` in as many other stains (views), half of the time.
    """
    config = context.config.diffusion
    rows = latents.rows(split="train")
    numbers = torch.from_numpy(facts.conditions.numbers(labels_of(latents.table, clustering)[rows]))
    copies = DIHEDRAL if config.augment == "copies" else 1
    views = context.config.latents.stain_views if config.stain_augment else 0

    def batch(places: np.ndarray) -> tuple[Tensor, Tensor]:
        versions, items = np.divmod(places, len(rows))
        stains, choices = np.divmod(versions, copies)
        stains -= max(1, views)  # below 0: the patch's own
        z_BChw = latents.raw_copies(rows[items], choices=choices)
        other_M = np.flatnonzero(stains >= 0)
        z_BChw[other_M] = latents.raw_stains(rows[items[other_M]], views=stains[other_M])
        return facts.space.encode(z_BChw), numbers[items] + facts.conditions.count * torch.from_numpy(stains >= 0)[
            :, None
        ]

    loss = DiffusionLoss(config, unet=unet, conditions=facts.conditions)
    rates = {} if config.condition_rate == 1 else {CONDITIONS: config.condition_rate}
    return Task(
        name="diffusion",
        modules={"unet": unet},
        objectives=(Objective("unet", ("unet",), loss, config.training.phases, rates=rates),),
        n=len(rows),
        batch=batch,
        ema=("unet",) if config.training.averages else (),
        versions=copies * max(1, 2 * views),
        compiled=(unet,),
    )


def _parents(
    context: StageContext, *, latents: LatentSet, clustering: Clustering, facts: GeneratorSpec, start: Path
) -> Tensor:
    """The condition of the given generator that each of this one's begins as, int64 (count,); the null as the null.

    Which cluster each begins as is kept in ``inheritance.json``: asked anew, it would cost a resumed training a minute.
    """
    given = GeneratorSpec.from_json(read_json(start / "generator.json"))
    file = context.out / "inheritance.json"
    device = accelerator(context.config.runtime).device
    if is_main_process() and not file.is_file():
        unet = open_unet(start).to(device).eval()
        found = _closest(context, latents=latents, clustering=clustering, facts=facts, given=given, unet=unet)
        write_json(file, {"generator": {"k": given.chosen_k}, "closest": found})
    said = distributed.shared(read_json(file) if is_main_process() else {})
    clusters = [cluster for k in facts.conditions.ks for cluster in said["closest"][str(k)]]
    numbers = [given.conditions.number(k=given.chosen_k, cluster=cluster) for cluster in clusters]
    return torch.tensor([*numbers, given.conditions.null])


def _closest(
    context: StageContext,
    *,
    latents: LatentSet,
    clustering: Clustering,
    facts: GeneratorSpec,
    given: GeneratorSpec,
    unet: UNet2DModel,
) -> dict[str, list[int]]:
    """For each k of the sweep, the clusters of the given generator's chosen k that its clusters begin as."""
    rows = latents.rows(split="train")
    rng = numpy_generator(context.config.seed, "diffusion", "inheritance")
    rows = np.sort(rng.choice(rows, size=min(COMPARED, len(rows)), replace=False))
    offset = given.conditions.offset(given.chosen_k)
    with autocast(context.config.runtime):
        errors_MG = denoising_errors(
            unet,
            facts.space.encode(latents.raw(rows)),
            config=facts.config,
            conditions=range(offset, offset + given.chosen_k),
            generator=torch_generator(context.config.seed, "diffusion", "inheritance", "noise"),
            device=unet.device,
        )
    labels_MS = labels_of(latents.table, clustering)[rows]
    return {
        str(k): closest(errors_MG, labels_M=labels_MS[:, i], k=k).tolist() for i, k in enumerate(facts.conditions.ks)
    }


def _space(context: StageContext, *, latents: LatentSet, rows: np.ndarray, start: Path | None) -> LatentSpace:
    """Measured on the training split; with a given generator its own, in which its U-Net has learnt to see."""
    if start is None:
        config = context.config.diffusion
        return LatentSpace.measured(latents.latents, rows=rows, whiten=config.whiten, fold=config.fold)
    space = LatentSpace.from_json(read_json(start / "generator.json")["space"])
    kept = space.share_kept(latents.latents, rows=rows)
    context.say(
        f"the U-Net begins with the weights of the given generator; its latent space keeps "
        f"{kept:.1%} of the variance of these latents"
    )
    return space


def labels_of(table: pd.DataFrame, clustering: Clustering) -> np.ndarray:
    """Labels of the patches of ``table`` at every k of the sweep, int64 (n, S), joined by patch id."""
    columns = [f"k{k}" for k in clustering.ks]
    return clustering.table.set_index("patch_id").loc[table["patch_id"], columns].to_numpy(dtype=np.int64)


def make_facts(
    context: StageContext, *, latents: LatentSet, clustering: Clustering, space: LatentSpace
) -> GeneratorSpec:
    """What the generator needs to know beside its weights."""
    labels = labels_of(latents.table, clustering)[latents.rows(split="train")]
    frequencies = {
        k: tuple((np.bincount(labels[:, i], minlength=k) / len(labels)).tolist()) for i, k in enumerate(clustering.ks)
    }
    config = context.config
    return GeneratorSpec(
        config=config.diffusion,
        sampler=config.samples.sampler,
        space=space,
        shape=space.shape(latents.shape),
        conditions=Conditions(tuple(clustering.ks)),
        chosen_k=clustering.chosen,
        frequencies=frequencies,
        size=config.patches.size,
        mpp=config.patches.mpp,
    )
