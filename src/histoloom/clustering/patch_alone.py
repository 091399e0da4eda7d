"""Clusters from a patch alone, where they were made with its surroundings.

A generated patch has no slide about it, and a user's picture often has none. A second set of linear heads, which sees
the patch's own features, learns the probabilities that the first gives with the surroundings (distillation: Hinton,
Vinyals and Dean 2015). How often both agree on held-out patches is how far a patch shows its cluster.

Shapes: N patches, D features, P of them of the patch itself, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from histoloom.clustering.neighbours import LinearNet

MOST_PATCHES = 20_000
"""Training patches that the second heads learn from."""

PENALTY = 1e-4
"""Weight of the squared weights of the second heads, against overfitting where there are few patches."""

ITERATIONS = 100


def teach(network: LinearNet, x_NP: Tensor, *, targets: Mapping[int, Tensor]) -> None:
    """Fit the heads for the patch alone to ``targets``, probabilities (N, k) by k in the order of the heads' outputs.

    ``x_NP`` are the patches' own features, on the scale that the network gets them. Multinomial logistic regression by
    L-BFGS; the loss is convex, so that the result does not depend on a start or a seed.
    """
    pooled_NP = network.pooled(x_NP)
    for k, target_NK in targets.items():
        head = network.heads_alone[str(k)]
        parameters = list(head.parameters())
        optimizer = torch.optim.LBFGS(parameters, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()  # noqa: B023 - called within this turn of the loop
            loss = -(target_NK * head(pooled_NP).log_softmax(dim=1)).sum(dim=1).mean()  # noqa: B023
            loss = loss + PENALTY * sum(values.square().sum() for values in parameters)  # noqa: B023
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
