"""All patches of a run, found by id: columns and a sorted hash instead of a dictionary of texts.

100,000 patches take 7 MB here. Shape suffixes: N patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.util import hash_array

from histoloom.slides.entries import OK
from histoloom.slides.patch_set import PatchSet

_BATCH = 2**16


class PatchTable:
    """The patches in the order of the stage's index; ``slides`` are the usable ones, in the order of their codes.

    ``slide_N`` int32 is each patch's row in ``slides``; ``x_N``, ``y_N`` float32 its corner and ``extent_N`` its side
    in level-0 px; ``held_out_N`` bool.
    """

    def __init__(self, folder: Path) -> None:
        self.patches = PatchSet.open(folder)
        with pq.ParquetFile(folder / "index.parquet") as file:
            found = file.read(["patch_id", "slide_id", "x", "y", "extent", "split"])
        self._ids: pa.ChunkedArray = found.column("patch_id").cast(pa.string()).combine_chunks()
        self.slides = _used(self.patches.slides, found.column("slide_id"))
        number = {str(slide): code for code, slide in enumerate(self.slides["slide_id"])}
        self._slide_numbers = number
        slide_ids = found.column("slide_id").cast(pa.string()).combine_chunks().dictionary_encode()
        codes = np.array([number[slide] for slide in slide_ids.dictionary.to_pylist()], np.int32)
        self.slide_N = codes[slide_ids.indices.to_numpy(zero_copy_only=False)]
        self.x_N, self.y_N, self.extent_N = (
            found.column(name).to_numpy().astype(np.float32) for name in ("x", "y", "extent")
        )
        split_N = found.column("split").cast(pa.string()).to_numpy()
        self.held_out_N: np.ndarray = split_N == "holdout"

    def __len__(self) -> int:
        return len(self.slide_N)

    @property
    def size(self) -> int:
        """A patch's side in px."""
        return self.patches.size

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of rows."""
        return [self._ids[int(row)].as_py() for row in rows]

    def row(self, patch_id: str) -> int | None:
        """The row of a patch, None where there is none; a look into a sorted array, whatever the text."""
        hashes_N, rows_N = self._hashed
        wanted = _hashes([patch_id.encode("utf-8", "replace").decode()])[0]
        start, stop = np.searchsorted(hashes_N, wanted, "left"), np.searchsorted(hashes_N, wanted, "right")
        return next((int(row) for row in rows_N[start:stop] if self._ids[int(row)].as_py() == patch_id), None)

    def slide_number(self, slide_id: str) -> int | None:
        """A slide's row in ``slides``, None where there is none."""
        return self._slide_numbers.get(slide_id)

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """The sides of patches (left, top, right, bottom) in level-0 px, float32 (n, 4)."""
        x, y, extent = self.x_N[rows], self.y_N[rows], self.extent_N[rows]
        return np.stack([x, y, x + extent, y + extent], axis=1)

    def image(self, row: int) -> np.ndarray:
        """A patch, uint8 (size, size, 3)."""
        return np.asarray(self.patches.images([row])[0])

    def rows_of(self, ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """The rows of many ids at once, int64, -1 where there is none."""
        plain = ids.cast(pa.string())
        if isinstance(plain, pa.ChunkedArray):
            plain = plain.combine_chunks()
        if plain.equals(self._ids):
            return np.arange(len(self), dtype=np.int64)
        return np.asarray(pa.compute.index_in(plain, value_set=self._ids).fill_null(-1).to_numpy(), dtype=np.int64)

    @cached_property
    def _hashed(self) -> tuple[np.ndarray, np.ndarray]:
        hashes_N = np.concatenate([_hashes(batch) for batch in _batches(self._ids)] or [np.empty(0, np.uint64)])
        order_N = np.argsort(hashes_N, kind="stable").astype(np.int32)
        return hashes_N[order_N], order_N


def _used(slides: pd.DataFrame, used: pa.ChunkedArray) -> pd.DataFrame:
    ids = set(used.unique().to_pylist())
    usable = slides[(slides["status"] == OK) | slides["slide_id"].isin(ids)]
    return usable.reset_index(drop=True)


def _batches(ids: pa.Array) -> Iterator[list[str]]:
    for start in range(0, len(ids), _BATCH):
        yield ids.slice(start, _BATCH).to_pylist()


def _hashes(texts: list[str]) -> np.ndarray:
    hashes: np.ndarray = hash_array(np.array(texts, dtype=object), categorize=False)
    return hashes
