"""Any two folders of images, compared: ``histoloom evaluate REAL SYNTHETIC``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from histoloom.autoencoder.lpips import Trunk
from histoloom.errors import UserError
from histoloom.evaluation.folder_distribution import folder_entries, metrics_by_name
from histoloom.evaluation.folder_report import write_evaluation
from histoloom.evaluation.image_folder import LOSSY, ImageFolder, check_same_size
from histoloom.evaluation.intervals import bootstrap_interval
from histoloom.evaluation.metrics import MetricSettings, PairMetric, make_metrics, measure
from histoloom.evaluation.pairing import Pairs, all_pairs, disjoint_pairs
from histoloom.evaluation.similarity import Values
from histoloom.progress import meter
from histoloom.seeding import numpy_generator

EXTRACTORS = ("pixels", "lpips-alex")
_STEP = 32


def evaluate_folders(
    real: Path,
    synthetic: Path,
    *,
    seed: int = 0,
    pairs: int = 256,
    trunk: Trunk = "alex",
    resamples: int = 1000,
    extractors: tuple[str, ...] = EXTRACTORS,
    cache: Path | None = None,
    device: str = "cpu",
    download: bool = True,
    floor: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Compare random pairs of a real and a synthetic image, and of two real ones (the floor), then whole distributions.

    Folders are searched with their subfolders for 8-bit RGB images of one size. At most ``pairs`` pairs are drawn
    for each; those of the floor are disjoint, so that there are at most half as many as real images. Every header is
    checked, and every image that is drawn is decoded; distributions (evaluation/folder_distribution.py) take them all,
    by each of ``extractors``, whose features are kept in ``cache`` (by default the user's cache folder).

    ``floor``: other real images, best of other slides, whose likeness to the real ones is the floor instead of that
    of the real ones among themselves. With ``out``, ``evaluate.json``, ``.csv`` and ``.html`` are written there.

    Returns {n_real, n_synthetic, pairs, floor_pairs, metrics: {NAME: {value, interval, floor, floor_interval,
    extractor}}, missing: {NAME: reason}, notes: [...]}. Raises ``UserError`` for folders and images that cannot be
    compared.
    """
    reals, synthetics, others = _open(real, synthetic, floor)
    settings = MetricSettings(min(reals.size), trunk, torch.device(device), download)
    metrics, missing = make_metrics(settings)
    across, floor_pairs = _pairs(reals, synthetics, others, count=pairs, seed=seed)
    across_values = _measure(metrics, left=reals, right=synthetics, pairs=across, what="real against synthetic")
    floor_values = _measure(metrics, left=reals, right=others or reals, pairs=floor_pairs, what="real against real")
    result = {
        metric.name: _entry(metric, across_values, floor_values, seed=seed, resamples=resamples) for metric in metrics
    }
    found, without = folder_entries(
        reals, synthetics, others, extractors=extractors, seed=seed, settings=settings, cache=cache
    )
    result |= metrics_by_name(found)
    missing |= without
    told = {
        "n_real": len(reals),
        "n_synthetic": len(synthetics),
        "pairs": len(across),
        "floor_pairs": len(floor_pairs),
        "metrics": result,
        "missing": missing,
        "notes": _notes(reals, synthetics),
    }
    if out is not None:
        write_evaluation(told, out)
    return told


def _pairs(
    reals: ImageFolder, synthetics: ImageFolder, others: ImageFolder | None, *, count: int, seed: int
) -> tuple[Pairs, Pairs]:
    """Of a real and a synthetic image, and of two real ones (of a real and an other real one)."""
    across = all_pairs(len(reals), len(synthetics), count=count, rng=numpy_generator(seed, "folders", "pairs"))
    rng = numpy_generator(seed, "folders", "floor")
    if others is None:
        return across, disjoint_pairs(len(reals), count=count, rng=rng)
    return across, all_pairs(len(reals), len(others), count=count, rng=rng)


def _open(real: Path, synthetic: Path, floor: Path | None) -> tuple[ImageFolder, ImageFolder, ImageFolder | None]:
    places = [path.resolve() for path in (real, synthetic, floor) if path is not None]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError(
                f"both folders are {place}; name the real images' folder, then the synthetic images' (and --floor, "
                "other real images)"
            )
    reals, synthetics = ImageFolder(real), ImageFolder(synthetic)
    others = None if floor is None else ImageFolder(floor)
    for folder in (synthetics, *([others] if others else [])):
        check_same_size(folder.paths[0], size=folder.size, other=reals.paths[0], other_size=reals.size)
    if len(reals) < 2 and others is None:
        raise UserError(f"{real} holds one image; the floor of real against real needs at least two")
    return reals, synthetics, others


def _measure(
    metrics: list[PairMetric], *, left: ImageFolder, right: ImageFolder, pairs: np.ndarray, what: str
) -> dict[str, Values]:
    parts: dict[str, list[Values]] = {metric.name: [] for metric in metrics}
    with meter(what, total=len(pairs)) as counter:
        for start in range(0, len(pairs), _STEP):
            some = pairs[start : start + _STEP]
            for name, values in measure(metrics, left=left.read, right=right.read, pairs=some).items():
                parts[name].append(values)
            counter.advance(len(some))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _entry(
    metric: PairMetric,
    across: Mapping[str, Values],
    floor: Mapping[str, Values],
    *,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    values_P, floor_P = across[metric.name], floor[metric.name]
    rng = numpy_generator(seed, "folders", "bootstrap", metric.name)
    return {
        "value": float(values_P.mean()),
        "interval": list(bootstrap_interval(values_P, rng=rng, resamples=resamples)),
        "floor": float(floor_P.mean()),
        "floor_interval": list(bootstrap_interval(floor_P, rng=rng, resamples=resamples)),
        "extractor": metric.extractor,
    }


def _notes(reals: ImageFolder, synthetics: ImageFolder) -> list[str]:
    lossy = [any(path.suffix.lower() in LOSSY for path in images.paths) for images in (reals, synthetics)]
    if lossy[0] == lossy[1]:
        return []
    which, other = ("real", "synthetic") if lossy[0] else ("synthetic", "real")
    return [
        f"the {which} images hold lossily compressed files and the {other} ones do not: compression moves every metric"
    ]
