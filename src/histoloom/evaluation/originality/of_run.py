"""Originality of a run's samples: what the stage ``evaluation`` writes of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histoloom.evaluation import distribution_stage
from histoloom.evaluation.extractors import Extractor
from histoloom.evaluation.originality.audit import Audit, Sets, audit, summary
from histoloom.evaluation.originality.by_features import ByFeatures, Sources, features_summary, look, sample_entries
from histoloom.evaluation.originality.folders import suspicious_first
from histoloom.evaluation.sample_folder import SampleFolder
from histoloom.evaluation.similarity import Images
from histoloom.run.directory import write_bytes, write_json
from histoloom.slides.patch_set import PatchSet

FILE, PICTURES = "originality.json", "suspicious.npz"
SHOWN = 8
"""pairs that are kept as pictures"""


class Rows:
    """Some patches of a set, in the order of their rows."""

    def __init__(self, patches: PatchSet, rows: np.ndarray) -> None:
        self._patches, self._rows = patches, rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, numbers: np.ndarray) -> Images:
        """See ``Pictures``."""
        return self._patches.images(self._rows[numbers])


class _Samples:
    """All samples of a folder, in the order of its table."""

    def __init__(self, folder: SampleFolder) -> None:
        self._folder = folder

    def __len__(self) -> int:
        return len(self._folder.table)

    def read(self, numbers: np.ndarray) -> Images:
        """See ``Pictures``."""
        return self._folder.images(numbers)


def write_originality(
    out: Path,
    *,
    patches: PatchSet,
    samples: SampleFolder,
    extractors: Sequence[Extractor],
    cache: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Write ``originality.json`` and ``suspicious.npz`` and return the former; features are kept in ``cache``.

    Patches of held-out slides set the threshold and test it; a run without enough of them gets scores alone.
    """
    train, holdout = patches.rows("train"), patches.rows("holdout")
    table = patches.columns("patch_id", "slide")
    slides = table["slide"].astype(str).to_numpy()[holdout]
    found = audit(
        Sets(_Samples(samples), Rows(patches, train), Rows(patches, holdout), slides.tolist()),
        seed=seed,
        device=device,
    )
    sources = Sources(
        distribution_stage.Rows(samples.images, np.arange(len(samples.table))),
        distribution_stage.Rows(patches.images, train),
        distribution_stage.Rows(patches.images, holdout),
        slides.tolist(),
    )
    others = [look(sources, extractor=extractor, cache=cache, seed=seed) for extractor in extractors]
    ids = table["patch_id"].to_numpy(dtype=str)[train]
    order = suspicious_first(found)
    result = summary(found) | {
        "by_features": [features_summary(other) for other in others],
        "samples": [_entry(found, row, others=others, samples=samples, ids=ids) for row in order],
    }
    write_bytes(out / PICTURES, _pictures(found, order[:SHOWN], patches=patches, train=train, samples=samples))
    write_json(out / FILE, result)
    return result


def _entry(
    found: Audit, row: int, *, others: Sequence[ByFeatures], samples: SampleFolder, ids: np.ndarray
) -> dict[str, Any]:
    return {
        "file": str(samples.table["file_name"].iloc[row]),
        "nearest": str(ids[found.nearest.number_N[row]]),
        "score": float(found.nearest.score_N[row]),
        "copy": bool(found.alarm_N[row]),
        "too_plain": bool(found.plain_N[row]),
        "by": sample_entries(others, row, ids=ids),
    }


def _pictures(found: Audit, shown: list[int], *, patches: PatchSet, train: np.ndarray, samples: SampleFolder) -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        sample=samples.images(np.array(shown)),
        nearest=patches.images(train[found.nearest.number_N[shown]]),
    )
    return buffer.getvalue()


def said(result: dict[str, Any]) -> str:
    """One line of what was found."""
    if result["copy_rate"] is None:
        return f"originality: {result['notes'][0]}"
    low, high = result["interval"]
    return (
        f"originality: {result['copies']} of {result['n']} samples look like copies of training patches ({low:.1%} to "
        f"{high:.1%}); false alarms on held-out patches: {result['false_alarm_rate']:.1%}"
    )
