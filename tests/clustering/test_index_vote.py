"""The vote of the indices: the paper's table gives the paper's k, and ties are resolved by the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from histoloom.clustering.validity.decision import vote_by_indices
from histoloom.clustering.validity.indices import INDICES
from histoloom.errors import UserError

# Rumman et al., Bioengineering 2025, 12(7), 764: CH, C index, Dunn, Hartigan, McClain-Rao.
PAPER = {
    10: (2142.54026, 0.12234, 0.00441, 0.65763, 0.54631),
    11: (2866.86433, 0.10477, 0.00477, 1.05432, 0.49791),
    12: (1865.81774, 0.12042, 0.00463, 0.72021, 0.55443),
    13: (2836.22720, 0.09131, 0.00424, 1.22610, 0.46335),
    14: (3367.74211, 0.07645, 0.00548, 1.47801, 0.41643),
    15: (2027.82944, 0.10489, 0.00424, 1.04494, 0.51414),
    16: (2603.28507, 0.08615, 0.00490, 1.36384, 0.45223),
}


def table(rows: Mapping[int, Sequence[float]]) -> dict[int, dict[str, float]]:
    return {k: dict(zip(INDICES, values, strict=True)) for k, values in rows.items()}


def test_the_papers_indices_give_the_papers_k() -> None:
    vote = vote_by_indices(table(PAPER))
    assert vote.k == 14
    assert vote.by_index == dict.fromkeys(INDICES, 14)
    assert vote.votes == {10: 0, 11: 0, 12: 0, 13: 0, 14: 5, 15: 0, 16: 0}
    assert "no evidence that there are clusters" in vote.text


def test_most_votes_win_even_against_a_better_mean_rank() -> None:
    rows = {2: (9, 0.1, 0.9, 0, 0.9), 3: (8, 0.2, 0.8, 8, 0.2), 4: (1, 0.9, 0.1, 9, 0.1)}
    vote = vote_by_indices(table(rows))
    assert vote.votes == {2: 3, 3: 0, 4: 2}
    assert vote.k == 2


def test_a_tie_of_votes_goes_to_the_better_mean_rank() -> None:
    rows = {2: (9, 0.1, 0.1, 0, 0.9), 3: (8, 0.2, 0.2, 9, 0.1), 4: (1, 0.9, 0.9, 8, 0.2)}
    vote = vote_by_indices(table(rows))
    assert vote.votes == {2: 2, 3: 2, 4: 1}
    assert vote.k == 3


@pytest.mark.parametrize("order", [(5, 3), (3, 5)])
def test_a_complete_tie_goes_to_the_smaller_k(order: tuple[int, int]) -> None:
    assert vote_by_indices(table(dict.fromkeys(order, (1, 1, 1, 1, 1)))).k == 3


def test_a_k_with_an_empty_cluster_is_not_chosen_if_another_k_has_none() -> None:
    vote = vote_by_indices(table(PAPER), empty={14: 1, 13: 0, 16: 2})
    assert vote.passed_over == [14, 16]
    assert vote.k in PAPER
    assert vote.k not in (14, 16)
    assert "k = 14, 16 left clusters empty" in vote.text
    assert vote_by_indices(table(PAPER), empty=dict.fromkeys(PAPER, 1)).k == 14


def test_a_k_without_indices_is_never_chosen() -> None:
    vote = vote_by_indices(table(PAPER) | {14: None}, empty=dict.fromkeys(PAPER, 1))
    assert vote.passed_over == [14]
    assert vote.k in set(PAPER) - {14}
    assert vote.votes.keys() == PAPER.keys() - {14}
    with pytest.raises(UserError, match=r"one cluster at every k \(10, 14\)"):
        vote_by_indices({10: None, 14: None})
