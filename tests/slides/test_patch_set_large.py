"""A million patches: opening the set and reading from it at random stay within a bound of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from histoloom.errors import UserError
from histoloom.run.directory import write_json
from histoloom.slides.patch_set import PatchSet

SLIDES, EACH, SIZE = 40, 25_000, 16
BYTES = SIZE * SIZE * 3
KNOWN = ((0, 0), (7, 24_999), (39, 12_345))  # slide and place of patches that are not black


def write_index(path: Path, *, slides: int, each: int) -> None:
    """As the stage writes it, slide by slide, with ids as long as real ones."""
    numbers = np.arange(each)
    with pq.ParquetWriter(path, pa.table(columns(0, numbers)).schema) as writer:
        for slide in range(slides):
            writer.write_table(pa.table(columns(slide, numbers)))


def columns(slide: int, numbers: np.ndarray) -> dict[str, pa.Array]:
    name = slide_name(slide)
    x, y = pa.array(numbers * 7 % 99_991), pa.array(numbers)
    ids = pc.binary_join_element_wise(name, "_x", pc.cast(x, pa.string()), "_y", pc.cast(y, pa.string()), "")
    same = {key: pa.array([name] * len(numbers)) for key in ("slide_id", "slide", "patient")}
    split = pa.array(["holdout" if slide % 4 == 3 else "train"] * len(numbers))
    share = pa.array(np.full(len(numbers), 0.5))
    return {"patch_id": ids, **same, "split": split, "x": x, "y": y, "extent": share, "tissue": share}


def slide_name(slide: int) -> str:
    return f"TCGA-AA-{slide:04d}-01Z-00-DX1"


def write_images(path: Path, *, slide: int, each: int) -> None:
    """Black patches, as a file with holes, but for the known ones."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (each, SIZE, SIZE, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + each * BYTES)
        for known, place in KNOWN:
            if known == slide:
                file.seek(start + place * BYTES)
                file.write(bytes([known + 1]) * BYTES)


def write_set(folder: Path, *, slides: int, each: int) -> Path:
    (folder / "images").mkdir(parents=True)
    write_index(folder / "index.parquet", slides=slides, each=each)
    for slide in range(slides):
        write_images(folder / "images" / f"{slide_name(slide)}.npy", slide=slide, each=each)
    pd.DataFrame({"slide_id": [slide_name(slide) for slide in range(slides)]}).to_parquet(folder / "slides.parquet")
    write_json(folder / "meta.json", {"size": SIZE, "mpp": 1.0, "n": slides * each})
    return folder


@pytest.fixture(scope="module")
def million(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("million") / "patches", slides=SLIDES, each=EACH)


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np, psutil
from histoloom.slides.patch_set import PatchSet
memory = lambda: psutil.Process().memory_info().rss
PatchSet.open(Path(sys.argv[2])).rows_of(["TCGA-AA-0000-01Z-00-DX1_x0_y0"])  # imports count apart
before = memory()
patches = PatchSet.open(Path(sys.argv[1]))
opened = memory()
rng = np.random.RandomState(0)
for _ in range(40):
    patches.images(rng.randint(len(patches), size=100))
ids = ["TCGA-AA-0039-01Z-00-DX1_x86415_y12345", "TCGA-AA-0000-01Z-00-DX1_x0_y0"]
rows = patches.rows_of(ids).tolist()
print(json.dumps({"opened": opened - before, "read": memory() - before, "n": len(patches), "rows": rows}))
"""


def test_memory_stays_flat(million, tmp_path):
    """9 bytes a row: the table with its texts would take several hundred."""
    small = write_set(tmp_path / "small", slides=1, each=10)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(million), str(small)], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    assert seen["n"] == 1_000_000
    assert seen["rows"] == [39 * EACH + 12_345, 0]
    assert seen["opened"] < 60e6
    assert seen["read"] < 80e6


def test_rows_are_found_and_read(million):
    patches = PatchSet.open(million)
    rows = np.array([slide * EACH + place for slide, place in KNOWN] + [1, 999_999])
    values = [known + 1 for known, _ in KNOWN] + [0, 0]
    np.testing.assert_array_equal(
        patches.images(rows), np.broadcast_to(np.reshape(values, (5, 1, 1, 1)), (5, 16, 16, 3))
    )
    assert len(patches.rows("holdout")) == 250_000
    assert patches.rows("train")[[0, -1]].tolist() == [0, 39 * EACH - 1]
    ids = patches.columns("patch_id")["patch_id"].to_numpy()[[999_999, 5, 5]]
    np.testing.assert_array_equal(patches.rows_of(ids), [999_999, 5, 5])
    assert patches.rows_of([]).shape == (0,)
    with pytest.raises(IndexError):
        patches.images([1_000_000])


def test_rows_of_a_slide_need_not_lie_together(tmp_path):
    folder = write_set(tmp_path / "mixed", slides=3, each=4)
    table = pd.read_parquet(folder / "index.parquet")
    order = np.array([11, 0, 4, 1, 8, 5, 9, 2, 3, 10, 6, 7])
    table.iloc[order].to_parquet(folder / "index.parquet", index=False)
    patches = PatchSet.open(folder)
    expected = table["slide_id"].to_numpy()[order]
    assert [patches._index.slide_ids[n] for n in patches._index.slide_n] == expected.tolist()
    for name in pd.unique(expected):
        assert patches._index.place_n[expected == name].tolist() == [0, 1, 2, 3]


def test_a_truncated_file_is_reported(tmp_path):
    folder = write_set(tmp_path / "cut", slides=1, each=4)
    path = folder / "images" / f"{slide_name(0)}.npy"
    path.write_bytes(path.read_bytes()[:-1])
    patches = PatchSet.open(folder)
    assert patches.images([2]).shape == (1, 16, 16, 3)
    with pytest.raises(UserError, match="is cut short; remove"):
        patches.images([3])
