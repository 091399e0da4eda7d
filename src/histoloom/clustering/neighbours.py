"""Clusters of patches that lie near each other: tissue is the same some tens of micrometres further.

No one labels which patches belong together, but every slide says which lie side by side. A patch and one near it are a
positive pair of a self-supervised clustering: the network gives both the same cluster, and uses all clusters. The loss
is the pointwise mutual information of TEMI (Adaloglou, Michels, Kalisch and Kollmann 2023) without its
teacher; the network is linear and starts from k-means.

Shapes: N patches, M neighbours of each, B of a batch, D numbers of a vector, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from histoloom.clustering.infomax import (
    Heads,
    Network,
    conditional_entropy,
    linear_heads,
    marginal_entropy,
    mutual_information,
    probabilities,
)
from histoloom.training.distributed import gathered
from histoloom.training.loop import StepContext

NEIGHBOURS = 8
REACH = 4.0
"""Sides of a patch within which another is a neighbour, between their middles."""

SHARPNESS = 8.0
"""Of the first clusters' edges: logits are this times the squared distance to a centre, in the data's variance."""

LEAST_SHARPNESS = 2.0
"""The same in the variance that k-means explains: less, and patches start between all clusters, which training merges.

It counts where k-means explains less than a quarter of the variance, as in features of many dimensions and much noise.
"""

INPUT_SCALE = 3.0
"""Norm of the inputs: the larger, the farther a step of the optimizer moves the logits."""

BETA = 0.6
"""Exponent of the agreement, as TEMI has it against few large clusters; 0.8 was no better on labelled tissue."""

KMEANS_POINTS = 20_000
_SMALLEST, _SMALLEST_PRODUCT = 1e-8, 1e-24  # a root of 0 has no finite gradient


def slide_neighbours(slide_N: np.ndarray, *, middle_N2: np.ndarray, side_N: np.ndarray) -> np.ndarray:
    """The ``NEIGHBOURS`` nearest patches of each patch on its slide within ``REACH`` sides, int64 (N, M) rows.

    ``slide_N``: any numbers, one a slide; ``middle_N2``: x and y of the patches' middles; ``side_N``: their sides,
    in the same unit. Where there are fewer neighbours, they are repeated; a patch without any has itself.
    """
    from scipy.spatial import cKDTree  # heavy, and the loss below does without

    neighbours_NM = np.repeat(np.arange(len(slide_N))[:, None], NEIGHBOURS, axis=1)
    order_N = np.argsort(slide_N, kind="stable")
    starts = np.flatnonzero(np.diff(slide_N[order_N])) + 1
    for rows_n in np.split(order_N, starts):
        count = min(NEIGHBOURS + 1, len(rows_n))
        if count < 2:
            continue
        distance_nm, nearest_nm = cKDTree(middle_N2[rows_n]).query(middle_N2[rows_n], k=count)
        itself_nm = nearest_nm == np.arange(len(rows_n))[:, None]
        usable_nm = (distance_nm <= REACH * side_N[rows_n, None]) & ~itself_nm

        # The usable ones first, from near to far, and over again until there are enough
        usable_n = usable_nm.sum(axis=1)
        usable_first_nm = np.argsort(~usable_nm, axis=1, kind="stable")
        place_nM = np.arange(NEIGHBOURS) % np.maximum(usable_n, 1)[:, None]
        chosen_nM = np.take_along_axis(nearest_nm, np.take_along_axis(usable_first_nm, place_nM, axis=1), axis=1)
        with_neighbours = usable_n > 0
        neighbours_NM[rows_n[with_neighbours]] = rows_n[chosen_nM[with_neighbours]]
    return neighbours_NM


class LinearNet(Network):
    """A linear classifier of vectors (N, D) for every k, without hidden layers or normalisation.

    Where only the first ``of_patch`` numbers describe the patch itself, and the others its surroundings, a second set
    of heads classifies vectors (N, of_patch). The first ``unseen`` numbers are for that set alone.
    """

    def __init__(self, dimensions: int, *, ks: tuple[int, ...], of_patch: int, unseen: int = 0) -> None:
        super().__init__(width=dimensions - unseen, ks=ks)
        self.norm = nn.Identity()
        self.dimensions = dimensions
        self.unseen = unseen
        alone = ks if of_patch < dimensions else ()
        self.heads_alone = nn.ModuleDict({str(k): nn.Linear(of_patch, k) for k in alone})
        self.factor = INPUT_SCALE / math.sqrt(dimensions - unseen)

    def pooled(self, x_N: Tensor) -> Tensor:
        """What the heads see of the vectors, at a mean norm of about ``INPUT_SCALE``; its mean variance is 1."""
        return (x_N[:, self.unseen :] if x_N.shape[1] == self.dimensions else x_N) * self.factor

    def forward(self, x_N: Tensor) -> Heads:
        """Logits of every head, (N, k) by k; of the second set where the vectors are of the patch alone."""
        if x_N.shape[1] == self.dimensions:
            return super().forward(x_N)
        return linear_heads(self.pooled(x_N), heads=self.heads_alone)

    @torch.no_grad()
    def start_from_kmeans(self, x_ND: np.ndarray, *, seed: int) -> None:
        """Make the heads soft versions of k-means on ``x_ND``: logits fall with the squared distance to a centre."""
        from sklearn.cluster import KMeans  # heavy, and a network that is loaded does without

        inputs_ND = self.pooled(torch.from_numpy(x_ND)).numpy()
        variance = float(inputs_ND.var(axis=0).sum())
        for k in self.ks:
            kmeans = KMeans(k, n_init=2, random_state=(seed + k) % 2**32).fit(inputs_ND)
            explained = variance - float(kmeans.inertia_) / len(inputs_ND)
            sharpness = max(SHARPNESS / variance, LEAST_SHARPNESS / max(explained, 1e-6 * variance))
            centre_KD = torch.from_numpy(kmeans.cluster_centers_)
            head = self.heads[str(k)]
            assert isinstance(head, nn.Linear), "a head is linear"
            head.weight.copy_(2 * sharpness * centre_KD)
            head.bias.copy_(-sharpness * centre_KD.square().sum(dim=1))


class NeighbourLoss:
    """Batches are vectors of each patch and of its neighbours, (B, 1 + M, D); or their numbers, (B, 1 + M).

    ``vectors``: gives the vectors (2 B, D) of numbers (2 B,) on the batch's device. Only one neighbour of each patch is
    used in a step, and only its vector is read.
    """

    def __init__(self, network: Network, *, vectors: Callable[[Tensor], Tensor] | None = None) -> None:
        self.network = network
        self.vectors = vectors
        self.terms = PairTerms(network)
        self.compiled: tuple[nn.Module, ...] = (self.terms,)

    def __call__(self, x_BV: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss averaged over the heads, and metrics of the last head."""
        loss, metrics, _ = self.with_heads(x_BV, context)
        return loss, metrics

    def with_heads(self, x_BV: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor], Heads]:
        """The same, and the probabilities (2 B, k) by k of the patches, and below them of one neighbour each.

        With several processes B is the whole batch, of which ``x`` is this process's part.
        """
        B, V = x_BV.shape[:2]
        partner_B = 1 + context.randint(V - 1, (B,))
        pair_2B = torch.cat([x_BV[:, 0], x_BV[torch.arange(B, device=x_BV.device), partner_B]])
        pair_2BD = pair_2B if self.vectors is None else self.vectors(pair_2B)
        pooled_BF = self.network.pooled(pair_2BD).chunk(2)
        terms: tuple[Tensor, dict[str, Tensor], Heads] = self.terms(
            torch.cat([gathered(part_BF) for part_BF in pooled_BF])
        )
        return terms


