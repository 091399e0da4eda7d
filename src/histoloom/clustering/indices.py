"""The five internal validity indices of docs/design.md, section 4: exact, in blocks, for any number of points.

Legend of shapes: N points, D features, K clusters. All sums run in double precision whatever the input's type.

Only blocks of pair distances are held. The C index needs the sums of the N_W smallest and of the N_W largest of all
pair distances: a sample of pairs brackets the threshold, one pass over all pairs counts and sums what lies on the
sure side of the bracket and bins what lies in it, and further passes narrow the bracket until the bins can no longer
change the sum beyond rounding. The sample thus decides how many passes are needed, never the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from histoloom.errors import UserError
from histoloom.seeding import torch_generator

INDICES = ("calinski_harabasz", "c_index", "dunn", "hartigan", "mcclain_rao")
LARGER_IS_BETTER = {"calinski_harabasz": True, "c_index": False, "dunn": True, "hartigan": True, "mcclain_rao": False}

_BINS = 4096
_SAMPLED_PAIRS = 100_000
_SAMPLED_NUMBERS = 8_000_000  # of one side of the sampled pairs: 64 MB
_CANCELLATION = 1e-4  # squared distances below this share of the squared norms are computed without cancellation
_ROUNDING = 1e-14


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


def validity_indices(x_ND: Tensor, labels_N: Tensor, *, block: int = 1024) -> Validity:
    """Calinski-Harabasz, C index, Dunn, Hartigan and McClain-Rao of a clustering, over all pairs of points.

    ``x_ND``: points, any floating or whole-number type, on any device. ``labels_N``: any whole numbers. ``block``:
    side of the tiles of pair distances, which are all that is held (8 bytes a pair). Definitions: docs/design.md,
    section 4. ``UserError`` where an index is not defined: values that are not finite, one cluster only, as many
    clusters as points, clusters of identical points only, all clusters' means equal, all distances equal.
    """
    codes_N, sizes_K = _checked(x_ND, labels_N)
    order_N = torch.argsort(codes_N, stable=True)
    x_ND = _double(x_ND)[order_N.to(x_ND.device)]
    x_ND = x_ND - x_ND.mean(0)
    codes_N = codes_N[order_N].to(x_ND.device)
    within, between = _scatter(x_ND, codes_N, sizes_K.to(x_ND.device))
    n, k = len(x_ND), len(sizes_K)
    pairs = _pair_sums(x_ND, codes_N, block=block)
    c_index = _c_index(pairs)
    return Validity(
        n=n,
        k=k,
        calinski_harabasz=(between / (k - 1)) / (within / (n - k)),
        c_index=c_index,
        dunn=pairs.nearest_between / pairs.farthest_within,
        hartigan=math.log(between / within),
        mcclain_rao=(pairs.within / pairs.n_within) / (pairs.between / pairs.n_between),
        sizes=tuple(int(size) for size in sizes_K),
    )


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


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)  # Apple GPUs have no double precision


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


class _Prefix:
    """The sum of the ``rank`` smallest of values that are shown in passes, each pass in parts."""

    def __init__(self, rank: int, *, bracket: tuple[float, float], limits: tuple[float, float]) -> None:
        self.rank = rank
        self.limits = limits
        self.result: float | None = None
        self._begin(*bracket)

    def _begin(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.scale = _BINS / (high - low)
        self.count, self.total = 0, 0.0
        self.counts = torch.zeros(_BINS, dtype=torch.int64)
        self.sums = torch.zeros(_BINS, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Show some values of a pass."""
        values = values[values < self.high]
        is_below = values < self.low
        below, inside = values[is_below], values[~is_below]
        self.count += below.numel()
        self.total += float(below.sum())
        bins = ((inside - self.low) * self.scale).long().clamp_(0, _BINS - 1)
        self.counts += torch.bincount(bins, minlength=_BINS).cpu()
        self.sums += torch.bincount(bins, weights=inside, minlength=_BINS).cpu()

    def end_pass(self) -> None:
        """Settle the result, or the bracket of the next pass."""
        counts = self.counts.cumsum(0) + self.count
        if self.rank < self.count:
            self._begin(self.limits[0], self.low)
        elif self.rank > int(counts[-1]):
            self._begin(self.high, self.limits[1])
        else:
            self._narrow(counts)

    def _narrow(self, counts: Tensor) -> None:
        """Take a part of the last bin at its mean where that is exact to rounding; else look closer."""
        last = int(torch.searchsorted(counts, self.rank))
        held = int(self.counts[last])
        wanted = self.rank - int(counts[last]) + held
        below = self.total + float(self.sums[:last].sum())
        part = float(self.sums[last]) * wanted / held if held else 0.0
        width = 1 / self.scale
        error = min(wanted, held - wanted) * width
        resolution = 16 * torch.finfo(torch.float64).eps * max(abs(self.low), abs(self.high))
        if error <= _ROUNDING * abs(below + part) or width <= resolution:
            self.result = below + part
        else:
            edge = self.low + last * width
            self._begin(edge - width, edge + 2 * width)


@dataclass(frozen=True)
class _PairSums:
    """Sums over all pairs of points, and the extremes."""

    n_within: int
    n_between: int
    within: float
    between: float
    farthest_within: float
    nearest_between: float
    smallest: float
    largest: float


