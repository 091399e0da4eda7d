"""Two folders of images compared as distributions; the floor is a random half of the real ones against the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histoloom.evaluation.distribution import LEAST, entries
from histoloom.evaluation.extractors import Sources, make_extractors
from histoloom.evaluation.feature_cache import cached_features, user_cache
from histoloom.evaluation.image_folder import ImageFolder
from histoloom.seeding import permutation

FLOOR = "random halves of the real images"


def folder_entries(
    reals: ImageFolder,
    synthetics: ImageFolder,
    *,
    extractors: tuple[str, ...],
    seed: int,
    device: torch.device,
    download: bool,
    cache: Path | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The entries (evaluation/distribution.py), and for each extractor or for all of them why there are none."""
    if len(reals) < 2 * LEAST or len(synthetics) < LEAST:
        reason = f"distributions need at least {2 * LEAST} real and {LEAST} synthetic images"
        return [], {"distribution": f"{reason}, got {len(reals)} and {len(synthetics)}"}
    sources = Sources(device, download=download)
    made, missing = make_extractors(extractors, sources=sources, size=min(reals.size))
    found = []
    for extractor in made:
        real_ND, synthetic_MD = (
            cached_features(images, extractor=extractor, cache=cache or user_cache(), what=what)
            for images, what in ((reals, "real images"), (synthetics, "synthetic images"))
        )
        # In an order that follows from the images alone, so that names and folders do not move the halves.
        real_ND, synthetic_MD = _ordered(real_ND), _ordered(synthetic_MD)
        halves = np.array_split(permutation(seed, "folders", "halves", n=len(real_ND)), 2)
        floor = (real_ND[np.sort(halves[0])], real_ND[np.sort(halves[1])])
        found += entries([(real_ND, synthetic_MD)], [floor], extractor=extractor.name, seed=seed, path=["folders"])
    return found, missing


def metrics_by_name(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries by ``METRIC/EXTRACTOR``, as ``histoloom evaluate --json`` has them."""
    return {f"{entry['metric']}/{entry['extractor']}": entry | {"floor_from": FLOOR} for entry in found}


def _ordered(x_ND: np.ndarray) -> np.ndarray:
    return x_ND[np.lexsort(x_ND.T[::-1])]
