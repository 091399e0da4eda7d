"""The VICReg loss of the run's own encoder: its terms agree with the equations, and it prevents collapse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from histoloom.clustering.features.images import random_view, views_of
from histoloom.clustering.features.vicreg import Expander, PatchEncoder, VicregLoss, covariance_loss, variance_loss
from histoloom.config import SelfsupConfig
from histoloom.seeding import numpy_generator, torch_generator
from histoloom.training.tasks import StepContext


def context(n: int, *, step: int = 0) -> StepContext:
    return StepContext(
        images=step * n,
        step=step,
        progress=0.0,
        device=torch.device("cpu"),
        generator=torch_generator(0, "step", step),
        rows=slice(0, n),
        batch_size=n,
    )


def pictures(n: int) -> np.ndarray:
    """Stripes and chequerboards in several tones."""
    rng = numpy_generator(0, "pictures")
    grid = np.indices((32, 32)) // 4 % 2
    patterns = np.stack([grid[0], grid[0] ^ grid[1]])[np.arange(n) % 2]
    tones = rng.integers(120, 160, (n, 1, 1, 3)) + 60 * patterns[..., None] + rng.integers(-9, 9, (n, 32, 32, 3))
    return tones.clip(0, 255).astype(np.uint8)


def test_loss_terms_agree_with_numpy() -> None:
    z_BE = numpy_generator(0, "z").standard_normal((20, 6))
    covariance = np.cov(z_BE.T)
    expected = (np.square(covariance).sum() - np.square(np.diag(covariance)).sum()) / 6
    assert float(covariance_loss(torch.from_numpy(z_BE))) == pytest.approx(expected, rel=1e-6)
    small_BE = 0.5 * z_BE
    expected = np.maximum(0, 1 - np.sqrt(small_BE.var(0, ddof=1) + 1e-4)).mean()
    assert float(variance_loss(torch.from_numpy(small_BE))) == pytest.approx(expected, rel=1e-6)


def test_identical_embeddings_have_the_largest_variance_loss() -> None:
    assert float(variance_loss(torch.ones(8, 3))) == pytest.approx(1 - 0.01, rel=1e-4)
    assert float(covariance_loss(torch.ones(8, 3))) == 0


def test_training_lowers_the_loss_and_does_not_collapse() -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder(8)
    expander = Expander(encoder.features)
    loss = VicregLoss(SelfsupConfig(), encoder=encoder, expander=expander, stain=0.2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *expander.parameters()], lr=2e-3)
    images = torch.from_numpy(pictures(32))
    values = []
    for step in range(40):
        optimizer.zero_grad()
        value, terms = loss(images, context(32, step=step))
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert np.mean(values[-5:]) < 0.93 * np.mean(values[:5])
    assert float(terms["variance"].detach()) < 0.8


def test_random_views_keep_shape_and_range_and_are_reproducible() -> None:
    x_N3HW = torch.from_numpy(pictures(6)).permute(0, 3, 1, 2).float() / 127.5 - 1
    one, two, other = (random_view(x_N3HW, context=context(6, step=step), strength=0.3) for step in (0, 0, 1))
    assert one.shape == x_N3HW.shape
    assert -1 <= float(one.min()) <= float(one.max()) <= 1
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_views_of_a_row_do_not_depend_on_other_rows() -> None:
    images = pictures(5)
    settings: dict[str, Any] = {"views": 3, "strength": 0.3, "seed": 0}
    whole = views_of(images, rows_N=np.arange(5), **settings)
    assert whole.shape == (5, 3, 32, 32, 3)
    some = views_of(images[[4, 1]], rows_N=np.array([4, 1]), **settings)
    np.testing.assert_allclose(some.astype(int), whole[[4, 1]].astype(int), atol=1)
