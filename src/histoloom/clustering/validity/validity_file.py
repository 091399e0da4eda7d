"""``histoloom validity``: the five indices of anyone's clustering, from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from histoloom.clustering.validity.indices import INDICES, Validity, validity_indices
from histoloom.errors import UserError
from histoloom.progress import meter

MEANING = {
    "calinski_harabasz": "spread between clusters over spread within, per degree of freedom; larger is better",
    "c_index": "0 where the pairs within clusters are the closest pairs of all, at most 1; smaller is better",
    "dunn": "closest pair of two clusters over the widest pair within one; larger is better",
    "hartigan": "log of spread between clusters over spread within; larger is better",
    "mcclain_rao": "mean distance within clusters over mean distance between; smaller is better",
}

CAUTION = (
    "these indices compare clusterings of the same points; data without any clusters reach values that look good too, "
    "so compare with such data before believing in clusters"
)


@dataclass(frozen=True)
class FileValidity:
    """The indices of a clustering, and ``notes``: what to know when reading them, in whole sentences."""

    validity: Validity
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values: ``n``, ``k``, the five indices, ``notes``."""
        values = {name: getattr(self.validity, name) for name in ("n", "k", *INDICES)}
        return values | {"notes": list(self.notes)}


def validity_of_files(features: Path, labels: Path) -> FileValidity:
    """The indices of the points in ``features`` (a row a point) under ``labels`` (one a point).

    Files are .npy, .csv (with or without a header) or .parquet. Labels may be numbers or words. Raises ``UserError``
    where a file cannot be read, the lengths differ, or an index is not defined.
    """
    points, names = _read(features), _read(labels)
    notes = []
    for longer, other in ((points, names), (names, points)):
        if longer.can_have_header and len(longer.values) == len(other.values) + 1:
            longer.values = longer.values[1:]
            notes.append(
                f"the first row of {longer.path.name} is taken for a header: {other.path.name} has one row less"
            )
    notes += [
        f"the first column of {table.path.name} has no name and numbers the rows: it is left out"
        for table in (points, names)
        if table.had_row_numbers
    ]
    x, y = points.values, names.values
    try:
        x_ND = np.ascontiguousarray(x[:, None] if x.ndim == 1 else x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{features} holds something that is not a number; features are numbers only") from error
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise UserError(f"{labels} has {y.shape[1]} columns; labels are one column")
    if pd.isna(y).any():
        raise UserError(f"{labels} has missing labels; give every point one")
    codes_N = np.unique(y.astype(str), return_inverse=True)[1].astype(np.int64)
    if len(x_ND) != len(codes_N):
        raise UserError(f"{features} has {len(x_ND)} rows, {labels} has {len(codes_N)}; they must be as many")

    result = validity_indices(
        torch.from_numpy(x_ND), torch.from_numpy(codes_N), progress=lambda text, total: meter(text, total=total)
    )
    if singletons := result.sizes.count(1):
        notes.append(f"{singletons} of {result.k} clusters hold a single point, which has no pair within its cluster")
    if result.dunn == 0:
        notes.append("Dunn is 0 because equal points lie in different clusters")
    return FileValidity(result, (*notes, CAUTION))


@dataclass
class _Table:
    """The ``values`` of a file, one or two dimensions, as they are understood.

    ``can_have_header``: a CSV whose first row looks like all others. ``had_row_numbers``: a column of them is removed.
    """

    path: Path
    values: np.ndarray
    can_have_header: bool = False
    had_row_numbers: bool = False


def _read(path: Path) -> _Table:
    """A .npy, .csv or .parquet file; ``UserError`` where it cannot be read."""
    try:
        match path.suffix.lower():
            case ".npy":
                table = _Table(path, np.load(path, allow_pickle=False))
            case ".parquet":
                table = _Table(path, pd.read_parquet(path).to_numpy())
            case ".csv":
                has_header = _has_header(pd.read_csv(path, header=None, dtype=str))
                frame = pd.read_csv(path, header=0 if has_header else None)
                # As pandas writes its index.
                numbered = has_header and frame.columns[0] == "Unnamed: 0" and frame.shape[1] > 1
                numbered = numbered and frame.iloc[:, 0].tolist() == list(range(len(frame)))
                values = (frame.iloc[:, 1:] if numbered else frame).to_numpy()
                table = _Table(path, values, can_have_header=not has_header, had_row_numbers=numbered)
            case _:
                raise UserError(f"{path} is none of .npy, .csv, .parquet")
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as {path.suffix}: {str(error).splitlines()[0]}") from error
    if table.values.ndim not in (1, 2):
        raise UserError(f"{path} has {table.values.ndim} dimensions; one or two are allowed")
    return table


def _has_header(table: pd.DataFrame) -> bool:
    """Whether the first row is a header.

    It holds a word or an empty cell over columns that are otherwise numbers, or it names a column of labels. pandas
    numbers the columns (0, 1, ...) where they have no names, and leaves the cell over its numbers of rows empty.
    """
    first = table.iloc[0].fillna("")
    if first.tolist() == [str(column) for column in range(table.shape[1])] and table.shape[1] > 1:
        return True
    if first.iloc[0] == "" and table.iloc[1:, 0].tolist() == [str(row) for row in range(len(table) - 1)]:
        return True
    if all(_is_number(cell) for cell in first):
        return False
    names_labels = first.iloc[-1].strip().casefold() in {"label", "labels", "cluster", "clusters", "class", "y"}
    below = table.iloc[1:].to_numpy().flatten()
    return all(_is_number(cell) for cell in below) or (table.shape[1] <= 2 and names_labels)


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True
