"""Clustering by information maximisation: RIM (Krause et al. 2010) and IMSAT (Hu et al. 2017), several k at once.

A network gives each patch a distribution over k clusters. The mutual information of patch and cluster is the marginal
entropy (clusters share the patches) less the conditional entropy (each patch is sure of its cluster); the
distribution must also stay the same in another view of the patch. Entropies are in nats.

Shapes: N patches, C x h x w normalised latents, D numbers of a vector, F features, K clusters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8

Heads = dict[int, Tensor]


class Network(nn.Module, ABC):
    """Features of each patch, normalised over the batch, and a linear head for every k of the sweep.

    ``width``: F, of what ``pooled`` gives.
    """

    def __init__(self, *, width: int, ks: Sequence[int]) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.norm: nn.Module = nn.BatchNorm1d(width, affine=False)
        self.heads = nn.ModuleDict({str(k): nn.Linear(width, k) for k in self.ks})

    @abstractmethod
    def pooled(self, x_N: Tensor) -> Tensor:
        """Shared features before normalisation, (N, F): of each patch alone, whatever the batch."""

    def features(self, x_N: Tensor) -> Tensor:
        """What the heads see, (N, F)."""
        normalised: Tensor = self.norm(self.pooled(x_N))
        return normalised

    def classified(self, pooled_NF: Tensor) -> Heads:
        """Logits of every head, (N, k) by k, of what ``pooled`` gives; in training normalised over these N."""
        return linear_heads(self.norm(pooled_NF), heads=self.heads)

    def forward(self, x_N: Tensor) -> Heads:
        """Logits of every head, (N, k) by k."""
        return self.classified(self.pooled(x_N))


def linear_heads(features_NF: Tensor, *, heads: nn.ModuleDict) -> Heads:
    """Logits (N, k) by k of linear layers that are named by k: all of them in one matrix product."""
    weight_CF = torch.cat([head.get_parameter("weight") for head in heads.values()])
    bias_C = torch.cat([head.get_parameter("bias") for head in heads.values()])
    ks = [int(k) for k in heads]
    return dict(zip(ks, F.linear(features_NF, weight_CF, bias_C).split(ks, dim=1), strict=True))


class InfoMaxNet(Network):
    """For latents (N, C, h, w): convolutions, then means and deviations over positions.

    Pooling makes the answer depend on what is in a patch and hardly on where.
    """

    def __init__(self, in_channels: int, *, channels: int, ks: Sequence[int]) -> None:
        super().__init__(width=4 * channels, ks=ks)
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
            nn.GroupNorm(GROUPS, 2 * channels),
            nn.SiLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1),
        )

    def pooled(self, x_N: Tensor) -> Tensor:
        """Means and deviations over positions, (N, F)."""
        y_NChw = self.convolutions(x_N)
        return torch.cat([y_NChw.mean(dim=(2, 3)), y_NChw.std(dim=(2, 3), correction=0)], dim=1)


class VectorNet(Network):
    """For features that are vectors, (N, D): two layers in place of the convolutions."""

    def __init__(self, dimensions: int, *, channels: int, ks: Sequence[int]) -> None:
        wide = 4 * channels
        super().__init__(width=wide, ks=ks)
        self.layers = nn.Sequential(nn.Linear(dimensions, wide), nn.LayerNorm(wide), nn.SiLU(), nn.Linear(wide, wide))

    def pooled(self, x_N: Tensor) -> Tensor:
        """Two layers' output, (N, F)."""
        y_NF: Tensor = self.layers(x_N)
        return y_NF


def marginal_entropy(p_NK: Tensor) -> Tensor:
    """Entropy of the mean distribution: log K where clusters share the patches evenly."""
    return entropy(p_NK.mean(0))


def conditional_entropy(p_NK: Tensor) -> Tensor:
    """Mean entropy of the patches' distributions: 0 where every patch is sure."""
    return entropy(p_NK).mean()


def entropy(p_K: Tensor) -> Tensor:
    """Entropy over the last dimension."""
    return -(p_K * _log(p_K)).sum(-1)


def mutual_information(p_NK: Tensor) -> Tensor:
    """Information that the cluster gives about the patch, 0..log K (Krause et al. 2010, equation 3)."""
    return marginal_entropy(p_NK) - conditional_entropy(p_NK)


def kl_divergence(p_NK: Tensor, q_NK: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence KL(p || q)."""
    return (p_NK * (_log(p_NK) - _log(q_NK))).sum(1).mean()


def _log(p: Tensor) -> Tensor:
    """Bounded logarithm: that of a probability that underflows to 0 has no finite gradient."""
    return p.clamp_min(1e-8).log()


def rim_loss(p_NK: Tensor, *, marginal_weight: float | Tensor) -> Tensor:
    """Conditional entropy less the weighted marginal entropy (Hu et al. 2017, equation 5 with lambda and mu)."""
    return conditional_entropy(p_NK) - marginal_weight * marginal_entropy(p_NK)


def probabilities(logits: Mapping[int, Tensor]) -> Heads:
    """Softmax of every head, in single precision."""
    return {k: values.float().softmax(1) for k, values in logits.items()}
