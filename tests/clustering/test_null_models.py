"""Null data: what they keep of the data, and what they lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histoloom.clustering.stage import kmeans_labels
from histoloom.clustering.validity.indices import INDICES, LARGER_IS_BETTER, validity_indices
from histoloom.clustering.validity.null_comparison import NULLS, components_null, gaussian_null, permuted_null
from histoloom.seeding import numpy_generator


def curved() -> np.ndarray:
    """300 points on a noisy parabola, with a third feature that depends on both."""
    rng = numpy_generator(0, "curved")
    first_N = rng.standard_normal(300)
    second_N = first_N**2 + 0.1 * rng.standard_normal(300)
    return np.stack([first_N, second_N, first_N - 3 * second_N], axis=1) + 5


@pytest.mark.parametrize("m", [300, 120])
def test_gaussian_data_have_the_very_mean_and_covariance(m: int) -> None:
    x_ND = curved()
    drawn_MD = gaussian_null(x_ND)(m, numpy_generator(0, "draw"))
    np.testing.assert_allclose(drawn_MD.mean(0), x_ND.mean(0), rtol=1e-9)
    np.testing.assert_allclose(np.cov(drawn_MD.T, bias=True), np.cov(x_ND.T, bias=True), rtol=1e-9, atol=1e-9)


def test_gaussian_data_with_more_features_than_points_keep_the_widest_directions() -> None:
    x_ND = numpy_generator(0, "wide").standard_normal((60, 100)) * np.arange(1, 101) ** -1.0
    drawn_MD = gaussian_null(x_ND)(30, numpy_generator(0, "draw"))
    assert drawn_MD.shape == (30, 100)
    ours, theirs = (np.linalg.svd(y - y.mean(0), compute_uv=False)[:29] / np.sqrt(len(y)) for y in (drawn_MD, x_ND))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_permuted_data_keep_each_feature_and_lose_what_they_have_in_common() -> None:
    x_ND = curved()
    drawn_ND = permuted_null(x_ND)(300, numpy_generator(0, "draw"))
    np.testing.assert_array_equal(np.sort(drawn_ND, axis=0), np.sort(x_ND, axis=0))
    assert abs(np.corrcoef(x_ND[:, 1], x_ND[:, 2])[0, 1]) > 0.9
    assert np.abs(np.corrcoef(drawn_ND.T) - np.eye(3)).max() < 0.2


def test_permuted_components_keep_the_covariance_and_the_skew_along_its_axes() -> None:
    x_ND = curved()
    drawn_ND = components_null(x_ND)(300, numpy_generator(0, "draw"))
    axes_DD = np.linalg.svd(x_ND - x_ND.mean(0), full_matrices=False)[2]
    ours_ND, theirs_ND = ((y - x_ND.mean(0)) @ axes_DD.T for y in (drawn_ND, x_ND))
    np.testing.assert_allclose(np.sort(ours_ND, axis=0), np.sort(theirs_ND, axis=0), rtol=1e-9, atol=1e-9)
    largest = np.abs(np.cov(x_ND.T)).max()
    np.testing.assert_allclose(np.cov(drawn_ND.T), np.cov(x_ND.T), atol=0.2 * largest)
    assert abs(np.corrcoef(ours_ND[:, 0], ours_ND[:, 1] ** 2)[0, 1]) < 0.3


@pytest.mark.parametrize("null", list(NULLS))
def test_draws_follow_their_generator(null: str) -> None:
    draw = NULLS[null](curved())
    first, again, other = (draw(100, numpy_generator(0, name)) for name in ("a", "a", "b"))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_gaussian_beats_the_papers_clusters_in_every_index(real_data: Path) -> None:
    """docs/explanation/reproducing.md: the published indices of k = 14 are no evidence of clusters."""
    published = real_data / "paper" / "k14-latents-and-clusters.csv"
    if not published.is_file():
        pytest.skip(f"the paper's features are not at {published}")
    table = pd.read_csv(published, header=None).to_numpy()
    x_ND, labels_N = table[:, :16], table[:, 16].astype(np.int64)
    drawn_ND = gaussian_null(x_ND)(len(x_ND), numpy_generator(0, "draw"))
    theirs = validity_indices(torch.from_numpy(x_ND), torch.from_numpy(labels_N))
    null = validity_indices(torch.from_numpy(drawn_ND), torch.from_numpy(kmeans_labels(drawn_ND, k=14, seed=0)))
    for index in INDICES:
        sign = 1 if LARGER_IS_BETTER[index] else -1
        assert sign * getattr(null, index) > sign * getattr(theirs, index), index
