"""Sums over all pairs of points, exact, in blocks: what the validity indices need of the distances.

Only blocks of pair distances are held. The C index needs the sums of the N_W smallest and of the N_W largest of all
pair distances: a sample of pairs brackets the threshold, and one pass over all pairs counts and sums what lies on the
sure side of the bracket and keeps what lies in it, which is then sorted. Where that is too much to keep it is binned,
and further passes narrow the bracket until it is not, or until the bins can no longer change the sum beyond
rounding. The sample thus decides how many passes are needed, never the result.

Shapes: N points, D features, K clusters; R x C a block of pairs. All sums run in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from histoloom.seeding import torch_generator

_BINS = 4096
_KEPT = 16_000_000  # values in the bracket: 128 MB
_SAMPLED_PAIRS = (100_000, 1_000_000)
_SAMPLED_SHARE = 2e-4
_SAMPLED_NUMBERS = 8_000_000  # of one side of the pairs sampled at once: 64 MB
_CANCELLATION = 1e-4  # squared distances below this share of the squared norms are computed without cancellation
_ROUNDING = 1e-14
_FEW = 1 / 16  # a share so small that adding up those values alone is quicker, and more exact


class Progress(Protocol):
    """Counts what is done."""

    def advance(self, by: int, /) -> None:
        """Count ``by`` more."""


ProgressFactory = Callable[[str, int], AbstractContextManager[Progress]]
"""Makes a progress display from a description and a total."""


class _Silent:
    def advance(self, by: int, /) -> None:
        """Show nothing."""


def silent(_description: str, _total: int) -> AbstractContextManager[Progress]:
    """A ``ProgressFactory`` that shows nothing."""
    return nullcontext(_Silent())


class Prefix:
    """The sum of the ``rank`` smallest of values that are shown in passes, each pass in parts."""

    def __init__(self, rank: int, *, bracket: tuple[float, float], limits: tuple[float, float]) -> None:
        self.rank = rank
        self.limits = limits
        self.result: float | None = None
        self._start_pass(*bracket)

    def _start_pass(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.scale = _BINS / (high - low)
        self.count, self.total = 0, 0.0
        self.counts = torch.zeros(_BINS, dtype=torch.int64)
        self.sums = torch.zeros(_BINS, dtype=torch.float64)
        # One array, of which only the part in use is ever touched: many small ones would pin a heap full of holes.
        self.kept = torch.empty(_KEPT, dtype=torch.float64)
        self.inside = 0

    def add(self, values: Tensor) -> None:
        """Show some values of a pass."""
        is_below, is_up_to = values < self.low, values < self.high
        count, up_to = int(torch.count_nonzero(is_below)), int(torch.count_nonzero(is_up_to))
        self.count += count
        if count < _FEW * values.numel():
            self.total += float(values[is_below].sum())
        else:
            self.total += float(values.clamp(max=self.low).sum()) - self.low * (values.numel() - count)
        if up_to == count:
            return
        inside = values[is_below ^ is_up_to]
        self._keep(inside)
        bins = ((inside - self.low) * self.scale).long().clamp_(0, _BINS - 1)
        self.counts += torch.bincount(bins, minlength=_BINS).cpu()
        self.sums += torch.bincount(bins, weights=inside, minlength=_BINS).cpu()

    def _keep(self, inside: Tensor) -> None:
        start, self.inside = self.inside, self.inside + inside.numel()
        if self.inside <= len(self.kept):
            self.kept[start : self.inside] = inside

    def end_pass(self) -> None:
        """Compute the result, or the bracket of the next pass."""
        counts = self.counts.cumsum(0) + self.count
        if self.rank < self.count:
            self._start_pass(self.limits[0], self.low)
        elif self.rank > int(counts[-1]):
            self._start_pass(self.high, self.limits[1])
        elif self.inside <= len(self.kept):
            kept, wanted = self.kept[: self.inside].numpy(), self.rank - self.count
            if wanted:
                kept.partition(wanted - 1)
            self.result = self.total + float(torch.from_numpy(kept[:wanted]).sum())
            self.kept = torch.empty(0)
        else:
            self._narrow(counts)

    def _narrow(self, counts: Tensor) -> None:
        """Take a part of the last bin at its mean where that is exact to rounding; else narrow the bracket."""
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
            self._start_pass(edge - width, edge + 2 * width)


@dataclass(frozen=True)
class PairSums:
    """Sums over all pairs of points, and the extremes."""

    n_within: int
    n_between: int
    within: float
    between: float
    farthest_within: float
    nearest_between: float
    smallest: float
    largest: float


class _RunningSum:
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


def pair_sums(x_ND: Tensor, codes_N: Tensor, *, block: int, progress: ProgressFactory = silent) -> PairSums:
    """Over the pairs of centred points (N, D), float64, whose cluster numbers (N,) rise; ``block``: a side of tiles.

    ``smallest`` and ``largest`` sum as many of all distances as there are pairs inside clusters.
    """
    sizes_K = torch.bincount(codes_N)
    rank = int((sizes_K * (sizes_K - 1) // 2).sum())
    smallest, largest = _prefixes(x_ND, rank=rank)
    within, between = _RunningSum(), _RunningSum()
    with _pass(progress, x_ND, number=1) as counter:
        for inside, across in _pair_distances(x_ND, codes_N, block=block):
            within.add(inside)
            between.add(across)
            for values in (inside, across):
                smallest.add(values)
                largest.add(-values)
                counter.advance(values.numel())
    _finish_passes((smallest, largest), x_ND, codes_N, block=block, progress=progress)
    assert smallest.result is not None, "the passes end with results"
    assert largest.result is not None, "the passes end with results"
    return PairSums(
        n_within=within.count,
        n_between=between.count,
        within=within.total,
        between=between.total,
        farthest_within=within.greatest,
        nearest_between=between.least,
        smallest=smallest.result,
        largest=-largest.result,
    )


def _finish_passes(
    prefixes: tuple[Prefix, Prefix], x_ND: Tensor, codes_N: Tensor, *, block: int, progress: ProgressFactory
) -> None:
    """End the first pass, and make more where its bracket was not narrow enough."""
    signs = dict(zip(prefixes, (1.0, -1.0), strict=True))
    for prefix in prefixes:
        prefix.end_pass()
    number = 1
    while open_ones := [prefix for prefix in prefixes if prefix.result is None]:
        number += 1
        with _pass(progress, x_ND, number=number) as counter:
            for values in (values for parts in _pair_distances(x_ND, codes_N, block=block) for values in parts):
                for prefix in open_ones:
                    prefix.add(signs[prefix] * values)
                counter.advance(values.numel())
        for prefix in open_ones:
            prefix.end_pass()


def _pass(progress: ProgressFactory, x_ND: Tensor, *, number: int) -> AbstractContextManager[Progress]:
    return progress(f"pairs of points, pass {number}", len(x_ND) * (len(x_ND) - 1) // 2)


def _prefixes(x_ND: Tensor, *, rank: int) -> tuple[Prefix, Prefix]:
    """For the ``rank`` smallest distances and for the ``rank`` smallest negated ones, bracketed by a sample."""
    n = len(x_ND)
    n_pairs = n * (n - 1) // 2
    m = int(min(max(_SAMPLED_SHARE * n_pairs, _SAMPLED_PAIRS[0]), _SAMPLED_PAIRS[1], n_pairs))
    draws = torch_generator(0, "validity", n)
    first_M = torch.randint(n, (m,), generator=draws)
    second_M = (first_M + torch.randint(1, n, (m,), generator=draws)) % n
    parts = zip(
        *(ends_M.split(max(1, _SAMPLED_NUMBERS // x_ND.shape[1])) for ends_M in (first_M, second_M)), strict=True
    )
    distances = [torch.linalg.vector_norm(x_ND[first] - x_ND[second], dim=1).cpu() for first, second in parts]
    sample_M = torch.cat(distances).sort().values
    farthest = 2.001 * float(torch.linalg.vector_norm(x_ND, dim=1).max())
    share = rank / n_pairs
    slack = 5 * math.sqrt(share * (1 - share) / m) + 1 / m
    upward = _bracket(sample_M, share - slack, share + slack, limits=(0.0, farthest))
    downward = _bracket(-sample_M.flip(0), share - slack, share + slack, limits=(-farthest, 0.0))
    return (
        Prefix(rank, bracket=upward, limits=(0.0, farthest)),
        Prefix(rank, bracket=downward, limits=(-farthest, 1e-9 * farthest)),
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

    ``codes_N`` rises, so that most tiles lie between clusters, or inside one, as a whole: no pair is compared there.
    """
    n, codes = len(x_ND), codes_N.tolist()
    none = x_ND.new_empty(0)
    for top in range(0, n, block):
        bottom = min(top + block, n)
        for left in range(top, n, block):
            right = min(left + block, n)
            distances_RC = _distances(x_ND[top:bottom], x_ND[left:right], is_square=left == top)
            if left == top:
                yield _split(distances_RC, codes_N[top:bottom], codes_N[left:right], upper=True)
            elif codes[bottom - 1] < codes[left]:
                yield none, distances_RC.flatten()
            elif codes[top] == codes[right - 1]:
                yield distances_RC.flatten(), none
            else:
                yield _split(distances_RC, codes_N[top:bottom], codes_N[left:right], upper=False)


