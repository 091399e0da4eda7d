"""Any two folders of images, compared: ``histoloom evaluate REAL SYNTHETIC``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from histoloom.autoencoder.lpips import Trunk
from histoloom.errors import UserError
from histoloom.evaluation.distribution import MIN_IMAGES, FeaturePair, compare_sets
from histoloom.evaluation.extractors import Extractor, ExtractorSources, make_extractors
from histoloom.evaluation.feature_cache import cached_features, user_cache
from histoloom.evaluation.folder_report import write_evaluation
from histoloom.evaluation.images import LOSSY, ChosenImages, ImageFolder, require_apart
from histoloom.evaluation.pair_metrics import PairMetric, PairMetricSettings, make_metrics, measure
from histoloom.evaluation.results import FolderEvaluation, FolderSetComparison, PairComparison, TwoSample
from histoloom.evaluation.similarity import all_pairs, disjoint_pairs
from histoloom.evaluation.statistics import bootstrap_interval
from histoloom.evaluation.texture_features import MIN_SIDE, TextureStatistics, feature_names
from histoloom.evaluation.two_sample import MIN_IMAGES as MIN_TOLD
from histoloom.evaluation.two_sample import FeatureSet, two_sample_test
from histoloom.evaluation.verdicts import distance_checks, two_sample_checks, verdict
from histoloom.progress import meter
from histoloom.seeding import numpy_generator, permutation

EXTRACTORS = ("pixels", "lpips-alex")
MAX_TOLD = 2000
"""synthetic images in the two-sample test, and real ones on each of its two sides"""
FLOOR, FLOOR_OF_OTHERS = "random halves of the real images", "other real images"


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
) -> FolderEvaluation:
    """Compare random pairs of a real and a synthetic image, and of two real ones (the floor), then whole distributions.

    Folders are searched with their subfolders for 8-bit RGB images of one size. At most ``pairs`` pairs are drawn
    for each; those of the floor are disjoint, so that there are at most half as many as real images. Every header is
    checked, and every image that is drawn is decoded; distributions use all images, by each of ``extractors``, whose
    features are kept in ``cache`` (by default the user's cache folder).

    ``floor``: other real images, best of other slides, whose likeness to the real ones is the floor instead of that
    of the real ones among themselves. With ``out``, ``evaluate.json``, ``.csv`` and ``.html`` are written there.
    Raises ``UserError`` for folders and images that cannot be compared.
    """
    reals, synthetics, others = _open(real, synthetic, floor)
    metrics, missing = make_metrics(PairMetricSettings(min(reals.size), trunk, torch.device(device), download))
    across = all_pairs(len(reals), len(synthetics), count=pairs, rng=numpy_generator(seed, "folders", "pairs"))
    floor_rng = numpy_generator(seed, "folders", "floor")
    floor_pairs = (
        disjoint_pairs(len(reals), count=pairs, rng=floor_rng)
        if others is None
        else all_pairs(len(reals), len(others), count=pairs, rng=floor_rng)
    )
    by_pairs = _compare_pairs(
        metrics, reals, synthetics, others or reals, across=across, floor=floor_pairs, seed=seed, resamples=resamples
    )

    by_sets: list[FolderSetComparison] = []
    without: dict[str, str] = {}
    folders = [folder for folder in (reals, synthetics, others) if folder is not None]
    if len(reals) < 2 * MIN_IMAGES or min(map(len, folders)) < MIN_IMAGES:
        counts = " and ".join(str(len(folder)) for folder in folders)
        reason = f"distributions need at least {2 * MIN_IMAGES} real and {MIN_IMAGES} of all other images"
        without = {"distribution": f"{reason}, got {counts}"}
    else:
        by_sets, without = _compare_sets(
            reals,
            synthetics,
            others,
            extractors=extractors,
            sources=ExtractorSources(torch.device(device), download=download),
            cache=cache or user_cache(),
            seed=seed,
        )

    two_sample = _tell_apart(
        reals, synthetics, others, device=torch.device(device), cache=cache or user_cache(), seed=seed
    )
    # The same image on both sides, and compression, move every metric.
    notes = []
    real_keys = {reals.key(index) for index in range(len(reals))}
    for folder, what in ((synthetics, "synthetic"), (others, "other real")):
        shared = 0 if folder is None else sum(folder.key(index) in real_keys for index in range(len(folder)))
        if shared:
            notes.append(f"{shared} of the {what} images are among the real images too (equal files): take them out")
    is_lossy = [any(path.suffix.lower() in LOSSY for path in folder.paths) for folder in (reals, synthetics)]
    if is_lossy[0] != is_lossy[1]:
        which, other = ("real", "synthetic") if is_lossy[0] else ("synthetic", "real")
        notes.append(
            f"the {which} images hold lossily compressed files and the {other} ones do not: compression moves every "
            "metric"
        )
    if others is None and two_sample.note is None:
        notes.append(
            "the floor of the two-sample test is made of the same real images, so that real images of other slides may "
            "be called different too; name a folder of such images with --floor"
        )
    result = FolderEvaluation(
        n_real=len(reals),
        n_synthetic=len(synthetics),
        pairs=len(across),
        floor_pairs=len(floor_pairs),
        metrics=by_pairs | {f"{one.metric}/{one.extractor}": one for one in by_sets},
        missing=missing | without,
        notes=tuple(notes),
        two_sample=two_sample,
        verdict=verdict([*two_sample_checks(two_sample, cluster=None), *distance_checks(by_sets)]),
    )
    if out is not None:
        write_evaluation(result, out)
    return result


def _open(real: Path, synthetic: Path, floor: Path | None) -> tuple[ImageFolder, ImageFolder, ImageFolder | None]:
    advice = "name folders apart: the real images', then the synthetic images' (and --floor, other real images)"
    require_apart(*(folder for folder in (real, synthetic, floor) if folder is not None), advice=advice)
    reals, synthetics = ImageFolder(real), ImageFolder(synthetic)
    others = None if floor is None else ImageFolder(floor)
    for folder in (synthetics, *([others] if others else [])):
        folder.require_size_of(reals)
    if len(reals) < 2 and others is None:
        raise UserError(f"{real} holds one image; the floor of real against real needs at least two")
    return reals, synthetics, others


def _compare_pairs(
    metrics: list[PairMetric],
    reals: ImageFolder,
    synthetics: ImageFolder,
    others: ImageFolder,
    *,
    across: np.ndarray,
    floor: np.ndarray,
    seed: int,
    resamples: int,
) -> dict[str, PairComparison | FolderSetComparison]:
    """Each metric of pairs of a real and a synthetic image, and of a real and an other real one."""
    with meter("real against synthetic", total=len(across)) as counter:
        values = measure(metrics, left=reals.read, right=synthetics.read, pairs=across, advance=counter.advance)
    with meter("real against real", total=len(floor)) as counter:
        floor_values = measure(metrics, left=reals.read, right=others.read, pairs=floor, advance=counter.advance)
    comparisons: dict[str, PairComparison | FolderSetComparison] = {}
    for metric in metrics:
        values_P, floor_P = values[metric.name], floor_values[metric.name]
        rng = numpy_generator(seed, "folders", "bootstrap", metric.name)
        comparisons[metric.name] = PairComparison(
            value=float(values_P.mean()),
            interval=bootstrap_interval(values_P, rng=rng, resamples=resamples),
            floor=float(floor_P.mean()),
            floor_interval=bootstrap_interval(floor_P, rng=rng, resamples=resamples),
            extractor=metric.extractor,
        )
    return comparisons


def _compare_sets(
    reals: ImageFolder,
    synthetics: ImageFolder,
    others: ImageFolder | None,
    *,
    extractors: tuple[str, ...],
    sources: ExtractorSources,
    cache: Path | None,
    seed: int,
) -> tuple[list[FolderSetComparison], dict[str, str]]:
    """The folders as distributions, by each extractor; for each extractor that cannot be used, the reason.

    The floor is a random half of the real images against the other, or ``others`` against the real ones: as many of
    them as there are synthetic images, drawn at random, since distances fall with numbers.
    """
    usable, missing = make_extractors(extractors, sources=sources, size=min(reals.size))
    comparisons = []
    for extractor in usable:

        def features(images: ImageFolder, what: str, extractor: Extractor = extractor) -> np.ndarray:
            x_ND = cached_features(images, extractor=extractor, cache=cache, what=what)
            # In an order that follows from the images alone, so that names and folders do not move the halves.
            return x_ND[np.lexsort(x_ND.T[::-1])]

        real_ND, synthetic_MD = features(reals, "real images"), features(synthetics, "synthetic images")
        floor: FeaturePair
        if others is None:
            halves = np.array_split(permutation(seed, "folders", "halves", n=len(real_ND)), 2)
            floor = real_ND[np.sort(halves[0])], real_ND[np.sort(halves[1])]
        else:
            other_ND = features(others, "other real images")
            drawn = permutation(seed, "folders", "others", n=len(other_ND))[: len(synthetic_MD)]
            floor = real_ND, other_ND[np.sort(drawn)]
        compared = compare_sets(
            [(real_ND, synthetic_MD)], [floor], extractor=extractor.name, seed=seed, path=["folders"]
        )
        floor_from = FLOOR if others is None else FLOOR_OF_OTHERS
        comparisons += [FolderSetComparison(**dict(one), floor_from=floor_from) for one in compared]
    return comparisons, missing


def _tell_apart(
    reals: ImageFolder,
    synthetics: ImageFolder,
    others: ImageFolder | None,
    *,
    device: torch.device,
    cache: Path | None,
    seed: int,
) -> TwoSample:
    """The two-sample test: one half of the real images is learned from, the other is tested.

    The floor is halves of the half that is learned from, or of ``others``. At most ``MAX_TOLD`` images of a side are
    drawn, in an order that follows from the images alone.
    """
    side = min(reals.size)
    if side < MIN_SIDE:
        return TwoSample(note=f"it needs images of at least {MIN_SIDE} px, and they have {side} px")
    if len(reals) < 2 * MIN_TOLD or min(len(folder) for folder in (synthetics, others or synthetics)) < MIN_TOLD:
        return TwoSample(note=f"it needs {2 * MIN_TOLD} real and {MIN_TOLD} of all other images")
    extractor = TextureStatistics(device)

    def features(images: ImageFolder, what: str, most: int) -> tuple[FeatureSet, list[str]]:
        by_content = sorted(range(len(images)), key=images.key)
        drawn = permutation(seed, "folders", "two samples", what, n=len(images))[:most]
        rows = np.array(by_content)[drawn]
        source = ChosenImages(images, rows)
        features_NF = cached_features(source, extractor=extractor, cache=cache, what=what)
        every = np.arange(len(rows))
        return FeatureSet(features_NF, np.zeros_like(every), every), [images.names[row] for row in rows]

    real, _ = features(reals, "real images", 2 * MAX_TOLD)
    synthetic, files = features(synthetics, "synthetic images", MAX_TOLD)
    half = np.arange(len(real)) < len(real) // 2
    return two_sample_test(
        real.take(np.flatnonzero(half)),
        real.take(np.flatnonzero(~half)),
        synthetic,
        others=None if others is None else features(others, "other real images", 2 * MAX_TOLD)[0],
        names=feature_names(side),
        files=files,
        seed=seed,
        path=["folders", "two samples"],
    )
