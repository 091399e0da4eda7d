"""index.parquet read lean: what finding a patch needs is a few bytes a row; the rest stays on disk until then.

Ten million rows are 90 MB here, where the whole table with its texts would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_BATCH = 2**16  # rows that are in memory at once


class PatchIndex:
    """The rows of an index.parquet, numbered 0..len-1 in their order.

    ``slide_ids``: the slides in the order of their first row; ``slide_n`` int32 (n,): each row's slide among them;
    ``place_n`` int32 (n,): its place among that slide's rows; ``split_n`` int8 (n,): its split among ``splits``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.slide_ids: list[str] = []
        self.splits: list[str] = []
        count = self._rows()
        self.slide_n, self.split_n = np.empty(count, np.int32), np.empty(count, np.int8)
        start = 0
        for batch in self._batches(["slide_id", "split"]):
            rows = slice(start, start + len(batch))
            self.slide_n[rows] = _codes(batch.column(0), names=self.slide_ids)
            self.split_n[rows] = _codes(batch.column(1), names=self.splits)
            start = rows.stop
        self.place_n = _places(self.slide_n, slides=len(self.slide_ids))

    def __len__(self) -> int:
        return len(self.slide_n)

    def table(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """All rows, or some of their columns, in memory."""
        return pd.read_parquet(self.path, columns=None if columns is None else list(columns))

    def split_number(self, split: str) -> int:
        """The number of a split in ``split_n``; -1, which no row has, where it is empty."""
        return self.splits.index(split) if split in self.splits else -1

    def rows_of(self, patch_ids: Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
        """The rows of patch ids, int64 (n,), -1 where there is none; reads through the ids on disk once."""
        wanted = pa.array(np.asarray(patch_ids, dtype=object), pa.string())
        different = wanted.unique()
        rows = np.full(len(different), -1, np.int64)
        start = 0
        for ids in self._batches(["patch_id"]):
            found = pc.index_in(ids.column(0).cast(pa.string()), value_set=different)
            which = found.fill_null(-1).to_numpy(zero_copy_only=False)
            here = np.flatnonzero(which >= 0)
            rows[which[here]] = start + here
            start += len(which)
        return np.asarray(rows[pc.index_in(wanted, value_set=different).to_numpy(zero_copy_only=False)])

    def _rows(self) -> int:
        with pq.ParquetFile(self.path) as file:
            return int(file.metadata.num_rows)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        texts = [name for name in columns if name != "patch_id"]
        with pq.ParquetFile(self.path, read_dictionary=texts, pre_buffer=False, buffer_size=2**16) as file:
            yield from file.iter_batches(_BATCH, columns=columns, use_threads=False)


def _codes(texts: pa.DictionaryArray, *, names: list[str]) -> np.ndarray:
    """Each text's number among ``names``, which grows by the new ones in the order of their first row."""
    numbers = {name: number for number, name in enumerate(names)}
    local = texts.indices.to_numpy(zero_copy_only=False)
    spelled = texts.dictionary.to_pylist()
    used, first = np.unique(local, return_index=True)
    table = np.zeros(len(spelled), np.int32)
    for code in used[np.argsort(first)]:
        name = spelled[code]
        if name not in numbers:
            numbers[name] = len(names)
            names.append(name)
        table[code] = numbers[name]
    return np.asarray(table[local])


def _places(slide_n: np.ndarray, *, slides: int) -> np.ndarray:
    """Each row's place among the rows of its slide, int32 (n,)."""
    order = np.argsort(slide_n, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.bincount(slide_n, minlength=slides).cumsum()[:-1]]).astype(np.int32)
    places = np.empty(len(slide_n), np.int32)
    places[order] = np.arange(len(slide_n), dtype=np.int32) - starts[slide_n[order]]
    return places
