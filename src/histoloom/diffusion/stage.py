"""The stage ``diffusion``: latents and their clusters in, a conditional generator out."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.clustering.clustering_set import Clustering
from histoloom.diffusion.alignment import make_aligned_unet, target_maps
from histoloom.diffusion.corrections import FILE, NO_CORRECTIONS, TrainedCorrections
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import CONDITION_EMBEDDING, load_pretrained, make_unet, open_unet, save_unet
from histoloom.diffusion.model.warm_start import closest_conditions, denoising_errors
from histoloom.processes import is_main_process
from histoloom.run.directory import Artifact, read_json, write_json
from histoloom.run.pretrained import start_folder
from histoloom.run.stage import CheckResult, StageContext
from histoloom.seeding import derive, numpy_generator, torch_generator
from histoloom.training import distributed
from histoloom.training.devices import accelerator, autocast
from histoloom.training.loop import Objective, Task, train
from histoloom.training.tasks import Callback, Modules, StepContext
from histoloom.training.transfers import hold

COMPARED_PATCHES = 512
"""training patches by which new clusters are compared with those of a pretrained generator"""
CHECKS, CHECKED_IMAGES = 4, 64
"""checks of a training, at equal distances, the last one at the end; images drawn for each"""


def run(context: StageContext) -> None:
    """Train one model for every k of the sweep on the training split; keep its averaged weights."""
    config = context.config.diffusion
    latents = LatentSet.open(context.inputs["latents"])
    clustering = Clustering.open(context.inputs["clusters"])
    rows = latents.rows(split="train")
    pretrained = start_folder(context.run, context.config)
    corrections = frozen_corrections(context, clustering=clustering)

    # A pretrained U-Net keeps the latent space that it was trained in.
    if config.scaling == "none":
        space = LatentSpace.unscaled(latents.shape[0])
    elif pretrained is None:
        space = LatentSpace.fit(latents.latents, rows=rows, whiten=config.whiten)
    else:
        space = GeneratorSpec.load(pretrained).space
    if pretrained is not None:
        kept = space.explained_variance(latents.latents, rows=rows)
        context.say(
            f"the U-Net starts from the weights of the pretrained generator; its latent space keeps "
            f"{kept:.1%} of the variance of these latents"
        )
    spec = make_spec(context, latents=latents, clustering=clustering, space=space, corrections=corrections)
    before, after = (" x ".join(map(str, shape)) for shape in (latents.shape, spec.shape))
    context.say(f"latents of {before} enter the diffusion model as {after}")

    torch.manual_seed(derive(context.config.seed, "diffusion", "weights"))
    unet = make_unet(config, shape=spec.shape, conditions=spec.conditions.count)
    if pretrained is not None:
        sources = warm_start(
            context,
            latents=latents,
            clustering=clustering,
            spec=spec,
            pretrained=pretrained,
            corrections=corrections,
        )
        load_pretrained(unet, source=open_unet(pretrained), condition_sources=sources)

    task = make_task(context, latents=latents, clustering=clustering, spec=spec, unet=unet, corrections=corrections)
    trained = train(
        task,
        config=config.training,
        runtime=context.config.runtime,
        seed=context.config.seed,
        out=context.out,
        log=context.log,
    )
    if is_main_process():
        save_unet(trained.modules["unet"], context.out / "unet")
        spec.save(context.out)


def frozen_corrections(context: StageContext, *, clustering: Clustering) -> TrainedCorrections:
    """The corrections that the training uses, kept in its folder: a resumed training uses the same."""
    if is_main_process() and not (context.out / FILE).is_file():
        current = TrainedCorrections.of(context.corrections, clustering=clustering)
        last, clusters = (Artifact.read(folder) for folder in (context.run / "diffusion", context.inputs["clusters"]))
        same_clusters = last is not None and clusters is not None and last.inputs["clusters"] == clusters.fingerprint
        if same_clusters and current != TrainedCorrections.load(context.run / "diffusion"):
            context.say("the corrections of patches changed since the last training: it starts anew")
        if context.corrections:
            context.say(current.sentence())
            current.save(context.out)
    return distributed.shared(TrainedCorrections.load(context.out) if is_main_process() else NO_CORRECTIONS)


def make_spec(
    context: StageContext,
    *,
    latents: LatentSet,
    clustering: Clustering,
    space: LatentSpace,
    corrections: TrainedCorrections = NO_CORRECTIONS,
) -> GeneratorSpec:
    """The specification of the generator; frequencies are those of the training split."""
    labels_NS = sweep_labels(latents, clustering, corrections)[latents.rows(split="train")]
    frequencies = {}
    for i, k in enumerate(clustering.ks):
        label_N = labels_NS[:, i]
        counts = np.bincount(label_N[label_N >= 0], minlength=corrections.size(k))
        frequencies[k] = tuple((counts / len(label_N)).tolist())
    config = context.config
    return GeneratorSpec(
        diffusion=config.diffusion,
        sampler=config.samples.sampler,
        space=space,
        shape=space.shape(latents.shape),
        ks=tuple(clustering.ks),
        chosen_k=clustering.chosen,
        frequencies=frequencies,
        size=config.patches.size,
        mpp=config.patches.mpp,
        groups=corrections.names,
    )


def make_task(
    context: StageContext,
    *,
    latents: LatentSet,
    clustering: Clustering,
    spec: GeneratorSpec,
    unet: UNet2DModel,
    corrections: TrainedCorrections = NO_CORRECTIONS,
) -> Task:
    """The U-Net, its loss and its data: patches of the training split, or their eight copies, and their conditions.

    With ``diffusion.alignment`` also the projection of the U-Net's features, and what they are drawn towards.
    """
    config = context.config.diffusion
    rows = latents.rows(split="train")
    labels_NS = sweep_labels(latents, clustering, corrections)[rows]
    numbers_NS = torch.from_numpy(spec.conditions.numbers(labels_NS))
    maps_NSGG: Tensor | None = None
    if config.condition_maps:
        from histoloom.clustering.dense_labels import dense_labels  # it reads slides, which no other training does

        maps_NSGG = place_numbers(
            dense_labels(context, rows=rows, ks=spec.ks),
            labels_NS=labels_NS,
            corrected_NS=labels_NS != sweep_labels(latents, clustering)[rows],
            spec=spec,
        )
    versions = DIHEDRAL if context.config.latents.copies == DIHEDRAL else 1

    def read(indices: np.ndarray) -> Tensor:
        copies, items = np.divmod(indices, len(rows))
        return spec.space.encode(latents.raw_copies(rows[items], copies_n=copies))

    # On a GPU the latents lie there, where they fit, and batches are their numbers.
    device = accelerator(context.config.runtime).device
    held = hold(read, n=versions * len(rows), device=device)

    modules: dict[str, nn.Module] = {"unet": unet}
    network: nn.Module = unet
    targets = None
    if config.alignment:
        network = aligned = make_aligned_unet(context, unet=unet)
        modules["alignment"] = aligned.projection
        targets = target_maps(context, rows_N=rows, side=aligned.side)

    def batch(indices: np.ndarray) -> tuple[Tensor, ...]:
        copies, items = np.divmod(indices, len(rows))
        parts = [read(indices) if held is None else torch.from_numpy(indices), numbers_NS[items]]
        if maps_NSGG is not None:
            parts.append(dihedral(maps_NSGG[items].long(), torch.from_numpy(copies)))
        if targets is not None:
            parts.append(targets(items, copies_B=copies))
        return tuple(parts)

    denoising = DiffusionLoss(config, unet=network, conditions=spec.conditions)

    def loss(batch: tuple[Tensor, ...], step: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        z_BDhw, *others = batch
        return denoising((z_BDhw if held is None else held(z_BDhw), *others), step)

    rates = {} if config.condition_rate == 1 else {CONDITION_EMBEDDING: config.condition_rate}
    return Task(
        name="diffusion",
        modules=modules,
        objectives=(Objective("unet", tuple(modules), loss, config.training.phases, rates=rates),),
        n=len(rows),
        batch=batch,
        ema=("unet",) if config.training.averages else (),
        versions=versions,
        compiled=(network,),
        callback=sample_check(context, spec=spec),
        setting="diffusion.training",
    )


def place_numbers(
    places_NSGG: np.ndarray, *, labels_NS: np.ndarray, corrected_NS: np.ndarray, spec: GeneratorSpec
) -> Tensor:
    """Condition numbers of the places of patches, int32 (N, S, G, G), from their clusters.

    ``labels_NS``: those of the patches; at each k where one is ``corrected_NS`` all its places have it, because experts
    correct whole patches.
    """
    places_NSGG = np.where(corrected_NS[:, :, None, None], labels_NS[:, :, None, None], places_NSGG)
    numbers_NGGS = spec.conditions.numbers(np.moveaxis(places_NSGG, 1, 3))
    return torch.from_numpy(np.moveaxis(numbers_NGGS, 3, 1).astype(np.int32))


def sample_check(context: StageContext, *, spec: GeneratorSpec) -> Callback | None:
    """Draws a small set while the model trains, from the same noise every time, and has it checked for copies.

    None where the run asks for no such check.
    """
    check = context.image_check
    if check is None:
        return None
    autoencoder = Autoencoder.load(context.inputs["autoencoder"])
    seed = derive(context.config.seed, "diffusion", "watch")

    def draw_and_check(modules: Modules, _images: int) -> CheckResult:
        unet = modules["unet"]
        assert isinstance(unet, UNet2DModel), "the task's module keeps its type"
        generator = Generator(
            spec,
            unet=copy.deepcopy(unet),
            autoencoder=autoencoder,
            home=context.run,
            runtime=context.config.runtime,
        )
        samples = generator.sample(n=CHECKED_IMAGES, seed=seed)
        return check(np.stack([sample.image for sample in samples]))

    return Callback(draw_and_check, CHECKS)


def warm_start(
    context: StageContext,
    *,
    latents: LatentSet,
    clustering: Clustering,
    spec: GeneratorSpec,
    pretrained: Path,
    corrections: TrainedCorrections = NO_CORRECTIONS,
) -> Tensor:
    """The condition of the pretrained generator that each of this one's starts from, int64 (count,).

    Clusters, and names that no cluster has, start from those of its chosen k (``model/warm_start.py``), the null from
    the null. They are kept in ``inheritance.json``: to compute them again would cost a resumed training a minute.
    """
    source = GeneratorSpec.load(pretrained)
    file = context.out / "inheritance.json"
    device = accelerator(context.config.runtime).device
    if is_main_process() and not file.is_file():
        rng = numpy_generator(context.config.seed, "diffusion", "inheritance")
        rows = latents.rows(split="train")
        rows = np.sort(rng.choice(rows, size=min(COMPARED_PATCHES, len(rows)), replace=False))
        offset = source.conditions.offset(source.chosen_k)
        with autocast(context.config.runtime):
            errors_MG = denoising_errors(
                open_unet(pretrained).to(device).eval(),
                spec.space.encode(latents.raw(rows)),
                config=spec.diffusion,
                conditions=range(offset, offset + source.conditions.size(source.chosen_k)),
                generator=torch_generator(context.config.seed, "diffusion", "inheritance", "noise"),
                device=device,
            )
        labels_MS = sweep_labels(latents, clustering, corrections)[rows]
        closest = {
            str(k): closest_conditions(errors_MG, labels_M=labels_MS[:, i], k=spec.conditions.size(k)).tolist()
            for i, k in enumerate(spec.ks)
        }
        write_json(file, {"generator": {"k": source.chosen_k}, "closest": closest})

    record = distributed.shared(read_json(file) if is_main_process() else {})
    clusters = [cluster for k in spec.ks for cluster in record["closest"][str(k)]]
    numbers = [source.conditions.number(k=source.chosen_k, cluster=cluster) for cluster in clusters]
    return torch.tensor([*numbers, source.conditions.null])


def sweep_labels(
    latents: LatentSet, clustering: Clustering, corrections: TrainedCorrections = NO_CORRECTIONS
) -> np.ndarray:
    """Labels of the patches at every k of the sweep, as corrected, int64 (n, S), in the order of the latents."""
    labels = clustering.labels_of(latents.folder / "index.parquet")
    labels_NS = np.stack([labels[k] for k in clustering.ks], axis=1)
    if not corrections.numbers:
        return labels_NS
    return corrections.applied(labels_NS, patch_ids=latents.table["patch_id"].astype(str).tolist(), ks=clustering.ks)
