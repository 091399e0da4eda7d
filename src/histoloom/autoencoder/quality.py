"""How well the autoencoder reconstructs held-out patches; published with its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from histoloom.autoencoder.quantizer import perplexity
from histoloom.autoencoder.vqgan import Autoencoder, to_float, to_uint8
from histoloom.config import RuntimeConfig
from histoloom.run.directory import read_json, replacing, write_json
from histoloom.run.stage import StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import accelerator, autocast
from histoloom.training.memory import in_fitting_parts

QUALITY_PATCHES = 256
SHOWN_PATCHES = 16
BATCH_SIZE = 32
MIN_DISCRIMINATOR_ACCURACY = 0.6
"""Below it the discriminator is too weak to sharpen the reconstructions; 0.5 is chance."""


@dataclass(frozen=True)
class ReconstructionQuality:
    """``quality.json``: reconstructions of ``n`` patches of ``split`` (holdout, or train where none is held out).

    ``psnr``: mean peak signal-to-noise ratio, dB. ``perplexity``: effective number of ``codes`` in use;
    ``codes_used``: those used at all; all three are 0 without a codebook. ``discriminator_accuracy``: share of pairs of
    a patch and its reconstruction in which the discriminator scores the patch higher, 0..1; None without a
    discriminator.
    """

    psnr: float
    perplexity: float
    codes: int
    codes_used: int
    n: int
    split: str
    discriminator_accuracy: float | None = None

    def save(self, folder: Path) -> None:
        """Write ``quality.json``."""
        values = asdict(self)
        accuracy = values.pop("discriminator_accuracy")
        write_json(folder / "quality.json", values if accuracy is None else values | {"told_apart": accuracy})

    @staticmethod
    def load(folder: Path) -> ReconstructionQuality:
        """Read what ``save`` wrote into the stage's folder."""
        values = read_json(folder / "quality.json")
        accuracy = values.pop("told_apart", None)
        return ReconstructionQuality(**values, discriminator_accuracy=accuracy)


