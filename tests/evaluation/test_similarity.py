"""SSIM and MS-SSIM against scikit-image and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from histoloom.errors import UserError
from histoloom.evaluation.pair_metrics import BETAS, ms_ssim, ms_ssim_betas, ms_ssim_scales, ssim

CPU = torch.device("cpu")


def test_ssim_agrees_with_scikit_image(crops) -> None:
    a, b = crops(3, 64, seed=0), crops(3, 64, seed=1)
    b[0] = np.clip(a[0] + np.random.default_rng(2).normal(0, 12, a[0].shape), 0, 255).astype(np.uint8)
    theirs = [
        structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1, data_range=255
        )
        for x, y in zip(a, b, strict=True)
    ]
    assert ssim(a, b, device=CPU) == pytest.approx(theirs, abs=1e-4)


def test_ssim_differs_from_torchmetrics_by_its_border_alone(crops) -> None:
    a, b = crops(4, 96, seed=0), crops(4, 96, seed=1)
    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 for images in (a, b))
    theirs = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert ssim(a, b, device=CPU) == pytest.approx(theirs.numpy(), abs=0.02)


def test_ssim_of_flat_images_is_its_luminance_term() -> None:
    a, b = np.full((1, 16, 16, 3), 51, np.uint8), np.full((1, 16, 16, 3), 204, np.uint8)
    expected = (2 * 0.2 * 0.8 + 1e-4) / (0.2**2 + 0.8**2 + 1e-4)
    assert ssim(a, b, device=CPU) == pytest.approx([expected], abs=1e-4)


def test_ms_ssim_is_torchmetrics_at_256(crops) -> None:
    a, b = crops(2, 256, seed=0), crops(2, 256, seed=1)
    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 for images in (a, b))
    theirs = multiscale_structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert ms_ssim(a, b, device=CPU) == pytest.approx(theirs.numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "scales"),
    [(10, 0), (11, 1), (22, 2), (43, 2), (44, 3), (64, 3), (98, 3), (99, 4), (128, 4), (175, 4), (176, 5), (256, 5)],
)
def test_scales_that_fit(size: int, scales: int) -> None:
    assert ms_ssim_scales(size) == scales


@pytest.mark.parametrize("size", [11, 22, 44, 64, 99, 176])
def test_every_size_can_be_computed_with_its_scales(size: int, crops) -> None:
    a, b = crops(2, size, seed=0), crops(2, size, seed=1)
    values = ms_ssim(a, b, device=CPU)
    assert ((values >= 0) & (values < 1)).all()
    assert ms_ssim(a, a, device=CPU) == pytest.approx(np.ones(2), abs=1e-6)


def test_weights_are_renormalised_to_the_sum_of_all_five() -> None:
    assert ms_ssim_betas(256) == pytest.approx(BETAS)
    assert ms_ssim_betas(64) == pytest.approx(np.array(BETAS[:3]) / sum(BETAS[:3]), abs=1e-3)


@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_smaller_than_the_window_is_an_error(function, crops) -> None:
    images = crops(1, 10)
    with pytest.raises(UserError, match="at least 11 px"):
        function(images, images, device=CPU)
