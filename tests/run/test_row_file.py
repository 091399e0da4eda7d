"""Arrays in files by plain reads and writes: as an array in memory would answer, and without its memory."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path

import numpy as np
import pytest

from histoloom.errors import UserError
from histoloom.run import row_file
from histoloom.run.row_file import RowFile, appended, scratch_rows

ROWS = [
    np.s_[3:9],
    np.s_[:0],
    np.s_[18:40],
    np.array([5, 6, 7, 2, 2, 19, 0]),
    np.arange(20) % 3 == 0,
    np.empty(0, np.int64),
]


@pytest.fixture
def whole() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(20, 3, 2)).astype(np.float16)


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_rows_are_those_of_the_array(whole: np.ndarray, rows: slice | np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", whole)
    stored = RowFile.open(tmp_path / "whole.npy")
    assert (len(stored), stored.shape, stored.dtype) == (20, (20, 3, 2), np.float16)
    np.testing.assert_array_equal(stored[rows], whole[rows])
    assert stored[rows].dtype == whole.dtype
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stored))[rows], whole[rows])


def test_two_axes_are_read_as_one(whole: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", whole)
    stored = RowFile.open(tmp_path / "whole.npy", merged=True)
    wanted = np.array([4, 59, 7])
    np.testing.assert_array_equal(stored[wanted], whole.reshape(60, 2)[wanted])


def test_a_file_that_was_written_in_parts_is_the_one_that_numpy_writes(whole: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "numpy.npy", whole)
    new = RowFile.create(tmp_path / "parts.npy", shape=whole.shape, dtype=np.float16)
    for some in (np.s_[6:20], np.s_[0:6]):
        new[some] = whole[some].astype(np.float32)  # is cast as numpy casts it
    new.flush()
    assert (tmp_path / "parts.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    RowFile.create(tmp_path / "none.npy", shape=(4, 0, 2), dtype=np.float32)[0:2] = np.empty((2, 0, 2))
    assert np.load(tmp_path / "none.npy").shape == RowFile.open(tmp_path / "none.npy")[:].shape == (4, 0, 2)


def test_what_is_not_there_is_an_error(whole: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "whole.npy"
    np.save(path, whole)
    for rows in (np.array([20]), np.array([-1])):
        with pytest.raises(IndexError):
            RowFile.open(path)[rows]
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(UserError, match="cut short"):
        RowFile.open(path)[18:20]


def test_large_scratch_arrays_lie_in_a_file_without_a_name(
    whole: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(scratch_rows(whole.shape, whole.dtype, folder=tmp_path), np.ndarray)
    monkeypatch.setattr(row_file, "IN_MEMORY", 100)
    monkeypatch.setattr(row_file, "BLOCK", 7)
    for folder in (tmp_path, tmp_path / "not there", None):
        scratch = scratch_rows(whole.shape, whole.dtype, folder=folder)
        assert isinstance(scratch, RowFile)
        scratch[0:20] = whole
        more = appended(scratch, whole[:2], folder=folder)
        np.testing.assert_array_equal(more[:], np.concatenate([whole, whole[:2]]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_an_array_that_is_part_of_a_cycle_is_closed(tmp_path: Path) -> None:
    cycle: list[object] = [RowFile.create(tmp_path / "rows.npy", shape=(3, 2), dtype=np.float32)]
    cycle.append(cycle)
    opened = Path("/proc/self/fd")
    before = len(list(opened.iterdir())) if opened.is_dir() else 0
    del cycle
    gc.collect()
    if before:
        assert len(list(opened.iterdir())) == before - 1
