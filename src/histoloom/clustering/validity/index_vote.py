"""Which k: the one that is best in most of the five internal indices (the plain rule behind the paper's k = 14)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

from histoloom.clustering.validity.indices import INDICES, LARGER_IS_BETTER
from histoloom.errors import UserError

RULE = (
    "the k that is best in most of the five internal indices; a tie goes to the better mean rank over the indices, "
    "then to the smaller k; a k that leaves a cluster empty is passed over while another does not"
)


@dataclass(frozen=True)
class IndexVote:
    """The chosen ``k``, the k that were not in question, each k's votes, each index's k, and how to read that."""

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
    hollow = {k for k, count in (empty or {}).items() if count}
    open_ones = {k: values for k, values in known.items() if k not in hollow} or known
    passed_over = sorted(table.keys() - open_ones.keys())
    ranks = {index: _ranking(open_ones, index=index) for index in INDICES}
    by_index = {index: ranking[0] for index, ranking in ranks.items()}
    votes = Counter(by_index.values())
    mean_rank = {k: mean(ranking.index(k) for ranking in ranks.values()) for k in open_ones}
    k = min(open_ones, key=lambda k: (-votes[k], mean_rank[k], k))
    return IndexVote(
        k=k,
        rule=RULE,
        passed_over=passed_over,
        votes={k: votes[k] for k in sorted(open_ones)},
        by_index=by_index,
        text=_text(votes[k], k=k, passed_over=passed_over),
    )


def _ranking(table: Mapping[int, Mapping[str, float]], *, index: str) -> list[int]:
    """The k of the table from best to worst; equal values in rising k."""
    sign = -1 if LARGER_IS_BETTER[index] else 1
    return sorted(table, key=lambda k: (sign * table[k][index], k))


def _text(votes: int, *, k: int, passed_over: list[int]) -> str:
    empty = f"k = {', '.join(map(str, passed_over))} left clusters empty and were passed over. " if passed_over else ""
    return empty + (
        f"{votes} of {len(INDICES)} indices prefer k = {k}. Internal indices rank clusterings of the same data; they "
        "take values that look good on data without any clusters too, so this is no evidence that there are clusters."
    )
