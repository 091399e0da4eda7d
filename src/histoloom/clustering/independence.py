"""Clusters made independent of the slide: the information that they share with it is a cost of the training.

Over a batch, cluster c and slide s have the soft joint distribution P(c, s) = mean over patches of p(c) [patch of s],
whose mutual information I(c; s) is 0 where every slide has the same mix of clusters. From few patches it comes out too
large, by about (clusters - 1)(slides - 1) / 2n for sure assignments (Miller 1955), also where nothing is shared; so the
same of shuffled slides is subtracted: they share nothing by construction and have about the same bias.

Shapes: B patches of a batch, V stains, C x h x w latents, N = V x B rows of all stains, K clusters of one of H heads,
S slides, O orders of the slides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.clustering.infomax import Heads, entropy
from histoloom.training.devices import without_autocast
from histoloom.training.distributed import gathered
from histoloom.training.tasks import StepContext

SHUFFLES = 4
"""Shuffled slides a step: enough that their noise stays below the bias that they remove."""


class HeadsLoss(Protocol):
    """A loss that also gives the probabilities behind it, view below view: (views x B, k) by k.

    ``compiled``: what of it may be compiled.
    """

    compiled: tuple[nn.Module, ...]

    def with_heads(self, z_BVChw: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor], Heads]: ...


class IndependentLoss:
    """``inner`` and ``weight`` times the information about the slide, in nats, averaged over the heads.

    Batches are (latents (B, V, C, h, w), slides (B,) int64 numbers from 0).
    """

    def __init__(self, inner: HeadsLoss, *, weight: float, slides: int) -> None:
        self.inner, self.weight = inner, weight
        self.shared = SharedInformation(slides)
        self.compiled: tuple[nn.Module, ...] = (*inner.compiled, self.shared)

    def __call__(self, batch: tuple[Tensor, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and ``slide_information`` besides the inner loss's metrics."""
        z_BVChw, slide_B = batch
        loss, metrics, heads = self.inner.with_heads(z_BVChw, context)
        orders = [gathered(context.rand((len(slide_B),))).argsort() for _ in range(SHUFFLES)]
        slide_B = gathered(slide_B)
        views = len(next(iter(heads.values()))) // len(slide_B)
        slide_ON = torch.stack([slide_B, *(slide_B[order_B] for order_B in orders)]).repeat(1, views)
        shared: Tensor = self.shared(heads, slide_ON)
        return loss + self.weight * shared, metrics | {"slide_information": shared}


class SharedInformation(nn.Module):
    """I(cluster; slide) less that of shuffled slides, averaged over the heads; a module, so that it can be compiled."""

    def __init__(self, slides: int) -> None:
        super().__init__()
        self.slides = slides

    def forward(self, heads: Heads, slide_ON: Tensor) -> Tensor:
        """Of the true slides, the first of ``slide_ON``, less the mean of the shuffled ones below it."""
        information_HO = slide_information(heads, slide_ON=slide_ON, slides=self.slides)
        return (information_HO[:, 0] - information_HO[:, 1:].mean(1)).mean()


def slide_information(heads: Heads, *, slide_ON: Tensor, slides: int) -> Tensor:
    """I(cluster; slide) of soft clusters in nats, as these patches have it: biased upwards where they are few.

    Of every head, (N, k) by k, with every assignment of the patches to slides: (H, O). One matrix product for all.
    """
    p_NC = torch.cat([*heads.values()], dim=1)
    with without_autocast(p_NC.device):  # half precision would round the shares
        member_ONS = F.one_hot(slide_ON, slides).to(p_NC.dtype)
        joint_OSC = member_ONS.transpose(1, 2) @ p_NC / len(p_NC)
    return torch.stack([_information(joint_OSK) for joint_OSK in joint_OSC.split([*heads], dim=2)])


def _information(joint_SK: Tensor) -> Tensor:
    return entropy(joint_SK.sum(-2)) + entropy(joint_SK.sum(-1)) - entropy(joint_SK.flatten(-2))


def slide_share(predicted: Mapping[int, np.ndarray], *, slides_N: np.ndarray) -> float:
    """I(cluster; slide) of many patches' probabilities, (N, k) by k, as a share of log k, averaged over the sweep.

    Without a column for each slide in memory, which a million patches of hundreds of slides would fill.
    """
    slide_N, shares = torch.from_numpy(slides_N), []
    for k, p_NK in predicted.items():
        sums = [torch.bincount(slide_N, weights=torch.from_numpy(p_N).double()) for p_N in p_NK.T]
        shares.append(float(_information(torch.stack(sums, dim=1) / len(p_NK))) / math.log(k))
    return sum(shares) / len(shares)
