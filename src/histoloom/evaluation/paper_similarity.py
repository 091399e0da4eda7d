"""SSIM, MS-SSIM and LPIPS by the definitions of Rumman et al. 2025: ``paper_similarity.json`` of ``evaluation``.

The paper's pairs are a training patch and a sample that was drawn under its cluster, otherwise unrelated. Each image is
first written as a JPEG figure of one inch, which enlarges a patch of 128 px to 231 px. SSIM has a window of 3 px and
takes colour as a third axis of the window. MS-SSIM and LPIPS (VGG-16) are the usual ones, on these figures. Values by
these definitions compare with the paper's table and with their floor, not with those of ``pair_metrics``.

Shapes: P pairs, N images uint8 RGB (N, H, W, 3), S ``FIGURE_SIDE``.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from histoloom.autoencoder.lpips import LPIPS
from histoloom.autoencoder.vqgan import to_float
from histoloom.errors import UserError
from histoloom.evaluation.images import Images, Reader, SampleFolder
from histoloom.evaluation.pair_metrics import (
    PairImages,
    PairMetric,
    PairMetricSettings,
    Values,
    make_metric,
    measure,
    to_values,
)
from histoloom.evaluation.results import PaperSimilarity, SimilarityEntry
from histoloom.evaluation.similarity import PairSet, entries_or_kept, overall_line, similarity_entries
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
KEPT = 16
"""figures; their features of VGG-16 take 26 MB each"""


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


def figure_reader(real: Reader, samples: Reader, *, n_real: int) -> Reader:
    """Reads figures by number: the ``n_real`` real patches come first, then the samples. The latest are kept."""

    @lru_cache(KEPT)
    def figure(number: int) -> Images:
        read, row = (real, number) if number < n_real else (samples, number - n_real)
        return as_figure(read(np.array([row])))[0]

    return lambda numbers: np.stack([figure(int(number)) for number in numbers])


# --- the metrics


def colour_volume_ssim(a_PHW3: Images, b_PHW3: Images, *, device: torch.device) -> Values:
    """``colour_volume_ssim_of`` these images."""
    return to_values(colour_volume_ssim_of(PairImages.put(a_PHW3, b_PHW3, device=device)))


def colour_volume_ssim_of(pairs: PairImages) -> Tensor:
    """SSIM with a uniform window of 3 x 3 px and all three colours, mean over the windows that lie whole in the image.

    This is scikit-image's ``structural_similarity`` with ``win_size=3`` and no ``channel_axis``: variances are
    those of a sample (n - 1), and of the three positions of the window along the colours one lies whole in the image.
    """
    a_P3HW, b_P3HW = (x_PHW3.permute(0, 3, 1, 2).float() / 255 for x_PHW3 in (pairs.a_PHWC, pairs.b_PHWC))

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
    return map_PHW.mean(dim=(1, 2))


class RepeatedLPIPS:
    """LPIPS of pairs (``PairFunction``) in which images come again: the latest images' features are kept.

    On a GPU the images that are new among the pairs go through the network together, on a CPU one by one: the values
    do not depend on the pairs that an image comes with.
    """

    def __init__(self, network: LPIPS) -> None:
        self.network = network
        self.kept: dict[bytes, list[Tensor]] = {}
        """features by an image's pixels, the latest last"""
        self.computed = 0
        """images that went through the network"""

    @torch.inference_mode()
    def __call__(self, pairs: PairImages, /) -> Tensor:
        on_cpu = pairs.a_PHWC.device.type == "cpu"
        keys = [image_HW3.tobytes() for image_HW3 in (*pairs.left, *pairs.right)]
        images = dict(zip(keys, (*pairs.a_PHWC, *pairs.b_PHWC), strict=True))
        new = [key for key in images if key not in self.kept]
        at_once = 1 if on_cpu else max(1, len(new))
        for start in range(0, len(new), at_once):
            some = new[start : start + at_once]
            taps = self.network.features(to_float(torch.stack([images[key] for key in some])))
            self.kept |= {key: [tap_NCHW[n : n + 1] for tap_NCHW in taps] for n, key in enumerate(some)}
            self.computed += len(some)
        left, right = keys[: len(pairs.left)], keys[len(pairs.left) :]
        distances = [self.network.distance(self.kept[a], self.kept[b]) for a, b in zip(left, right, strict=True)]

        # The latest go to the end. On a GPU a batch's features take too much memory to be kept.
        for key in images:
            self.kept[key] = self.kept.pop(key)
        for key in list(self.kept)[: max(0, len(self.kept) - (KEPT if on_cpu else 0))]:
            del self.kept[key]
        return torch.cat(distances)


def paper_metrics(*, device: torch.device, download: bool = True) -> tuple[list[PairMetric], dict[str, str]]:
    """The paper's three metrics of pairs of figures, and the reason for each that cannot be computed here."""
    metrics = [
        PairMetric(
            "ssim",
            "RGB pixels, window of 3 px with colour as its third axis",
            colour_volume_ssim_of,
            device,
        ),
        make_metric("ms_ssim", PairMetricSettings(FIGURE_SIDE, "vgg", device, download)),
    ]
    try:
        network = LPIPS.load("vgg", download=download).to(device)
    except UserError as error:
        return metrics, {"lpips": str(error)}
    return [*metrics, PairMetric("lpips", "LPIPS v0.1, vgg trunk", RepeatedLPIPS(network), device)], {}


# --- the pairs


