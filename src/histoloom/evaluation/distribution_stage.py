"""The part of the stage ``evaluation`` that compares distributions: ``distribution.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from histoloom.evaluation.extractors import Extractor, Sources, make_extractors
from histoloom.evaluation.feature_cache import cached_features
from histoloom.evaluation.metrics import Reader
from histoloom.evaluation.run_distribution import Featured, Sides, choose_sides, run_entries
from histoloom.evaluation.sample_folder import SampleFolder
from histoloom.run.directory import write_json
from histoloom.run.stage import StageContext
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device

CACHE = ".features"
"""in the run directory: features by content, which outlive a stage that is made again"""


@dataclass(frozen=True)
class Rows:
    """Some images of a reader, as a source for the cache: known by their pixels."""

    reader: Reader
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, number: int) -> bytes:
        """SHA-256 of the image's shape and pixels."""
        image = self.reader(self.rows[number : number + 1])[0]
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The images of these numbers."""
        return self.reader(self.rows[numbers])


def write_distribution(
    context: StageContext, *, patches: PatchSet, labels: dict[int, np.ndarray], samples: SampleFolder
) -> None:
    """Write ``distribution.json``: ``{"entries": [...], "missing": {extractor: reason}}``.

    ``labels`` are the patches' clusters of each k, in their order.
    """
    config = context.config
    device = torch.device(resolve_device(config.runtime.device))
    sources = Sources(device, autoencoder=context.inputs.get("autoencoder"), download=True)
    made, missing = make_extractors(config.evaluation.extractors, sources=sources, size=patches.size)
    for name, reason in missing.items():
        context.say(f"no distances by {name}: {reason}")
    sides = choose_sides(
        patches.columns("split")["split"].to_numpy(), most=config.evaluation.distribution_patches, seed=config.seed
    )
    found = []
    for extractor in made:
        features = _features(context, extractor=extractor, patches=patches, samples=samples, sides=sides)
        for k in samples.ks:
            found += run_entries(
                features, sides=sides, labels=labels[k], samples=samples.rows(k), k=k, seed=config.seed
            )
    write_json(context.out / "distribution.json", {"entries": found, "missing": missing})
    for k in samples.ks:
        context.say(f"k = {k}: {summary(found, k=k)}")


def _features(
    context: StageContext, *, extractor: Extractor, patches: PatchSet, samples: SampleFolder, sides: Sides
) -> Featured:
    rows = np.union1d(sides.target, sides.floor)
    cache = context.run / CACHE
    real_nD = cached_features(Rows(patches.images, rows), extractor=extractor, cache=cache, what="real patches")
    every = np.arange(len(samples.table))
    synthetic_MD = cached_features(Rows(samples.images, every), extractor=extractor, cache=cache, what="samples")
    real_ND = np.full((len(patches), real_nD.shape[1]), np.nan, np.float32)
    real_ND[rows] = real_nD
    return Featured(extractor.name, real_ND, synthetic_MD)


def summary(found: Sequence[dict[str, Any]], *, k: int) -> str:
    """One line: the distances over all clusters, each with its floor."""
    parts = [
        f"{entry['metric']} by {entry['extractor']} {entry['value']:.4g} (real against real {entry['floor']:.4g})"
        for entry in found
        if (entry["k"], entry["cluster"]) == (k, None) and entry["metric"] in ("frechet", "fid", "kid")
    ]
    return ", ".join(parts) or "too few samples or real patches to compare distributions"
