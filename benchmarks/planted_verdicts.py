"""Verdicts on planted samples, whose right words are known, with and without LPIPS weights.

Patches of real fields with a CSV of slides (columns file and slide) stand for the patches of a run; clusters are those
of k-means on colour. Of the slides, nine are learned from, five are tested, and the others are further real patches.
The planted samples are further patches of the learned slides, as they are (a perfect generator) and damaged in a known
way, and patches of other slides. The verdict is given by the two-sample test alone, and together with the distance by
``lpips-alex``, whose weights ``HISTOLOOM_WEIGHTS`` names.

    python benchmarks/planted_verdicts.py FOLDER [--size 64] [--samples 100 400] [--turns 3]

Prints a Markdown table: the words of each turn, which splits the slides anew, the median AUC by texture and by colour,
and what the plant should be called.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans

from histoloom.errors import UserError
from histoloom.evaluation.distribution import compare_sets
from histoloom.evaluation.extractors import Extractor, ExtractorSources, make_extractor
from histoloom.evaluation.results import Verdict
from histoloom.evaluation.texture_features import TextureStatistics, feature_names
from histoloom.evaluation.two_sample import FeatureSet, two_sample_test
from histoloom.evaluation.verdicts import distance_checks, two_sample_checks, verdict

PER_FIELD, CLUSTERS = 120, 8
LEARNED, TESTED = 9, 5  # slides
Damage = Callable[[np.ndarray], np.ndarray]


def smoothed(sigma: float) -> Damage:
    return lambda images: gaussian_filter(images.astype(float), (0, sigma, sigma, 0)).round().astype(np.uint8)


def noise(*, sigma: float) -> Damage:
    """Noise of each image's mean colour and contrast, with structures of ``sigma`` px."""

    def damage(images: np.ndarray) -> np.ndarray:
        values = np.random.default_rng(0).normal(size=images.shape)
        if sigma:
            values = gaussian_filter(values, (0, sigma, sigma, 0))
        values /= values.std(axis=(1, 2), keepdims=True)
        mean, spread = (f(images, axis=(1, 2), keepdims=True) for f in (np.mean, np.std))
        return np.clip(mean + spread * values, 0, 255).astype(np.uint8)

    return damage


