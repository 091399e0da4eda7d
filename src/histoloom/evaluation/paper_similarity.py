"""SSIM, MS-SSIM and LPIPS by the definitions of Rumman et al. 2025: ``paper_similarity.json`` of ``evaluation``.

The paper's pairs are a training patch and a sample that was drawn under its cluster, otherwise unrelated. Each image is
first written as a JPEG figure of one inch, which enlarges a patch of 128 px to 231 px. SSIM has a window of 3 px and
takes colour as a third axis of the window. MS-SSIM and LPIPS (VGG-16) are the usual ones, on these figures. Values by
these definitions compare with the paper's table and with their floor, not with those of ``pair_metrics``.

Shapes: P pairs, N images uint8 RGB (N, H, W, 3), S ``FIGURE_SIDE``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache, partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from histoloom.evaluation.images import Images, Reader, SampleFolder
from histoloom.evaluation.pair_metrics import PairMetric, PairMetricSettings, Values, make_metrics, measure
from histoloom.evaluation.results import PaperSimilarity, SimilarityEntry
from histoloom.evaluation.similarity import PairSet, disjoint_pairs, entries_or_kept, overall_line, similarity_entries
from histoloom.progress import meter
from histoloom.run.stage import StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device

FIGURE_SIDE = 231
"""px; the axes of a matplotlib figure fill 0.77 of its height, which is 1 inch at 300 dpi"""
JPEG_QUALITY = 75
"""Pillow's default, with which matplotlib writes JPEG files"""
WINDOW = 3
"""px; the window of SSIM spans 3 x 3 px and the three colours"""


# --- images as the paper's figures


def as_figure(images_NHW3: Images) -> Images:
    """Each image as matplotlib shows it in a figure of 1 inch at 300 dpi and saves it as JPEG: (N, S, S, 3)."""
    height, width = images_NHW3.shape[1:3]
    rows_SH, columns_SW = _resampling(height, FIGURE_SIDE), _resampling(width, FIGURE_SIDE)
    figures = []
    for image_HW3 in images_NHW3:
        tall_SW3 = (rows_SH @ image_HW3.reshape(height, -1).astype(np.float32)).reshape(FIGURE_SIDE, width, 3)
        large_SS3 = columns_SW @ tall_SW3
        # Agg, which draws for matplotlib, drops fractions; the small number absorbs rounding errors.
        pixels_SS3 = np.clip(large_SS3 + 1e-3, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels_SS3).save(file, format="JPEG", quality=JPEG_QUALITY)
        with Image.open(file) as saved:
            figures.append(np.array(saved))
    return np.stack(figures)


@cache
def _resampling(size: int, side: int) -> np.ndarray:
    """Weights (side, size) that resample ``size`` px to ``side`` px along an axis by matplotlib's default.

    It takes the nearest pixel from three times the size on, and at once or twice the size; else a Hann window of the
    pixels within 1 px, or within the distance of two new pixels where the image shrinks.
    """
    scale = side / size
    centres_S = (np.arange(side) + 0.5) / scale - 0.5
    if scale > 3 or scale in (1, 2):
        return np.eye(size, dtype=np.float32)[np.floor(centres_S + 0.5).astype(int)]
    distance_SN = np.abs(centres_S[:, None] - np.arange(size)) * min(scale, 1.0)
    weights_SN = np.where(distance_SN < 1, 0.5 + 0.5 * np.cos(np.pi * distance_SN), 0.0)
    return (weights_SN / weights_SN.sum(axis=1, keepdims=True)).astype(np.float32)


def figure_reader(read: Reader) -> Reader:
    """Reads what ``read`` reads, as figures."""
    return lambda indices: as_figure(read(indices))


# --- the metrics


