"""The space that the diffusion model works in: the autoencoder's latents with their mean taken off, then scaled.

Scaled either channel by channel, or along their principal components, the least of which are left out. A VQ-GAN may
use few of its directions: with channels scaled one by one, copies of one direction then drown the others in noise.
Neighbouring positions may be folded into channels: fine latents then cost the model no more than coarse ones.

Shapes: N patches, C channels and h x w positions of the latents; D components kept; fold F; the model sees
F * F * D channels and h / F x w / F positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1024
SMALLEST = 1e-12
"""the least variance that a direction is taken to have"""


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """``mean`` (C,), ``enter`` (D, C), ``leave`` (C, D), float32: D = C channel by channel, D <= C along components.

    ``fold``: F x F neighbouring positions become channels of one.
    """

    mean: np.ndarray
    enter: np.ndarray
    leave: np.ndarray
    fold: int = 1

    @staticmethod
    def measured(latents: np.ndarray, *, rows: np.ndarray, whiten: float | None, fold: int = 1) -> LatentSpace:
        """From ``rows`` of latents (n, C, h, w): along as many components as keep the share ``whiten`` of the variance.

        ``None``: each channel by itself.
        """
        mean_C, covariance_CC = covariance(latents, rows=rows)
        if whiten is None:
            scale_C = np.sqrt(np.maximum(np.diag(covariance_CC), SMALLEST))
            return LatentSpace.of(mean_C, enter=np.diag(1 / scale_C), leave=np.diag(scale_C), fold=fold)
        variance_C, axes_CC = (part[..., ::-1] for part in np.linalg.eigh(covariance_CC))
        variance_C = np.maximum(variance_C, SMALLEST)
        kept = int(np.searchsorted(np.cumsum(variance_C) / variance_C.sum(), whiten - 1e-9)) + 1
        axes_CD, scale_D = axes_CC[:, :kept], np.sqrt(variance_C[:kept])
        # The sign of a component is free: its largest entry is positive, on every machine.
        axes_CD = axes_CD * np.sign(axes_CD[np.abs(axes_CD).argmax(axis=0), np.arange(axes_CD.shape[1])])
        return LatentSpace.of(mean_C, enter=(axes_CD / scale_D).T, leave=axes_CD * scale_D, fold=fold)

    @staticmethod
    def of(mean: np.ndarray, *, enter: np.ndarray, leave: np.ndarray, fold: int = 1) -> LatentSpace:
        """The same, in float32."""
        mean, enter, leave = (np.ascontiguousarray(part, dtype=np.float32) for part in (mean, enter, leave))
        return LatentSpace(mean, enter, leave, fold)

    def shape(self, latents: tuple[int, int, int]) -> tuple[int, int, int]:
        """What the model sees of latents of shape (C, h, w): (F * F * D, h / F, w / F)."""
        _, h, w = latents
        return len(self.enter) * self.fold**2, h // self.fold, w // self.fold

    def encode(self, z_NChw: Tensor) -> Tensor:
        """Latents (N, C, h, w) to what the model sees: mean 0 and deviation 1 in each component."""
        centred_NChw = z_NChw - torch.from_numpy(self.mean).to(z_NChw)[:, None, None]
        x_NDhw = torch.einsum("dc,nchw->ndhw", torch.from_numpy(self.enter).to(z_NChw), centred_NChw)
        return F.pixel_unshuffle(x_NDhw, self.fold)

    def decode(self, x_NDhw: Tensor) -> Tensor:
        """The inverse of ``encode``; what lies along components left out is their mean."""
        x_NDhw = F.pixel_shuffle(x_NDhw, self.fold)
        z_NChw = torch.einsum("cd,ndhw->nchw", torch.from_numpy(self.leave).to(x_NDhw), x_NDhw)
        return z_NChw + torch.from_numpy(self.mean).to(x_NDhw)[:, None, None]

    def share_kept(self, latents: np.ndarray, *, rows: np.ndarray) -> float:
        """Share of the variance of ``rows`` of latents (n, C, h, w), about this space's mean, that enters it, 0..1."""
        mean_C, covariance_CC = covariance(latents, rows=rows)
        shift_C = mean_C - self.mean
        spread_CC = covariance_CC + np.outer(shift_C, shift_C)
        left_out_CC = np.eye(len(mean_C)) - self.leave.astype(np.float64) @ self.enter
        return float(1 - np.trace(left_out_CC @ spread_CC @ left_out_CC.T) / np.trace(spread_CC))

    def as_json(self) -> dict[str, Any]:
        """Plain data for ``generator.json``."""
        maps = {"mean": self.mean.tolist(), "enter": self.enter.tolist(), "leave": self.leave.tolist()}
        return maps | {"fold": self.fold}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> LatentSpace:
        """The inverse of ``as_json``."""
        return LatentSpace.of(
            np.array(values["mean"]),
            enter=np.array(values["enter"]),
            leave=np.array(values["leave"]),
            fold=values.get("fold", 1),
        )


def covariance(latents: np.ndarray, *, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (C,) and covariance (C, C) over all positions of ``rows``, in double precision and bounded memory."""
    C = latents.shape[1]
    mean_C, products_CC, count = np.zeros(C), np.zeros((C, C)), 0
    for start in range(0, len(rows), CHUNK):
        part_CM = np.moveaxis(np.asarray(latents[rows[start : start + CHUNK]], dtype=np.float64), 1, 0).reshape(C, -1)
        new = part_CM.shape[1]
        shift_C = part_CM.mean(axis=1) - mean_C
        centred_CM = part_CM - part_CM.mean(axis=1, keepdims=True)
        products_CC += centred_CM @ centred_CM.T + np.outer(shift_C, shift_C) * count * new / (count + new)
        mean_C += shift_C * new / (count + new)
        count += new
    return mean_C, products_CC / count
