"""Jitter of stain: what it keeps and what it changes."""

from __future__ import annotations

import torch

from histoloom.seeding import torch_generator
from histoloom.slides.stain.augment import jitter_stain


def images(n: int = 8) -> torch.Tensor:
    """Pink, purple and glass fields, (n, 3, 16, 16) in -1..1."""
    colours_33 = torch.tensor([[230.0, 150.0, 190.0], [110.0, 70.0, 150.0], [244.0, 244.0, 244.0]]) / 127.5 - 1
    return colours_33[torch.arange(n) % 3][:, :, None, None].expand(n, 3, 16, 16).contiguous()


def test_no_strength_changes_nothing() -> None:
    x_N3HW = images()
    same_N3HW = jitter_stain(x_N3HW, strength=0.0, generator=torch_generator(0, "stain"))
    torch.testing.assert_close(same_N3HW, x_N3HW, atol=1e-4, rtol=0)


def test_stained_tissue_changes_and_glass_stays_light() -> None:
    x_N3HW = images(300)
    other_N3HW = jitter_stain(x_N3HW, strength=0.25, generator=torch_generator(0, "stain"))
    assert other_N3HW.shape == x_N3HW.shape
    assert -1 <= float(other_N3HW.min()) <= float(other_N3HW.max()) <= 1
    change_N = (other_N3HW - x_N3HW).abs().mean(dim=(1, 2, 3))
    purple_N, glass_N = change_N[1::3], change_N[2::3]
    assert float(purple_N.median()) > 3 * float(glass_N.median())
    assert float(other_N3HW[2::3].min()) > 0.4


def test_darker_stays_darker_within_an_image() -> None:
    """Structure survives: two thicknesses of one stain keep their order in every colour."""
    density_22 = torch.tensor([[0.2, 0.4], [0.6, 1.0]])
    x_133 = (-density_22[None] * torch.tensor([0.65, 0.70, 0.29])[:, None, None]).exp() * 256 - 1
    x_N3HW = (x_133 / 127.5 - 1)[None].repeat(50, 1, 1, 1)
    other_N3HW = jitter_stain(x_N3HW, strength=0.25, generator=torch_generator(1, "stain"))
    flat_N34 = other_N3HW.flatten(2)
    assert bool((flat_N34.diff(dim=2) <= 0).all())
