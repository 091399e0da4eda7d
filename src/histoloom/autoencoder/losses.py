"""What the VQ-GAN's two networks minimise (Esser et al. 2021), and the perceptual loss that needs no weights.

Shapes: B patches of a micro-batch, N images, C channels, H x W px, h x w latent positions. Images are in -1..1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.lpips import LPIPS
from histoloom.autoencoder.quantizer import positions
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.config import AutoencoderConfig
from histoloom.training import distributed
from histoloom.training.loop import StepContext

CODEBOOK_UPDATED = "codebook_updated"
"""key of a context's scratch: the codebook has already been updated with the whole batch"""


class VQGANLosses:
    """The losses of autoencoder and discriminator. Batches are uint8 patches (B, H, W, 3)."""

    def __init__(
        self,
        config: AutoencoderConfig,
        *,
        autoencoder: Autoencoder,
        discriminator: nn.Module | None,
        perceptual: nn.Module | None,
    ) -> None:
        self.config = config
        self.autoencoder = autoencoder
        self.discriminator = discriminator
        self.perceptual = perceptual

    @property
    def compiled(self) -> tuple[nn.Module, ...]:
        """The networks, and parts of them, that may be compiled while they train.

        The adaptive weight differentiates the last layer by itself, which in a compiled part would cost as much as to
        differentiate all of that part.
        """
        networks = (self.discriminator, self.perceptual)
        return (
            self.autoencoder.encoder,
            *self.autoencoder.before_last_layer,
            *(network for network in networks if network is not None),
        )

    def autoencoder_loss(self, images_BHWC: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction, perceptual, commitment and, once the discriminator has joined, adversarial terms.

        Esser et al. 2021, equations 4 and 6; the codebook's own term is replaced by moving averages (``Quantizer``).
        Without a codebook, the divergence of the latents from a standard normal distribution in the commitment's place
        (Rombach et al. 2022).
        """
        x_BCHW, z_BChw, logvar_BChw = self._encode(images_BHWC, context=context)
        q_BChw, penalty, regularisers = self._regularised(z_BChw, logvar_BChw, context=context)
        y_BCHW = self._decode(q_BChw)
        loss, metrics = self._reconstruction(y_BCHW, x_BCHW, context=context)
        weight: float | Tensor = self._adversarial_weight(context.progress)
        judged_BCHW = self._shifted(y_BCHW, context=context)
        context.scratch |= {"real": self._shifted(x_BCHW, context=context), "fake": judged_BCHW.detach()}
        if self.discriminator is not None and weight > 0:
            metrics["adversarial"] = self._generator_loss(self.discriminator(judged_BCHW))
            max_weight = self.config.adversarial.max_adaptive
            if max_weight is not None:
                adaptive = context.scratch.get("adaptive")
                if adaptive is None:
                    gradients_2 = last_layer_gradients(
                        loss, metrics["adversarial"], last_layer=self.autoencoder.last_layer
                    )
                    adaptive = adaptive_weight(gradients_2, max_weight=max_weight)
                metrics["adaptive"] = adaptive
                weight = weight * adaptive
            loss = loss + weight * metrics["adversarial"]

        return loss + penalty, metrics | regularisers

    def prepare(self, batches: Sequence[Tensor], contexts: Sequence[StepContext]) -> None:
        """Compute what depends on the whole batch of a step from all its micro-batches (B, H, W, 3).

        The codebook is updated before any micro-batch is quantised, as it is for a batch in one piece. The adaptive
        weight is that of the mean gradients.
        """
        with _only_last_layer(self.autoencoder):
            pairs = zip(batches, contexts, strict=True)
            encoded = [self._encode(images_BHWC, context=context) for images_BHWC, context in pairs]
            if (quantizer := self.autoencoder.quantizer) is not None and self.config.trained == "all":
                quantizer.update(torch.cat([z for _, z, _ in encoded]), generator=contexts[-1].stream())
            gradients = []
            max_weight = self.config.adversarial.max_adaptive
            joined = self._adversarial_weight(contexts[0].progress) > 0
            if self.discriminator is not None and joined and max_weight is not None:
                for (x_BCHW, z_BChw, _), context in zip(encoded, contexts, strict=True):
                    if self.config.trained == "decoder":
                        q_BChw = self._kept_latents(z_BChw, context=context)
                    else:
                        q_BChw = z_BChw if quantizer is None else self.autoencoder.quantize(z_BChw).z_NCHW
                    y_BCHW = self._decode(q_BChw)
                    loss, _ = self._reconstruction(y_BCHW, x_BCHW, context=context)
                    adversarial = self._generator_loss(self.discriminator(self._shifted(y_BCHW, context=context)))
                    last_layer = self.autoencoder.last_layer
                    gradients.append(last_layer_gradients(loss, adversarial, last_layer=last_layer))

        for context in contexts:
            context.scratch[CODEBOOK_UPDATED] = True
            if gradients and max_weight is not None:
                context.scratch["adaptive"] = adaptive_weight(torch.stack(gradients).mean(0), max_weight=max_weight)

    def discriminator_loss(self, _images_BHWC: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Hinge or least-squares loss on the micro-batch that the autoencoder just reconstructed."""
        assert self.discriminator is not None, "only a discriminator has this loss"
        real, fake = self.discriminator(context.scratch["real"]), self.discriminator(context.scratch["fake"])
        adversarial = self.config.adversarial
        if adversarial.loss == "hinge":
            loss = hinge_loss(real.float(), fake.float())
        else:
            loss = adversarial.weight * least_squares_loss(real.float(), fake.float())
        return loss, {"real": real.mean(), "fake": fake.mean()}

    def _generator_loss(self, fake: Tensor) -> Tensor:
        return generator_loss(fake) if self.config.adversarial.loss == "hinge" else (fake.float() - 1).pow(2).mean()

    def _encode(self, images_BHWC: Tensor, *, context: StepContext) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images (B, 3, H, W), randomly rotated and flipped where the settings ask for it, and ``moments`` of them."""
        x_BCHW = to_float(images_BHWC)
        if self.config.augment:
            x_BCHW = dihedral(x_BCHW, context.randint(DIHEDRAL, (len(x_BCHW),)))
        return self.autoencoder.to_pixel_range(x_BCHW), *self.autoencoder.moments(x_BCHW)

    def _regularised(
        self, z_BChw: Tensor, logvar_BChw: Tensor | None, *, context: StepContext
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What is decoded, the term that regularises the latents, and its parts for the log.

        The codebook is updated first, once for a whole batch. A decoder that is trained alone has no such term.
        Latents without a codebook get noise of a level drawn for each image, the same in every direction, so that the
        encoder learns to keep what noise destroys last, and the decoder to see through errors of a diffusion model
        (Yang et al. 2025, latent denoising tokenizer).
        """
        quantizer = self.autoencoder.quantizer
        if self.config.trained == "decoder":
            return self._kept_latents(z_BChw, context=context), z_BChw.new_zeros(()), {}
        if quantizer is None:
            assert logvar_BChw is not None, "latents without codes have variances"
            values = 3 * (z_BChw.shape[-1] * self.config.factor) ** 2  # of an image
            kl = kl_divergence(z_BChw.float(), logvar_BChw.float()) / values
            q_BChw = z_BChw + (0.5 * logvar_BChw).exp() * context.randn(tuple(z_BChw.shape))
            if self.config.latent_noise > 0:
                level_B = self.config.latent_noise * context.rand((len(z_BChw),)) * z_BChw.detach().std()
                q_BChw = q_BChw + level_B[:, None, None, None] * context.randn(tuple(z_BChw.shape))
            return q_BChw, self.config.kl_weight * kl, {"kl": kl}

        if not context.scratch.get(CODEBOOK_UPDATED):
            quantizer.update(z_BChw, generator=context.stream())
        quantized = self.autoencoder.quantize(z_BChw)
        penalty = self.config.commitment * quantized.commitment
        penalty = penalty if quantized.codebook is None else penalty + quantized.codebook
        return quantized.z_NCHW, penalty, {"commitment": quantized.commitment, "perplexity": quantizer.perplexity()}

    def _kept_latents(self, z_BChw: Tensor, *, context: StepContext) -> Tensor:
        """What a decoder that is trained alone decodes: latents as samples are decoded, with noise as configured.

        The noise of a position is the difference of two random positions of the batch, over sqrt(2): it has the
        covariance of the latents, so that it stays in the directions in which the diffusion model draws.
        """
        noise = self.config.latent_noise
        if noise > 0:
            B, _, h, w = z_BChw.shape
            z_MC = positions(z_BChw)
            rows_B2hw = context.randint(len(z_MC), (B, 2, h, w))
            noise_BhwC = (z_MC[rows_B2hw[:, 0]] - z_MC[rows_B2hw[:, 1]]) / math.sqrt(2)
            z_BChw = z_BChw + noise * noise_BhwC.movedim(-1, 1)
        return self.autoencoder.decoded_latents(z_BChw)

    def _decode(self, q_BChw: Tensor) -> Tensor:
        return self.autoencoder.to_pixel_range(self.autoencoder.decode_codes(q_BChw).float())

    def _shifted(self, x_BCHW: Tensor, *, context: StepContext) -> Tensor:
        """Images as networks with strides judge them in this step (``loss_shift``): mirrored margins, whole within.

        How much of the margins lies above and to the left runs through all numbers below the setting, one a step, so
        that it needs no random number. Every pixel of the images is judged in every step, those at the edges too.
        """
        shift = self.config.loss_shift
        if shift == 0:
            return x_BCHW
        top, left = context.step % shift, context.step // shift % shift
        return F.pad(x_BCHW, (left, shift - left, top, shift - top), mode="reflect")

    def _reconstruction(
        self, y_BCHW: Tensor, x_BCHW: Tensor, *, context: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        metrics = {"mse": F.mse_loss(y_BCHW, x_BCHW), "l1": F.l1_loss(y_BCHW, x_BCHW)}
        loss = self.config.mse_weight * metrics["mse"] + self.config.l1_weight * metrics["l1"]
        if self.perceptual is not None:
            judged = [self._shifted(images_BCHW, context=context) for images_BCHW in (y_BCHW, x_BCHW)]
            metrics["perceptual"] = self.perceptual(*judged).mean()
            loss = loss + self.config.perceptual_weight * metrics["perceptual"]
        return loss, metrics

    def _adversarial_weight(self, progress: float) -> float:
        """0 until the discriminator joins, then rising to its full weight."""
        adversarial = self.config.adversarial
        if adversarial.warmup == 0:
            return adversarial.weight * float(progress >= adversarial.start)
        ramp = (progress - adversarial.start) / adversarial.warmup
        return adversarial.weight * min(1.0, max(0.0, ramp))


@contextmanager
def _only_last_layer(autoencoder: Autoencoder) -> Iterator[None]:
    """Compute gradients of the last layer alone, so that nothing before it is kept in memory."""
    others = [p for p in autoencoder.parameters() if p.requires_grad and p is not autoencoder.last_layer]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def kl_divergence(mean_NChw: Tensor, logvar_NChw: Tensor) -> Tensor:
    """Kullback-Leibler divergence of latents from a standard normal distribution, nats an image, averaged over images.

    Kingma and Welling 2014, appendix B.
    """
    return 0.5 * (mean_NChw.square() + logvar_NChw.exp() - 1 - logvar_NChw).flatten(1).sum(dim=1).mean()


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator on its scores of real and of fake images (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def least_squares_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Least-squares loss of the discriminator: 1 for real images, 0 for fake ones (Mao et al. 2017, equation 9)."""
    return 0.5 * ((real - 1).pow(2).mean() + fake.pow(2).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """Adversarial loss of the generator: low where the discriminator scores its images high."""
    return -fake.mean()


def last_layer_gradients(reconstruction: Tensor, adversarial: Tensor, *, last_layer: Tensor) -> Tensor:
    """The gradients of both losses at the last layer, stacked, (2, ...)."""
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return torch.stack([of_reconstruction, of_adversarial])


def adaptive_weight(gradients_2: Tensor, *, max_weight: float) -> Tensor:
    """The ratio of the norms of both ``last_layer_gradients``, at most ``max_weight``.

    lambda = |grad L_rec| / (|grad L_GAN| + delta), at the last layer (Esser et al. 2021, equation 7).

    Several processes average their gradients first, so that the weight is that of the whole batch.
    """
    of_reconstruction, of_adversarial = distributed.averaged(gradients_2)
    return (of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)).clamp(0, max_weight).detach()


def perceptual_loss(config: AutoencoderConfig) -> nn.Module | None:
    """The perceptual loss that ``config`` names, frozen; None for ``none``.

    Raises ``UserError`` if LPIPS's weights are neither on this machine nor can be downloaded.
    """
    if config.perceptual == "none":
        return None
    if config.perceptual == "lpips":
        return LPIPS.load(config.perceptual_trunk)
    assert config.perceptual == "pyramid", "init resolves perceptual: auto"
    return PyramidLoss()


class PyramidLoss(nn.Module):
    """A distance between the edges and textures of two images at several scales (``perceptual: pyramid``).

    It is Histoloom's own, made from published parts: the Laplacian pyramid of Burt and Adelson (1983, IEEE Trans.
    Commun. 31(4), 532) and a comparison of local contrast. It is no published metric and is never reported as one.

    Each band of the pyramid adds two terms: the mean absolute difference of the bands (edges in the wrong place) and,
    ``texture_weight`` times, that of their local contrast, the mean absolute value of the band over 8 x 8 of its own
    pixels (missing texture, wherever its grains lie). Under plain L1 a smooth grey is the best guess for an
    unpredictable texture; with ``texture_weight`` at 1 a texture with other grains is the better guess.
    """

    BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
    MIN_SIDE = 8
    """px; smaller bands are not compared"""

    kernel_K: Tensor

    def __init__(self, *, levels: int = 4, texture_weight: float = 1.0) -> None:
        super().__init__()
        self.levels = levels
        self.texture_weight = texture_weight
        self.register_buffer("kernel_K", torch.tensor(self.BINOMIAL), persistent=False)

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """Distances (N,), 0 for equal images."""

        def l1(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
            return (a_NCHW - b_NCHW).abs().mean(dim=(1, 2, 3))

        def contrast(band_NCHW: Tensor) -> Tensor:
            return F.avg_pool2d(band_NCHW.abs(), self.MIN_SIDE, ceil_mode=True)

        distance_N = x_NCHW.new_zeros(len(x_NCHW))
        for bx_NCHW, by_NCHW in zip(self.bands(x_NCHW), self.bands(y_NCHW), strict=True):
            distance_N = distance_N + l1(bx_NCHW, by_NCHW)
            distance_N = distance_N + self.texture_weight * l1(contrast(bx_NCHW), contrast(by_NCHW))
        return distance_N

    def bands(self, x_NCHW: Tensor) -> list[Tensor]:
        """The bands of the Laplacian pyramid, finest first, without the smooth remainder."""
        bands = []
        for _ in range(self.levels):
            if min(x_NCHW.shape[-2:]) < self.MIN_SIDE:
                break
            smooth_NCHW = self._smooth(x_NCHW)
            bands.append(x_NCHW - smooth_NCHW)
            x_NCHW = smooth_NCHW[..., ::2, ::2]
        return bands

    def _smooth(self, x_NCHW: Tensor) -> Tensor:
        channels = x_NCHW.shape[1]
        kernel_C11K = self.kernel_K.to(x_NCHW.dtype).expand(channels, 1, 1, -1)
        x_NCHW = F.pad(x_NCHW, (2, 2, 2, 2), mode="reflect")
        x_NCHW = F.conv2d(x_NCHW, kernel_C11K, groups=channels)
        return F.conv2d(x_NCHW, kernel_C11K.transpose(2, 3), groups=channels)
