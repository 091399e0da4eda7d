"""Which k, and whether there are clusters at all: by comparison with data without clusters, or by a vote.

The vote takes the k that is best in most of the five internal indices: the plain rule behind the paper's k = 14.

Shapes: N points, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

import numpy as np

from histoloom.clustering.results import Decision, NullComparison, PlainVote
from histoloom.clustering.validity.indices import INDICES, LARGER_IS_BETTER
from histoloom.clustering.validity.null_comparison import compare
from histoloom.errors import UserError

MAJORITY = 3  # of the five indices
MIN_JACCARD = 0.5  # Hennig (2007) calls a cluster below that dissolved
MIN_SHARE = 0.005  # of the patches, in the smallest cluster
POINTS_A_CLUSTER = 4

GOOD_AGREEMENT = 0.75  # adjusted Rand index

NULL_RULE = (
    "a k stands if, for k-means on the features, (1) at least 3 of the five indices are better, each by its 95 % "
    "interval, than on Gaussian data of the same covariance, than on the features permuted one by one, and than on "
    "their principal components permuted one by one; (2) the clusters of two parts of the data without a common patch "
    "agree: those they agree about least share at least half of their patches (Jaccard index 0.5), and more than on "
    "the Gaussian data, by its 95 % interval; (3) no cluster holds under 0.5 % of the patches. The largest k that "
    "stands is chosen. If there is none, a k stands in part where (1) and (3) hold and the two parts agree on the "
    "whole (adjusted Rand index 0.75), and more than on each kind of data without clusters, by its 95 % interval. Of "
    "these the largest is chosen that they agree about as well as about any, within the deviation among the draws. If "
    "there is none either, there is no evidence of clusters"
)
NONE = "No evidence of clusters"

VOTE_RULE = (
    "the k that is best in most of the five internal indices; a tie goes to the better mean rank over the indices, "
    "then to the smaller k; a k that leaves a cluster empty is passed over while another does not"
)


@dataclass(frozen=True)
class IndexVote:
    """The chosen ``k``, the k that could not be chosen, each k's votes, each index's k, and the result in words."""

    k: int
    rule: str
    passed_over: list[int]
    votes: dict[int, int]
    by_index: dict[str, int]
    text: str


def vote_by_indices(
    table: Mapping[int, Mapping[str, float] | None], *, empty: Mapping[int, int] | None = None
) -> IndexVote:
    """Choose among the k of ``table``, which holds the five indices of each; ``empty``: each one's empty clusters.

    A k whose patches all fell into one cluster has no indices, None, and cannot be chosen. ``UserError`` where no other
    is left.
    """
    known = {k: values for k, values in table.items() if values is not None}
    if not known:
        raise UserError(
            f"all patches fell into one cluster at every k ({', '.join(map(str, table))}); cut more patches "
            "(patches.count) or train longer (clusters.training.phases.0.images)"
        )
    with_empty = {k for k, count in (empty or {}).items() if count}
    allowed = {k: values for k, values in known.items() if k not in with_empty} or known
    passed_over = sorted(table.keys() - allowed.keys())
    rankings = {}  # k from best to worst; equal values in rising k
    for index in INDICES:
        sign = -1 if LARGER_IS_BETTER[index] else 1
        rankings[index] = [k for _, k in sorted((sign * values[index], k) for k, values in allowed.items())]
    by_index = {index: ranking[0] for index, ranking in rankings.items()}
    votes = Counter(by_index.values())
    mean_rank = {k: mean(ranking.index(k) for ranking in rankings.values()) for k in allowed}
    k = min(allowed, key=lambda k: (-votes[k], mean_rank[k], k))
    with_empty_text = f"k = {', '.join(map(str, passed_over))} left clusters empty and were passed over. "
    return IndexVote(
        k=k,
        rule=VOTE_RULE,
        passed_over=passed_over,
        votes={k: votes[k] for k in sorted(allowed)},
        by_index=by_index,
        text=(with_empty_text if passed_over else "")
        + f"{votes[k]} of {len(INDICES)} indices prefer k = {k}. Internal indices rank clusterings of the same data; "
        "they take values that look good on data without any clusters too, so this is no evidence that there are "
        "clusters.",
    )


@dataclass(frozen=True)
class NullDecision:
    """``k`` is None where there is no evidence of clusters. ``comparisons``: empty where there were too few points.

    ``standing``: the k that the rule accepts, ``partly``: those that it accepts in part. ``text``: the result in plain
    words.
    """

    k: int | None
    standing: tuple[int, ...]
    partly: tuple[int, ...]
    rule: str
    text: str
    comparisons: Mapping[int, NullComparison]


def decide_by_nulls(
    x_ND: np.ndarray,
    *,
    ks: Sequence[int],
    seed: int,
    draws: int = 8,
    points: int = 1500,
    passed_over: Collection[int] = (),
) -> NullDecision:
    """Choose among ``ks`` for features (N, D) of any type, or find no evidence of clusters.

    ``draws`` (at least 2) sets of at most ``points`` points are clustered, of the data and of each null; equal points
    count once. ``passed_over``: k that cannot be chosen. ``UserError`` for values that are not finite.
    """
    if x_ND.ndim != 2 or not np.isfinite(x_ND).all():
        raise UserError(f"features must be a table (points, features) of finite numbers, got shape {x_ND.shape}")
    distinct_ND = np.unique(np.asarray(x_ND, dtype=np.float64), axis=0)
    needed = POINTS_A_CLUSTER * max(ks)
    if min(len(distinct_ND), points) < needed:
        few = f"too few different patches were looked at: {min(len(distinct_ND), points)}, at least {needed} are needed"
        return NullDecision(None, (), (), NULL_RULE, f"{NONE}: {few} for k = {max(ks)}.", {})
    comparisons = compare(distinct_ND, ks=ks, seed=seed, draws=draws, points=points)
    allowed = {k: comparison for k, comparison in comparisons.items() if k not in passed_over}
    standing = tuple(k for k, comparison in allowed.items() if not objections(comparison))
    partly = []
    for k, comparison in allowed.items():
        agreed = comparison.stability["agreement"]
        is_stable = agreed.real >= GOOD_AGREEMENT and agreed.least.low > 0
        is_better = _better_indices(comparison) >= MAJORITY and comparison.smallest >= MIN_SHARE
        if k not in standing and is_stable and is_better:
            partly.append(k)
    chosen = max(standing, default=None)
    if chosen is None and partly:
        chosen = as_stable_as_any(partly, comparisons=comparisons)
    text = _text(comparisons, k=chosen, standing=standing)
    return NullDecision(chosen, standing, tuple(partly), NULL_RULE, text, comparisons)


def _better_indices(comparison: NullComparison) -> int:
    """How many indices are better than on every null."""
    return sum(comparison.indices[name].least.low > 0 for name in INDICES)


def as_stable_as_any(ks: Sequence[int], *, comparisons: Mapping[int, NullComparison]) -> int:
    """The largest k whose agreement is at most a deviation among draws below the best one's.

    Agreement falls with the number of clusters also where they are all there, so the best one alone would favour few.
    """
    agreed = {k: comparisons[k].stability["agreement"] for k in ks}
    best = max(agreed.values(), key=lambda compared: compared.real)
    return max(k for k, compared in agreed.items() if compared.real >= best.real - best.deviation)


def objections(comparison: NullComparison) -> list[str]:
    """Why the rule rejects a k, in plain words; empty where it accepts it."""
    weakest, reasons = comparison.stability["weakest"], []
    better = _better_indices(comparison)
    if better < MAJORITY:
        reasons.append(f"{better} of {len(INDICES)} indices better than without clusters")
    if weakest.real < MIN_JACCARD:
        reasons.append(f"not found again in other patches ({weakest.real:.2f})")
    elif weakest.excess["gaussian"].low <= 0:
        reasons.append("found again no better than on Gaussian data")
    if comparison.smallest < MIN_SHARE:
        reasons.append(f"a cluster with {100 * comparison.smallest:.1f} % of the patches")
    return reasons


def _text(comparisons: Mapping[int, NullComparison], *, k: int | None, standing: Sequence[int]) -> str:
    """The decision in plain words."""
    if k is None:
        # Indices that look good are no evidence by themselves.
        better = [str(k) for k, comparison in comparisons.items() if _better_indices(comparison) >= MAJORITY]
        none = f"{NONE}: no k of the sweep stands by the rule."
        if not better:
            return f"{none} The indices are no better than on data without clusters."
        return (
            f"{none} At k = {', '.join(better)} most indices are better than on data without clusters, as skewed or "
            "curved data without clusters can be too, but no such k gives clusters that are found again in other "
            "patches."
        )
    comparison = comparisons[k]
    weakest, agreed = (comparison.stability[name].real for name in ("weakest", "agreement"))
    again = (
        f"the clusters are found again in other patches (the least reproducible one shares {weakest:.2f} of its "
        "patches)"
        if standing
        else f"most of the clusters are found again in other patches (adjusted Rand index {agreed:.2f}), but not all: "
        f"the least reproducible one shares {weakest:.2f} of its patches, so that k itself is uncertain"
    )
    others = f" k = {', '.join(map(str, standing))} stand." if len(standing) > 1 else ""
    return (
        f"Evidence of clusters: at k = {k}, {_better_indices(comparison)} of {len(INDICES)} indices are better than on "
        f"data without clusters, and {again}.{others}"
    )


def decide(
    vote: IndexVote,
    *,
    by_nulls: NullDecision,
    chooser: Literal["nulls", "plain"] = "nulls",
    restarts: Mapping[int, Sequence[float]] | None = None,
) -> Decision:
    """The k that ``by_nulls`` chose; the vote's k where ``chooser`` is plain or there is no evidence of clusters.

    ``restarts``: adjusted Rand index of every two restarts, by k.
    """
    k, rule, reason = by_nulls.k, by_nulls.rule, ""
    if chooser == "plain":
        k, rule, reason = vote.k, vote.rule, f" k = {vote.k} is chosen by the plain rule, as clusters.chooser says."
    elif k is None:
        k, reason = vote.k, f" k = {vote.k} is chosen by the plain rule because a number is needed."
    return Decision(
        k=k,
        rule=rule,
        passed_over=tuple(vote.passed_over),
        votes=vote.votes,
        by_index=vote.by_index,
        text=by_nulls.text + reason,
        has_clusters=by_nulls.k is not None,
        standing=by_nulls.standing,
        partly=by_nulls.partly,
        plain=PlainVote(k=vote.k, rule=vote.rule, text=vote.text),
        nulls=tuple(
            compared.model_copy(update={"objections": tuple(objections(compared))})
            for compared in by_nulls.comparisons.values()
        ),
        restarts={k: tuple(values) for k, values in (restarts or {}).items()},
    )
