"""The published stage ``clusters``, read back."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from histoloom.run.directory import read_json


class Clustering:
    """Clusters of every patch for every k of the sweep; join by ``patch_id``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def open(folder: Path) -> Clustering:
        """Open the stage's folder."""
        return Clustering(folder)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a patch: ``patch_id`` and a column ``k{k}`` of labels 0..k-1 for each k."""
        return pd.read_parquet(self.folder / "index.parquet")

    @cached_property
    def choice(self) -> dict[str, Any]:
        """Which k, by what rule, on what evidence."""
        return read_json(self.folder / "choice.json")

    @property
    def chosen(self) -> int:
        """The chosen k."""
        return int(self.choice["k"])

    @property
    def ks(self) -> list[int]:
        """The sweep, rising."""
        return sorted(int(name[1:]) for name in self.table.columns if name != "patch_id")

    def labels(self, k: int) -> pd.Series:
        """Labels of ``k`` by patch id."""
        return self.table.set_index("patch_id")[f"k{k}"]

    @cached_property
    def sizes(self) -> dict[int, list[int]]:
        """Patches of each cluster, for each k."""
        return {k: np.bincount(self.table[f"k{k}"], minlength=k).tolist() for k in self.ks}

    def probabilities(self, k: int) -> np.ndarray:
        """Probabilities of ``k``, float32 (n, k), in the table's row order."""
        return load_file(self.folder / "probabilities.safetensors")[f"k{k}"]

    @cached_property
    def validity(self) -> list[dict[str, Any]]:
        """The five indices for each k and method."""
        return read_json(self.folder / "validity.json")