class _Running:
    """Sum, number, least and greatest of values shown in parts."""

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0
        self.least, self.greatest = math.inf, 0.0

    def add(self, values: Tensor) -> None:
        if values.numel():
            self.count += values.numel()
            self.total += float(values.sum())
            self.least = min(self.least, float(values.min()))
            self.greatest = max(self.greatest, float(values.max()))


def _pair_sums(x_ND: Tensor, codes_N: Tensor, *, block: int) -> _PairSums:
    sizes_K = torch.bincount(codes_N)
    rank = int((sizes_K * (sizes_K - 1) // 2).sum())
    smallest, largest = _prefixes(x_ND, rank=rank)
    within, between = _Running(), _Running()
    for inside, across in _pair_distances(x_ND, codes_N, block=block):
        within.add(inside)
        between.add(across)
        for values in (inside, across):
            smallest.add(values)
            largest.add(-values)
    _settle((smallest, largest), x_ND, codes_N, block=block)
    assert smallest.result is not None, "the passes end with results"
    assert largest.result is not None, "the passes end with results"
    return _PairSums(
        n_within=within.count,
        n_between=between.count,
        within=within.total,
        between=between.total,
        farthest_within=within.greatest,
        nearest_between=between.least,
        smallest=smallest.result,
        largest=-largest.result,
    )


def _settle(prefixes: tuple[_Prefix, _Prefix], x_ND: Tensor, codes_N: Tensor, *, block: int) -> None:
    """End the first pass, and look again where its bracket was not narrow enough."""
    signs = dict(zip(prefixes, (1.0, -1.0), strict=True))
    for prefix in prefixes:
        prefix.end_pass()
    while open_ones := [prefix for prefix in prefixes if prefix.result is None]:
        for parts in _pair_distances(x_ND, codes_N, block=block):
            for values in parts:
                for prefix in open_ones:
                    prefix.add(signs[prefix] * values)
        for prefix in open_ones:
            prefix.end_pass()


def _prefixes(x_ND: Tensor, *, rank: int) -> tuple[_Prefix, _Prefix]:
    """For the ``rank`` smallest distances and for the ``rank`` smallest negated ones, bracketed by a sample."""
    n = len(x_ND)
    m = max(1000, min(_SAMPLED_PAIRS, _SAMPLED_NUMBERS // x_ND.shape[1]))
    draws = torch_generator(0, "validity", n)
    first_M = torch.randint(n, (m,), generator=draws)
    second_M = (first_M + torch.randint(1, n, (m,), generator=draws)) % n
    sample_M = torch.linalg.vector_norm(x_ND[first_M] - x_ND[second_M], dim=1).cpu().sort().values
    farthest = 2.001 * float(torch.linalg.vector_norm(x_ND, dim=1).max())
    share = rank / (n * (n - 1) / 2)
    slack = 5 * math.sqrt(share * (1 - share) / m) + 1 / m
    upward = _bracket(sample_M, share - slack, share + slack, limits=(0.0, farthest))
    downward = _bracket(-sample_M.flip(0), share - slack, share + slack, limits=(-farthest, 0.0))
    return (
        _Prefix(rank, bracket=upward, limits=(0.0, farthest)),
        _Prefix(rank, bracket=downward, limits=(-farthest, 1e-9 * farthest)),
    )


def _bracket(
    sorted_M: Tensor, low_share: float, high_share: float, *, limits: tuple[float, float]
) -> tuple[float, float]:
    m = len(sorted_M)
    low = limits[0] if low_share <= 0 else float(sorted_M[int(low_share * m)])
    high = limits[1] if high_share >= 1 else float(sorted_M[min(m - 1, int(high_share * m) + 1)])
    margin = 1e-9 * (limits[1] - limits[0])  # a sample of equal values gives a bracket too
    return low - margin, high + margin


def _pair_distances(x_ND: Tensor, codes_N: Tensor, *, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each pair's Euclidean distance once, in parts: those inside clusters and those between clusters.

    ``codes_N`` rises, so that most tiles lie between clusters as a whole.
    """
    n = len(x_ND)
    for top in range(0, n, block):
        rows = slice(top, min(top + block, n))
        for left in range(top, n, block):
            columns = slice(left, min(left + block, n))
            distances_RC = _distances(x_ND[rows], x_ND[columns])
            same_RC = codes_N[rows, None] == codes_N[None, columns]
            if left == top:
                upper_RC = torch.ones_like(same_RC).triu(1)
                yield distances_RC[same_RC & upper_RC], distances_RC[~same_RC & upper_RC]
            elif codes_N[rows][-1] < codes_N[columns][0]:
                yield distances_RC.new_empty(0), distances_RC.flatten()
            else:
                yield distances_RC[same_RC], distances_RC[~same_RC]


def _distances(a_RD: Tensor, b_CD: Tensor) -> Tensor:
    """Euclidean distances, by a matrix product where no difference cancels, else directly."""
    a_R, b_C = (a_RD**2).sum(1), (b_CD**2).sum(1)
    squared_RC = torch.addmm(b_C[None, :], a_RD, b_CD.T, alpha=-2).add_(a_R[:, None])
    if float(squared_RC.min()) <= _CANCELLATION * float(a_R.max() + b_C.max()):
        return torch.cdist(a_RD, b_CD, compute_mode="donot_use_mm_for_euclid_dist")
    return squared_RC.sqrt_()


def _c_index(pairs: _PairSums) -> float:
    spread = pairs.largest - pairs.smallest
    if spread <= 1e-12 * pairs.largest:
        raise UserError("all distances between points are equal; the C index is not defined")
    return (pairs.within - pairs.smallest) / spread
