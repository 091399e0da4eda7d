"""Latents of every patch: the files of the stage ``latents``, read back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from histoloom.run.directory import read_json, write_json
from histoloom.run.row_file import RowFile, Rows

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ChannelMoments:
    """``moments.json``: mean and standard deviation of each latent channel over the training split, (C,) each."""

    mean_C: np.ndarray
    std_C: np.ndarray

    def save(self, folder: Path) -> None:
        """Write ``moments.json``."""
        write_json(folder / "moments.json", {"mean": self.mean_C.tolist(), "std": self.std_C.tolist()})

    @staticmethod
    def load(folder: Path) -> ChannelMoments:
        """Read what ``save`` wrote, as float32."""
        values = read_json(folder / "moments.json")
        return ChannelMoments(np.asarray(values["mean"], np.float32), np.asarray(values["std"], np.float32))

    @staticmethod
    def of(latents_NChw: Rows, *, rows: np.ndarray) -> ChannelMoments:
        """Measure ``rows`` in double precision and bounded memory."""
        channels = latents_NChw.shape[1]
        total_C, squares_C, count = np.zeros(channels), np.zeros(channels), 0
        for start in range(0, len(rows), 1024):
            part_nChw = np.asarray(latents_NChw[rows[start : start + 1024]], dtype=np.float64)
            total_C += part_nChw.sum(axis=(0, 2, 3))
            squares_C += np.square(part_nChw).sum(axis=(0, 2, 3))
            count += part_nChw.size // channels
        mean_C = total_C / count
        return ChannelMoments(mean_C, np.sqrt(np.maximum(squares_C / count - mean_C**2, 1e-12)))

    def normalise(self, z_NChw: Tensor) -> Tensor:
        """Latents with mean 0 and deviation 1 in each channel; more dimensions may come first."""
        mean_C, std_C = torch.from_numpy(self.mean_C).to(z_NChw), torch.from_numpy(self.std_C).to(z_NChw)
        return (z_NChw - mean_C[:, None, None]) / std_C[:, None, None]


class LatentSet:
    """The published stage ``latents``: N patches, (N, C, h, w) before quantisation, in the order of ``table``.

    ``table`` has ``patch_id``, ``split`` and ``slide_id``; join by ``patch_id``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.moments = ChannelMoments.load(folder)

    @staticmethod
    def open(folder: Path) -> LatentSet:
        """Open the stage's folder."""
        return LatentSet(folder)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per patch."""
        import pandas as pd  # only tables need it: a training on tensors goes without

        return pd.read_parquet(self.folder / "index.parquet")

    @cached_property
    def latents(self) -> RowFile:
        """The latents, float32 or float16 (N, C, h, w), not normalised."""
        return RowFile.open(self.folder / "latents.npy")

    @cached_property
    def histograms(self) -> RowFile:
        """The share of each patch's positions that use each code, float32 (N, codes); rows sum to 1.

        An autoencoder without a codebook leaves none.
        """
        return RowFile.open(self.folder / "histograms.npy")

    @cached_property
    def stain_views(self) -> RowFile | None:
        """The latents of each patch in V other stains, float16 (N, V, C, h, w); None: none were made."""
        return self._optional("stain_views")

    @cached_property
    def copies(self) -> RowFile | None:
        """The latents of dihedral copies 1 to 7 of each patch, float16 (7 N, C, h, w); None: no copies.

        The copies are numbered as in ``autoencoder.augment``.
        """
        return self._optional("copies", merged=True)

    def _optional(self, name: str, *, merged: bool = False) -> RowFile | None:
        path = self.folder / f"{name}.npy"
        return RowFile.open(path, merged=merged) if path.is_file() else None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        channels, height, width = self.latents.shape[1:]
        return channels, height, width

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of ``train`` or ``holdout``."""
        import pandas as pd

        splits = pd.read_parquet(self.folder / "index.parquet", columns=["split"])["split"]
        return np.flatnonzero((splits == split).to_numpy())

    def raw(self, rows_n: np.ndarray) -> Tensor:
        """Latents as the encoder gave them, float32 (n, C, h, w)."""
        return torch.from_numpy(np.asarray(self.latents[rows_n], dtype=np.float32))

    def raw_copies(self, rows_n: np.ndarray, *, copies_n: np.ndarray) -> Tensor:
        """As ``raw``, of the dihedral copy 0..7 of each patch that ``copies_n`` names; 0 is the patch itself."""
        z_nChw = self.raw(rows_n)
        copied_m = np.flatnonzero(copies_n)
        if len(copied_m):
            assert self.copies is not None, "made where the configuration asks for copies"
            copies_mChw = self.copies[7 * rows_n[copied_m] + copies_n[copied_m] - 1].astype(np.float32)
            z_nChw[copied_m] = torch.from_numpy(copies_mChw)
        return z_nChw

    def normalised(self, rows_n: np.ndarray) -> Tensor:
        """Latents with mean 0 and deviation 1 in each channel, float32 (n, C, h, w)."""
        return self.moments.normalise(self.raw(rows_n))

    def with_stain_views(self, rows_n: np.ndarray) -> Tensor:
        """Each patch as it is, then in V other stains, normalised, float32 (n, 1 + V, C, h, w)."""
        own_n1Chw = self.normalised(rows_n)[:, None]
        if self.stain_views is None:
            return own_n1Chw
        views_nVChw = torch.from_numpy(np.asarray(self.stain_views[rows_n], dtype=np.float32))
        return torch.cat([own_n1Chw, self.moments.normalise(views_nVChw)], dim=1)
