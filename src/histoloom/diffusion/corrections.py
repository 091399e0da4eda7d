"""The corrections of single patches that a training of the diffusion model uses: frozen in its folder.

At the k where it was made, a correction gives a training patch the condition of its new tissue. Where several clusters
share the name, it is the one that is most probable for the patch. A name that no cluster has is a condition of its own,
numbered on from the clusters. A patch without tissue has the null condition there: no tissue is drawn like it, and
guidance leads away from it. This module loads quickly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from histoloom.clustering.clustering_set import Clustering
from histoloom.names.corrections import CorrectedTissues
from histoloom.run.directory import read_json, write_json
from histoloom.run.record import Record

FILE = "corrections.json"
NO_CONDITION = -1
"""stands for the cluster of a patch without tissue"""


class TrainedCorrections(Record):
    """``corrections.json`` in the folder of the stage ``diffusion``; there is none where there are no corrections.

    ``names``: for each k those that no cluster has, numbered on from k; ``numbers``: for each k the cluster or number
    of each corrected patch, by patch id, or ``NO_CONDITION``.
    """

    names: Mapping[int, tuple[str, ...]] = {}
    numbers: Mapping[int, Mapping[str, int]] = {}

    @staticmethod
    def of(corrections: Mapping[int, CorrectedTissues], *, clustering: Clustering) -> TrainedCorrections:
        """One number for each corrected patch of ``clustering``, from the tissues at each k."""
        numbers: dict[int, dict[str, int]] = {}
        row_of = (
            {patch: row for row, patch in enumerate(clustering.table["patch_id"].astype(str))} if corrections else {}
        )
        for k, corrected in corrections.items():
            p_Nk, numbers[k] = clustering.probabilities(k), {}
            for patch, several in corrected.numbers.items():
                if patch in row_of:
                    p_k = p_Nk[row_of[patch]]
                    shared = [number for number in several if number < k]
                    numbers[k][patch] = max(shared, key=p_k.__getitem__) if shared else (*several, NO_CONDITION)[0]
        names = {k: corrected.names for k, corrected in corrections.items() if corrected.names}
        return TrainedCorrections(names=names, numbers=numbers)

    @staticmethod
    def load(folder: Path) -> TrainedCorrections:
        """Read the file; none are there where it is missing."""
        path = folder / FILE
        return TrainedCorrections.model_validate(read_json(path)) if path.is_file() else TrainedCorrections()

    def save(self, folder: Path) -> None:
        """Write the file."""
        write_json(folder / FILE, self.model_dump(mode="json"))

    def size(self, k: int) -> int:
        """How many conditions ``k`` has."""
        return k + len(self.names.get(k, ()))

    def applied(self, labels_NS: np.ndarray, *, patch_ids: Sequence[str], ks: Sequence[int]) -> np.ndarray:
        """The clusters of N patches at each of ``ks``, (N, S), as corrected."""
        import pandas as pd  # heavy, and most trainings have no corrections

        corrected_NS = labels_NS.copy()
        for column, k in enumerate(ks):
            if numbers := self.numbers.get(k):
                rows = pd.Index(patch_ids).get_indexer(pd.Index(list(numbers)))
                corrected_NS[rows[rows >= 0], column] = np.array(list(numbers.values()))[rows >= 0]
        return corrected_NS

    def sentence(self) -> str:
        """How many patches are corrected, and to what, in one line."""
        parts = []
        for k, numbers in sorted(self.numbers.items()):
            names = dict(enumerate(self.names.get(k, ()), start=k)) | {NO_CONDITION: "no tissue"}
            counts = Counter(names.get(number, f"cluster {number}") for number in numbers.values())
            parts.append(f"k = {k}: {', '.join(f'{n} {name}' for name, n in counts.most_common())}")
        return f"corrected patches have the conditions of their new tissues ({'; '.join(parts)})"


NO_CORRECTIONS = TrainedCorrections()
