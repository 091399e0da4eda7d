"""What the clusterer minimises, over all k of the sweep at once.

Its entropies and its normalisation are of the whole batch: several processes gather their parts of it (``processes``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from histoloom.clustering.cluster_reinit import ClusterReinit
from histoloom.clustering.infomax import (
    Heads,
    Network,
    conditional_entropy,
    kl_divergence,
    marginal_entropy,
    mutual_information,
    probabilities,
    rim_loss,
)
from histoloom.clustering.views import ViewStrength, any_stain, vector_view, view
from histoloom.config import ClustersConfig
from histoloom.training.distributed import gathered
from histoloom.training.loop import StepContext

FALL_START, FALL_END = 0.3, 0.7  # shares of the training


class InfoMaxLoss:
    """Batches are normalised latents of each patch in V >= 1 stains, (B, V, C, h, w): ``LatentSet.with_stain_views``.

    Or vectors (B, V, D), V being whatever views there are of a patch.
    """

    def __init__(
        self,
        config: ClustersConfig,
        *,
        network: Network,
        sample: Callable[[], Iterable[Tensor]] | None = None,
        versions: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """``sample``: the same training patches each time, in batches; without it no output is initialised again.

        ``versions``: where batches are numbers of patches, (B,), gives what they would be otherwise.
        """
        self.config = config
        self.versions = versions
        self.network = network
        self.strength = ViewStrength()
        self.terms = ViewTerms(network, consistency_weight=config.consistency_weight)
        self.compiled: tuple[nn.Module, ...] = (self.terms,)
        self.reinit = ClusterReinit(network, sample=sample or tuple, views=self._view)

    def __call__(self, z_BVChw: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """RIM on each view and the consistency between them, averaged over the heads."""
        loss, metrics, _ = self.with_heads(z_BVChw, context)
        return loss, metrics

    def with_heads(self, z_BVChw: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor], Heads]:
        """The same, and the probabilities (2 B, k) by k of both views, the second below the first.

        With several processes B is the whole batch, of which ``z`` is this process's part.
        """
        reinitialised = self.reinit(context)
        if self.versions is not None:
            z_BVChw = self.versions(z_BVChw)
        views_2BChw = torch.cat([self._view(z_BVChw, context) for _ in range(2)])
        pooled_BF = self.network.pooled(views_2BChw).chunk(2)
        loss, metrics, both = self.terms(
            torch.cat([gathered(view_BF) for view_BF in pooled_BF]),
            torch.full((), marginal_weight(self.config, progress=context.progress), device=pooled_BF[0].device),
        )
        return loss, metrics | {"renewed": torch.tensor(float(reinitialised))}, both

    def _view(self, z_BVChw: Tensor, context: StepContext) -> Tensor:
        """A random view of each patch in one of its stains."""
        z_BChw = any_stain(z_BVChw, context=context)
        augment = vector_view if z_BChw.ndim == 2 else view
        return augment(z_BChw, context=context, strength=self.strength)


class ViewTerms(nn.Module):
    """The loss of what ``network.pooled`` gives of a view of each patch and, below them, of another, (2 B, F).

    A module, so that its many small operations, some for each head, can be compiled to few.
    """

    def __init__(self, network: Network, *, consistency_weight: float) -> None:
        super().__init__()
        self.network = network
        self.consistency_weight = consistency_weight

    def forward(self, pooled_2BF: Tensor, marginal_weight: Tensor) -> tuple[Tensor, dict[str, Tensor], Heads]:
        """The loss, metrics, and the probabilities (2 B, k) by k.

        ``marginal_weight``: a tensor, (), since a compiled module takes another number for another program.
        """
        both = probabilities(self.network.classified(pooled_2BF))
        losses, informations, agreements = [], [], []
        for p_2BK in both.values():
            first_BK, second_BK = p_2BK.chunk(2)
            consistency = 0.5 * (kl_divergence(first_BK, second_BK) + kl_divergence(second_BK, first_BK))
            losses.append(rim_loss(p_2BK, marginal_weight=marginal_weight) + self.consistency_weight * consistency)
            informations.append(mutual_information(p_2BK) / math.log(p_2BK.shape[1]))
            agreements.append((first_BK.argmax(1) == second_BK.argmax(1)).float().mean())
        last_BK = next(reversed(both.values()))
        metrics = {
            "information": torch.stack(informations).mean(),
            "agreement": torch.stack(agreements).mean(),
            "marginal_entropy": marginal_entropy(last_BK),
            "conditional_entropy": conditional_entropy(last_BK),
        }
        return torch.stack(losses).mean(), metrics, both


def marginal_weight(config: ClustersConfig, *, progress: float) -> float:
    """Of the marginal entropy: ``marginal_weight``, falling to ``marginal_end`` from ``FALL_START`` to ``FALL_END``.

    Above 1, sharing one large cluster between two unsure outputs pays; at 1 the sum is the mutual
    information, and it does not.
    """
    share = (progress - FALL_START) / (FALL_END - FALL_START)
    return config.marginal_weight + (config.marginal_end - config.marginal_weight) * min(1.0, max(0.0, share))
