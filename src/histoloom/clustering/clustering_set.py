"""The published stage ``clusters``, read back."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

from histoloom.clustering.results import Decision, ValidityTable

if TYPE_CHECKING:
    import pandas as pd


class Clustering:
    """Clusters of every patch for every k of the sweep; join by ``patch_id``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def open(folder: Path) -> Clustering:
        """Open the stage's folder."""
        return Clustering(folder)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a patch: ``patch_id`` and a column ``k{k}`` of labels 0..k-1 for each k."""
        import pandas as pd  # only tables need it: a generator draws without

        return pd.read_parquet(self.folder / "index.parquet")

    @cached_property
    def decision(self) -> Decision:
        """Which k, by what rule, and why."""
        return Decision.load(self.folder)

    @property
    def chosen(self) -> int:
        """The chosen k."""
        return self.decision.k

    @property
    def ks(self) -> list[int]:
        """The sweep, rising."""
        import pyarrow.parquet as pq

        names = pq.read_schema(self.folder / "index.parquet").names
        # An index that pandas wrote is a column too.
        return sorted(int(name[1:]) for name in names if re.fullmatch(r"k\d+", name))

    def labels(self, k: int) -> pd.Series:
        """Labels of ``k`` by patch id."""
        return self.table.set_index("patch_id")[f"k{k}"]

    def labels_of(self, index: Path) -> dict[int, np.ndarray]:
        """Labels of every k, int64, of the patches that an index.parquet names, in its order.

        Where it has the order of this stage, which is the rule, nothing is joined: a join takes some hundred bytes a
        patch.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        own = self.folder / "index.parquet"
        wanted, known = (
            pq.read_table(path, columns=["patch_id"])["patch_id"].cast(pa.string()) for path in (index, own)
        )
        rows = None
        if not wanted.equals(known):
            rows = pc.index_in(wanted, value_set=known)
            assert not rows.null_count, "every patch has its clusters"
        labels = {}
        for k in self.ks:
            column = pq.read_table(own, columns=[f"k{k}"])[f"k{k}"]
            column = column if rows is None else column.take(rows)
            labels[k] = column.to_numpy().astype(np.int64)
        return labels

    @cached_property
    def sizes(self) -> dict[int, list[int]]:
        """Patches of each cluster, for each k."""
        return {k: np.bincount(self.table[f"k{k}"], minlength=k).tolist() for k in self.ks}

    def probabilities(self, k: int) -> np.ndarray:
        """Probabilities of ``k``, float32 (n, k), in the table's row order."""
        return load_file(self.folder / "probabilities.safetensors")[f"k{k}"]

    @cached_property
    def validity(self) -> ValidityTable:
        """The five indices for each k and method."""
        return ValidityTable.load(self.folder)