def _split(distances_RC: Tensor, codes_R: Tensor, codes_C: Tensor, *, upper: bool) -> tuple[Tensor, Tensor]:
    """Distances inside clusters and between them; ``upper``: of each pair of a square once, and no point to itself."""
    same_RC = codes_R[:, None] == codes_C[None, :]
    if not upper:
        return distances_RC[same_RC], distances_RC[~same_RC]
    once_RC = torch.ones_like(same_RC).triu(1)
    return distances_RC[same_RC & once_RC], distances_RC[~same_RC & once_RC]


def _distances(a_RD: Tensor, b_CD: Tensor, *, is_square: bool) -> Tensor:
    """Euclidean distances, by a matrix product where no difference cancels, else directly.

    ``is_square``: of points to themselves; what the diagonal then holds means nothing.
    """
    a_R, b_C = (a_RD**2).sum(1), (b_CD**2).sum(1)
    squared_RC = torch.addmm(b_C[None, :], a_RD, b_CD.T, alpha=-2).add_(a_R[:, None])
    if is_square:
        squared_RC.fill_diagonal_(math.inf)
    if float(squared_RC.min()) <= _CANCELLATION * float(a_R.max() + b_C.max()):
        return torch.cdist(a_RD, b_CD, compute_mode="donot_use_mm_for_euclid_dist")
    return squared_RC.sqrt_()
