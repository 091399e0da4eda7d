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
    points = read_table(features)
    if points.ndim == 1:
        points = points[:, None]
    try:
        x_ND = np.ascontiguousarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{features} holds something that is not a number; features are numbers only") from error

    names = read_table(labels)
    if names.ndim == 2 and names.shape[1] == 1:
        names = names[:, 0]
    if names.ndim != 1:
        raise UserError(f"{labels} has {names.shape[1]} columns; labels are one column")
    if pd.isna(names).any():
        raise UserError(f"{labels} has missing labels; give every point one")
    codes_N = np.unique(names.astype(str), return_inverse=True)[1].astype(np.int64)
    if len(x_ND) != len(codes_N):
        raise UserError(f"{features} has {len(x_ND)} rows, {labels} has {len(codes_N)}; they must be as many")

    result = validity_indices(
        torch.from_numpy(x_ND), torch.from_numpy(codes_N), progress=lambda text, total: meter(text, total=total)
    )
    notes = []
    if singletons := result.sizes.count(1):
        notes.append(f"{singletons} of {result.k} clusters hold a single point, which has no pair within its cluster")
    if result.dunn == 0:
        notes.append("Dunn is 0 because equal points lie in different clusters")
    return FileValidity(result, (*notes, CAUTION))


def read_table(path: Path) -> np.ndarray:
    """The values of a .npy, .csv or .parquet file, one or two dimensions; ``UserError`` where it cannot be read."""
    try:
        match path.suffix.lower():
            case ".npy":
                values = np.load(path, allow_pickle=False)
            case ".parquet":
                values = pd.read_parquet(path).to_numpy()
            case ".csv":
                plain = pd.read_csv(path, header=None)
                values = (pd.read_csv(path) if _has_header(plain) else plain).to_numpy()
            case _:
                raise UserError(f"{path} is none of .npy, .csv, .parquet")
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as {path.suffix}: {str(error).splitlines()[0]}") from error
    if values.ndim not in (1, 2):
        raise UserError(f"{path} has {values.ndim} dimensions; one or two are allowed")
    return values


def _has_header(table: pd.DataFrame) -> bool:
    """Whether the first row holds a word, over columns that are otherwise numbers, or names a column of labels."""
    if all(_is_number(cell) for cell in table.iloc[0]):
        return False
    names_labels = str(table.iloc[0, 0]).strip().casefold() in {"label", "labels", "cluster", "clusters", "class", "y"}
    is_numeric_below = all(_is_number(cell) for cell in table.iloc[1:].to_numpy().flatten())
    return is_numeric_below or (table.shape[1] == 1 and names_labels)


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True