@dataclass(frozen=True)
class Reconstructions:
    """``reconstructions.npz``: some patches, uint8 (n, H, W, 3), with their reconstructions, and their ids (n,)."""

    patch_id: np.ndarray
    original: np.ndarray
    reconstruction: np.ndarray

    def save(self, folder: Path) -> None:
        """Write ``reconstructions.npz``."""
        with replacing(folder / "reconstructions.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **vars(self), allow_pickle=False)

    @staticmethod
    def load(folder: Path) -> Reconstructions:
        """Read what ``save`` wrote into the stage's folder."""
        with np.load(folder / "reconstructions.npz") as file:
            return Reconstructions(file["patch_id"], file["original"], file["reconstruction"])


def measure(context: StageContext, *, modules: Mapping[str, nn.Module], patches: PatchSet) -> ReconstructionQuality:
    """Reconstruct held-out patches, write both records into the stage's folder, and log what they show."""
    model, discriminator, runtime = modules["autoencoder"], modules.get("discriminator"), context.config.runtime
    assert isinstance(model, Autoencoder), "the task's module keeps its kind"
    split: Literal["holdout", "train"] = "holdout" if len(patches.rows(split="holdout")) else "train"
    generator = numpy_generator(context.config.seed, "autoencoder", "quality")
    rows = np.sort(generator.permutation(patches.rows(split=split))[:QUALITY_PATCHES])
    originals_NHWC = patches.images(rows)
    reconstructions_NHWC, counts_K = reconstruct(model, originals_NHWC, runtime=runtime)

    accuracy = None
    if discriminator is not None:

        def score(x_NCHW: Tensor) -> Tensor:
            scores_N1hw: Tensor = discriminator(model.to_pixel_range(x_NCHW))
            return scores_N1hw

        accuracy = discriminator_accuracy(score, originals_NHWC, reconstructions_NHWC, runtime=runtime)
        if accuracy < MIN_DISCRIMINATOR_ACCURACY:
            context.say(
                f"the discriminator recognises the real image in only {accuracy:.0%} of pairs of image and "
                "reconstruction (50% is chance): it is too weak to sharpen the reconstructions; raise "
                "autoencoder.adversarial.lr, or train without it: autoencoder.adversarial.weight=0"
            )

    mse_N = np.square(originals_NHWC.astype(np.float64) - reconstructions_NHWC).mean(axis=(1, 2, 3))
    quality = ReconstructionQuality(
        psnr=float(np.mean(10 * np.log10(255.0**2 / np.maximum(mse_N, 1e-10)))),
        perplexity=float(perplexity(counts_K)) if len(counts_K) else 0.0,
        codes=len(counts_K),
        codes_used=int((counts_K > 0).sum()),
        n=len(rows),
        split=split,
        discriminator_accuracy=accuracy,
    )
    quality.save(context.out)
    use = f"perplexity {quality.perplexity:.0f} of {quality.codes} codes" if quality.codes else "no codebook"
    context.say(f"reconstruction of {split} patches: PSNR {quality.psnr:.1f} dB, {use}")

    shown = generator.permutation(len(rows))[:SHOWN_PATCHES]
    ids = patches.columns("patch_id")["patch_id"].iloc[rows[shown]].to_numpy(dtype=str)
    Reconstructions(ids, originals_NHWC[shown], reconstructions_NHWC[shown]).save(context.out)
    return quality


@torch.no_grad()
def reconstruct(
    model: Autoencoder, images_NHWC: np.ndarray, *, runtime: RuntimeConfig
) -> tuple[np.ndarray, torch.Tensor]:
    """Reconstructions, uint8 as ``images_NHWC``, and how often each code was used, (K,); K is 0 without a codebook."""
    device = accelerator(runtime).device
    counts_K = torch.zeros(model.config.codes)

    def of_part(part_NHWC: np.ndarray) -> tuple[np.ndarray, Tensor]:
        x_NCHW = to_float(torch.from_numpy(part_NHWC).to(device))
        with autocast(runtime):
            if model.quantizer is None:
                return to_uint8(model.reconstruct(x_NCHW)).cpu().numpy(), torch.empty(0, dtype=torch.int64)
            codes_NHW = model.quantize(model.encode(x_NCHW)).indices_NHW
            return to_uint8(model.reconstruct(x_NCHW)).cpu().numpy(), codes_NHW.flatten().cpu()

    parts = []
    for start in range(0, len(images_NHWC), BATCH_SIZE):
        batch_NHWC = images_NHWC[start : start + BATCH_SIZE]
        for reconstructions_NHWC, codes_M in in_fitting_parts(of_part, batch_NHWC, name="reconstructing patches"):
            parts.append(reconstructions_NHWC)
            counts_K += torch.bincount(codes_M, minlength=len(counts_K))
    return np.concatenate(parts), counts_K


@torch.no_grad()
def discriminator_accuracy(
    discriminator: Callable[[Tensor], Tensor], real_NHWC: np.ndarray, fake_NHWC: np.ndarray, *, runtime: RuntimeConfig
) -> float:
    """Share of pairs of uint8 images in which the real one has the higher mean score, 0..1; 0.5 is chance."""
    device = accelerator(runtime).device

    def scores(images_NHWC: np.ndarray) -> Tensor:
        x_NCHW = to_float(torch.from_numpy(images_NHWC).to(device))
        with autocast(runtime):
            return discriminator(x_NCHW).float().mean(dim=(1, 2, 3))

    def all_scores(images_NHWC: np.ndarray) -> Tensor:
        starts = range(0, len(images_NHWC), BATCH_SIZE)
        batches = (images_NHWC[start : start + BATCH_SIZE] for start in starts)
        return torch.cat([part for b in batches for part in in_fitting_parts(scores, b, name="discriminating patches")])

    return float((all_scores(real_NHWC) > all_scores(fake_NHWC)).float().mean())