class PairTerms(nn.Module):
    """The loss of what ``network.pooled`` gives of patches and, below them, of one neighbour each, (2 B, F).

    A module, so that its many small operations, some for each head, can be compiled to few.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pooled_2BF: Tensor) -> tuple[Tensor, dict[str, Tensor], Heads]:
        """The loss, metrics of the last head, and the probabilities (2 B, k) by k."""
        both = probabilities(self.network.classified(pooled_2BF))
        losses = [-pair_information(*p_2BK.chunk(2)) for p_2BK in both.values()]
        informations = [mutual_information(p_2BK) / math.log(p_2BK.shape[1]) for p_2BK in both.values()]
        last_2BK = next(reversed(both.values()))
        first_BK, second_BK = last_2BK.chunk(2)
        metrics = {
            "information": torch.stack(informations).mean(),
            "agreement": (first_BK.argmax(1) == second_BK.argmax(1)).float().mean(),
            "marginal_entropy": marginal_entropy(last_2BK),
            "conditional_entropy": conditional_entropy(last_2BK),
        }
        return torch.stack(losses).mean(), metrics, both


def pair_information(p_BK: Tensor, q_BK: Tensor) -> Tensor:
    """Mean of log sum_c (p_c q_c)^beta / m_c, m being the mean of both distributions over the batch.

    At beta = 1 each term is the pointwise mutual information of two patches, log P(x, x') / (P(x) P(x')), where they
    depend on each other through the cluster alone (Adaloglou et al. 2023).
    """
    marginal_K = torch.cat([p_BK, q_BK]).mean(0).clamp_min(_SMALLEST)
    agreement_BK = (p_BK * q_BK).clamp_min(_SMALLEST_PRODUCT) ** BETA
    return (agreement_BK / marginal_K).sum(1).log().mean()
