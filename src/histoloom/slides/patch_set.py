"""The patches stage, read back: the patches, their table, and the table of slides.

``index.parquet`` is read lean: finding a patch needs a few bytes a row, and the rest stays on disk until it is used.
Ten million rows are 90 MB here, where the whole table with its texts would be gigabytes.

Patches are read from the files that hold them, ``images/{slide_id}.npy``, by plain reads. A memory map would count
everything that was ever read as this process's memory, load it page by page, and end the process where a file is cut
short; a plain read copies once into the caller's array and raises.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from histoloom.errors import UserError
from histoloom.run.directory import read_json, replacing, write_json
from histoloom.run.record import Record
from histoloom.slides.entries import OK

if TYPE_CHECKING:  # pandas and pyarrow are loaded where a table is read: who trains on tensors goes without
    import pandas as pd
    import pyarrow as pa

Split = Literal["train", "holdout"]

_COLUMNS = {"mpp": "source_mpp"}  # columns of slides.parquet that are not named as their field
_REJECTED, _TABLE = "rejected_", "table_"  # prefixes of its further columns
_BATCH = 2**16  # rows of index.parquet that are in memory at once
_OPEN_FILES = 128  # each holds a file descriptor


class PatchSetInfo(Record):
    """``meta.json``: side of the patches, px, their um/px, and how many there are.

    ``surroundings``: side of the images of their surroundings, px; None where these were not read.
    """

    size: int
    mpp: float
    n: int
    surroundings: int | None = None

    @staticmethod
    def load(folder: Path) -> PatchSetInfo:
        """Read ``meta.json``; raises ``UserError`` where the folder holds no patches."""
        path = folder / "meta.json"
        if not path.is_file():
            raise UserError(
                f"{folder} holds no patches (it has no meta.json); make them: histoloom run RUN --until patches"
            )
        return PatchSetInfo.model_validate(read_json(path))

    def save(self, folder: Path) -> None:
        """Write ``meta.json``."""
        write_json(folder / "meta.json", self.model_dump(exclude_none=True))


@dataclass(frozen=True)
class SlideRow:
    """A row of ``slides.parquet``: a slide of the inventory, used or not.

    ``file`` is its path, or ``private:TOKEN/SLIDE_ID`` in a pseudonymised run; ``width`` and ``height`` are level-0 px
    (0 where unknown); ``mpp`` is um/px there (None where unknown), from ``mpp_source``; ``split`` is empty for slides
    that are left out; ``status`` is "ok" or the reason why the slide is left out. ``rejected`` counts the rejected
    patches by reason; ``extra`` are the user's own columns.
    """

    slide_id: str
    file: str
    patient: str
    slide: str
    width: int
    height: int
    mpp: float | None
    mpp_source: str
    split: str
    patches: int
    status: str
    rejected: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether it has patches."""
        return self.status == OK

    @classmethod
    def load(cls, folder: Path) -> list[Self]:
        """Read ``slides.parquet`` of the patches stage, whatever earlier versions left out."""
        import pandas as pd

        rows = []
        for record in pd.read_parquet(folder / "slides.parquet").to_dict("records"):
            cells = {str(name): value for name, value in record.items() if not pd.isna(value)}
            texts = {name: str(value) for name, value in cells.items()}
            row = cls(
                slide_id=texts["slide_id"],
                file=texts["file"],
                patient=texts.get("patient", ""),
                slide=texts.get("slide", ""),
                width=int(cells.get("width", 0)),
                height=int(cells.get("height", 0)),
                mpp=float(cells["source_mpp"]) if "source_mpp" in cells else None,
                mpp_source=texts.get("mpp_source", ""),
                split=texts.get("split", ""),
                patches=int(cells.get("patches", 0)),
                status=texts.get("status", ""),
                rejected={n.removeprefix(_REJECTED): int(v) for n, v in cells.items() if n.startswith(_REJECTED)},
                extra={n.removeprefix(_TABLE): texts.get(n) for n in map(str, record) if n.startswith(_TABLE)},
            )
            rows.append(row)
        return rows

    @staticmethod
    def save(rows: Sequence[SlideRow], folder: Path) -> None:
        """Write ``slides.parquet``."""
        import pandas as pd

        records = []
        for row in rows:
            cells = {_COLUMNS.get(column.name, column.name): getattr(row, column.name) for column in fields(SlideRow)}
            cells[_COLUMNS["mpp"]] = float("nan") if row.mpp is None else float(row.mpp)
            rejected, extra = cells.pop("rejected"), cells.pop("extra")
            cells |= {f"{_REJECTED}{reason}": n for reason, n in rejected.items()}
            records.append(cells | {f"{_TABLE}{name}": value for name, value in extra.items()})
        table = pd.DataFrame(records)
        with replacing(folder / "slides.parquet") as temporary:
            table.to_parquet(temporary, index=False)


