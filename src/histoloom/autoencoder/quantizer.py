"""Vector quantisation (van den Oord et al. 2017).

The codebook follows the encoder by moving averages (appendix A.1), or it is trained by its own loss (equation 3).
Gradients pass the quantizer straight through or by the rotation trick (Fifty et al. 2024). Dead codes are restarted at
encoder outputs of the current batch (Dhariwal et al. 2020).

Shapes: N images, C code dimension, H x W positions, M = N * H * W, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.training import distributed
from histoloom.training.devices import without_autocast
from histoloom.training.transfers import pins, to_device

Gradient = Literal["straight-through", "rotation"]

COUNT_DECAY = 0.99
"""decay per step of the counted uses of the codes, where the codebook has its own loss"""


@dataclass(frozen=True)
class Quantized:
    """``z_NCHW``: the codes, with a gradient to the latents; ``indices_NHW``: their numbers, int64.

    ``commitment``: the mean squared distance of latents and codes, with a gradient to the latents. ``codebook``: the
    same number with a gradient to the codes, None where these follow moving averages.
    """

    z_NCHW: Tensor
    indices_NHW: Tensor
    commitment: Tensor
    codebook: Tensor | None


class Quantizer(nn.Module):
    """The nearest of ``codes`` vectors of ``dim`` numbers.

    ``decay``: of the moving averages that the codebook follows; None: the codebook is a parameter, trained by its loss.
    """

    codebook_KC: Tensor
    counts_K: Tensor
    sums_KC: Tensor
    started: Tensor

    def __init__(
        self,
        codes: int,
        *,
        dim: int,
        decay: float | None,
        restart_below: float,
        gradient: Gradient = "straight-through",
    ) -> None:
        super().__init__()
        self.gradient = gradient
        self.decay = decay
        self.restart_below = restart_below
        self.register_buffer("counts_K", torch.ones(codes))
        if decay is None:
            self.codebook_KC = nn.Parameter(torch.randn(codes, dim))
            return
        self.register_buffer("codebook_KC", torch.zeros(codes, dim))
        self.register_buffer("sums_KC", torch.zeros(codes, dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, z_NCHW: Tensor) -> Quantized:
        """Quantise; changes nothing."""
        indices_M = nearest(positions(z_NCHW.float()), self.codebook_KC)
        indices_NHW = indices_M.view(z_NCHW.shape[0], *z_NCHW.shape[2:])
        codes_NCHW = self.lookup(indices_NHW)
        codebook = None if self.decay is not None else (z_NCHW.detach().float() - codes_NCHW).pow(2).mean()
        q_NCHW = codes_NCHW.detach()
        commitment = (z_NCHW.float() - q_NCHW).pow(2).mean()
        estimator = rotation_trick if self.gradient == "rotation" else straight_through
        return Quantized(estimator(z_NCHW, q_NCHW), indices_NHW, commitment, codebook)

    def lookup(self, indices_NHW: Tensor) -> Tensor:
        """The codes of ``indices_NHW`` as (N, C, H, W)."""
        return self.codebook_KC[indices_NHW].permute(0, 3, 1, 2)

    @torch.no_grad()
    def update(self, z_NCHW: Tensor, *, generator: torch.Generator) -> None:
        """Move the codebook towards ``z_NCHW`` and restart dead codes at random ones of its vectors.

        With several processes, each gives the latents of its part of the batch, and all get the codebook of the whole.
        A codebook with its own loss stays; only the use of its codes is counted.
        """
        x_MC = positions(z_NCHW.float())
        if self.decay is None:
            counts_K, _ = assigned(x_MC, nearest(x_MC, self.codebook_KC), self.codebook_KC)
            self.counts_K.lerp_(distributed.summed(counts_K), 1 - COUNT_DECAY)
            return

        # Random vectors of the whole batch, of which each process has its part.
        M = len(x_MC)
        device = x_MC.device
        drawn_K = torch.randint(
            M * distributed.size(), (len(self.codebook_KC),), generator=generator, pin_memory=pins(device)
        )
        rows_K = to_device(drawn_K, device) - M * distributed.rank()
        own_K1 = ((rows_K >= 0) & (rows_K < M))[:, None]
        candidates_KC = distributed.summed(torch.where(own_K1, x_MC[rows_K.clamp(0, M - 1)], 0.0))
        # The first codebook. ``started`` is not read on the CPU, which would wait for a GPU at each step.
        self.codebook_KC.copy_(torch.where(self.started, self.codebook_KC, candidates_KC))
        self.sums_KC.copy_(torch.where(self.started, self.sums_KC, candidates_KC))
        self.started.fill_(True)

        # Moving averages of each code's count and sum (van den Oord et al. 2017, equations 6 to 8), in units of vectors
        # a step, so that restart_below is a share of the mean use.
        counts_K, sums_KC = assigned(x_MC, nearest(x_MC, self.codebook_KC), self.codebook_KC)
        self.counts_K.lerp_(distributed.summed(counts_K), 1 - self.decay)
        self.sums_KC.lerp_(distributed.summed(sums_KC), 1 - self.decay)

        mean_count = self.counts_K.mean()
        dead_K1 = (self.counts_K < self.restart_below * mean_count)[:, None]
        self.sums_KC.copy_(torch.where(dead_K1, candidates_KC * mean_count, self.sums_KC))
        self.counts_K.copy_(torch.where(dead_K1[:, 0], mean_count, self.counts_K))
        self.codebook_KC.copy_(self.sums_KC / self.counts_K.clamp_min(1e-5)[:, None])

    def perplexity(self) -> Tensor:
        """Effective number of codes in recent use, 1..K: exp of the entropy of the moving counts."""
        return perplexity(self.counts_K)


def straight_through(z_NCHW: Tensor, q_NCHW: Tensor) -> Tensor:
    """The codes, whose gradient goes to the latents as it is (van den Oord et al. 2017, section 3.2)."""
    return z_NCHW + (q_NCHW - z_NCHW).detach()


def rotation_trick(z_NCHW: Tensor, q_NCHW: Tensor) -> Tensor:
    """The codes, written as latents rotated and scaled, both held constant (Fifty et al. 2024, section 4.2).

    The gradient that reaches a latent keeps its angle to the latent as it was to the code. The rotation is a product of
    two reflections: R z = z - 2 r (r . z) + 2 q' (z' . z) for unit vectors z', q' and r = (z' + q') / |z' + q'|.
    """
    with without_autocast(z_NCHW.device):
        z_NCHW, q_NCHW = z_NCHW.float(), q_NCHW.float()
        from_NCHW, to_NCHW = F.normalize(z_NCHW.detach(), dim=1), F.normalize(q_NCHW, dim=1)
        middle_NCHW = F.normalize(from_NCHW + to_NCHW, dim=1)
        scale_N1HW = q_NCHW.norm(dim=1, keepdim=True) / z_NCHW.detach().norm(dim=1, keepdim=True).clamp_min(1e-6)
        mirrored_NCHW = z_NCHW - 2 * middle_NCHW * (middle_NCHW * z_NCHW).sum(1, keepdim=True)
        return scale_N1HW * (mirrored_NCHW + 2 * to_NCHW * (from_NCHW * z_NCHW).sum(1, keepdim=True))


def positions(z_NCHW: Tensor) -> Tensor:
    """Latents as a list of vectors, (N * H * W, C)."""
    return z_NCHW.permute(0, 2, 3, 1).reshape(-1, z_NCHW.shape[1])


def nearest(x_MC: Tensor, codebook_KC: Tensor) -> Tensor:
    """Index of the nearest code (Euclidean) of each vector, (M,) int64."""
    with without_autocast(x_MC.device):
        scores_MK = codebook_KC.pow(2).sum(1) - 2 * x_MC.detach() @ codebook_KC.T  # |x - c|^2 less |x|^2
    return scores_MK.argmin(1)


def assigned(x_MC: Tensor, indices_M: Tensor, codebook_KC: Tensor) -> tuple[Tensor, Tensor]:
    """How many vectors each code got, (K,), and their sums, (K, C)."""
    onehot_MK = F.one_hot(indices_M, len(codebook_KC)).to(x_MC.dtype)
    with without_autocast(x_MC.device):
        return onehot_MK.sum(0), onehot_MK.T @ x_MC


def perplexity(counts_K: Tensor) -> Tensor:
    """exp(entropy) of non-negative counts, 1..K."""
    p_K = counts_K / counts_K.sum()
    return torch.exp(-torch.special.xlogy(p_K, p_K).sum())
