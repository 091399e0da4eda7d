"""Outputs of the clusterer that have no patches of their own are given a part of another cluster.

Information maximisation can end with fewer clusters than outputs. Either an output dies, or two outputs become copies,
each with half of the probability of the same patches: a saddle that the marginal entropy holds in place, because
sharing a large cluster evens out the sizes. Checks during the training find such outputs. The output and the cluster
that is most worth a split then become the two sides of one direction in the shared features: the direction along which
the cluster's patches differ most in proportion to two views of one patch (Fisher 1936). The step is small: the
training decides what becomes of it.

Shapes: M patches of a sample, F features, K outputs, L of them that are in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from histoloom.clustering.infomax import Network
from histoloom.training.devices import without_autocast
from histoloom.training.tasks import StepContext

CHECKS = 12  # in a whole training
FIRST, LAST = 0.1, 0.85  # shares of the training between which outputs are initialised again: then they converge
COPIES = 0.9  # correlation of two outputs' probabilities
DEAD = 0.1  # of the mean share of an output
NUDGE = 0.3  # logits at a deviation of the cluster's patches along the direction
RIDGE = 0.1  # of the views' mean variance, added to it in every direction

Views = Callable[[Tensor, StepContext], Tensor]


@dataclass(frozen=True)
class Direction:
    """A unit vector in feature space (F,), where it halves a cluster, and how far its patches spread along it.

    ``ratio``: variance between patches over that between views of a patch.
    """

    along_F: Tensor
    middle: float
    deviation: float
    ratio: float


class ClusterReinit:
    """Initialises outputs of ``network`` again; ``sample`` gives the same training patches each time, in chunks."""

    def __init__(self, network: Network, *, sample: Callable[[], Iterable[Tensor]], views: Views) -> None:
        self.network, self.sample, self.views = network, sample, views

    @torch.no_grad()
    def __call__(self, context: StepContext) -> int:
        """Initialise the outputs without patches of their own again, if a check is due; how many."""
        if not due(context):
            return 0
        self.network.eval()
        views = self._features(context)
        self.network.train()
        if views is None:
            return 0
        return sum(reinitialise(self._head(k), first_MF=views[0], second_MF=views[1]) for k in self.network.ks)

    def _head(self, k: int) -> nn.Linear:
        head = self.network.heads[str(k)]
        assert isinstance(head, nn.Linear), "heads are linear"
        return head

    def _features(self, context: StepContext) -> tuple[Tensor, Tensor] | None:
        """Features of two views of each patch of the sample, (M, F); None without a sample."""
        pairs = []
        for chunk in self.sample():
            here = replace(context, rows=slice(0, len(chunk)), batch_size=len(chunk))
            both = torch.cat([self.views(chunk.to(context.device), here) for _ in range(2)])
            pairs.append(self.network.features(both).float().chunk(2))
        if not pairs:
            return None
        first, second = zip(*pairs, strict=True)
        return torch.cat(first), torch.cat(second)


def due(context: StepContext) -> bool:
    """Whether a check falls on this step: ``CHECKS`` of them would fill the training evenly."""
    if not FIRST <= context.progress < LAST:
        return False
    total = round(context.images / context.progress)
    return CHECKS * context.images // total > CHECKS * (context.images - context.batch_size) // total


@torch.no_grad()
def reinitialise(head: nn.Linear, *, first_MF: Tensor, second_MF: Tensor) -> int:
    """Initialise outputs of one head again, in place, by the features of two views of each patch; how many."""
    with without_autocast(first_MF.device):
        p_MK = (head(first_MF).softmax(1) + head(second_MF).softmax(1)) / 2
    K = p_MK.shape[1]
    free = [c for c in range(K) if p_MK[:, c].mean() < DEAD / K]
    free += _joined(head, p_MK=p_MK, among=[c for c in range(K) if c not in free])
    share_K = p_MK.mean(0)
    if not free:
        return 0
    directions = {c: direction(p_MK[:, c], first_MF=first_MF, second_MF=second_MF) for c in range(K) if c not in free}
    candidates = sorted(directions, key=lambda c: -float(share_K[c]) * math.log1p(directions[c].ratio))
    for output, cluster in zip(free, candidates, strict=False):
        _split(head, cluster=cluster, output=output, by=directions[cluster])
    return min(len(free), len(candidates))


def _joined(head: nn.Linear, *, p_MK: Tensor, among: list[int]) -> list[int]:
    """Join outputs ``among`` which are copies, in ``head`` and in ``p``; those that are free now."""
    free: list[int] = []
    alike_LL = torch.corrcoef(p_MK[:, among].T).nan_to_num(0).fill_diagonal_(0) if len(among) > 1 else torch.zeros(1, 1)
    while float(alike_LL.max()) > COPIES:
        places = divmod(int(alike_LL.argmax()), len(alike_LL))
        kept, copy = (among[place] for place in places)
        alike_LL[places[1], :] = alike_LL[:, places[1]] = 0
        head.weight[kept] = (head.weight[kept] + head.weight[copy]) / 2
        head.bias[kept] = (head.bias[kept] + head.bias[copy]) / 2 + math.log(2)
        p_MK[:, kept] += p_MK[:, copy]
        p_MK[:, copy] = 0
        free.append(copy)
    return free


def _split(head: nn.Linear, *, cluster: int, output: int, by: Direction) -> None:
    """Let ``output`` and ``cluster`` share the cluster's patches evenly, each a little surer of one side."""
    sharpness = NUDGE / max(by.deviation, 1e-6)
    turn_F, shift = sharpness * by.along_F, sharpness * by.middle
    weight_F, bias = head.weight[cluster].clone(), head.bias[cluster] - math.log(2)
    head.weight[cluster], head.weight[output] = weight_F + turn_F, weight_F - turn_F
    head.bias[cluster], head.bias[output] = bias - shift, bias + shift


def direction(weight_M: Tensor, *, first_MF: Tensor, second_MF: Tensor) -> Direction:
    """Direction along which patches with these weights differ most, relative to their views; in double precision."""
    device = first_MF.device
    first_MF, second_MF, weight_M = (part.cpu().double() for part in (first_MF, second_MF, weight_M))
    weight_M = (weight_M / weight_M.sum())[:, None]
    mean_MF, apart_MF = (first_MF + second_MF) / 2, (first_MF - second_MF) / 2
    centred_MF = mean_MF - (weight_M * mean_MF).sum(0)
    between_FF, within_FF = (weight_M * centred_MF).T @ centred_MF, (weight_M * apart_MF).T @ apart_MF
    within_FF += (RIDGE * within_FF.diagonal().mean() + 1e-9) * torch.eye(len(within_FF), dtype=torch.float64)
    half_FF = torch.linalg.inv(torch.linalg.cholesky(within_FF))
    ratios_F, axes_FF = torch.linalg.eigh(half_FF @ between_FF @ half_FF.T)
    along_F = nn.functional.normalize(half_FF.T @ axes_FF[:, -1], dim=0)
    along_F = along_F * along_F[along_F.abs().argmax()].sign()  # the sign is free: the same on every machine
    places_M = mean_MF @ along_F
    order_M = places_M.argsort()
    half = int((weight_M[order_M, 0].cumsum(0) >= 0.5 - 1e-9).nonzero()[0, 0])
    deviation = float((weight_M[:, 0] * (centred_MF @ along_F) ** 2).sum().sqrt())
    middle = float(places_M[order_M[half : half + 2]].mean())
    return Direction(along_F.float().to(device), middle, deviation, float(ratios_F[-1]))
