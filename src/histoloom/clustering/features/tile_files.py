"""Features of tiles that another program computed: HDF5 as TRIDENT writes it, ``.h5ad``, and ``.npy`` with a table.

Positions are level-0 px of the slide's file, as OpenSlide counts them.
Shapes: N tiles of a slide, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from histoloom.errors import UserError

HDF5, ANNDATA, TABLES = (".h5", ".hdf5"), ".h5ad", (".csv", ".parquet")


@dataclass(frozen=True, eq=False)
class SlideTiles:
    """The tiles of one slide.

    ``middle_N2``: x and y of their middles; ``side``: their side, both in level-0 px; ``rows_N``: their rows in the
    matrix ``key`` of the file (``""`` in a ``.npy``), which has ``width`` columns; ``encoder``: the network that
    computed the features, where the file names it.
    """

    file: Path
    key: str
    middle_N2: np.ndarray
    side: float
    rows_N: np.ndarray
    width: int
    encoder: str = ""

    def nearest(self, middle_M2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each place, the number of the tile whose middle is nearest, int64 (M,), and how far it is in tiles.

        Distances are along the axis where they are larger: up to 0.5 the place lies on the tile.
        """
        distance_M, tile_M = cKDTree(self.middle_N2).query(middle_M2, p=np.inf)
        return np.asarray(tile_M, np.int64), np.asarray(distance_M) / self.side

    def read(self, tiles_n: np.ndarray) -> np.ndarray:
        """Features of these tiles, float32 (n, D). Raises ``UserError`` where one is not finite."""
        different_m, place_n = np.unique(self.rows_N[tiles_n], return_inverse=True)
        if self.key:
            with _hdf5(self.file) as file:
                matrix = file[self.key]
                leading = (0,) if matrix.ndim == 3 else ()  # several programs write a leading axis of length 1
                # One after the other: three times as fast as a list of rows in h5py.
                values_mD = np.stack([matrix[*leading, row] for row in different_m])
        else:
            values_mD = np.load(self.file, mmap_mode="r")[different_m]
        values_mD = np.asarray(values_mD, np.float32)
        if not np.isfinite(values_mD).all():
            raise UserError(f"{self.file} holds features that are not finite numbers; compute them again")
        return values_mD[place_n]


class TileFiles:
    """The files of ``clusters.files``: one a slide, named after it, or tables with a column ``slide``."""

    def __init__(self, place: Path, *, obsm: str | None) -> None:
        """``place``: a folder or one file; ``obsm``: where an ``.h5ad`` holds the features. Raises ``UserError``."""
        self.place = place
        self.obsm = obsm
        if not place.exists():
            raise UserError(f"clusters.files: {place} does not exist; give a folder or a file of features")
        self._files: dict[str, Path] = {}
        self._tables: dict[str, tuple[Path, pd.DataFrame]] = {}
        for file in sorted(place.iterdir()) if place.is_dir() else [place]:
            if file.suffix.lower() in (*HDF5, ANNDATA):
                self._add(file.stem, file)
            elif file.suffix.lower() == ".npy":
                for slide, rows in _table(file).groupby("slide"):
                    self._add(str(slide), file)
                    self._tables[str(slide)] = file, rows
        if not self._files:
            raise UserError(f"clusters.files: no .h5, .h5ad or .npy in {place}; give the folder that holds them itself")

    def _add(self, slide: str, file: Path) -> None:
        if slide in self._files:
            raise UserError(f"{self._files[slide].name} and {file.name} both hold features of {slide}; move one away")
        self._files[slide] = file

    def name_of(self, names: Sequence[str]) -> str | None:
        """The first of a slide's ``names`` of which there are features."""
        return next((name for name in names if name in self._files), None)

    def tiles(self, slide: str) -> SlideTiles:
        """The tiles of a slide, by a name of ``name_of``. Raises ``UserError`` where its file cannot be used."""
        file = self._files[slide]
        if slide in self._tables:
            return _from_table(*self._tables[slide])
        return _from_anndata(file, obsm=self.obsm) if file.suffix.lower() == ANNDATA else _from_trident(file)


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    """The open file; ``UserError`` where it is none, is damaged, or lacks something."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]!s}; give the files that hold features and coordinates") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read as HDF5 ({error}); write it again") from error


def _from_trident(path: Path) -> SlideTiles:
    """``features`` and ``coords``, the tiles' upper left corners (github.com/mahmoodlab/TRIDENT, trident/IO.py)."""
    with _hdf5(path) as file:
        shape, corner_N2 = _shape(file["features"]), np.asarray(file["coords"], np.float64)
        corner_N2 = corner_N2[0] if corner_N2.ndim == 3 else corner_N2
        encoder = file["features"].attrs.get("encoder", "")
        side = file["coords"].attrs.get("patch_size_level0")
    side = _number(side) or _spacing(corner_N2, path=path)
    _check(path, shape=shape, places_N2=corner_N2)
    return SlideTiles(path, "features", corner_N2 + side / 2, side, np.arange(len(corner_N2)), shape[1], str(encoder))


