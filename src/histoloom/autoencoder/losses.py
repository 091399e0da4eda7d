"""The VQ-GAN's two sides: what the autoencoder and what the discriminator minimise (Esser et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.discriminator import (
    Discriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    last_layer_gradients,
    weight_of_gradients,
)
from histoloom.autoencoder.equivariance import Change
from histoloom.autoencoder.lpips import LPIPS
from histoloom.autoencoder.perceptual import PyramidLoss
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.config import AutoencoderConfig
from histoloom.training.loop import StepContext

SURVEYED = "surveyed"


def perceptual_distance(config: AutoencoderConfig) -> nn.Module | None:
    """The perceptual term that ``config`` names, frozen; None where it asks for none.

    Raises ``UserError`` where LPIPS is asked for and its weights cannot be had.
    """
    if config.perceptual == "none":
        return None
    if config.perceptual == "lpips":
        return LPIPS.load(config.perceptual_trunk)
    assert config.perceptual == "pyramid", "init settles perceptual: auto"
    return PyramidLoss()


class VQGANLosses:
    """Batches are uint8 patches (B, H, W, 3)."""

    def __init__(
        self,
        config: AutoencoderConfig,
        *,
        autoencoder: Autoencoder,
        discriminator: Discriminator | None,
        perceptual: nn.Module | None,
    ) -> None:
        self.config = config
        self.autoencoder = autoencoder
        self.discriminator = discriminator
        self.perceptual = perceptual

    def autoencoder_loss(self, images_BHWC: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction, perceptual, commitment and, once it has joined, adversarial terms."""
        x_BCHW, z_BCHW = self._views(images_BHWC, context=context)
        if not context.scratch.get(SURVEYED):
            self.autoencoder.quantizer.learn(z_BCHW, generator=context.generator)
        quantized = self.autoencoder.quantize(z_BCHW)
        y_BCHW = self.autoencoder.decode_codes(quantized.z_NCHW).float()
        context.scratch |= {"real": x_BCHW, "fake": y_BCHW.detach()}
        loss, metrics = self._reconstruction(y_BCHW, x_BCHW)
        weight = self._adversarial_weight(context.progress)
        if self.discriminator is not None and weight > 0:
            metrics["adversarial"] = generator_loss(self.discriminator(y_BCHW))
            surveyed = context.scratch.get("adaptive")
            metrics["adaptive"] = self._adaptive(loss, metrics["adversarial"]) if surveyed is None else surveyed
            loss = loss + weight * metrics["adaptive"] * metrics["adversarial"]
        metrics |= {"commitment": quantized.commitment, "perplexity": self.autoencoder.quantizer.perplexity()}
        return loss + self.config.commitment * quantized.commitment, metrics

    def survey(self, batches: Sequence[Tensor], contexts: Sequence[StepContext]) -> None:
        """What the loss takes from the whole batch, from micro-batches (B, H, W, 3): codebook and adaptive weight.

        The codebook moves before any micro-batch is quantised, as it does when the batch comes in one piece.
        """
        pairs = zip(batches, contexts, strict=True)
        with _only_last_layer(self.autoencoder):
            views = [self._views(images_BHWC, context=context) for images_BHWC, context in pairs]
            self.autoencoder.quantizer.learn(torch.cat([z for _, z in views]), generator=contexts[-1].generator)
            joined = self.discriminator is not None and self._adversarial_weight(contexts[0].progress) > 0
            gradients = [self._gradients(z, x_BCHW=x) for x, z in views] if joined else []
        for context in contexts:
            context.scratch[SURVEYED] = True
            if gradients:
                mean_2 = torch.stack(gradients).mean(0)
                context.scratch["adaptive"] = weight_of_gradients(mean_2, bound=self.config.adversarial.max_adaptive)

    def _gradients(self, z_BCHW: Tensor, *, x_BCHW: Tensor) -> Tensor:
        assert self.discriminator is not None, "only it has an adversarial side"
        y_BCHW = self.autoencoder.decode_codes(self.autoencoder.quantize(z_BCHW).z_NCHW).float()
        loss, _ = self._reconstruction(y_BCHW, x_BCHW)
        adversarial = generator_loss(self.discriminator(y_BCHW))
        return last_layer_gradients(loss, adversarial, last_layer=self.autoencoder.last_layer)

    def _adaptive(self, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
        bound, last_layer = self.config.adversarial.max_adaptive, self.autoencoder.last_layer
        return adaptive_weight(reconstruction, adversarial, last_layer=last_layer, bound=bound)

    def _reconstruction(self, y_BCHW: Tensor, x_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        metrics = {"mse": F.mse_loss(y_BCHW, x_BCHW), "l1": F.l1_loss(y_BCHW, x_BCHW)}
        loss = self.config.mse_weight * metrics["mse"] + self.config.l1_weight * metrics["l1"]
        if self.perceptual is not None:
            metrics["perceptual"] = self.perceptual(y_BCHW, x_BCHW).mean()
            loss = loss + self.config.perceptual_weight * metrics["perceptual"]
        return loss, metrics

    def discriminator_loss(self, _images_BHWC: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Hinge loss on the micro-batch that the autoencoder just reconstructed."""
        assert self.discriminator is not None, "only a discriminator has this loss"
        real, fake = self.discriminator(context.scratch["real"]), self.discriminator(context.scratch["fake"])
        metrics = {"real": real.mean(), "fake": fake.mean()}
        return discriminator_loss(real.float(), fake.float()), metrics

    def _views(self, images_BHWC: Tensor, *, context: StepContext) -> tuple[Tensor, Tensor]:
        """The images that the decoder has to make, and the latents that it gets."""
        x_BCHW = self._augmented(to_float(images_BHWC), context=context)
        z_BCHW = self.autoencoder.encode(x_BCHW)
        if not self.config.equivariance:
            return x_BCHW, z_BCHW
        change = Change.drawn(context, n=len(x_BCHW), probability=self.config.equivariance)
        if change is None:
            return x_BCHW, z_BCHW
        z_BCHW = self.autoencoder.allowed(change.of_latents(z_BCHW))
        return change.of_images(x_BCHW, factor=self.config.factor), z_BCHW

    def _augmented(self, x_BCHW: Tensor, *, context: StepContext) -> Tensor:
        if not self.config.augment:
            return x_BCHW
        return dihedral(x_BCHW, context.randint(DIHEDRAL, (len(x_BCHW),)))

    def _adversarial_weight(self, progress: float) -> float:
        """0 until the discriminator joins, then rising to its full weight."""
        adversarial = self.config.adversarial
        ramp = (progress - adversarial.start) / adversarial.warmup
        return adversarial.weight * min(1.0, max(0.0, ramp))


@contextmanager
def _only_last_layer(autoencoder: Autoencoder) -> Iterator[None]:
    """Gradients of the last layer alone, so that nothing before it is kept in memory."""
    others = [p for p in autoencoder.parameters() if p.requires_grad and p is not autoencoder.last_layer]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
