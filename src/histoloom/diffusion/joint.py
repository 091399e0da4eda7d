"""Clusterer and diffusion model trained together, one pair of networks for each k (Rumman et al. 2025).

The condition of a patch is the cluster that the clusterer gives it at that step, so the clusters move while the
diffusion model learns them. Both see the latents that the autoencoder gives, the clusterer without scaling.

The stage ``clusters`` trains the pairs, predicts all patches and decides on k as it does for other clusterers. The
stage ``diffusion`` then makes a generator of the trained U-Nets.

Shapes: B patches of a batch, C x h x w latents, H x W px, k clusters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering import stage as clusters_stage
from histoloom.clustering.clusterer import Architecture, Clusterer, SweepClusterer, build_for
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.bank import Bank
from histoloom.clustering.infomax import conditional_entropy, kl_divergence, marginal_entropy
from histoloom.config import Config, JointConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import CONDITION_EMBEDDING, SweepUNet, make_unet, open_unet, save_unet
from histoloom.diffusion.stage import CHECKED_IMAGES, make_spec
from histoloom.processes import is_main_process
from histoloom.run.directory import write_bytes
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import derive
from histoloom.slides.patch_set import PatchSet
from histoloom.training import distributed
from histoloom.training.devices import accelerator
from histoloom.training.loop import Objective, StepContext, Task, train
from histoloom.training.optimizers import phase_at

CHUNK = 256
WEIGHTS = "clusterer.safetensors"

Affine = Callable[[Tensor, StepContext], Tensor]


class JointLoss:
    """The loss of one phase: that of the diffusion model, and those of the clusterer where it learns.

    Batches are latents (B, C, h, w) and their patches, uint8 (B, H, W, 3).
    """

    def __init__(
        self,
        config: Config,
        *,
        k: int,
        n: int,
        unet: nn.Module,
        clusterer: nn.Module,
        space: LatentSpace,
        view: Affine,
        encode: Callable[[Tensor], Tensor],
    ) -> None:
        """``n``: patches of an epoch; ``view``: another view of images -1..1; ``encode``: images to latents."""
        assert config.clusters.joint is not None, "the run trains both together"
        self.joint: JointConfig = config.clusters.joint
        self.phases = config.diffusion.training.phases
        self.n = n
        self.clusterer = clusterer
        self.space = space
        self.view = view
        self.encode = encode
        self.denoising = DiffusionLoss(config.diffusion, unet=unet, conditions=Conditions((k,)))

    def __call__(self, batch: tuple[Tensor, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error - a H(mean p) + b mean H(p) + c KL(p, p of the view), in the phase's weights."""
        z_BChw, images_BHW3 = batch
        phase, _, _ = phase_at(self.phases, images=context.images, n=self.n)
        weight = self.joint.consistency_weights[phase]

        # The most probable cluster is the condition; no gradient passes through it. The clusterer is in training mode
        # in every phase: its batch normalisations use the batch.
        with torch.set_grad_enabled(weight is not None):
            p_Bk = self.clusterer(z_BChw).float().softmax(1)
        clusters_B1 = p_Bk.detach().argmax(1, keepdim=True)
        loss, metrics = self.denoising((self.space.encode(z_BChw), clusters_B1), context)
        if weight is None:
            return loss, metrics

        # Entropies and divergence are those of the whole batch.
        with torch.no_grad():
            view_BChw = self.encode(self.view(to_float(images_BHW3), context))
        q_Bk = distributed.gathered(self.clusterer(view_BChw).float().softmax(1))
        p_Bk = distributed.gathered(p_Bk)
        metrics |= {
            "marginal_entropy": marginal_entropy(p_Bk),
            "conditional_entropy": conditional_entropy(p_Bk),
            "consistency": kl_divergence(p_Bk, q_Bk),
        }
        loss = loss - self.joint.marginal_weight * metrics["marginal_entropy"]
        loss = loss + self.joint.conditional_weight * metrics["conditional_entropy"]
        return loss + weight * metrics["consistency"], metrics


def affine_view(x_B3HW: Tensor, context: StepContext, *, config: JointConfig, fill_3: Tensor) -> Tensor:
    """Images rotated, shifted and scaled at random, by at most what ``config`` says; ``fill_3`` is what comes in."""
    B = len(x_B3HW)
    draws_B4 = 2 * context.rand((B, 4)) - 1
    angle_B = torch.deg2rad(config.rotation * draws_B4[:, 0])
    size_B = 1 + config.scaling * draws_B4[:, 1]
    shift_B2 = 2 * config.translation * draws_B4[:, 2:]  # grid_sample's images have a side of 2

    # From places in the view to places in the image.
    cosine_B, sine_B = angle_B.cos() / size_B, angle_B.sin() / size_B
    rotation_B22 = torch.stack([torch.stack([cosine_B, sine_B], 1), torch.stack([-sine_B, cosine_B], 1)], 1)
    affine_B23 = torch.cat([rotation_B22, -rotation_B22 @ shift_B2[:, :, None]], dim=2)
    grid_BHW2 = F.affine_grid(affine_B23, list(x_B3HW.shape), align_corners=False)

    # Zeros come in at the borders: of images less the fill.
    fill_311 = fill_3[:, None, None]
    return F.grid_sample(x_B3HW - fill_311, grid_BHW2, padding_mode="zeros", align_corners=False) + fill_311


def run_clusters(context: StageContext) -> None:
    """The stage ``clusters``: train a pair of networks for each k; predict every patch, decide on k."""
    clusters_stage.run(context, train_restart=train_pairs)