def colour_volume_ssim(a_PHW3: Images, b_PHW3: Images, *, device: torch.device) -> Values:
    """SSIM with a uniform window of 3 x 3 px and all three colours, mean over the windows that lie whole in the image.

    This is scikit-image's ``structural_similarity`` with ``win_size=3`` and no ``channel_axis``: variances are
    those of a sample (n - 1), and of the three positions of the window along the colours one lies whole in the image.
    """
    a_P3HW, b_P3HW = (
        torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2).float() / 255 for images in (a_PHW3, b_PHW3)
    )

    def mean(x_P3HW: Tensor) -> Tensor:
        x_PHW = x_P3HW.sum(dim=1)
        x_PHW = x_PHW[:, :-2] + x_PHW[:, 1:-1] + x_PHW[:, 2:]
        return (x_PHW[..., :-2] + x_PHW[..., 1:-1] + x_PHW[..., 2:]) / WINDOW**3

    sample = WINDOW**3 / (WINDOW**3 - 1)
    mean_a, mean_b = mean(a_P3HW), mean(b_P3HW)
    variances = sample * (mean(a_P3HW**2) + mean(b_P3HW**2) - mean_a**2 - mean_b**2)
    covariance = sample * (mean(a_P3HW * b_P3HW) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2  # Wang et al. 2004, for a data range of 1
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    map_PHW = numerator / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    return map_PHW.mean(dim=(1, 2)).cpu().double().numpy()


def paper_metrics(*, device: torch.device, download: bool = True) -> tuple[list[PairMetric], dict[str, str]]:
    """The paper's three metrics of pairs of figures, and the reason for each that cannot be computed here."""
    metrics, missing = make_metrics(PairMetricSettings(FIGURE_SIDE, "vgg", device, download))

    def ssim(a_PHW3: Images, b_PHW3: Images, /) -> Values:
        return colour_volume_ssim(a_PHW3, b_PHW3, device=device)

    own = PairMetric("ssim", "RGB pixels, window of 3 px with colour as its third axis", ssim)
    return [own if metric.name == "ssim" else metric for metric in metrics], missing


# --- the pairs


def paper_pairs(
    labels_N: np.ndarray, train: np.ndarray, *, samples: Mapping[int, np.ndarray], k: int, count: int, seed: int
) -> list[PairSet]:
    """Pairs of training patches and samples; a real patch stands on the right, as in ``similarity.pair_sets``.

    ``count`` of the ``train`` rows are drawn at random, so that clusters have their share among the training patches;
    rows of clusters without samples do not count. Each is paired with a sample of its cluster, dealt so that samples
    come equally often, and with one of another cluster. For the floor, the drawn rows of a cluster are paired with one
    another, each at most once.
    """
    rng = numpy_generator(seed, "evaluation", "paper pairs", k)
    train = train[np.isin(labels_N[train], sorted(samples))]
    drawn = rng.permutation(train)[:count]
    sets = []
    for cluster, own in sorted(samples.items()):
        rows = drawn[labels_N[drawn] == cluster]
        dealt = np.resize(rng.permutation(own), len(rows))
        sets.append(PairSet(cluster, "synthetic_real", np.stack([dealt, rows], axis=1), "train"))
        floor = rows[disjoint_pairs(len(rows), count=count, rng=rng)]
        sets.append(PairSet(cluster, "real_real", floor, "train"))
        others = [rows for other, rows in samples.items() if other != cluster]
        if others:
            dealt = rng.choice(np.concatenate(others), size=len(rows))
            sets.append(PairSet(cluster, "synthetic_other", np.stack([dealt, rows], axis=1), "train"))
    return [pair_set for pair_set in sets if len(pair_set.pairs)]


# --- the part of the stage


def write_paper_similarity(
    context: StageContext, *, patches: PatchSet, labels: Mapping[int, np.ndarray], samples: SampleFolder
) -> None:
    """Write ``paper_similarity.json``; ``labels`` are the patches' clusters of each k, in their order.

    Over all clusters, at most ``evaluation.pairs`` times k training patches are paired.
    """
    config = context.config
    metrics, missing = paper_metrics(device=torch.device(resolve_device(config.runtime.device)))
    for name, reason in missing.items():
        context.say(f"{name} is not measured by the paper's definition: {reason}")
    train = patches.rows("train")
    real, synthetic = figure_reader(patches.images), figure_reader(samples.images)

    def entries_of(k: int) -> list[SimilarityEntry]:
        count = config.evaluation.pairs * k
        sets = paper_pairs(labels[k], train, samples=samples.rows(k), k=k, count=count, seed=config.seed)
        total = sum(len(pair_set.pairs) for pair_set in sets)
        with meter(f"comparing by the paper's definitions, k = {k}", total=total) as counter:
            values = [
                measure(
                    metrics,
                    left=real if pair_set.comparison == "real_real" else synthetic,
                    right=real,
                    pairs=pair_set.pairs,
                    advance=counter.advance,
                )
                for pair_set in sets
            ]
        return similarity_entries(
            sets, values, metrics=metrics, k=k, seed=config.seed, resamples=config.evaluation.bootstrap
        )

    entries: list[SimilarityEntry] = []
    for k in samples.ks:
        compute = partial(entries_of, k)
        of_k, is_new = entries_or_kept(context, name=f"paper-k{k}", metrics=metrics, compute=compute)
        if is_new:
            context.say(f"k = {k}, by the paper's definitions: {overall_line(of_k)}")
        entries += of_k
    PaperSimilarity(entries=tuple(entries), missing=missing).save(context.out)
