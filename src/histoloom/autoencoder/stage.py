"""The stage ``autoencoder``: patches in, a trained VQ-GAN out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from histoloom import paper
from histoloom.autoencoder.losses import VQGANLosses, perceptual_loss
from histoloom.autoencoder.quality import measure
from histoloom.autoencoder.vqgan import Autoencoder, Discriminator
from histoloom.config import AutoencoderConfig, Phase
from histoloom.processes import is_main_process
from histoloom.run.pretrained import start_folder
from histoloom.run.stage import StageContext
from histoloom.seeding import derive
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import accelerator
from histoloom.training.loop import Objective, Task, Trained, train


def run(context: StageContext) -> None:
    """Train on the training split, keep the weights, measure the reconstruction of held-out patches."""
    config = context.config.autoencoder
    patches = PatchSet.open(context.inputs["patches"])
    if config.pretrained is not None:
        keep_pretrained(context, patches=patches)
        return
    trained = fit(context, config=config, patches=patches, start=start_folder(context.run, context.config))
    if is_main_process():
        model = trained.modules["autoencoder"]
        assert isinstance(model, Autoencoder), "the task's module keeps its kind"
        model.save(context.out)
        measure(context, modules=trained.modules, patches=patches)


def fit(context: StageContext, *, config: AutoencoderConfig, patches: PatchSet, start: Path | None) -> Trained:
    """Train by ``config`` on the training split; ``start``: a generator whose weights it begins with."""
    rows = patches.rows(split="train")
    task = make_task(config, seed=context.config.seed, n=len(rows))
    autoencoder, discriminator = task.modules["autoencoder"], task.modules.get("discriminator")
    assert isinstance(autoencoder, Autoencoder), "made by make_task"
    if start is not None:
        anew = begin_with(autoencoder, Autoencoder.load(start / "autoencoder"))
        kept = "; encoder and codebook keep them" if config.trained == "decoder" else ""
        kept += "; the decoder's head begins anew" if anew else ""
        context.say(f"the autoencoder starts from the weights of the given generator{kept}")

    if config.perceptual == "pyramid":
        context.say("perceptual loss: pyramid (edges and textures over four scales), in place of LPIPS")
    perceptual = perceptual_loss(config)
    losses = VQGANLosses(
        config,
        autoencoder=autoencoder,
        discriminator=discriminator,
        perceptual=None if perceptual is None else perceptual.to(accelerator(context.config.runtime).device),
    )
    task = replace(
        task,
        objectives=make_objectives(losses, n=len(rows)),
        compiled=losses.compiled,
        batch=lambda places: torch.from_numpy(patches.images(rows[places])),
    )
    return train(
        task,
        config=config.training,
        runtime=context.config.runtime,
        seed=context.config.seed,
        out=context.out,
        log=context.log,
    )


def begin_with(autoencoder: Autoencoder, given: Autoencoder) -> bool:
    """Give ``autoencoder`` the weights of ``given``; whether the head begins anew, as one with other blocks does.

    The decoder's last convolution belongs to the head: it makes the channels that the head unfolds.
    """
    anew = autoencoder.config.head_blocks != given.config.head_blocks
    weights = given.state_dict()
    if anew:
        head = ("head.", "decoder.conv_out.")
        weights = {name: value for name, value in weights.items() if not name.startswith(head)}
        weights |= {name: value for name, value in autoencoder.state_dict().items() if name.startswith(head)}
    autoencoder.load_state_dict(weights)
    return anew


def keep_pretrained(context: StageContext, *, patches: PatchSet) -> None:
    """Keep the weights of a ready autoencoder as they are, and measure it on held-out patches."""
    config = context.config.autoencoder
    start = start_folder(context.run, context.config)
    model = Autoencoder.from_diffusers(config) if start is None else Autoencoder.load(start / "autoencoder")
    assert model.pretrained is not None, "the settings name a ready model"
    codes = f"{config.codes} codes" if config.codes else "no codebook"
    context.say(
        f"the autoencoder is a ready {model.pretrained.architecture} and is not trained: "
        f"f = {config.factor}, {config.code_dim} channels, {codes}"
    )
    if is_main_process():
        model.save(context.out)
        measure(context, modules={"autoencoder": model.to(accelerator(context.config.runtime).device)}, patches=patches)


def make_task(config: AutoencoderConfig, *, seed: int, n: int) -> Task:
    """Freshly initialised networks, as a task without objectives and data.

    Where the settings ask for averaged weights, they are the autoencoder's; its buffers, the codebook among them, stay
    the latest.
    """
    torch.manual_seed(derive(seed, "autoencoder", "weights"))
    autoencoder = Autoencoder(config)
    if config.trained == "decoder":
        for kept in (autoencoder.encoder, autoencoder.quantizer):
            if kept is not None:
                kept.requires_grad_(False)
    modules: dict[str, nn.Module] = {"autoencoder": autoencoder}
    if config.adversarial.weight > 0:
        adversarial = config.adversarial
        # The paper's discriminator has no further convolution between those that halve the image and the last one.
        modules["discriminator"] = (
            paper.Discriminator(adversarial.widths[: adversarial.layers])
            if config.architecture == "paper"
            else Discriminator(adversarial)
        )
    return Task(
        name="autoencoder",
        modules=modules,
        objectives=(),
        n=n,
        batch=lambda rows: rows,
        ema=("autoencoder",) if config.training.averages else (),
        setting="autoencoder.training",
        # The discriminator of the paper normalises batches.
        whole_batch=config.architecture == "paper" and config.adversarial.weight > 0,
    )


def make_objectives(losses: VQGANLosses, *, n: int) -> tuple[Objective, ...]:
    """What is minimised on ``n`` patches: the autoencoder's loss, and the discriminator's once it has joined."""
    config = losses.config
    objectives = [
        Objective(
            "autoencoder",
            ("autoencoder",),
            losses.autoencoder_loss,
            config.training.phases,
            prepare=losses.prepare,
        )
    ]
    if losses.discriminator is not None:
        total = config.training.images(n=n)
        start = math.ceil(config.adversarial.start * total)
        objectives.append(
            Objective(
                "discriminator",
                ("discriminator",),
                losses.discriminator_loss,
                (Phase(optimizer="adam", lr=config.adversarial.lr, images=max(1, total - start)),),
                starts_at=start,
                betas=config.adversarial.betas,
                lr_setting="autoencoder.adversarial.lr",
            )
        )
    return tuple(objectives)
