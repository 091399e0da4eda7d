"""``histoloom validity``: the five indices of anyone's clustering, from files."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from histoloom.clustering.validity.indices import INDICES, Validity, validity_indices
from histoloom.errors import UserError
from histoloom.progress import Meter, meter

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


def validity_of_files(features: Path, labels: Path) -> dict[str, Any]:
    """The indices of the points in ``features`` (a row a point) under ``labels`` (one a point), with ``notes``.

    Files are .npy, .csv (with or without a header) or .parquet. Labels may be numbers or words. Raises ``UserError``
    where a file cannot be read, the lengths differ, or an index is not defined.
    """
    x_ND = _points(features)
    codes_N = _codes(labels)
    if len(x_ND) != len(codes_N):
        raise UserError(f"{features} has {len(x_ND)} rows, {labels} has {len(codes_N)}; they must be as many")
    result = validity_indices(torch.from_numpy(x_ND), torch.from_numpy(codes_N), watch=_watch)
    values = {index: getattr(result, index) for index in INDICES}
    return {"n": result.n, "k": result.k, **values, "notes": notes(result)}


def notes(result: Validity) -> list[str]:
    """What to know when reading these numbers: about this clustering, and at the end about the indices as such."""
    singletons = result.sizes.count(1)
    found = []
    if singletons:
        found.append(f"{singletons} of {result.k} clusters hold a single point, which has no pair within its cluster")
    if result.dunn == 0:
        found.append("Dunn is 0 because equal points lie in different clusters")
    return [*found, CAUTION]


def _watch(description: str, total: int) -> AbstractContextManager[Meter]:
    return meter(description, total=total)


def _points(path: Path) -> np.ndarray:
    values = _table(path)
    if values.ndim == 1:
        values = values[:, None]
    try:
        return np.ascontiguousarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds something that is not a number; features are numbers only") from error


def _codes(path: Path) -> np.ndarray:
    values = _table(path)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise UserError(f"{path} has {values.shape[1]} columns; labels are one column")
    if pd.isna(values).any():
        raise UserError(f"{path} has missing labels; give every point one")
    return np.unique(values.astype(str), return_inverse=True)[1].astype(np.int64)


def _table(path: Path) -> np.ndarray:
    """A file's values, one or two dimensions."""
    readers = {".npy": _read_npy, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is none of {', '.join(readers)}")
    try:
        values = readers[path.suffix.lower()](path)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as {path.suffix}: {str(error).splitlines()[0]}") from error
    if values.ndim not in (1, 2):
        raise UserError(f"{path} has {values.ndim} dimensions; one or two are allowed")
    return values


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_parquet(path: Path) -> np.ndarray:
    return pd.read_parquet(path).to_numpy()


def _read_csv(path: Path) -> np.ndarray:
    """A first row with any word in it, over columns that are otherwise numbers, is a header."""
    plain = pd.read_csv(path, header=None)
    first = [_is_number(cell) for cell in plain.iloc[0]]
    below = all(_is_number(cell) for cell in plain.iloc[1:].to_numpy().flatten())
    has_header = not all(first) and (below or (plain.shape[1] == 1 and _named(plain.iloc[0, 0])))
    return (pd.read_csv(path) if has_header else plain).to_numpy()


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _named(cell: Any) -> bool:
    return str(cell).strip().casefold() in {"label", "labels", "cluster", "clusters", "class", "y"}
