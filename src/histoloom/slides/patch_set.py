"""The patches stage, read back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from histoloom.errors import UserError
from histoloom.store import read_json

Split = Literal["train", "holdout"]

_OPEN_MAPS = 256  # each holds a file descriptor


class PatchSet:
    """Patches on disk: ``table`` (index.parquet, a row a patch), ``slides`` (slides.parquet), ``size`` (px), ``mpp``.

    Rows are numbered 0..len-1 in the table's order; images are read through memory maps, opened when first needed.
    """

    def __init__(self, folder: Path, *, table: pd.DataFrame, slides: pd.DataFrame, size: int, mpp: float) -> None:
        self.folder = folder
        self.table = table
        self.slides = slides
        self.size = size
        self.mpp = mpp
        codes, names = pd.factorize(table["slide_id"])
        self._slide_of_row = codes
        self._slide_ids = [str(name) for name in names]
        self._row_in_slide = table.groupby("slide_id", sort=False).cumcount().to_numpy()
        self._row_of_id = pd.Index(table["patch_id"])
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    @staticmethod
    def open(folder: Path) -> PatchSet:
        """The patches in a published stage folder."""
        meta = folder / "meta.json"
        if not meta.is_file():
            raise UserError(
                f"{folder} holds no patches (it has no meta.json); make them: histoloom run RUN --until patches"
            )
        values = read_json(meta)
        table = pd.read_parquet(folder / "index.parquet")
        slides = pd.read_parquet(folder / "slides.parquet")
        return PatchSet(folder, table=table, slides=slides, size=int(values["size"]), mpp=float(values["mpp"]))

    def __len__(self) -> int:
        return len(self.table)

    def __reduce__(self) -> tuple[object, ...]:
        return PatchSet.open, (self.folder,)

    def images(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The patches of the given rows, in their order: uint8 (n, size, size, 3)."""
        wanted = np.asarray(rows, dtype=np.int64)
        result = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        slides = self._slide_of_row[wanted]
        for slide in np.unique(slides):
            places = np.flatnonzero(slides == slide)
            result[places] = self._map(int(slide))[self._row_in_slide[wanted[places]]]
        return result

    def rows_of(self, patch_ids: Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
        """The rows of the given patch ids, int64 (n,); ``ValueError`` names one that is not here."""
        rows = self._row_of_id.get_indexer(pd.Index(patch_ids))
        if (rows < 0).any():
            raise ValueError(f"no patch {pd.Index(patch_ids)[int(np.argmin(rows))]!r} in {self.folder}")
        return np.asarray(rows, dtype=np.int64)

    def rows(self, split: Split | None = None) -> np.ndarray:
        """All rows, or those of a split, int64 (n,)."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self.table["split"].to_numpy() == split).astype(np.int64)

    def _map(self, slide: int) -> np.ndarray:
        if slide not in self._maps:
            path = self.folder / "images" / f"{self._slide_ids[slide]}.npy"
            self._maps[slide] = np.load(path, mmap_mode="r")
            if len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(slide)
        return self._maps[slide]
