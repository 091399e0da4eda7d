"""Latents of every patch: how they are read back."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from histoloom.run.directory import read_json


class LatentSet:
    """The published stage ``latents``: (n, C, h, w) before quantisation, in the order of ``table``.

    ``table`` has ``patch_id``, ``split`` and ``slide_id``; join by ``patch_id``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        moments = read_json(folder / "moments.json")
        self.mean = np.asarray(moments["mean"], dtype=np.float32)
        self.std = np.asarray(moments["std"], dtype=np.float32)

    @staticmethod
    def open(folder: Path) -> LatentSet:
        """Open the stage's folder."""
        return LatentSet(folder)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a patch."""
        return pd.read_parquet(self.folder / "index.parquet")

    @cached_property
    def latents(self) -> np.ndarray:
        """Memory map of the latents (n, C, h, w), not normalised."""
        return np.load(self.folder / "latents.npy", mmap_mode="r")

    @cached_property
    def histograms(self) -> np.ndarray:
        """Memory map of how often each patch uses each code, (n, codes), rows summing to 1."""
        return np.load(self.folder / "histograms.npy", mmap_mode="r")

    @cached_property
    def stain_views(self) -> np.ndarray | None:
        """Memory map of the latents of each patch in other stains, (n, views, C, h, w); None where none were made."""
        path = self.folder / "stain_views.npy"
        return np.load(path, mmap_mode="r") if path.is_file() else None

    @cached_property
    def copies(self) -> np.ndarray | None:
        """Memory map of the latents of dihedral copies 1 to 7 of each patch, (n, 7, C, h, w); None: none were made."""
        path = self.folder / "copies.npy"
        return np.load(path, mmap_mode="r") if path.is_file() else None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        channels, height, width = self.latents.shape[1:]
        return channels, height, width

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of ``train`` or ``holdout``."""
        return np.flatnonzero((self.table["split"] == split).to_numpy())

    def raw(self, rows: np.ndarray) -> Tensor:
        """Latents as the encoder gave them, float32 (len(rows), C, h, w)."""
        return torch.from_numpy(np.asarray(self.latents[rows], dtype=np.float32))

    def raw_copies(self, rows: np.ndarray, *, choices: np.ndarray) -> Tensor:
        """As ``raw``, of the dihedral copy 0..7 of each patch that ``choices`` says (``autoencoder.augment``)."""
        z_NChw = self.raw(rows)
        turned_M = np.flatnonzero(choices)
        if len(turned_M):
            assert self.copies is not None, "made where the configuration asks for copies"
            copies_MChw = np.asarray(self.copies[rows[turned_M], choices[turned_M] - 1], dtype=np.float32)
            z_NChw[turned_M] = torch.from_numpy(copies_MChw)
        return z_NChw

    def raw_stains(self, rows: np.ndarray, *, views: np.ndarray) -> Tensor:
        """As ``raw``, of each patch in the stain of the view (0, 1, ...) that ``views`` says."""
        if not len(rows):
            return self.raw(rows)
        assert self.stain_views is not None, "made where the configuration asks for stain views"
        return torch.from_numpy(np.asarray(self.stain_views[rows, views], dtype=np.float32))

    def normalised(self, rows: np.ndarray) -> Tensor:
        """Latents with mean 0 and deviation 1 in each channel, float32 (len(rows), C, h, w)."""
        return normalise(self.raw(rows), mean=torch.from_numpy(self.mean), std=torch.from_numpy(self.std))

    def versions(self, rows: np.ndarray) -> Tensor:
        """Each patch as it is, then in other stains, normalised, float32 (len(rows), 1 + views, C, h, w)."""
        own_N1Chw = self.normalised(rows)[:, None]
        if self.stain_views is None:
            return own_N1Chw
        views_NVChw = torch.from_numpy(np.asarray(self.stain_views[rows], dtype=np.float32))
        views_NVChw = normalise(views_NVChw, mean=torch.from_numpy(self.mean), std=torch.from_numpy(self.std))
        return torch.cat([own_N1Chw, views_NVChw], dim=1)


def normalise(z_NCHW: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """Measured mean and deviation of each channel taken off; more dimensions may come first."""
    return (z_NCHW - mean.to(z_NCHW)[:, None, None]) / std.to(z_NCHW)[:, None, None]
