"""Alignment of the U-Net's features with those of a pretrained network, while it trains (REPA: Yu et al., ICLR 2025).

A projection of one of the U-Net's feature maps, position by position, is drawn towards the features that an ImageNet
classifier has of the patch without noise. The projection is trained with the U-Net and is no part of the generator.

The targets are the activations of EfficientNet-Lite0, 16 px a position, standardised and reduced to their principal
components. They are computed once for each training patch. Those of its rotated and flipped copies are the rotated and
flipped maps.

Shapes: N patches of the training split, B of a batch, C channels of a feature map, D components of the targets, h x w
positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.augment import dihedral
from histoloom.autoencoder.vqgan import to_float
from histoloom.clustering.features.efficientnet import EfficientNetLite0
from histoloom.processes import is_main_process
from histoloom.progress import meter
from histoloom.run.directory import read_json, write_json
from histoloom.run.row_file import RowFile
from histoloom.run.stage import StageContext
from histoloom.seeding import derive, numpy_generator
from histoloom.training.devices import accelerator, autocast
from histoloom.training.distributed import shared_path

COMPONENTS = 64
"""principal components of the targets that are kept"""
FITTED_PATCHES = 512
"""training patches of which mean, deviation and components are measured"""
CHUNK = 64
SAVED_CHUNKS = 32
"""chunks between two records of how many targets are computed"""
WIDTH = 256
"""channels of the projection's hidden layers"""


class AlignedOutput(NamedTuple):
    """What the U-Net predicts, (B, channels, h, w) of the latents, and the projected features, (B, D, h, w)."""

    sample: Tensor
    projected: Tensor


class AlignedUNet(nn.Module):
    """A U-Net and the projection of the features of one of its blocks. It is called as the U-Net is."""

    def __init__(self, unet: UNet2DModel, *, block: str) -> None:
        """``block``: see ``diffusion.alignment_block``."""
        super().__init__()
        self.unet = unet
        self.side, channels, layer = feature_map(unet, block=block)
        self.projection = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.SiLU(),
            nn.Conv2d(WIDTH, COMPONENTS, 1),
        )
        kept: list[Tensor] = []
        self.kept = kept

        # Copies of the U-Net, such as its average, keep the hook. They draw in evaluation mode and keep nothing.
        def keep(module: nn.Module, _: object, output: Tensor) -> None:
            if module.training:
                kept.append(output)

        layer.register_forward_hook(keep)

    def forward(self, x_BDhw: Tensor, steps_B: Tensor, **conditions: Tensor) -> AlignedOutput:
        """The prediction and the projected features; ``conditions``: by name, as the U-Net takes them."""
        sample_BDhw = self.unet(x_BDhw, steps_B, **conditions).sample
        return AlignedOutput(sample_BDhw, self.projection(self.kept.pop()))


def feature_map(unet: UNet2DModel, *, block: str) -> tuple[int, int, nn.Module]:
    """Side and channels of a block's feature map, and the layer whose output it is.

    ``block``: ``middle``, or the last layer of a level on the way ``down-LEVEL`` or ``up-LEVEL``; level 0 has the
    largest map.
    """
    levels = len(unet.down_blocks)
    side = unet.config.sample_size[0]
    if block == "middle":
        return side >> (levels - 1), unet.config.block_out_channels[-1], unet.mid_block
    way, level = block.split("-")
    parts = unet.down_blocks[int(level)] if way == "down" else unet.up_blocks[levels - 1 - int(level)]
    layers = getattr(parts, "attentions", parts.resnets)
    return side >> int(level), unet.config.block_out_channels[int(level)], layers[-1]


class TargetMaps:
    """The targets of the training patches, (N, D, side, side) in half precision, in a file."""

    def __init__(self, maps: RowFile) -> None:
        self.maps = maps

    def __call__(self, items_B: np.ndarray, *, copies_B: np.ndarray) -> Tensor:
        """Those of the ``items_B``-th training patches, in the dihedral copies ``copies_B``; float16 (B, D, h, w)."""
        return dihedral(torch.from_numpy(self.maps[items_B]), torch.from_numpy(copies_B))