@dataclass(frozen=True)
class PaperPairs:
    """Pairs of training patches and samples; a real patch stands on the right, as in ``similarity.pair_sets``.

    ``rows``: the training patches in an order in which the pairs of an image lie near each other.
    """

    sets: list[PairSet]
    rows: np.ndarray


def paper_pairs(
    labels_N: np.ndarray, train: np.ndarray, *, samples: Mapping[int, np.ndarray], k: int, count: int, seed: int
) -> PaperPairs:
    """Pairs of ``count`` of the ``train`` rows, drawn at random, so that clusters have their share among them.

    Rows of clusters without samples do not count. Each row is paired with a sample of its cluster, dealt so that
    samples come equally often, and with the sample that was dealt to a row of another cluster. For the floor, the
    drawn rows of a cluster are paired with one another, each at most once.
    """
    rng = numpy_generator(seed, "evaluation", "paper pairs", k)
    train = train[np.isin(labels_N[train], sorted(samples))]
    drawn = rng.permutation(train)[:count]

    # Rows two by two of a cluster, the twos of all clusters in random order; and the sample that is dealt to each row.
    twos = []
    for cluster, own in sorted(samples.items()):
        rows = drawn[labels_N[drawn] == cluster]
        both = np.stack([rows, np.resize(rng.permutation(own), len(rows))], axis=1)
        twos += [both[start : start + 2] for start in range(0, len(both), 2)]
    rows, dealt = np.concatenate([np.empty((0, 2), np.int64), *(twos[n] for n in rng.permutation(len(twos)))]).T
    clusters = labels_N[rows]

    # The next row of another cluster, from the next two on.
    n = len(rows)
    other = np.full(n, -1)
    for step in range(2, n + 2):
        candidates = (np.arange(n) + step) % n
        found = (other < 0) & (clusters[candidates] != clusters)
        other[found] = candidates[found]
        if (other >= 0).all():
            break

    sets = []
    for cluster in sorted(samples):
        own = clusters == cluster
        sets.append(PairSet(cluster, "synthetic_real", np.stack([dealt[own], rows[own]], axis=1), "train"))
        sets.append(PairSet(cluster, "real_real", rows[own][: own.sum() // 2 * 2].reshape(-1, 2), "train"))
        own &= other >= 0
        sets.append(PairSet(cluster, "synthetic_other", np.stack([dealt[other[own]], rows[own]], axis=1), "train"))
    return PaperPairs([pair_set for pair_set in sets if len(pair_set.pairs)], rows)


def measure_sets(
    metrics: Sequence[PairMetric],
    pairs: PaperPairs,
    *,
    real: Reader,
    samples: Reader,
    advance: Callable[[int], None] = lambda _: None,
) -> list[dict[str, Values]]:
    """Each metric's values of the pairs of each set, as figures; see ``pair_metrics.measure``."""
    n_real = int(pairs.rows.max(initial=-1)) + 1
    numbered = [one.pairs if one.comparison == "real_real" else one.pairs + np.array([n_real, 0]) for one in pairs.sets]
    pairs_P2 = np.concatenate([np.empty((0, 2), np.int64), *numbered])
    rank = np.zeros(n_real, np.int64)
    rank[pairs.rows] = np.arange(len(pairs.rows))
    order_P = np.argsort(rank[pairs_P2[:, 1]], kind="stable")

    read = figure_reader(real, samples, n_real=n_real)
    values = measure(metrics, left=read, right=read, pairs=pairs_P2[order_P], advance=advance)
    ends = np.cumsum([len(one.pairs) for one in pairs.sets])[:-1]
    split = {name: np.split(values_P[np.argsort(order_P)], ends) for name, values_P in values.items()}
    return [{name: parts[number] for name, parts in split.items()} for number in range(len(pairs.sets))]


# --- the part of the stage


def write_paper_similarity(
    context: StageContext, *, patches: PatchSet, labels: Mapping[int, np.ndarray], samples: SampleFolder
) -> None:
    """Write ``paper_similarity.json``; ``labels`` are the patches' clusters of each k, in their order.

    For each k, at most ``evaluation.paper_pairs`` training patches are paired.
    """
    config = context.config
    metrics, missing = paper_metrics(device=torch.device(resolve_device(config.runtime.device)))
    for name, reason in missing.items():
        context.say(f"{name} is not measured by the paper's definition: {reason}")
    train = patches.rows("train")

    def entries_of(k: int) -> list[SimilarityEntry]:
        pairs = paper_pairs(
            labels[k], train, samples=samples.rows(k), k=k, count=config.evaluation.paper_pairs, seed=config.seed
        )
        total = sum(len(pair_set.pairs) for pair_set in pairs.sets)
        with meter(f"comparing by the paper's definitions, k = {k}", total=total) as counter:
            values = measure_sets(metrics, pairs, real=patches.images, samples=samples.images, advance=counter.advance)
        return similarity_entries(
            pairs.sets, values, metrics=metrics, k=k, seed=config.seed, resamples=config.evaluation.bootstrap
        )

    entries: list[SimilarityEntry] = []
    for k in samples.ks:
        compute = partial(entries_of, k)
        of_k, is_new = entries_or_kept(context, name=f"paper-k{k}", metrics=metrics, compute=compute)
        if is_new:
            context.say(f"k = {k}, by the paper's definitions: {overall_line(of_k)}")
        entries += of_k
    PaperSimilarity(entries=tuple(entries), missing=missing).save(context.out)
