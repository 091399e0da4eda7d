"""Anyone's features and labels, in the three kinds of file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoloom.clustering.validity.indices import INDICES
from histoloom.clustering.validity.validity_file import CAUTION, MEANING, validity_of_files
from histoloom.errors import UserError
from histoloom.seeding import numpy_generator

X_ND = numpy_generator(0, "points").standard_normal((30, 3))
LABELS_N = np.arange(30) % 3
WORDS_N = np.array(["bone", "fat", "tumour"])[LABELS_N]


def _npy(path: Path, values: np.ndarray) -> Path:
    np.save(path.with_suffix(".npy"), values)
    return path.with_suffix(".npy")


def _csv(path: Path, values: np.ndarray) -> Path:
    pd.DataFrame(values).to_csv(path.with_suffix(".csv"), header=False, index=False)
    return path.with_suffix(".csv")


def _csv_with_header(path: Path, values: np.ndarray) -> Path:
    frame = pd.DataFrame(values)
    frame.columns = ["label"] if frame.shape[1] == 1 else [f"feature {i}" for i in range(frame.shape[1])]
    frame.to_csv(path.with_suffix(".csv"), index=False)
    return path.with_suffix(".csv")


def _parquet(path: Path, values: np.ndarray) -> Path:
    frame = pd.DataFrame(values)
    frame.rename(columns=str).to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("write", [_npy, _csv, _csv_with_header, _parquet])
@pytest.mark.parametrize("labels_N", [LABELS_N, LABELS_N + 5.0, WORDS_N], ids=["numbers", "floats", "words"])
def test_every_kind_of_file_says_the_same(
    tmp_path: Path, write: Callable[[Path, np.ndarray], Path], labels_N: np.ndarray
) -> None:
    expected = validity_of_files(_npy(tmp_path / "e", X_ND), _npy(tmp_path / "f", LABELS_N)).as_json()
    result = validity_of_files(write(tmp_path / "x", X_ND), write(tmp_path / "labels", labels_N)).as_json()
    assert list(result) == ["n", "k", *INDICES, "notes"]
    assert result.pop("notes") == expected.pop("notes") == [CAUTION]
    assert result == pytest.approx(expected, rel=1e-9)
    assert (result["n"], result["k"]) == (30, 3)


@pytest.mark.parametrize("labels_N", [LABELS_N, LABELS_N + 5.0, WORDS_N], ids=["numbers", "floats", "words"])
@pytest.mark.parametrize("index", [False, True], ids=["plain", "with an index"])
def test_a_header_of_numbers_is_no_point(tmp_path: Path, labels_N: np.ndarray, index: bool) -> None:
    """As pandas writes frames whose columns have no names: a first row 0, 1, 2, and perhaps the index."""
    expected = validity_of_files(_npy(tmp_path / "e", X_ND), _npy(tmp_path / "f", LABELS_N)).validity
    x, y = tmp_path / "x.csv", tmp_path / "y.csv"
    pd.DataFrame(X_ND).to_csv(x, index=index)
    pd.DataFrame(labels_N).to_csv(y, index=index)
    result = validity_of_files(x, y)
    assert (result.validity.n, result.validity.k) == (30, 3)
    assert result.validity.dunn == pytest.approx(expected.dunn, rel=1e-9)
    if index:
        assert result.notes[0] == "the first column of x.csv has no name and numbers the rows: it is left out"


def test_a_row_too_many_is_a_header_and_said(tmp_path: Path) -> None:
    x, y = _npy(tmp_path / "x", X_ND), tmp_path / "y.csv"
    y.write_text("\n".join(["tissue", *WORDS_N]) + "\n", encoding="utf-8")
    result = validity_of_files(x, y)
    assert (result.validity.n, result.validity.k) == (30, 3)
    assert result.notes[0] == "the first row of y.csv is taken for a header: x.npy has one row less"
    y.write_text("\n".join(["tissue", "bone", *WORDS_N]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"30 rows, .* has 32"):
        validity_of_files(x, y)


def test_says_of_every_index_which_way_is_better() -> None:
    assert list(MEANING) == list(INDICES)
    assert all("larger is better" in text or "smaller is better" in text for text in MEANING.values())


def test_notes_say_what_singletons_and_equal_points_do(tmp_path: Path) -> None:
    x = _npy(tmp_path / "x", np.where(np.arange(30)[:, None] == 1, X_ND[0], X_ND))
    labels_N = np.where(np.arange(30) == 5, 9, LABELS_N)
    single, equal, caution = validity_of_files(x, _npy(tmp_path / "labels", labels_N)).notes
    assert single == "1 of 4 clusters hold a single point, which has no pair within its cluster"
    assert equal == "Dunn is 0 because equal points lie in different clusters"
    assert caution == CAUTION


def test_bad_files_are_user_errors(tmp_path: Path) -> None:
    x, labels = _npy(tmp_path / "x", X_ND), _npy(tmp_path / "labels", LABELS_N)
    (tmp_path / "x.txt").write_text("1 2 3")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "empty.csv").write_text("")
    for features, message in (
        (tmp_path / "none.npy", "no file"),
        (tmp_path / "x.txt", "is none of"),
        (tmp_path / "broken.parquet", "cannot be read"),
        (tmp_path / "empty.csv", "cannot be read"),
        (_npy(tmp_path / "short", X_ND[:20]), "20 rows"),
        (_npy(tmp_path / "cube", X_ND[None]), "3 dimensions"),
        (_npy(tmp_path / "words", WORDS_N[:, None]), "not a number"),
        (_npy(tmp_path / "nan", np.where(X_ND > 1, np.nan, X_ND)), "NaN"),
    ):
        with pytest.raises(UserError, match=message):
            validity_of_files(features, labels)
    with pytest.raises(UserError, match="missing labels"):
        validity_of_files(x, _npy(tmp_path / "gap", np.r_[np.nan, LABELS_N[1:]]))
    with pytest.raises(UserError, match="same label"):
        validity_of_files(x, _npy(tmp_path / "one", np.zeros(30)))


def test_the_papers_row_for_k_14_to_every_printed_digit(tmp_path: Path, real_data: Path) -> None:
    """The features and labels that its authors publish give the row of their table (design.md, section 4)."""
    published = real_data / "paper" / "k14-latents-and-clusters.csv"
    if not published.is_file():
        pytest.skip(f"the paper's features are not at {published}")
    table = pd.read_csv(published, header=None)
    x, labels = _csv(tmp_path / "x", table.iloc[:, :16].to_numpy()), _csv(tmp_path / "labels", table[16].to_numpy())
    result = validity_of_files(x, labels).validity
    assert (result.n, result.k) == (10_000, 14)
    assert [f"{getattr(result, index):.5f}" for index in INDICES] == [
        "3367.74211",
        "0.07645",
        "0.00548",
        "1.47801",
        "0.41643",
    ]
