"""The stage ``autoencoder``: patches in, a trained VQ-GAN out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from histoloom.autoencoder.discriminator import Discriminator, told_apart
from histoloom.autoencoder.losses import VQGANLosses, perceptual_distance
from histoloom.autoencoder.quantizer import perplexity
from histoloom.autoencoder.vqgan import Autoencoder, to_float, to_uint8
from histoloom.config import AutoencoderConfig, Phase
from histoloom.run.directory import replacing, write_json
from histoloom.run.pretrained import start_folder
from histoloom.run.stage import StageContext
from histoloom.seeding import derive, numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import accelerator, autocast, is_main_process
from histoloom.training.loop import Objective, Task, train

QUALITY_PATCHES = 256
SHOWN_PATCHES = 16
CHUNK = 32
LOST = 0.6


def run(context: StageContext) -> None:
    """Train on the training split, keep the weights, measure the reconstruction of held-out patches."""
    patches = PatchSet.open(context.inputs["patches"])
    rows = patches.rows(split="train")
    task = make_task(context.config.autoencoder, seed=context.config.seed, n=len(rows))
    start = start_folder(context.run, context.config)
    if start is not None:
        task.modules["autoencoder"].load_state_dict(Autoencoder.load(start / "autoencoder").state_dict())
        context.say("the autoencoder begins with the weights of the given generator")
    device = accelerator(context.config.runtime).device
    losses = _losses(context, task=task, device=device)
    task = _with_data(task, losses=losses, patches=patches, rows=rows)
    trained = train(
        task,
        config=context.config.autoencoder.training,
        runtime=context.config.runtime,
        seed=context.config.seed,
        out=context.out,
        log=context.log,
    )
    model = trained.modules["autoencoder"]
    assert isinstance(model, Autoencoder), "the task's module keeps its kind"
    if is_main_process():
        model.save(context.out)
        _measure(context, modules=trained.modules, patches=patches)


def make_task(config: AutoencoderConfig, *, seed: int, n: int) -> Task:
    """Freshly initialised networks, as a task without data."""
    torch.manual_seed(derive(seed, "autoencoder", "weights"))
    autoencoder = Autoencoder(config)
    modules: dict[str, nn.Module] = {"autoencoder": autoencoder}
    if config.adversarial.weight > 0:
        modules["discriminator"] = Discriminator(config.adversarial.channels, layers=config.adversarial.layers)
    return Task(
        name="autoencoder",
        modules=modules,
        objectives=(),
        n=n,
        batch=lambda rows: rows,
        compiled=(autoencoder.encoder,),  # the adaptive weight differentiates the decoder's last layer by itself
    )


def _losses(context: StageContext, *, task: Task, device: torch.device) -> VQGANLosses:
    config = context.config.autoencoder
    if config.perceptual == "pyramid":
        context.say("perceptual loss: pyramid (edges and textures over four scales), in place of LPIPS")
    perceptual = perceptual_distance(config)
    autoencoder, discriminator = task.modules["autoencoder"], task.modules.get("discriminator")
    assert isinstance(autoencoder, Autoencoder), "made by make_task"
    assert discriminator is None or isinstance(discriminator, Discriminator), "made by make_task"
    return VQGANLosses(
        config,
        autoencoder=autoencoder,
        discriminator=discriminator,
        perceptual=None if perceptual is None else perceptual.to(device),
    )


def make_players(losses: VQGANLosses, *, n: int) -> tuple[Objective, ...]:
    """Who trains on ``n`` patches: the autoencoder, and the discriminator from where it joins."""
    config = losses.config
    learner = Objective(
        "autoencoder", ("autoencoder",), losses.autoencoder_loss, config.training.phases, survey=losses.survey
    )
    if losses.discriminator is None:
        return (learner,)
    total = config.training.images(n=n)
    start = math.ceil(config.adversarial.start * total)
    phases = (Phase(optimizer="adam", lr=config.adversarial.lr, images=max(1, total - start)),)
    judge = Objective(
        "discriminator",
        ("discriminator",),
        losses.discriminator_loss,
        phases,
        starts_at=start,
        betas=config.adversarial.betas,
    )
    return learner, judge


def averaged(config: AutoencoderConfig) -> tuple[str, ...]:
    """The modules whose averaged weights are kept; their buffers, the codebook among them, are the latest."""
    return ("autoencoder",) if config.training.averages else ()


def _with_data(task: Task, *, losses: VQGANLosses, patches: PatchSet, rows: np.ndarray) -> Task:
    return replace(
        task,
        objectives=make_players(losses, n=len(rows)),
        batch=lambda places: torch.from_numpy(patches.images(rows[places])),
        ema=averaged(losses.config),
    )


def _measure(context: StageContext, *, modules: Mapping[str, nn.Module], patches: PatchSet) -> None:
    """``quality.json`` and ``reconstructions.npz``."""
    model, discriminator = modules["autoencoder"], modules.get("discriminator")
    assert isinstance(model, Autoencoder), "the task's module keeps its kind"
    held_out = patches.rows(split="holdout")
    split = "holdout" if len(held_out) else "train"
    rows = held_out if len(held_out) else patches.rows(split="train")
    generator = numpy_generator(context.config.seed, "autoencoder", "quality")
    chosen = np.sort(generator.permutation(rows)[:QUALITY_PATCHES])
    originals = patches.images(chosen)
    reconstructions, counts = reconstruct(model, originals, context=context)
    mse_n = np.square(originals.astype(np.float64) - reconstructions).mean(axis=(1, 2, 3))
    quality = {
        "psnr": float(np.mean(10 * np.log10(255.0**2 / np.maximum(mse_n, 1e-10)))),
        "perplexity": float(perplexity(counts)),
        "codes": len(counts),
        "codes_used": int((counts > 0).sum()),
        "n": len(chosen),
        "split": split,
    }
    if isinstance(discriminator, Discriminator):
        quality["told_apart"] = _share_told_apart(discriminator, originals, reconstructions, context=context)
    write_json(context.out / "quality.json", quality)
    context.say(
        f"reconstruction of {split} patches: PSNR {quality['psnr']:.1f} dB, "
        f"perplexity {quality['perplexity']:.0f} of {quality['codes']} codes"
    )
    shown = generator.permutation(len(chosen))[:SHOWN_PATCHES]
    with replacing(context.out / "reconstructions.npz") as temporary, temporary.open("wb") as file:
        ids = patches.columns("patch_id")["patch_id"].iloc[chosen[shown]].to_numpy(dtype=str)
        np.savez_compressed(
            file, patch_id=ids, original=originals[shown], reconstruction=reconstructions[shown], allow_pickle=False
        )


def _share_told_apart(
    discriminator: Discriminator, originals: np.ndarray, reconstructions: np.ndarray, *, context: StageContext
) -> float:
    """Of pairs of uint8 images (N, H, W, 3); says so where the discriminator has lost."""
    device = accelerator(context.config.runtime).device
    told = []
    for start in range(0, len(originals), CHUNK):
        pair = (torch.from_numpy(images[start : start + CHUNK]) for images in (originals, reconstructions))
        real_NCHW, fake_NCHW = (to_float(images.to(device)) for images in pair)
        with autocast(context.config.runtime):
            told.append(told_apart(discriminator, real_NCHW, fake_NCHW))
    share = float(torch.cat(told).float().mean())
    if share < LOST:
        context.say(
            f"the discriminator tells images from reconstructions in {share:.0%} of pairs: it has lost, and sharpens "
            "nothing; raise autoencoder.adversarial.lr, or leave it out: autoencoder.adversarial.weight=0"
        )
    return share


@torch.no_grad()
def reconstruct(model: Autoencoder, images: np.ndarray, *, context: StageContext) -> tuple[np.ndarray, torch.Tensor]:
    """Reconstructions (uint8, as ``images``) and how often each code was used."""
    runtime = context.config.runtime
    device = accelerator(runtime).device
    counts_K = torch.zeros(model.config.codes)
    parts = []
    for start in range(0, len(images), CHUNK):
        x_NCHW = to_float(torch.from_numpy(images[start : start + CHUNK]).to(device))
        with autocast(runtime):
            quantized = model.quantize(model.encode(x_NCHW))
            parts.append(to_uint8(model.decode_codes(quantized.z_NCHW)).cpu().numpy())
        counts_K += torch.bincount(quantized.indices_NHW.flatten().cpu(), minlength=len(counts_K))
    return np.concatenate(parts), counts_K
