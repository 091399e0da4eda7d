"""The space that the diffusion model works in: the autoencoder's latents, centred and scaled to unit variance.

They are scaled either channel by channel, or along their principal components (whitening), of which those of least
variance are left out. A VQ-GAN may use few of its channels' directions. If channels are then scaled one by one, copies
of one direction drown the others in noise.

Shapes: N patches, C channels and h x w positions of the latents; D components that the diffusion model sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import BeforeValidator, ConfigDict, PlainSerializer, PrivateAttr
from torch import Tensor

from histoloom.config import Section
from histoloom.run.row_file import Rows

ROWS_AT_ONCE = 1024
LEAST_VARIANCE = 1e-12
"""lower bound of a direction's variance"""

Matrix = Annotated[
    np.ndarray,
    BeforeValidator(lambda value: np.ascontiguousarray(value, dtype=np.float32)),
    PlainSerializer(lambda array: array.tolist()),
]
"""A float32 array, in JSON as nested lists."""


class LatentSpace(Section):
    """A linear map of latents and its inverse; ``space`` in ``generator.json``.

    ``mean`` (C,), ``enter`` (D, C) into the space, ``leave`` (C, D) back out of it. Channel by channel D = C; along
    principal components D <= C.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    retired: ClassVar[Mapping[str, object]] = {"fold": 1}

    mean: Matrix
    enter: Matrix
    leave: Matrix
    _copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = PrivateAttr(default_factory=dict)

    @staticmethod
    def unscaled(channels: int) -> LatentSpace:
        """The space of the latents themselves."""
        identity_CC = np.eye(channels)
        return LatentSpace(mean=np.zeros(channels), enter=identity_CC, leave=identity_CC)

    @staticmethod
    def fit(latents: Rows, *, rows: np.ndarray, whiten: float | None) -> LatentSpace:
        """Measured on ``rows`` of latents (n, C, h, w).

        ``whiten``: keep as many principal components as explain this share of the variance, 0..1; None: scale each
        channel by itself.
        """
        mean_C, covariance_CC = covariance(latents, rows=rows)
        if whiten is None:
            # Channel by channel: no rotation.
            scale_C = np.sqrt(np.maximum(np.diag(covariance_CC), LEAST_VARIANCE))
            return LatentSpace(mean=mean_C, enter=np.diag(1 / scale_C), leave=np.diag(scale_C))
        # Along principal components, by falling variance (eigh returns them rising).
        variance_C, axes_CC = (part[..., ::-1] for part in np.linalg.eigh(covariance_CC))
        variance_C = np.maximum(variance_C, LEAST_VARIANCE)
        kept = int(np.searchsorted(np.cumsum(variance_C) / variance_C.sum(), whiten - 1e-9)) + 1
        axes_CD, scale_D = axes_CC[:, :kept], np.sqrt(variance_C[:kept])
        # The sign of a component is free: its largest entry is made positive, on every machine.
        axes_CD = axes_CD * np.sign(axes_CD[np.abs(axes_CD).argmax(axis=0), np.arange(axes_CD.shape[1])])
        return LatentSpace(mean=mean_C, enter=(axes_CD / scale_D).T, leave=axes_CD * scale_D)

    def shape(self, latents: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape (D, h, w) that latents of shape (C, h, w) have in this space."""
        _, h, w = latents
        return len(self.enter), h, w

    def encode(self, z_NChw: Tensor) -> Tensor:
        """Latents (N, C, h, w) to normalised latents (N, D, h, w): mean 0 and deviation 1 in each component."""
        mean_C, enter_DC, _ = self._matrices(z_NChw)
        return torch.einsum("dc,nchw->ndhw", enter_DC, z_NChw - mean_C[:, None, None])

    def decode(self, x_NDhw: Tensor) -> Tensor:
        """The inverse of ``encode``; components that were left out get their mean."""
        mean_C, _, leave_CD = self._matrices(x_NDhw)
        return torch.einsum("cd,ndhw->nchw", leave_CD, x_NDhw) + mean_C[:, None, None]

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``mean``, ``enter`` and ``leave`` of the type and on the device of ``like``, where they are copied once."""
        key = (like.device, like.dtype)
        if key not in self._copies:
            mean_C, enter_DC, leave_CD = (torch.from_numpy(x).to(like) for x in (self.mean, self.enter, self.leave))
            self._copies[key] = (mean_C, enter_DC, leave_CD)
        return self._copies[key]

    def explained_variance(self, latents: Rows, *, rows: np.ndarray) -> float:
        """The share, 0..1, that it keeps of the variance of ``rows`` of latents (n, C, h, w) about its mean."""
        mean_C, covariance_CC = covariance(latents, rows=rows)
        shift_C = mean_C - self.mean
        spread_CC = covariance_CC + np.outer(shift_C, shift_C)
        # With P = I - leave enter, which projects onto what is left out, the lost variance is the trace of P S P^T.
        left_out_CC = np.eye(len(mean_C)) - self.leave.astype(np.float64) @ self.enter
        return float(1 - np.trace(left_out_CC @ spread_CC @ left_out_CC.T) / np.trace(spread_CC))


def covariance(latents: Rows, *, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (C,) and covariance (C, C) over all positions of ``rows``, in double precision and bounded memory.

    Blocks are merged by the update of Chan et al. 1983, which does not cancel digits.
    """
    C = latents.shape[1]
    mean_C, products_CC, count = np.zeros(C), np.zeros((C, C)), 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = np.asarray(latents[rows[start : start + ROWS_AT_ONCE]], dtype=np.float64)
        block_CM = np.moveaxis(block, 1, 0).reshape(C, -1)
        new = block_CM.shape[1]
        shift_C = block_CM.mean(axis=1) - mean_C
        centred_CM = block_CM - block_CM.mean(axis=1, keepdims=True)
        # Products about the block's own mean, and the correction for the distance of the two means.
        products_CC += centred_CM @ centred_CM.T + np.outer(shift_C, shift_C) * count * new / (count + new)
        mean_C += shift_C * new / (count + new)
        count += new
    return mean_C, products_CC / count
