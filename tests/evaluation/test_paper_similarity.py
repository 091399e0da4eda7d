"""The paper's SSIM, MS-SSIM and LPIPS: against matplotlib and scikit-image, and on the patches of its figures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from skimage.metrics import structural_similarity

from histoloom.autoencoder.lpips import LPIPS, FeatureTrunk
from histoloom.autoencoder.vqgan import to_float
from histoloom.evaluation.pair_metrics import PairMetric, ssim
from histoloom.evaluation.paper_similarity import (
    FIGURE_SIDE,
    RepeatedLPIPS,
    as_figure,
    colour_volume_ssim,
    colour_volume_ssim_of,
    measure_sets,
    paper_metrics,
    paper_pairs,
)

CPU = torch.device("cpu")
CLUSTERS, EACH = 14, 10


def saved_by_matplotlib(image: np.ndarray) -> np.ndarray:
    figure = plt.figure(figsize=(1, 1))
    plt.imshow(image)
    plt.axis("off")
    file = io.BytesIO()
    plt.savefig(file, format="jpg", dpi=300, bbox_inches="tight", pad_inches=0)
    plt.close(figure)
    with Image.open(file) as saved:
        return np.array(saved)


@pytest.mark.parametrize("size", [64, 96, 128, 256])
def test_a_figure_is_what_matplotlib_saves(size: int, crops) -> None:
    images = crops(3, size)
    theirs, ours = np.stack([saved_by_matplotlib(image) for image in images]), as_figure(images)
    assert ours.shape == theirs.shape == (3, FIGURE_SIDE, FIGURE_SIDE, 3)
    assert np.abs(ours.astype(int) - theirs).mean() < 0.5  # of 255
    similarity = [colour_volume_ssim(one[:2], one[1:], device=CPU) for one in (ours, theirs)]
    assert similarity[0] == pytest.approx(similarity[1], abs=1e-3)


def test_an_image_of_the_figures_size_is_only_compressed(crops) -> None:
    image = crops(1, FIGURE_SIDE)
    assert (as_figure(image)[0] == saved_by_matplotlib(image[0])).all()


def test_ssim_is_scikit_image_with_colour_as_an_axis_of_the_window(crops) -> None:
    a, b = crops(3, 64, seed=0), crops(3, 64, seed=1)
    b[0] = np.clip(a[0] + np.random.default_rng(2).normal(0, 12, a[0].shape), 0, 255).astype(np.uint8)
    theirs = [structural_similarity(x, y, win_size=3, data_range=255) for x, y in zip(a, b, strict=True)]
    assert colour_volume_ssim(a, b, device=CPU) == pytest.approx(theirs, abs=1e-4)


# --- the patches of the paper's figures


@pytest.fixture(scope="module")
def figures(real_data: Path) -> dict[str, np.ndarray]:
    """The patches of Figures 2 and 3, uint8 (14 clusters, 10, 128, 128, 3)."""
    folder = real_data / "paper" / "figures"
    if not folder.is_dir():
        pytest.skip(f"the patches of the paper's figures are not at {folder}")

    def read(kind: str, cluster: int, number: int) -> np.ndarray:
        with Image.open(folder / kind / f"{cluster + 1:02d}_{number}.png") as image:
            return np.array(image)

    return {
        kind: np.stack([[read(kind, cluster, number) for number in range(EACH)] for cluster in range(CLUSTERS)])
        for kind in ("real", "synthetic")
    }


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, *images.shape[2:])


def enlarged(images: np.ndarray) -> np.ndarray:
    return as_figure(flat(images)).reshape(*images.shape[:2], FIGURE_SIDE, FIGURE_SIDE, 3)


def mean_in_chunks(metric, a: np.ndarray, b: np.ndarray) -> float:
    values = [metric(a[start : start + 10], b[start : start + 10], device=CPU) for start in range(0, len(a), 10)]
    return float(np.concatenate(values).mean())


@pytest.mark.parametrize(
    ("metric", "prepare", "same", "floor", "other"),
    [(colour_volume_ssim, enlarged, 0.815, 0.826, 0.655), (ssim, np.asarray, 0.316, 0.328, 0.252)],
    ids=["the paper's SSIM", "the usual SSIM"],
)
def test_ssim_of_the_papers_figures(figures, metric, prepare, same: float, floor: float, other: float) -> None:
    real, synthetic = prepare(figures["real"]), prepare(figures["synthetic"])
    assert mean_in_chunks(metric, flat(real), flat(synthetic)) == pytest.approx(same, abs=0.01)
    assert mean_in_chunks(metric, flat(real), flat(np.roll(real, 1, axis=1))) == pytest.approx(floor, abs=0.01)
    # Every second patch with every other cluster once: 910 pairs. The reference is of 140 pairs drawn at random, whose
    # mean has a standard error of 0.015, because clusters differ much more from one another than patches of one do.
    some, partners = real[:, ::2], synthetic[:, ::2]
    others = [mean_in_chunks(metric, flat(some), flat(np.roll(partners, by, axis=0))) for by in range(1, CLUSTERS)]
    assert np.mean(others) == pytest.approx(other, abs=0.015)


# --- pairs


def test_pairs_are_of_a_training_patch_and_a_sample_of_its_cluster() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10 + [0, 1] * 5)
    train = np.arange(100)
    samples = {0: np.arange(8), 1: np.arange(8, 16)}  # cluster 2 has none
    pairs = paper_pairs(labels, train, samples=samples, k=3, count=45, seed=0)
    by = {(one.cluster, one.comparison): one.pairs for one in pairs.sets}
    assert {comparison for _, comparison in by} == {"synthetic_real", "real_real", "synthetic_other"}
    assert sum(len(by[cluster, "synthetic_real"]) for cluster in (0, 1)) == 45
    for cluster in (0, 1):
        same, floor, other = (by[cluster, name] for name in ("synthetic_real", "real_real", "synthetic_other"))
        assert len(np.unique(same[:, 1])) == len(same)
        assert (labels[same[:, 1]] == cluster).all()
        assert same[:, 1].max() < 100  # held-out patches come after
        assert np.isin(same[:, 0], samples[cluster]).all()
        counts = np.bincount(same[:, 0])[samples[cluster]]
        assert counts.max() - counts.min() <= 1
        assert (labels[floor] == cluster).all()
        assert len(np.unique(floor)) == floor.size == 2 * (len(same) // 2)
        assert np.isin(other[:, 0], samples[1 - cluster]).all()
    # clusters have their share: two thirds
    assert 24 <= len(by[0, "synthetic_real"]) <= 36


def test_one_cluster_has_no_others() -> None:
    pairs = paper_pairs(np.zeros(10, int), np.arange(10), samples={0: np.arange(4)}, k=1, count=10, seed=0)
    assert {one.comparison for one in pairs.sets} == {"synthetic_real", "real_real"}


def test_each_image_goes_once_through_the_network_and_values_are_those_of_its_pairs(crops) -> None:
    real, drawn = crops(24, 64, seed=0), crops(24, 64, seed=1)
    labels = np.arange(24) % 3
    samples = {cluster: np.flatnonzero(labels == cluster) for cluster in range(3)}
    pairs = paper_pairs(labels, np.arange(24), samples=samples, k=3, count=24, seed=0)
    torch.manual_seed(0)
    network = LPIPS(FeatureTrunk("squeeze"), heads=[torch.rand(c) for c in (64, 128, 256, 384, 384, 512, 512)])
    lpips = RepeatedLPIPS(network)
    reads: list[int] = []

    def read(images: np.ndarray):
        def some(rows: np.ndarray) -> np.ndarray:
            reads.extend(rows)
            return images[rows]

        return some

    metrics = [PairMetric("ssim", "", colour_volume_ssim_of, CPU), PairMetric("lpips", "", lpips, CPU)]
    values = measure_sets(metrics, pairs, real=read(real), samples=read(drawn))
    # The first rows' samples come again at the end, as those of another cluster.
    assert lpips.computed <= 48 + 4
    assert len(reads) <= 48 + 4
    for pair_set, by_metric in zip(pairs.sets, values, strict=True):
        left = as_figure((real if pair_set.comparison == "real_real" else drawn)[pair_set.pairs[:, 0]])
        right = as_figure(real[pair_set.pairs[:, 1]])
        assert by_metric["ssim"] == pytest.approx(colour_volume_ssim(left, right, device=CPU), abs=1e-6)
        with torch.inference_mode():
            direct = network(to_float(torch.from_numpy(left)), to_float(torch.from_numpy(right)))
        assert by_metric["lpips"] == pytest.approx(direct.numpy(), rel=1e-4)


@pytest.mark.usefixtures("no_weights")
def test_lpips_without_weights_is_left_out_with_the_reason() -> None:
    metrics, missing = paper_metrics(device=CPU, download=False)
    assert [metric.name for metric in metrics] == ["ssim", "ms_ssim"]
    assert "vgg" in missing["lpips"]