def enlarged(images: np.ndarray) -> np.ndarray:
    """The middle of each image at twice its size, smoothly."""
    quarter, side = images.shape[1] // 4, images.shape[1]
    middle = images[:, quarter:-quarter, quarter:-quarter]
    return np.stack([np.array(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in middle])


def reduced(images: np.ndarray) -> np.ndarray:
    """Each image at half its size, four times side by side."""
    half = images.shape[1] // 2
    small = [np.array(Image.fromarray(one).resize((half, half), Image.Resampling.BOX)) for one in images]
    return np.tile(np.stack(small), (1, 2, 2, 1))


DAMAGES: dict[str, Damage] = {
    "smoothed by 0.5 px": smoothed(0.5),
    "smoothed by 1 px": smoothed(1.0),
    "noise of the right colours": noise(sigma=0),
    "coarse noise of the right colours": noise(sigma=2),
    "twice the size": enlarged,
    "half the size": reduced,
    "darker by a tenth": lambda images: (images * 0.9).round().astype(np.uint8),
}


class Patches:
    """Patches of the fields in ``folder``, with their slides and clusters."""

    def __init__(self, folder: Path, *, size: int) -> None:
        table = pd.read_csv(folder / "slides.csv")
        rng = np.random.default_rng(0)
        images, slides = [], []
        for number, name in zip(pd.factorize(table["slide"])[0], table["file"], strict=True):
            field = np.array(Image.open(folder / name).convert("RGB"))
            for _ in range(PER_FIELD):
                top, left = (int(rng.integers(0, side - size + 1)) for side in field.shape[:2])
                images.append(field[top : top + size, left : left + size])
                slides.append(number)
        self.images, self.slides = np.stack(images), np.array(slides)
        colours = np.concatenate([self.images.mean((1, 2)), self.images.std((1, 2))], axis=1)
        self.clusters = KMeans(CLUSTERS, n_init=3, random_state=0).fit_predict(colours)

    def of_slides(self, slides: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(self.slides, slides))


def judge(
    learned: FeatureSet, tested: FeatureSet, samples: FeatureSet, *, size: int, lpips: tuple[np.ndarray, ...] | None
) -> tuple[Verdict, float, float]:
    """The verdict and the AUCs by texture and colour; ``lpips``: features of the three sets by LPIPS's network."""
    result = two_sample_test(
        learned, tested, samples, names=feature_names(size), files=[""] * len(samples), seed=0, path=["planted"]
    )
    checks = two_sample_checks(result, cluster=None)
    if lpips is not None:
        floor, real, synthetic = lpips
        compared = compare_sets(
            [(real, synthetic)], [(real, floor)], extractor="lpips-alex", seed=0, path=["planted distance"]
        )
        checks += distance_checks(compared)
    aucs = [told.samples.auc if told and told.samples else float("nan") for told in (result.texture, result.colour)]
    return verdict(checks), aucs[0], aucs[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--samples", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    patches = Patches(arguments.folder, size=arguments.size)
    extractors: list[Extractor] = [TextureStatistics(torch.device("cpu"))]
    try:
        extractors.append(make_extractor("lpips-alex", sources=ExtractorSources(torch.device("cpu"))))
    except UserError as error:
        print(f"without LPIPS: {error}\n")
    real = [extractor.features(patches.images) for extractor in extractors]
    damaged = {
        name: [extractor.features(damage(patches.images)) for extractor in extractors]
        for name, damage in DAMAGES.items()
    }

    print("| samples | planted | right word | two-sample test alone | with lpips-alex | AUC, texture | AUC, colour |")
    print("|---|---|---|---|---|---|---|")
    for count in arguments.samples:
        rows: dict[str, list[tuple[str, str, float, float]]] = {}
        for turn in range(arguments.turns):
            rng = np.random.default_rng(turn)
            slides = rng.permutation(patches.slides.max() + 1)
            own = rng.permutation(patches.of_slides(slides[:LEARNED]))
            learned, unseen = own[: len(own) // 2], own[len(own) // 2 :][:count]
            tested = rng.permutation(patches.of_slides(slides[LEARNED : LEARNED + TESTED]))[:count]
            further = rng.permutation(patches.of_slides(slides[LEARNED + TESTED :]))[:count]
            others = (patches.clusters[unseen] + 1) % CLUSTERS
            plants = {
                "further patches of the same slides": (real, unseen, patches.clusters[unseen]),
                "patches of other slides": (real, further, patches.clusters[further]),
                "patches of another cluster": (real, unseen, others),
                **{name: (features, unseen, patches.clusters[unseen]) for name, features in damaged.items()},
            }
            for name, (features, chosen, clusters) in plants.items():
                sets = [
                    FeatureSet(real[0][learned], patches.clusters[learned], patches.slides[learned]),
                    FeatureSet(real[0][tested], patches.clusters[tested], patches.slides[tested]),
                    FeatureSet(features[0][chosen], clusters, np.zeros(len(chosen))),
                ]
                by_test, texture, colour = judge(*sets, size=arguments.size, lpips=None)
                word = "-"
                if len(real) > 1:
                    lpips = (real[1][learned[:count]], real[1][tested], features[1][chosen])
                    word = judge(*sets, size=arguments.size, lpips=lpips)[0].word
                rows.setdefault(name, []).append((by_test.word, word, texture, colour))
        for name, turns in rows.items():
            right = "not different" if name.startswith(("further", "patches of other slides")) else "different"
            alone, together, textures, colours = zip(*turns, strict=True)
            first, second = (
                ", ".join(f"{word} {n}" for word, n in Counter(words).items()) for words in (alone, together)
            )
            texture, colour = statistics.median(textures), statistics.median(colours)
            print(f"| {count} | {name} | {right} | {first} | {second} | {texture:.2f} | {colour:.2f} |", flush=True)


if __name__ == "__main__":
    main()
