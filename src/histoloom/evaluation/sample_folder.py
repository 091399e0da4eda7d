"""The samples stage, read for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoloom.evaluation.image_folder import read_image

if TYPE_CHECKING:
    from histoloom.evaluation.similarity import Images


class SampleFolder:
    """Synthetic patches on disk: ``table`` (metadata.csv, a row an image), images read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = pd.read_csv(folder / "metadata.csv")

    @property
    def ks(self) -> list[int]:
        """Every k that has samples, rising."""
        return sorted(int(k) for k in self.table["k"].unique())

    def rows(self, k: int) -> dict[int, np.ndarray]:
        """The rows of each cluster of ``k`` that has samples."""
        of_k = (self.table["k"] == k).to_numpy()
        clusters = self.table["cluster"].to_numpy()
        return {int(c): np.flatnonzero(of_k & (clusters == c)) for c in np.unique(clusters[of_k])}

    def images(self, rows: np.ndarray) -> Images:
        """The images of the given rows, in their order: uint8 (n, H, W, 3); ``UserError`` where one is damaged."""
        names = self.table["file_name"].to_numpy()[rows]
        return np.stack([read_image(self.folder / str(name)) for name in names])
