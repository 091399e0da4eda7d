"""The two-sample test and the verdicts: planted samples get the right words, without any trained weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from histoloom.evaluation.results import (
    Distribution,
    DistributionEntry,
    Faithfulness,
    Separation,
    ToldApart,
    TwoSample,
    Verdicts,
)
from histoloom.evaluation.telling_windows import write_telling_windows
from histoloom.evaluation.texture_features import TextureStatistics, feature_names
from histoloom.evaluation.two_sample import FeatureSet, two_sample_test
from histoloom.evaluation.verdicts import make_verdicts, two_sample_check
from histoloom.slides.procedural.slides import MAP_SCALE, draw_slide

SIDE = 64
LEARNED, TESTED, FURTHER = range(1, 7), range(7, 10), range(10, 13)  # numbers of slides


Patches = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Images (N, 64, 64, 3); the cluster and the slide of each."""


def cut(numbers: range, *, offset: int) -> Patches:
    """Patches of procedural slides on a grid; the commonest tissue of each, as its cluster; its slide."""
    images, clusters, slides = [], [], []
    for number in numbers:
        slide, kinds = draw_slide(0, number=number, size=512, mpp=1.0)
        for top in range(offset, 512 - SIDE + 1, SIDE):
            for left in range(offset, 512 - SIDE + 1, SIDE):
                images.append(slide[top : top + SIDE, left : left + SIDE])
                rows, columns = (slice(start // MAP_SCALE, (start + SIDE) // MAP_SCALE) for start in (top, left))
                clusters.append(np.bincount(kinds[rows, columns].ravel()).argmax())
                slides.append(number)
    return np.stack(images), np.array(clusters), np.array(slides)


def features(images: np.ndarray, clusters: np.ndarray, slides: np.ndarray) -> FeatureSet:
    return FeatureSet(TextureStatistics(torch.device("cpu")).features(images), clusters, slides)


@pytest.fixture(scope="module")
def real() -> tuple[FeatureSet, FeatureSet]:
    return features(*cut(LEARNED, offset=0)), features(*cut(TESTED, offset=0))


@pytest.fixture(scope="module")
def unseen() -> Patches:
    """Further patches of the slides that are learned from: what a perfect generator would draw."""
    return cut(LEARNED, offset=SIDE // 2)


def judge(real: tuple[FeatureSet, FeatureSet], samples: FeatureSet) -> tuple[TwoSample, Verdicts]:
    learned, tested = real
    names, files = feature_names(SIDE, 1.0), [f"{number}.png" for number in range(len(samples))]
    result = two_sample_test(learned, tested, samples, names=names, files=files, seed=0, path=["planted"], k=9)
    clusters = np.unique(samples.clusters_N).tolist()
    return result, make_verdicts(k=9, two_sample=result, faithfulness=None, distribution=None, clusters=clusters)


def blurred(images: np.ndarray) -> np.ndarray:
    return gaussian_filter(images.astype(float), (0, 1, 1, 0)).round().astype(np.uint8)


def noise(images: np.ndarray) -> np.ndarray:
    """Noise of each image's colours."""
    mean, spread = (statistic(images, axis=(1, 2), keepdims=True) for statistic in (np.mean, np.std))
    return np.clip(np.random.default_rng(0).normal(mean, spread, images.shape), 0, 255).astype(np.uint8)


def half_size(images: np.ndarray) -> np.ndarray:
    quarter = SIDE // 4
    middle = images[:, quarter:-quarter, quarter:-quarter].repeat(2, axis=1).repeat(2, axis=2)
    return gaussian_filter(middle.astype(float), (0, 0.7, 0.7, 0)).round().astype(np.uint8)


@pytest.mark.parametrize("damage", [blurred, noise, half_size])
def test_damaged_patches_are_different(
    damage: Callable[[np.ndarray], np.ndarray], real: tuple[FeatureSet, FeatureSet], unseen: Patches
) -> None:
    images, clusters, slides = unseen
    result, verdicts = judge(real, features(damage(images), clusters, slides))
    assert verdicts.overall.word == "different"
    assert result.texture is not None
    assert result.texture.samples is not None
    assert result.texture.samples.auc > 0.95
    # Clusters with enough samples are different too, and none is called like real.
    words = [verdict.word for verdict in verdicts.clusters.values()]
    assert "different" in words
    assert "like real" not in words

    first = result.texture.telling[0]
    assert first.name in verdicts.overall.checks[0].sentence
    if damage is blurred:
        assert first.name.startswith("strength of detail of 2 µm")
        assert first.difference < -1


def test_patches_of_another_cluster_are_different(real: tuple[FeatureSet, FeatureSet], unseen: Patches) -> None:
    images, clusters, slides = unseen
    present = np.unique(clusters)
    moved = present[(np.searchsorted(present, clusters) + 1) % len(present)]
    assert judge(real, features(images, moved, slides))[1].overall.word == "different"


def test_real_patches_are_like_real_where_they_are_enough(real: tuple[FeatureSet, FeatureSet], unseen: Patches) -> None:
    same_slides, other_slides = features(*unseen), features(*cut(FURTHER, offset=0))
    for samples in (same_slides, other_slides):
        result, verdicts = judge(real, samples)
        assert verdicts.overall.word == "like real"
        assert "no better than it tells real patches of other slides" in verdicts.overall.sentence
        assert "different" not in [verdict.word for verdict in verdicts.clusters.values()]
        assert {told.file for told in result.told} == {f"{number}.png" for number in range(len(samples))}
    few = same_slides.take(np.arange(0, len(same_slides), 6))
    result, verdicts = judge(real, few)
    assert verdicts.overall.word == "too few"
    assert "could be enough" in verdicts.overall.sentence


def test_a_floor_of_given_images_is_used(real: tuple[FeatureSet, FeatureSet], unseen: Patches) -> None:
    learned, tested = real
    samples, others = features(*(values[::6] for values in unseen)), tested
    names, files = feature_names(SIDE), [str(number) for number in range(len(samples))]
    given = two_sample_test(learned, tested, samples, others=others, names=names, files=files, seed=0, path=["x"])
    own = two_sample_test(learned, tested, samples, names=names, files=files, seed=0, path=["x"])
    assert given.texture is not None
    assert own.texture is not None
    assert given.texture.samples == own.texture.samples
    assert given.texture.floor != own.texture.floor


def test_without_enough_images_nothing_is_said(real: tuple[FeatureSet, FeatureSet], unseen: Patches) -> None:
    result, verdicts = judge(real, features(*unseen).take(np.arange(12)))
    assert result.note == "it needs 20 images on each side, and there are 12"
    assert verdicts.overall.word == "not measured"
    assert {verdict.word for verdict in verdicts.clusters.values()} == {"not measured"}
    strangers = features(*(values[:60] for values in unseen))
    strangers = FeatureSet(strangers.features_NF, strangers.clusters_N + 100, strangers.groups_N)
    assert judge(real, strangers)[0].note == "it needs 20 patches of the samples' clusters, and there are 0"


def separation(auc: float, low: float, high: float) -> Separation:
    return Separation(auc=auc, interval=(low, high), accuracy=auc, accuracy_interval=(low, high), n=(500, 300))


@pytest.mark.parametrize(
    ("samples", "floor", "word", "text"),
    [
        ((0.70, 0.65, 0.75), (0.55, 0.50, 0.60), "different", "most by fibres"),
        ((0.70, 0.65, 0.75), (0.55, 0.45, 0.66), "too few", "0.70 (0.65 to 0.75)"),
        ((0.56, 0.53, 0.59), (0.55, 0.45, 0.66), "like real", "within the margin of 0.05"),
        (
            (0.56, 0.50, 0.62),
            (0.55, 0.45, 0.66),
            "too few",
            "patches of other slides: 0.55), and about 680 could be enough",
        ),
        (
            (0.90, 0.89, 0.91),
            (0.90, 0.80, 0.95),
            "too few",
            "slides differ so much in texture that more",
        ),
        (None, (0.55, 0.45, 0.66), "too few", "too few samples or held-out patches"),
    ],
)
def test_words_follow_intervals_and_margin(
    samples: tuple[float, float, float] | None, floor: tuple[float, float, float], word: str, text: str
) -> None:
    check = two_sample_check(
        samples and separation(*samples), floor=separation(*floor), aspect="texture", telling="fibres"
    )
    assert check.word == word
    assert text in f"{check.short} {check.sentence}"


RECOGNISED = {
    "k": 2,
    "judge": {
        "samples": {"n": 200, "accuracy": 0.5, "interval": [0.4, 0.6], "recall": [0.9, 0.1],
                    "intervals": [[0.8, 1.0], [0.0, 0.2]], "confusion": [[90, 10], [90, 10]]},
        "held_out": {"n": 400, "accuracy": 0.92, "interval": [0.9, 0.95], "recall": [0.92, 0.92],
                     "intervals": [[0.9, 0.95], [0.9, 0.95]], "confusion": [[184, 16], [16, 184]]},
    },
}  # fmt: skip


def test_a_verdict_is_the_worst_of_its_checks() -> None:
    like = ToldApart(
        samples=separation(0.55, 0.53, 0.57),
        floor=separation(0.55, 0.5, 0.6),
        clusters={cluster: separation(0.55, 0.53, 0.57) for cluster in (0, 1)},
        floor_clusters={cluster: separation(0.55, 0.5, 0.6) for cluster in (0, 1)},
    )
    two_sample = TwoSample(k=2, texture=like, colour=like)
    made = partial(make_verdicts, k=2, two_sample=two_sample, distribution=None, clusters=[0, 1])
    assert made(faithfulness=None).overall.word == "like real"

    # Cluster 0 is recognised about as often as real patches, but 200 images cannot show that within the margin.
    verdicts = made(faithfulness=Faithfulness.model_validate(RECOGNISED))
    assert {cluster: verdict.word for cluster, verdict in verdicts.clusters.items()} == {0: "too few", 1: "different"}
    assert "most often mistakes them for cluster 0" in verdicts.clusters[1].sentence
    assert verdicts.overall.word == "different"
    assert "the samples of cluster 1 differ from real patches" in verdicts.overall.sentence

    # A distance can only find a difference: within its floor it changes nothing.
    entry = DistributionEntry(
        k=2, cluster=0, metric="kid", extractor="lpips-alex", value=0.2, interval=(0.1, 0.3), floor=0.1,
        floor_interval=(0.05, 0.2), better="smaller", n_real=100, n_synthetic=100, n_floor=(100, 100), notes=(),
        real_split="holdout", floor_from="x", draws=1,
    )  # fmt: skip
    within = made(faithfulness=None, distribution=Distribution(entries=(entry,)))
    assert within.clusters[0].word == "like real"
    beyond = Distribution(entries=(entry.model_copy(update={"interval": (0.21, 0.3)}),))
    assert made(faithfulness=None, distribution=beyond).clusters[0].word == "like real"
    farther = Distribution(entries=(entry.model_copy(update={"interval": (0.41, 0.5)}),))
    assert made(faithfulness=None, distribution=farther).clusters[0].word == "different"
    own_encoder = Distribution(entries=(farther.entries[0].model_copy(update={"extractor": "encoder"}),))
    assert made(faithfulness=None, distribution=own_encoder).clusters[0].word == "like real"


def test_images_of_any_size_have_named_features() -> None:
    rng = np.random.default_rng(0)
    for size in ((16, 16), (40, 56), (300, 300)):
        images = rng.integers(0, 256, (3, *size, 3), dtype=np.uint8)
        images[2] = 255  # empty glass
        values = features(images, np.zeros(3, int), np.zeros(3, int)).features_NF
        assert values.shape == (3, len(feature_names(min(size))))
        assert np.isfinite(values).all()
        assert np.abs(values[2]).max() < 50


def test_the_window_that_tells_is_the_smoothed_one(unseen: Patches, tmp_path: Path) -> None:
    images, clusters, _ = unseen
    images = images[clusters == np.bincount(clusters).argmax()]
    real, samples = images[::2], images[1::2].copy()
    half = SIDE // 2
    samples[:, :half, :half] = blurred(samples[:, :half, :half])
    write_telling_windows(
        tmp_path,
        real_NSS3=real,
        samples_MSS3=samples,
        clusters_M=np.arange(len(samples)) // 2,  # as if of many clusters, two of each
        files=[f"{number}.png" for number in range(len(samples))],
        extractor=TextureStatistics(torch.device("cpu")),
    )
    with np.load(tmp_path / "telling.npz") as stored:
        assert (stored["sample"] == samples[:16:2]).all()
        assert stored["name"][1] == "2.png"
        scores = stored["score"]
    assert scores.shape == (8, 3, 3)
    assert (scores.reshape(8, 9).argmax(axis=1) == 0).mean() > 0.7
    assert scores[:, 0, 0].mean() > scores[:, 2, 2].mean() + 0.2
