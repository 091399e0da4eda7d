"""Folders of images compared as distributions.

The floor is a random half of the real ones against the other, or a folder of other real images against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from histoloom.evaluation.distribution import LEAST, Pair, entries
from histoloom.evaluation.extractors import Sources, make_extractors
from histoloom.evaluation.feature_cache import cached_features, user_cache
from histoloom.evaluation.image_folder import ImageFolder
from histoloom.evaluation.metrics import MetricSettings
from histoloom.seeding import permutation

FLOOR, FLOOR_OF_OTHERS = "random halves of the real images", "other real images"


def folder_entries(
    reals: ImageFolder,
    synthetics: ImageFolder,
    others: ImageFolder | None,
    *,
    extractors: tuple[str, ...],
    seed: int,
    settings: MetricSettings,
    cache: Path | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The entries (evaluation/distribution.py), and for each extractor or for all of them why there are none.

    Of ``others`` as many are the floor as there are synthetic images, drawn at random: distances fall with numbers.
    """
    if len(reals) < 2 * LEAST or len(synthetics) < LEAST or (others is not None and len(others) < LEAST):
        reason = f"distributions need at least {2 * LEAST} real and {LEAST} of all other images"
        counts = " and ".join(str(len(images)) for images in (reals, synthetics, others) if images is not None)
        return [], {"distribution": f"{reason}, got {counts}"}
    sources = Sources(settings.device, download=settings.download)
    made, missing = make_extractors(extractors, sources=sources, size=min(reals.size))
    found = []
    for extractor in made:
        # In an order that follows from the images alone, so that names and folders do not move the halves.
        real_ND, synthetic_MD, *other_ND = (
            _ordered(cached_features(images, extractor=extractor, cache=cache or user_cache(), what=what))
            for images, what in (
                (reals, "real images"),
                (synthetics, "synthetic images"),
                (others, "other real images"),
            )
            if images is not None
        )
        floor = _floor(real_ND, other_ND, most=len(synthetic_MD), seed=seed)
        about = {"floor_from": FLOOR if others is None else FLOOR_OF_OTHERS}
        pairs = [(real_ND, synthetic_MD)]
        made_of = entries(pairs, [floor], extractor=extractor.name, seed=seed, path=["folders"])
        found += [entry | about for entry in made_of]
    return found, missing


def _floor(real_ND: np.ndarray, others: Sequence[np.ndarray], *, most: int, seed: int) -> Pair:
    if not others:
        halves = np.array_split(permutation(seed, "folders", "halves", n=len(real_ND)), 2)
        return real_ND[np.sort(halves[0])], real_ND[np.sort(halves[1])]
    return real_ND, others[0][np.sort(permutation(seed, "folders", "others", n=len(others[0]))[:most])]


def metrics_by_name(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries by ``METRIC/EXTRACTOR``, as ``histoloom evaluate --json`` has them."""
    return {f"{entry['metric']}/{entry['extractor']}": entry for entry in found}


def _ordered(x_ND: np.ndarray) -> np.ndarray:
    return x_ND[np.lexsort(x_ND.T[::-1])]