def train_pairs(
    context: StageContext,
    *,
    bank: Bank,
    rows: np.ndarray,
    slides_N: np.ndarray | None,  # noqa: ARG001 - other clusterers can be made independent of slides
    restart: int,
) -> Clusterer:
    """Train the pairs; leaves ``unet-kK`` in the stage's folder, and returns the clusterers."""
    config, seed = context.config, context.config.seed
    joint = config.clusters.joint
    assert joint is not None, "the run trains both together"
    patches = PatchSet.open(context.inputs["patches"])
    latents = LatentSet.open(context.inputs["latents"])
    device = accelerator(config.runtime).device
    autoencoder = Autoencoder.load(context.inputs["autoencoder"]).to(device)
    space = fit_space(config, latents=latents)
    fill_3 = mean_colour(patches, rows=rows).to(device)
    architecture = Architecture(bank.shape[0], config.clusters.channels, config.clusters.k, side=bank.shape[-1])

    clusterers: dict[int, nn.Module] = {}
    out = distributed.shared_path(context.out)
    for k in config.clusters.k:
        part = out / f"restart-{restart}" / f"k{k}"
        torch.manual_seed(derive(seed, "joint", "weights", k))
        clusterers[k] = build_for(k, architecture)
        if distributed.shared((part / WEIGHTS).is_file()):
            clusterers[k].load_state_dict(load_file(part / WEIGHTS))
            continue
        unet = make_unet(config.diffusion, shape=space.shape(latents.shape), conditions=k)
        loss = JointLoss(
            config,
            k=k,
            n=len(rows),
            unet=unet,
            clusterer=clusterers[k],
            space=space,
            view=lambda x_B3HW, step: affine_view(x_B3HW, step, config=joint, fill_3=fill_3),
            encode=autoencoder.latents,
        )
        training = config.diffusion.training
        rate = config.diffusion.condition_rate
        task = Task(
            name=f"joint-k{k}",
            modules={"unet": unet, "clusterer": clusterers[k]},
            objectives=(
                Objective(
                    "pair",
                    ("unet", "clusterer"),
                    loss,
                    training.phases,
                    rates={} if rate == 1 else {CONDITION_EMBEDDING: rate},
                ),
            ),
            n=len(rows),
            batch=lambda places: (bank.own(rows[places]), torch.from_numpy(patches.images(rows[places]))),
            ema=("unet",) if training.averages else (),
            whole_batch=True,
            compiled=(unet,),
            setting="diffusion.training",
        )
        if is_main_process():
            part.mkdir(parents=True, exist_ok=True)
        trained = train(
            task, config=training, runtime=config.runtime, seed=seed, out=part, log=EventLog(part / "log.jsonl")
        )
        if is_main_process():
            save_unet(trained.modules["unet"], out / f"unet-k{k}")
            weights = {
                name: value.cpu().contiguous() for name, value in trained.modules["clusterer"].state_dict().items()
            }
            write_bytes(part / WEIGHTS, save(weights))

    # One log of all trainings, one after the other.
    if is_main_process():
        log = EventLog(out / f"restart-{restart}" / "log.jsonl")
        log.keep(0)
        for k in config.clusters.k:
            for event in EventLog(log.path.parent / f"k{k}" / "log.jsonl").read():
                log.write(event)
    return Clusterer(architecture, network=SweepClusterer(clusterers)).to(device).eval()


def fit_space(config: Config, *, latents: LatentSet) -> LatentSpace:
    """The space of the diffusion model: scaled latents, or the latents as they are."""
    if config.diffusion.scaling == "none":
        return LatentSpace.unscaled(latents.shape[0])
    return LatentSpace.fit(latents.latents, rows=latents.rows(split="train"), whiten=config.diffusion.whiten)


def mean_colour(patches: PatchSet, *, rows: np.ndarray) -> Tensor:
    """Mean of each colour over patches, -1..1, float32 (3,)."""
    total_3 = np.zeros(3)
    for start in range(0, len(rows), CHUNK):
        total_3 += patches.images(rows[start : start + CHUNK]).mean(axis=(1, 2), dtype=np.float64).sum(axis=0)
    return torch.from_numpy(total_3 / len(rows) / 127.5 - 1).float()


def run_diffusion(context: StageContext) -> None:
    """The stage ``diffusion``: a generator of the U-Nets that were trained with the clusters."""
    latents = LatentSet.open(context.inputs["latents"])
    clustering = Clustering.open(context.inputs["clusters"])
    space = fit_space(context.config, latents=latents)
    spec = make_spec(context, latents=latents, clustering=clustering, space=space)
    if not is_main_process():
        return

    # Clusters are numbered by falling size; the U-Nets know them by the clusterer's outputs.
    clusterer = Clusterer.load(context.inputs["clusters"])
    networks = open_unet(context.inputs["clusters"])
    assert isinstance(networks, SweepUNet), "one network for each k"
    for k in spec.ks:
        unet = networks.of(k)
        embedding = unet.get_parameter(CONDITION_EMBEDDING)
        with torch.no_grad():
            embedding.copy_(embedding[clusterer.order(k)])
        save_unet(unet, context.out / f"unet-k{k}")
    spec.save(context.out)
    context.say(f"a generator of {len(spec.ks)} U-Nets, one for each k, trained with the clusters")

    if context.image_check is not None:
        autoencoder = Autoencoder.load(context.inputs["autoencoder"])
        runtime = context.config.runtime
        generator = Generator(
            spec, unet=open_unet(context.out), autoencoder=autoencoder, home=context.run, runtime=runtime
        )
        samples = generator.sample(n=CHECKED_IMAGES, seed=derive(context.config.seed, "diffusion", "watch"))
        context.say(context.image_check(np.stack([sample.image for sample in samples])).message)
