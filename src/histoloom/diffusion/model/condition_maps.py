"""Maps of conditions: a U-Net whose condition differs from position to position.

diffusers' ``UNet2DModel`` computes for each image a vector from step and condition, and each residual block adds its
projection, or scales and shifts by it, at every position alike. Here a block projects one vector for each condition of
an image, and mixes the projections at each position by the shares of the conditions there (spatially adaptive
normalisation: Park et al. 2019). This needs no further parameters. One condition everywhere gives what ``UNet2DModel``
gives, so that every generator can be used and trained further this way, and its files stay those of diffusers.

Shapes: N images, or B of a batch; D channels of the vectors, P conditions of an image, C x h x w features of a level; S
values of k; G x G places of a patch whose clusters are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor
from torch.nn import functional as F

from histoloom.training.tasks import StepContext

UNIFORM_SHARE = 0.5
"""of the patches of a training with maps: these have the condition of the whole patch at every position"""


@dataclass(frozen=True)
class MappedEmbedding:
    """The vectors of step and condition, (N, P, D), and the shares of the conditions at the latent positions.

    ``shares_NPhw`` sum to 1 over the conditions; N may be 1 for the same shares in all images.
    """

    vectors_NPD: Tensor
    shares_NPhw: Tensor

    def mixed(self, block: MapResnetBlock, *, size: torch.Size) -> Tensor:
        """A block's projections of the vectors, mixed by the shares at ``size`` (h, w) positions: (N, C, h, w)."""
        projected_NPC = block.time_emb_proj(block.nonlinearity(self.vectors_NPD))
        shares_NPhw = self.shares_NPhw
        if shares_NPhw.shape[2:] != size:
            shares_NPhw = F.adaptive_avg_pool2d(shares_NPhw, (size[0], size[1]))
        mixed_NCs = projected_NPC.transpose(1, 2) @ shares_NPhw.flatten(2).to(projected_NPC.dtype)
        return mixed_NCs.unflatten(2, size)


class MapResnetBlock(ResnetBlock2D):
    """A residual block that takes a ``MappedEmbedding`` in the place of one vector an image, too."""

    def forward(self, input_tensor: Tensor, temb: Tensor | MappedEmbedding) -> Tensor:
        if not isinstance(temb, MappedEmbedding):
            result: Tensor = super().forward(input_tensor, temb)
            return result
        h = self.conv1(self.nonlinearity(self.norm1(input_tensor)))
        mixed_NChw = temb.mixed(self, size=h.shape[2:])
        if self.time_embedding_norm == "scale_shift":
            scale_NChw, shift_NChw = mixed_NChw.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale_NChw) + shift_NChw
        else:
            h = self.norm2(h + mixed_NChw)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        skip = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor.contiguous())
        return (skip + h) / self.output_scale_factor


class ConditionMapUNet(UNet2DModel):
    """A ``UNet2DModel`` that takes maps of conditions as well; made by ``with_condition_maps``."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = True,  # noqa: FBT001, FBT002 - as in diffusers
        shares: Tensor | None = None,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The prediction; ``class_labels`` (N,), or with ``shares`` (N or 1, P, h, w) the conditions (N, P)."""
        if shares is None:
            result: UNet2DOutput | tuple[Tensor] = super().forward(sample, timestep, class_labels, return_dict)
            return result
        steps_N = timestep.to(sample.device).expand(len(sample))
        vectors_ND = self.time_embedding(self.time_proj(steps_N).to(self.dtype))
        vectors_NPD = vectors_ND[:, None] + self.class_embedding(class_labels).to(self.dtype)
        embedding = MappedEmbedding(vectors_NPD, shares)

        h = self.conv_in(sample)
        skips: tuple[Tensor, ...] = (h,)
        for block in self.down_blocks:
            h, more = block(h, embedding)
            skips += more
        h = self.mid_block(h, embedding)
        for block in self.up_blocks:
            count = len(block.resnets)
            h = block(h, skips[-count:], embedding)
            skips = skips[:-count]
        output = self.conv_out(self.conv_act(self.conv_norm_out(h)))
        return UNet2DOutput(sample=output) if return_dict else (output,)


def with_condition_maps(unet: UNet2DModel) -> ConditionMapUNet:
    """The same network with the same parameters, which takes maps of conditions as well."""
    for module in unet.modules():
        if type(module) is ResnetBlock2D:
            module.__class__ = MapResnetBlock
    unet.__class__ = ConditionMapUNet
    assert isinstance(unet, ConditionMapUNet), "its class was just set"
    return unet


def place_shares(places: int, *, size: tuple[int, int]) -> Tensor:
    """The share of each of ``places`` x ``places`` places of a patch at its latent positions, (1, P, h, w).

    Places pass into each other linearly: the clusterer sees a whole patch about a place, and no sharp boundary.
    """
    each_PPGG = torch.eye(places**2).unflatten(1, (places, places))[None]
    return F.interpolate(each_PPGG, size=size, mode="bilinear", align_corners=False)


def drawn_conditions(
    numbers_BS: Tensor, maps: Sequence[Tensor], context: StepContext, *, size: tuple[int, int]
) -> dict[str, Tensor]:
    """What a network gets as conditions in a training step, each image under a random k of the sweep.

    ``class_labels`` (B,), the condition of each patch. With ``maps``, one tensor (B, S, G, G), they are (B, P) and come
    with the ``shares`` of the P places at ``size`` (h, w) positions: each place has its own condition, or all of them
    have that of the patch.
    """
    B, S = numbers_BS.shape
    sweep_B1 = context.randint(S, (B, 1))
    conditions_B = numbers_BS.gather(1, sweep_B1)[:, 0]
    if not maps:
        return {"class_labels": conditions_B}
    (maps_BSGG,) = maps
    places_BSP = maps_BSGG.flatten(2)
    places_BP = places_BSP.gather(1, sweep_B1[:, :, None].expand(-1, 1, places_BSP.shape[2]))[:, 0]
    uniform_B1 = context.rand((B, 1)) < UNIFORM_SHARE
    shares_1Phw = place_shares(maps_BSGG.shape[-1], size=size).to(numbers_BS.device)
    return {"class_labels": torch.where(uniform_B1, conditions_B[:, None], places_BP), "shares": shares_1Phw}