class PatchSet:
    """Patches on disk: ``table`` (index.parquet, a row a patch), ``slides`` (slides.parquet), ``size`` (px), ``mpp``.

    Rows are numbered 0..len-1 in the table's order. Opening it and reading images take 9 bytes of memory a row; the
    table is read at its first use, and takes some hundred.
    """

    def __init__(self, folder: Path, *, size: int, mpp: float, surroundings_side: int | None = None) -> None:
        self.folder = folder
        self.size = size
        self.mpp = mpp
        self.surroundings_side = surroundings_side
        self._index = PatchIndex(folder / "index.parquet")
        self._open_file = lru_cache(_OPEN_FILES)(PatchFile)

    @staticmethod
    def open(folder: Path) -> PatchSet:
        """The patches in a published stage folder."""
        info = PatchSetInfo.load(folder)
        return PatchSet(folder, size=info.size, mpp=info.mpp, surroundings_side=info.surroundings)

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> tuple[object, ...]:
        return PatchSet.open, (self.folder,)

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a patch, with every column."""
        import pandas as pd

        return pd.read_parquet(self._index.path)

    @cached_property
    def has_regions(self) -> bool:
        """Whether patches were drawn inside regions, whose names are the column ``region``."""
        import pyarrow.parquet as pq

        return "region" in pq.read_schema(self._index.path).names

    @cached_property
    def slides(self) -> pd.DataFrame:
        """A row a slide; ``SlideRow.load`` gives the same as records."""
        import pandas as pd

        return pd.read_parquet(self.folder / "slides.parquet")

    def columns(self, *names: str, rows: np.ndarray | None = None) -> pd.DataFrame:
        """Some columns of the table, of all rows or of these in their order, read without the others and not kept."""
        import pandas as pd

        if rows is None:
            return pd.read_parquet(self._index.path, columns=list(names))
        return self._index.columns(list(names), rows=rows)

    def images(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The patches of ``rows``, in their order: uint8 (n, size, size, 3). Several threads may read at once."""
        return self._read("images", rows, side=self.size)

    def surroundings(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The fields about the patches of ``rows``, four times as wide: uint8 (n, side, side, 3).

        ``side`` is ``surroundings_side``; the fields' places on their slides are in ``table``.
        """
        assert self.surroundings_side is not None, "the stage patches has read surroundings"
        return self._read("surroundings", rows, side=self.surroundings_side)

    def _read(self, name: str, rows: Sequence[int] | np.ndarray, *, side: int) -> np.ndarray:
        wanted = np.asarray(rows, dtype=np.int64)
        result = np.empty((len(wanted), side, side, 3), np.uint8)
        slides, places = self._index.slide_n[wanted], self._index.place_n[wanted]
        for index in np.lexsort((places, slides)):
            path = self.folder / name / f"{self._index.slide_ids[slides[index]]}.npy"
            self._open_file(path, size=side).read_into(result[index], place=int(places[index]))
        return result

    def rows_of(self, patch_ids: Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
        """The rows of ``patch_ids``, int64 (n,); ``ValueError`` names one that is not here.

        Each call reads through all ids on disk: pass many at once.
        """
        rows = self._index.rows_of(patch_ids)
        if (rows < 0).any():
            raise ValueError(f"no patch {str(np.asarray(patch_ids)[int(np.argmin(rows))])!r} in {self.folder}")
        return rows

    def rows(self, split: Split | None = None) -> np.ndarray:
        """All rows, or those of a split, int64 (n,)."""
        if split is None:
            return np.arange(len(self), dtype=np.int64)
        splits = self._index.splits
        number = splits.index(split) if split in splits else -1  # which no row has
        return np.flatnonzero(self._index.split_n == number).astype(np.int64)


class PatchIndex:
    """The rows of an index.parquet, numbered 0..len-1 in their order.

    ``slide_ids``: the slides in the order of their first row; ``slide_n`` int32 (n,): each row's slide among them;
    ``place_n`` int32 (n,): its place among that slide's rows; ``split_n`` int8 (n,): its split among ``splits``.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path = path
        self.slide_ids: list[str] = []
        self.splits: list[str] = []
        with pq.ParquetFile(path) as file:
            count = int(file.metadata.num_rows)
        self.slide_n, self.split_n = np.empty(count, np.int32), np.empty(count, np.int8)
        start = 0
        for batch in self._batches(["slide_id", "split"]):
            rows = slice(start, start + len(batch))
            self.slide_n[rows] = _codes(batch.column(0), names=self.slide_ids)
            self.split_n[rows] = _codes(batch.column(1), names=self.splits)
            start = rows.stop

        # Each row's place among the rows of its slide, which need not lie together.
        order = np.argsort(self.slide_n, kind="stable").astype(np.int32)
        sizes = np.bincount(self.slide_n, minlength=len(self.slide_ids))
        starts = np.concatenate([[0], sizes.cumsum()[:-1]]).astype(np.int32)
        self.place_n = np.empty(count, np.int32)
        self.place_n[order] = np.arange(count, dtype=np.int32) - starts[self.slide_n[order]]

    def __len__(self) -> int:
        return len(self.slide_n)

    def rows_of(self, patch_ids: Sequence[str] | np.ndarray | pd.Series) -> np.ndarray:
        """The rows of patch ids, int64 (n,), -1 where there is none; reads through the ids on disk once."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(np.asarray(patch_ids, dtype=object), pa.string())
        different = wanted.unique()
        rows = np.full(len(different), -1, np.int64)
        start = 0
        for ids in self._batches(["patch_id"]):
            matches = pc.index_in(ids.column(0).cast(pa.string()), value_set=different)
            which = matches.fill_null(-1).to_numpy(zero_copy_only=False)
            here = np.flatnonzero(which >= 0)
            rows[which[here]] = start + here
            start += len(which)
        return np.asarray(rows[pc.index_in(wanted, value_set=different).to_numpy(zero_copy_only=False)])

    def columns(self, names: list[str], *, rows: np.ndarray) -> pd.DataFrame:
        """These columns of ``rows``, in their order; all others pass through memory a batch at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        different, place = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        parts, start = [], 0
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=2**16) as file:
            parts.append(file.schema_arrow.empty_table().select(names))
            for batch in file.iter_batches(_BATCH, columns=names, use_threads=False):
                low, high = np.searchsorted(different, [start, start + len(batch)])
                parts.append(pa.table(batch.select(names)).take(different[low:high] - start))
                start += len(batch)
        return pa.concat_tables(parts).take(place).to_pandas()

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

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


class PatchFile:
    """A slide's file of patches, kept open. Several threads may read at once."""

    def __init__(self, path: Path, *, size: int) -> None:
        self._path = path
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()
        version = np.lib.format.read_magic(self._file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(self._file)
        assert version == (1, 0), "as the patches stage writes it"
        assert (dtype, fortran, shape[1:]) == (np.uint8, False, (size, size, 3)), f"{path} holds {dtype} {shape}"
        self._start = self._file.tell()
        self._count = shape[0]

    def read_into(self, patch: np.ndarray, *, place: int) -> None:
        """Read patch number ``place`` into ``patch``, uint8 (size, size, 3), contiguous."""
        if not 0 <= place < self._count:
            raise IndexError(f"no patch {place} in {self._path}")
        memory = patch.data.cast("B")
        with self._lock:
            self._file.seek(self._start + place * len(memory))
            read = 0
            while read < len(memory) and (n := self._file.readinto(memory[read:])):
                read += n
        if read < len(memory):
            raise UserError(f"{self._path} is cut short; remove its stage's folder and run the same command again")

    def __del__(self) -> None:
        """Closes the file with the last reference: another thread may still read after it is evicted."""
        if "_file" in self.__dict__:
            self._file.close()
