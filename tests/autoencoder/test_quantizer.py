from __future__ import annotations

import math

import torch

from histoloom.autoencoder.quantizer import Quantizer, assigned, nearest, perplexity, positions, rotation_trick


def a_quantizer(codes: int = 8, **changes: float) -> Quantizer:
    return Quantizer(codes, dim=2, decay=changes.get("decay", 0.5), restart_below=changes.get("restart_below", 0.05))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (n, 2, 2, 2) around four centres, one centre an image."""
    centres = torch.tensor([[-3.0, -3], [-3, 3], [3, -3], [3, 3]])
    noise = 0.1 * torch.randn(n, 2, 2, 2, generator=generator(9))
    return centres[torch.arange(n) % 4][:, :, None, None] + noise, centres


def test_nearest_agrees_with_all_distances() -> None:
    x, codebook = torch.randn(200, 5, generator=generator(1)), torch.randn(16, 5, generator=generator(2))
    assert torch.equal(nearest(x, codebook), torch.cdist(x, codebook).argmin(1))


def test_assigned_counts_and_sums() -> None:
    x = torch.tensor([[1.0, 0], [2, 0], [0, 5]])
    counts, sums = assigned(x, torch.tensor([0, 0, 2]), torch.zeros(3, 2))
    assert counts.tolist() == [2, 0, 1]
    assert sums.tolist() == [[3, 0], [0, 0], [0, 5]]


def test_positions_keep_vectors_together() -> None:
    z = torch.arange(24.0).view(2, 3, 2, 2)
    assert torch.equal(positions(z)[5], z[1, :, 0, 1])


def test_perplexity_is_the_number_of_equally_used_codes() -> None:
    assert math.isclose(perplexity(torch.tensor([1.0, 1, 1, 1, 0])), 4, rel_tol=1e-6)
    assert math.isclose(perplexity(torch.tensor([0.0, 7, 0])), 1, rel_tol=1e-6)


def test_the_gradient_passes_straight_through() -> None:
    quantizer = a_quantizer()
    z = torch.randn(2, 2, 3, 3, generator=generator(), requires_grad=True)
    quantizer.update(z, generator=generator())
    quantized = quantizer(z)
    assert torch.allclose(quantized.z_NCHW, quantizer.lookup(quantized.indices_NHW))
    quantized.z_NCHW.sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, torch.ones_like(z))


def test_the_rotation_trick_keeps_the_angle_between_gradient_and_latent() -> None:
    """Fifty et al. 2024, section 4.2: the angle of gradient and code becomes that of gradient and latent."""
    z = torch.randn(4, 3, 2, 2, generator=generator(), requires_grad=True)
    q, direction = torch.randn(2, 4, 3, 2, 2, generator=generator(1))
    through = rotation_trick(z, q)
    torch.testing.assert_close(through, q)
    (through * direction).sum().backward()
    assert z.grad is not None
    before = torch.cosine_similarity(direction, q, dim=1)
    torch.testing.assert_close(torch.cosine_similarity(z.grad, z.detach(), dim=1), before)
    scale = q.norm(dim=1) / z.detach().norm(dim=1)
    torch.testing.assert_close(z.grad.norm(dim=1), scale * direction.norm(dim=1))


def test_the_rotation_trick_of_a_latent_on_its_code_passes_gradients_straight_through() -> None:
    z = torch.randn(2, 3, 2, 2, generator=generator(), requires_grad=True)
    rotation_trick(z, z.detach()).sum().backward()
    torch.testing.assert_close(z.grad, torch.ones_like(z))


def test_forward_changes_nothing() -> None:
    quantizer = a_quantizer()
    z, _ = blobs()
    quantizer.update(z, generator=generator())
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(z)
    assert all(torch.equal(before[name], value) for name, value in quantizer.state_dict().items())


def test_the_codebook_finds_the_centres() -> None:
    quantizer = a_quantizer(codes=4, restart_below=0.2)
    z, centres = blobs()
    for step in range(60):
        quantizer.update(z, generator=generator(step))
    assert torch.cdist(centres, quantizer.codebook_KC).min(1).values.max() < 0.05
    assert quantizer.perplexity() > 3.9


def test_dead_codes_are_restarted_in_the_data() -> None:
    quantizer = a_quantizer(codes=8)
    z, centres = blobs()
    quantizer.update(z, generator=generator())
    quantizer.codebook_KC[3] = quantizer.sums_KC[3] = 1e4
    quantizer.counts_K[3] = 0.0
    quantizer.update(z, generator=generator(1))
    assert torch.cdist(quantizer.codebook_KC[3:4], centres).min() < 1.0
    assert quantizer.counts_K[3] > 0


def test_without_restarts_a_dead_code_stays_dead() -> None:
    quantizer = a_quantizer(codes=8, restart_below=0.0)
    z, _ = blobs()
    quantizer.update(z, generator=generator())
    quantizer.codebook_KC[3] = 1e4
    quantizer.sums_KC[3] = 1e4 * quantizer.counts_K[3]
    for step in range(5):
        quantizer.update(z, generator=generator(step))
    assert quantizer.codebook_KC[3].min() > 100