def _from_anndata(path: Path, *, obsm: str | None) -> SlideTiles:
    """``obsm["spatial"]``, the tiles' middles, with ``X`` or another matrix of ``obsm``; read without AnnData."""
    key = "X" if obsm is None else f"obsm/{obsm}"
    with _hdf5(path) as file:
        if "obsm/spatial" not in file:
            raise UserError(f"{path} has no obsm['spatial']; put x and y of the tiles' middles there, in level-0 px")
        if key not in file or not isinstance(file[key], h5py.Dataset):
            others = ", ".join(name for name in file["obsm"] if name != "spatial") or "nothing else"
            raise UserError(f"{path} has no dense matrix {key}; set clusters.obsm to a key of obsm (it has: {others})")
        shape, middle_N2 = _shape(file[key]), np.asarray(file["obsm/spatial"], np.float64)
    side = _spacing(middle_N2, path=path)
    _check(path, shape=shape, places_N2=middle_N2)
    return SlideTiles(path, key, middle_N2, side, np.arange(len(middle_N2)), shape[1])


def _table(path: Path) -> pd.DataFrame:
    """The table beside a ``.npy``: columns ``slide``, ``x``, ``y`` (upper left corners) and ``extent`` (NaN: unknown).

    ``index.parquet`` of a run is such a table, with ``slide_id`` for ``slide``. Without either, the ``.npy`` is named
    after its slide. The index of the result is the row in the ``.npy``.
    """
    file = next((path.with_suffix(suffix) for suffix in TABLES if path.with_suffix(suffix).is_file()), None)
    if file is None:
        raise UserError(f"{path} has no table beside it; write {path.stem}.csv with columns slide, x, y and extent")
    try:
        table = pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file} cannot be read as a table ({reason}); write it again") from error
    for column in ("x", "y"):
        if column not in table:
            raise UserError(f"{file} has no column {column}; it wants slide, x, y (upper left corners) and extent")
    names = next((table[name] for name in ("slide_id", "slide") if name in table), path.stem)
    try:
        numbers = {name: table[name].astype(float) if name in table else np.nan for name in ("x", "y", "extent")}
    except ValueError as error:
        raise UserError(f"{file}: x, y and extent must be numbers in level-0 px ({error})") from error
    return pd.DataFrame({"slide": names, **numbers}, index=pd.RangeIndex(len(table))).astype({"slide": str})


def _from_table(path: Path, rows: pd.DataFrame) -> SlideTiles:
    """The tiles of one slide of a ``.npy`` and its table."""
    try:
        matrix = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a .npy of numbers ({error}); write it again") from error
    shape, corner_N2 = matrix.shape, rows[["x", "y"]].to_numpy(np.float64)
    if len(shape) != 2 or rows.index[-1] >= shape[0]:
        raise UserError(f"{path} has the shape {shape}; it wants one row of features for each row of its table")
    side = float(rows["extent"].median()) if rows["extent"].notna().all() else _spacing(corner_N2, path=path)
    _check(path, shape=(len(rows), shape[1]), places_N2=corner_N2)
    return SlideTiles(path, "", corner_N2 + side / 2, side, rows.index.to_numpy(np.int64), shape[1])


def _shape(matrix: h5py.Dataset) -> tuple[int, ...]:
    """Of a matrix, without a leading axis of length 1."""
    shape: tuple[int, ...] = matrix.shape
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _number(value: object) -> float | None:
    """A side in px; None where an attribute holds none."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if number > 0 else None


def _spacing(places_N2: np.ndarray, *, path: Path) -> float:
    """The median distance of a tile from the nearest other one: the side of tiles that touch."""
    if places_N2.ndim != 2 or len(places_N2) < 2:
        raise UserError(f"{path} does not say how wide its tiles are; give their side (extent, patch_size_level0)")
    distance_N = cKDTree(places_N2).query(places_N2, k=2, p=np.inf)[0][:, 1]
    return max(float(np.median(distance_N)), 1.0)


def _check(path: Path, *, shape: Sequence[int], places_N2: np.ndarray) -> None:
    if len(shape) != 2 or places_N2.shape != (shape[0], 2) or not shape[1]:
        raise UserError(
            f"{path} has features of the shape {tuple(shape)} at places of the shape {places_N2.shape}; "
            "it wants one row of features and one (x, y) for each tile"
        )
    if not len(places_N2):
        raise UserError(f"{path} holds no tile; compute its features again, or leave the slide out of the run")
    if not np.isfinite(places_N2).all():
        raise UserError(f"{path} has tiles whose place is not a number; write it again")
