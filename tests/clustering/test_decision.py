"""The choice of k against data without clusters: few false alarms, and few misses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from choice_of_k import STRUCTURELESS, Size, chosen, false_alarms, misses, mixture

from histoloom.clustering.results import Decision
from histoloom.clustering.validity.decision import (
    NullDecision,
    as_stable_as_any,
    decide,
    decide_by_nulls,
    objections,
    vote_by_indices,
)
from histoloom.clustering.validity.indices import INDICES
from histoloom.clustering.validity.null_comparison import compare
from histoloom.errors import UserError
from histoloom.seeding import numpy_generator

VOTE = vote_by_indices({k: dict.fromkeys(INDICES, float(k)) for k in (3, 4, 5)})
KINDS = list(STRUCTURELESS)
TINY = Size(n=200, draws=8, points=200)


def separated(seed: int = 0) -> np.ndarray:
    return mixture(numpy_generator(seed, "test"), 200, k=4, d=8, separation=8.0)


@pytest.fixture(scope="module")
def clear() -> NullDecision:
    return chosen(separated(), ks=(3, 4, 5), seed=0, size=TINY)


@pytest.fixture(scope="module")
def none() -> NullDecision:
    return chosen(numpy_generator(0, "none").standard_normal((200, 8)), ks=(3, 4, 5), seed=0, size=TINY)


def test_structureless_data_have_no_evidence_on_at_least_19_of_20_seeds() -> None:
    alarms = {(kind := KINDS[seed % len(KINDS)], seed): false_alarms(kind, seeds=[seed]) for seed in range(20)}
    assert sum(alarms.values()) <= 1, alarms


def test_k_is_found_within_one_on_at_least_18_of_20_separated_mixtures() -> None:
    wrong = misses(seeds=range(20))
    assert len(wrong) <= 2, wrong


def test_text_reports_clusters_or_none(clear: NullDecision, none: NullDecision) -> None:
    assert (clear.k, clear.standing[-1]) == (4, 4)
    assert clear.text.startswith("Evidence of clusters: at k = 4, ")
    assert (none.k, none.standing) == (None, ())
    assert none.text.startswith("No evidence of clusters: ")
    assert all(objections(comparison) for comparison in none.comparisons.values())
    assert not objections(clear.comparisons[4])
    assert any("not found again" in reason for reason in objections(clear.comparisons[5]))


def test_without_evidence_the_plain_rule_gives_the_k(clear: NullDecision, none: NullDecision, tmp_path: Path) -> None:
    without, with_it = decide(VOTE, by_nulls=none), decide(VOTE, by_nulls=clear)
    assert (without.k, without.has_clusters) == (VOTE.k, False)
    assert "No evidence of clusters" in without.text
    assert f"k = {VOTE.k} is chosen by the plain rule" in without.text
    assert (with_it.k, with_it.has_clusters, with_it.standing[-1]) == (4, True, 4)
    for decision in (without, with_it):
        assert decision.plain is not None
        assert decision.plain.k == VOTE.k
        assert decision.votes == VOTE.votes
        assert [compared.k for compared in decision.nulls] == [3, 4, 5]
        decision.save(tmp_path)
        assert Decision.load(tmp_path) == decision


def test_the_plain_rule_can_be_requested(clear: NullDecision) -> None:
    decision = decide(VOTE, by_nulls=clear, chooser="plain")
    assert (decision.k, decision.rule, decision.has_clusters) == (VOTE.k, VOTE.rule, True)
    assert decision.text.startswith(clear.text)
    assert "as clusters.chooser says" in decision.text


def test_a_k_at_which_most_but_not_all_clusters_are_found_again_stands_in_part() -> None:
    x_ND = mixture(numpy_generator(0, "part"), 300, k=9, d=8, separation=8.0)
    result = chosen(x_ND, ks=(10,), seed=0, size=Size(n=300, draws=8, points=300))
    assert (result.k, result.standing, result.partly) == (10, (), (10,))
    assert "k itself is uncertain" in result.text


@pytest.mark.parametrize(
    ("agreements", "chosen_k"), [((0.9, 0.86, 0.84), 4), ((0.8, 0.9, 0.84), 4), ((0.8, 0.84, 0.9), 5)]
)
def test_of_those_that_stand_in_part_the_largest_is_chosen_that_is_as_stable_as_any(
    clear: NullDecision, agreements: tuple[float, ...], chosen_k: int
) -> None:
    comparisons = {}
    for (k, measured), agreement in zip(clear.comparisons.items(), agreements, strict=True):
        changed = measured.stability["agreement"].model_copy(update={"real": agreement, "deviation": 0.05})
        stability = {**measured.stability, "agreement": changed}
        comparisons[k] = measured.model_copy(update={"stability": stability})
    assert as_stable_as_any((3, 4, 5), comparisons=comparisons) == chosen_k


def test_a_k_that_is_passed_over_is_not_chosen() -> None:
    result = decide_by_nulls(separated(), ks=(3, 4, 5), seed=0, draws=8, points=200, passed_over=[4])
    assert result.k != 4


def test_intervals_hold_their_value_and_the_closer_null_decides(clear: NullDecision) -> None:
    for comparison in clear.comparisons.values():
        for compared in (*comparison.indices.values(), *comparison.stability.values()):
            assert all(excess.low <= excess.value <= excess.high for excess in compared.excess.values())
            assert compared.least.low == min(excess.low for excess in compared.excess.values())
        assert 0 < comparison.smallest <= 1 / comparison.k <= comparison.largest < 1


def test_on_gaussian_data_the_gaussian_excess_is_chance() -> None:
    """The mean over seeds lies within three of its own deviations from 0, in each index."""
    values = []
    for seed in range(12):
        x_ND = numpy_generator(seed, "chance").standard_normal((120, 5)) * [4, 2, 1, 1, 1]
        comparison = compare(x_ND, ks=(4,), seed=seed, draws=6, points=120)[4]
        values.append([comparison.indices[name].excess["gaussian"].value for name in INDICES])
    mean_I, deviation_I = np.mean(values, axis=0), np.std(values, axis=0) / np.sqrt(len(values))
    assert np.all(np.abs(mean_I) < 3 * deviation_I)


def test_the_unit_of_an_excess_is_the_deviation_among_the_draws_of_the_null(clear: NullDecision) -> None:
    compared = clear.comparisons[4].indices["calinski_harabasz"]
    assert compared.null_deviation.keys() == compared.null.keys()
    for null, excess in compared.excess.items():
        assert excess.value * compared.null_deviation[null] == pytest.approx(compared.real - compared.null[null])


def test_neither_the_order_nor_copies_of_points_matter(clear: NullDecision) -> None:
    x_ND = separated()
    shuffled_ND = numpy_generator(0, "order").permutation(np.concatenate([x_ND, x_ND[:50]]))
    again = decide_by_nulls(shuffled_ND.astype(np.float64), ks=(3, 4, 5), seed=0, draws=8, points=200)
    assert again.comparisons == clear.comparisons


def test_too_few_points_are_no_evidence() -> None:
    result = decide_by_nulls(np.repeat(separated()[:10], 20, axis=0), ks=(3, 4, 5), seed=0)
    assert result.k is None
    assert "too few different patches were looked at: 10, at least 20 are needed" in result.text
    assert decide(VOTE, by_nulls=result).k == VOTE.k


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="finite numbers"):
        decide_by_nulls(np.full((50, 2), np.nan), ks=(2,), seed=0)
