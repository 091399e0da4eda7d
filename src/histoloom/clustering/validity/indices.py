"""The five internal validity indices (docs/explanation/design.md, section 4): exact, in blocks, for any number of
points.

Shapes: N points, D features, K clusters. All sums run in double precision whatever the input's type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from histoloom.clustering.validity.pair_distances import PairSums, ProgressFactory, pair_sums, silent
from histoloom.errors import UserError

INDICES = ("calinski_harabasz", "c_index", "dunn", "hartigan", "mcclain_rao")
LARGER_IS_BETTER = {"calinski_harabasz": True, "c_index": False, "dunn": True, "hartigan": True, "mcclain_rao": False}


@dataclass(frozen=True)
class Validity:
    """The indices of one clustering; ``sizes`` in the order of the sorted label values."""

    n: int
    k: int
    calinski_harabasz: float
    c_index: float
    dunn: float
    hartigan: float
    mcclain_rao: float
    sizes: tuple[int, ...]


def validity_indices(
    x_ND: Tensor, labels_N: Tensor, *, block: int = 512, progress: ProgressFactory = silent
) -> Validity:
    """Calinski-Harabasz, C index, Dunn, Hartigan and McClain-Rao of a clustering, over all pairs of points.

    ``x_ND``: points, any floating or whole-number type, on any device. ``labels_N``: any whole numbers. ``block``:
    side of the tiles of pair distances (8 bytes a pair). ``progress``: makes a progress display.
    Definitions: docs/explanation/design.md, section 4.
    ``UserError`` where an index is not defined: values that are not finite, one cluster only, as many
    clusters as points, clusters of identical points only, all clusters' means equal, all distances equal.
    """
    codes_N, sizes_K = _checked(x_ND, labels_N)
    order_N = torch.argsort(codes_N, stable=True)
    x_ND = x_ND.cpu() if x_ND.device.type == "mps" else x_ND  # Apple GPUs have no double precision
    x_ND = x_ND.to(torch.float64)[order_N.to(x_ND.device)]
    x_ND = x_ND - x_ND.mean(0)
    codes_N = codes_N[order_N].to(x_ND.device)
    within, between = _scatter(x_ND, codes_N, sizes_K.to(x_ND.device))
    n, k = len(x_ND), len(sizes_K)
    pairs = pair_sums(x_ND, codes_N, block=block, progress=progress)
    if pairs.largest - pairs.smallest <= 1e-12 * pairs.largest:
        raise UserError("all distances between points are equal; the C index is not defined")
    indices = five_indices(pairs, n=n, k=k, within=within, between=between)
    return Validity(n=n, k=k, **indices, sizes=tuple(int(size) for size in sizes_K))


def five_indices(pairs: PairSums, *, n: int, k: int, within: float, between: float) -> dict[str, float]:
    """The indices by name for ``n`` points in ``k`` clusters (docs/explanation/design.md, section 4).

    ``within`` and ``between``: sums of squares within (WGSS) and between (BGSS) clusters.
    """
    return {
        "calinski_harabasz": (between / (k - 1)) / (within / (n - k)),
        "c_index": (pairs.within - pairs.smallest) / (pairs.largest - pairs.smallest),
        "dunn": pairs.nearest_between / pairs.farthest_within,
        "hartigan": math.log(between / within),
        "mcclain_rao": (pairs.within / pairs.n_within) / (pairs.between / pairs.n_between),
    }


def _checked(x_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Cluster numbers 0..K-1 (CPU) and cluster sizes, or the reason why there is nothing to compute."""
    if x_ND.ndim != 2 or labels_N.ndim != 1:
        raise UserError(
            f"features must be a table (points, features) and labels a list, got shapes {tuple(x_ND.shape)} and "
            f"{tuple(labels_N.shape)}"
        )
    if len(x_ND) != len(labels_N):
        raise UserError(f"there must be one label a point, got {len(x_ND)} points and {len(labels_N)} labels")
    if not bool(torch.isfinite(x_ND).all()):
        rows = int((~torch.isfinite(x_ND)).any(1).sum())
        raise UserError(f"{rows} of {len(x_ND)} points hold NaN or infinite values; leave them out first")
    if labels_N.is_floating_point() and not bool(torch.equal(labels_N, labels_N.round())):
        raise UserError("labels must be whole numbers; got fractions or NaN")
    _, codes_N, sizes_K = torch.unique(labels_N.cpu(), return_inverse=True, return_counts=True)
    if len(sizes_K) < 2:
        raise UserError(f"all {len(x_ND)} points carry the same label; validity needs at least 2 clusters")
    if len(sizes_K) == len(x_ND):
        raise UserError(f"each of the {len(x_ND)} points is its own cluster; validity needs fewer clusters than points")
    return codes_N, sizes_K


def _scatter(x_ND: Tensor, codes_N: Tensor, sizes_K: Tensor) -> tuple[float, float]:
    """WGSS and BGSS of centred points."""
    zeros_KD = x_ND.new_zeros(len(sizes_K), x_ND.shape[1])
    means_KD = zeros_KD.index_add(0, codes_N, x_ND) / sizes_K[:, None]
    within = float(((x_ND - means_KD[codes_N]) ** 2).sum())
    between = float((sizes_K * (means_KD**2).sum(1)).sum())
    floor = (torch.finfo(x_ND.dtype).eps ** 2) * float((x_ND**2).sum())
    if within <= floor:
        raise UserError("all points of each cluster are identical; the indices divide by the spread inside clusters")
    if between <= floor:
        raise UserError("the means of all clusters coincide; the logarithm in Hartigan's index is not defined")
    return within, between