def target_maps(context: StageContext, *, rows_N: np.ndarray, side: int) -> TargetMaps:
    """Compute the targets of the patches ``rows_N``, on the main process, and open them.

    They lie beside the training's checkpoints. A killed stage computes only those that are missing.
    """
    from histoloom.slides.patch_set import PatchSet

    path = shared_path(context.out / "checkpoints" / "alignment.npy")
    record = path.with_suffix(".json")
    done = read_json(record)["rows"] if record.is_file() else 0
    if is_main_process() and done < len(rows_N):
        path.parent.mkdir(parents=True, exist_ok=True)
        patches = PatchSet.open(context.inputs["patches"])
        device = accelerator(context.config.runtime).device
        trunk = EfficientNetLite0.load().to(device)
        trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        rng = numpy_generator(context.config.seed, "diffusion", "alignment")
        fitted_n = np.sort(rng.permutation(rows_N)[:FITTED_PATCHES])
        with autocast(context.config.runtime):
            parts = [
                activations(trunk, patches.images(fitted_n[start : start + CHUNK]), device=device).cpu()
                for start in range(0, len(fitted_n), CHUNK)
            ]
        mean_C, components_DC = (part.to(device) for part in principal_components(torch.cat(parts)))

        shape = (len(rows_N), COMPONENTS, side, side)
        file = RowFile.open(path, writable=True) if done else RowFile.create(path, shape=shape, dtype=np.float16)
        with meter("features for the alignment", total=len(rows_N), done=done) as progress:
            for start in range(done, len(rows_N), CHUNK):
                chunk_n = rows_N[start : start + CHUNK]
                with autocast(context.config.runtime):
                    map_nChw = activations(trunk, patches.images(chunk_n), device=device)
                map_nDhw = torch.einsum("dc,nchw->ndhw", components_DC, map_nChw - mean_C[:, None, None])
                file[start : start + len(chunk_n)] = resized(map_nDhw, side=side).half().cpu().numpy()
                progress.advance(len(chunk_n))
                if start // CHUNK % SAVED_CHUNKS == SAVED_CHUNKS - 1 or start + CHUNK >= len(rows_N):
                    file.flush()
                    write_json(record, {"rows": start + len(chunk_n)})
    accelerator(context.config.runtime).wait_for_everyone()
    return TargetMaps(RowFile.open(path))


@torch.no_grad()
def activations(trunk: EfficientNetLite0, images_nHW3: np.ndarray, *, device: torch.device) -> Tensor:
    """The trunk's activations at all taps, the mean over the patch and the patch rotated by 180 degrees, (n, C, h, w).

    The trunk pads the odd pixel on the right and below, which moves its positions. The mean moves none, so that it may
    be rotated and flipped.
    """
    x_n3HW = to_float(torch.from_numpy(images_nHW3).to(device)).contiguous(memory_format=torch.channels_last)
    upright, rotated = (torch.cat(trunk(x), dim=1).float() for x in (x_n3HW, x_n3HW.rot90(2, dims=(2, 3))))
    return (upright + rotated.rot90(2, dims=(2, 3))) / 2


def principal_components(map_nChw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (C,), and the first components of the standardised channels as a matrix (D, C)."""
    x_MC = map_nChw.movedim(1, -1).flatten(0, 2).double()
    mean_C, deviation_C = x_MC.mean(dim=0), x_MC.std(dim=0).clamp_min(1e-6)
    _, axes_CC = torch.linalg.eigh(torch.cov(((x_MC - mean_C) / deviation_C).T))
    return mean_C.float(), (axes_CC.flip(1)[:, :COMPONENTS].T / deviation_C).float()


def resized(map_nDhw: Tensor, *, side: int) -> Tensor:
    """A map with ``side`` x ``side`` positions: means over areas, or interpolated where it has fewer."""
    if map_nDhw.shape[-1] >= side:
        return F.adaptive_avg_pool2d(map_nDhw, side)
    return F.interpolate(map_nDhw, size=side, mode="bilinear", align_corners=False)


def make_aligned_unet(context: StageContext, *, unet: UNet2DModel) -> AlignedUNet:
    """The U-Net with a freshly initialised projection."""
    torch.manual_seed(derive(context.config.seed, "diffusion", "alignment"))
    return AlignedUNet(unet, block=context.config.diffusion.alignment_block)
