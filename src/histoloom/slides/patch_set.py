"""The patches stage, read back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from histoloom.errors import UserError
from histoloom.run.directory import read_json
from histoloom.slides.patches.patch_files import PatchFiles
from histoloom.slides.patches.patch_index import PatchIndex

Split = Literal["train", "holdout"]


class PatchSet:
    """Patches on disk: ``table`` (index.parquet, a row a patch), ``slides`` (slides.parquet), ``size`` (px), ``mpp``.

    Rows are numbered 0..len-1 in the table's order. Opening it and reading images take 9 bytes of memory a row; the
    table is read when it is first asked for, and takes some hundred.
    """

    def __init__(self, folder: Path, *, size: int, mpp: float) -> None:
        self.folder = folder
        self.size = size
        self.mpp = mpp
        self._index = PatchIndex(folder / "index.parquet")
        self._files = PatchFiles(folder / "images", size=size)

    @staticmethod
    def open(folder: Path) -> PatchSet:
        """The patches in a published stage folder."""
        meta = folder / "meta.json"
        if not meta.is_file():
            raise UserError(
                f"{folder} holds no patches (it has no meta.json); make them: histoloom run RUN --until patches"
            )
        values = read_json(meta)
        return PatchSet(folder, size=int(values["size"]), mpp=float(values["mpp"]))

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> tuple[object, ...]:
        return PatchSet.open, (self.folder,)

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a patch, with every column."""
        return self._index.table()

    @cached_property
    def slides(self) -> pd.DataFrame:
        """A row a slide."""
        return pd.read_parquet(self.folder / "slides.parquet")

    def columns(self, *names: str) -> pd.DataFrame:
        """Some columns of the table, read without the others and not kept."""
        return self._index.table(names)

    def images(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The patches of the given rows, in their order: uint8 (n, size, size, 3)."""
        wanted = np.asarray(rows, dtype=np.int64)
        result = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        slides, places = self._index.slide_n[wanted], self._index.place_n[wanted]
        for index in np.lexsort((places, slides)):
            slide_id = self._index.slide_ids[slides[index]]
            self._files.read_into(result[index], slide_id=slide_id, place=int(places[index]))
        return result

    def rows_of(self, patch_ids: Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
        """The rows of the given patch ids, int64 (n,); ``ValueError`` names one that is not here.

        Each call reads through all ids on disk: ask for many at once.
        """
        rows = self._index.rows_of(patch_ids)
        if (rows < 0).any():
            raise ValueError(f"no patch {str(np.asarray(patch_ids)[int(np.argmin(rows))])!r} in {self.folder}")
        return rows

    def rows(self, split: Split | None = None) -> np.ndarray:
        """All rows, or those of a split, int64 (n,)."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(self._index.split_n == self._index.split_number(split)).astype(np.int64)
