"""How far are the paper's samples from the paper's tissue, and those of the starter from its own? One yardstick.

The paper's patches are the 140 real and 140 synthetic ones of its Figures 2 and 3, ten of each of 14 clusters, from the
authors' public repository (randomaccess2023/KPC_LDM_128). The starter's are as many: training patches drawn at random,
and the first samples of each of its clusters at k = 14, in the cluster's share. An exported generator has no clusterer,
so the cluster of its real patches is not known, and nothing is recognised. The last column has the starter's patches
enlarged, compressed and reduced, as the figures' were.

Real patches are split at random into halves A and B, with half of each known cluster. Every number compares half of the
samples with A. Its floor compares B with A: as many patches, so the biases of small samples are equal. Numbers are
means over several such splits. A half varies as much around its set as the set does around all tissue (the delete-half
jackknife, Shao and Wu 1989), so the deviation over splits gives the interval.

    python benchmarks/paper_figures.py --out FOLDER [--data FOLDER] [--splits 12] [--each 10] [--only paper]

``--data`` is the folder of the tests' real data: by default HISTOLOOM_TEST_DATA, or ../shared/data beside the
repository. ``--out`` gets ``paper_figures.json``, and keeps the starter's patches and samples for the next call.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histoloom.autoencoder.lpips import ENVIRONMENT, FeatureTrunk
from histoloom.autoencoder.vqgan import to_float
from histoloom.diffusion.generation.generator import Generator
from histoloom.evaluation.distribution import cluster_quotas
from histoloom.evaluation.extractors import Extractor, ExtractorSources, make_extractors
from histoloom.evaluation.faithfulness import recognition
from histoloom.evaluation.feature_cache import cached_features
from histoloom.evaluation.folders import evaluate_folders
from histoloom.evaluation.images import ImageFolder
from histoloom.evaluation.originality.greys import read_greys
from histoloom.evaluation.originality.nearest import Gallery, nearest
from histoloom.evaluation.pair_metrics import ms_ssim
from histoloom.evaluation.paper_similarity import as_figure, colour_volume_ssim
from histoloom.evaluation.results import FolderSetComparison
from histoloom.pipeline import execute
from histoloom.run.directory import replacing
from histoloom.seeding import numpy_generator
from histoloom.setup import init_run
from histoloom.slides.patch_set import PatchSet

FOLDER = Path(__file__).parents[2] / "shared" / "data"
K, EACH = 14, 10
SETS = ("frechet", "kid", "precision", "recall")
SHARES = ("precision", "recall", "recognised")
RATIO = "frechet, divided by its floor"
AUDITED = 4
"""splits in which copies are looked for, which takes most of the time"""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class FigurePatches:
    """As many real patches as samples of each cluster, uint8 (K, E, H, W, 3); K is 1 where clusters are unknown."""

    real: np.ndarray
    synthetic: np.ndarray


@dataclass(frozen=True)
class Number:
    """A mean over splits and its 95 % interval, and the same of the floor."""

    value: float
    interval: tuple[float, float]
    floor: float
    floor_interval: tuple[float, float]


# --- the patches


def paper_patches(data: Path) -> FigurePatches:
    """The patches of the paper's Figures 2 and 3."""

    def read(kind: str) -> np.ndarray:
        names = [[f"{cluster + 1:02d}_{number}.png" for number in range(EACH)] for cluster in range(K)]
        folder = data / "paper" / "figures" / kind
        return np.stack([np.stack([np.asarray(Image.open(folder / name)) for name in row]) for row in names])

    return FigurePatches(read("real"), read("synthetic"))


def starter_patches(data: Path, out: Path) -> FigurePatches:
    """The starter's samples and training patches; ``out`` keeps them, and a call that was stopped continues."""
    # The preset cuts the same patches as for the starter, with the same held-out slides.
    run = init_run(out / "starter-run", slides=[data / "tiles" / "osteosarcoma"], preset="starter")
    execute(run, until="patches")
    patches = PatchSet.open(run.require("patches"))
    rows = numpy_generator(0, "benchmark", "paper figures", "rows").permutation(patches.rows("train"))[: K * EACH]

    generator = Generator.load("starter")
    shares = dict(enumerate(generator.spec.frequencies[K]))
    counts = cluster_quotas(shares, available={cluster: np.arange(K * EACH) for cluster in shares}, most=K * EACH)

    def draw(cluster: int, n: int) -> np.ndarray:
        return np.stack([one.image for one in generator.sample(str(cluster), n=n, seed=0, k=K)])

    samples = [kept(out / f"samples-of-{cluster}.npy", partial(draw, cluster, n)) for cluster, n in counts.items()]
    return FigurePatches(patches.images(np.sort(rows))[None], np.concatenate(samples)[None])


def kept(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in the file, which is computed and written where there is none."""
    if not path.is_file():
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, compute())
    return np.load(path)


def as_in_figures(images: np.ndarray) -> np.ndarray:
    """Patches (K, E, H, W, 3) enlarged and compressed by a plotting library, then reduced to their size."""
    flat = images.reshape(-1, *images.shape[2:])
    size = (images.shape[3], images.shape[2])
    small = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.LANCZOS)) for one in as_figure(flat)]
    return np.stack(small).reshape(images.shape)


# --- the numbers


def compare(patches: FigurePatches, *, extractor: Extractor, splits: int, folder: Path) -> dict[str, Number]:
    """Every number over random ``splits``; ``folder`` gets the patches and their features."""
    clusters, each = patches.real.shape[:2]
    pairs: dict[str, list[tuple[float, float]]] = {}
    for split in range(splits):
        rng = numpy_generator(0, "benchmark", "paper figures", split)
        order_KE = np.argsort(rng.random((2, clusters, each)), axis=2)
        real_KEHW3, drawn_KEHW3 = (
            np.take_along_axis(images, order[..., None, None, None], axis=1)
            for images, order in zip((patches.real, patches.synthetic), order_KE, strict=True)
        )
        middle = each // 2
        parts = {
            "a": real_KEHW3[:, :middle],
            "b": real_KEHW3[:, middle : 2 * middle],
            "synthetic": drawn_KEHW3[:, :middle],
        }
        for name, values in compare_split(parts, extractor=extractor, split=split, folder=folder).items():
            pairs.setdefault(name, []).append(values)
    return {
        name: summary(np.array(values), least=-np.inf if name == "kid" else 0.0, most=1.0 if name in SHARES else np.inf)
        for name, values in pairs.items()
    }


def compare_split(
    parts: Mapping[str, np.ndarray], *, extractor: Extractor, split: int, folder: Path
) -> dict[str, tuple[float, float]]:
    """Value and floor of each number: half of the samples against A, and B against A."""
    places = {name: folder / str(split) / name for name in parts}
    for name, images in parts.items():
        write_images(images, places[name])
    a, b, synthetic = (ImageFolder(places[name]) for name in ("a", "b", "synthetic"))
    cache = folder / "cache"

    # `histoloom evaluate A SYNTHETIC --floor B`
    evaluated = evaluate_folders(
        places["a"],
        places["synthetic"],
        floor=places["b"],
        seed=split,
        pairs=1,
        extractors=(extractor.name,),
        cache=cache,
        download=False,
    )
    values: dict[str, tuple[float, float]] = {}
    for name in SETS:
        compared = evaluated.metrics[f"{name}/{extractor.name}"]
        assert isinstance(compared, FolderSetComparison), "a metric of sets"
        values[name] = compared.value, compared.floor
    values[RATIO] = values["frechet"][0] / values["frechet"][1], 1.0

    if split < AUDITED:
        values |= audit_scores(a, synthetic=synthetic, b=b)

    # A linear classifier of the clusters, trained on A.
    clusters, each = parts["a"].shape[:2]
    if clusters == 1:
        return values
    labels = np.repeat(np.arange(clusters), each)
    features = [cached_features(images, extractor=extractor, cache=cache, what="") for images in (a, synthetic, b)]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features[0], labels)
    recognised = [
        recognition(labels, classifier.predict(x_ND), clusters=clusters, rng=np.random.default_rng(split)).accuracy
        for x_ND in features[1:]
    ]
    return values | {"recognised": (recognised[0], recognised[1])}


def audit_scores(a: ImageFolder, *, synthetic: ImageFolder, b: ImageFolder) -> dict[str, tuple[float, float]]:
    """The score by which `histoloom audit` finds copies: of each image and its nearest patch of A.

    The audit's threshold would need 198 real patches more.
    """
    gallery = Gallery(read_greys(a))
    scores_N, floor_N = (nearest(read_greys(images), gallery).score_N for images in (synthetic, b))
    return {"score of the nearest real patch": (float(scores_N.mean()), float(floor_N.mean()))}


def write_images(images: np.ndarray, folder: Path) -> None:
    """PNG files in the order of (K, E)."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images.reshape(-1, *images.shape[2:])):
        Image.fromarray(image).save(folder / f"{number:04d}.png", compress_level=1)


def summary(values_S2: np.ndarray, *, least: float, most: float) -> Number:
    """Means over splits; the deviation over splits is the standard error of the whole. ``least``, ``most``: bounds."""
    means_2 = values_S2.mean(axis=0)
    wide_2 = student.ppf(0.975, len(values_S2) - 1) * values_S2.std(axis=0, ddof=1)
    limits = np.clip([means_2 - wide_2, means_2 + wide_2], least, most).T.tolist()
    (low, high), (floor_low, floor_high) = limits
    return Number(float(means_2[0]), (low, high), float(means_2[1]), (floor_low, floor_high))


# --- the paper's SSIM and MS-SSIM: how exact a number of pairs is, and what a pair costs


def spread_of_pairs(patches: FigurePatches) -> dict[str, tuple[float, float]]:
    """Mean and deviation over pairs of the paper's SSIM and MS-SSIM, by comparison."""
    real, drawn = (as_figure(images.reshape(-1, *images.shape[2:])) for images in (patches.real, patches.synthetic))
    each, n = patches.real.shape[1], len(real)
    partners = {
        "same cluster": drawn,
        "floor": np.roll(real.reshape(-1, each, *real.shape[1:]), 1, axis=1).reshape(real.shape),
        "other clusters": np.concatenate([drawn[(i + each * (1 + i % (n // each - 1))) % n][None] for i in range(n)]),
    }
    result = {}
    for name, other in partners.items():
        for metric, function in (("ssim", colour_volume_ssim), ("ms_ssim", ms_ssim)):
            values = np.concatenate([function(real[i : i + 1], other[i : i + 1], device=CPU) for i in range(n)])
            result[f"{metric}, {name}"] = float(values.mean()), float(values.std(ddof=1))
    return result


@torch.inference_mode()
def seconds_of_vgg(image_HW3: np.ndarray) -> float:
    """CPU seconds of one pass of VGG-16, over all threads; its weights do not matter for that."""
    trunk, x_1CHW = FeatureTrunk("vgg").eval(), to_float(torch.from_numpy(as_figure(image_HW3[None])))
    trunk(x_1CHW)
    start = time.process_time()
    trunk(x_1CHW)
    return time.process_time() - start


# --- the table


def table(columns: Mapping[str, Mapping[str, Number]]) -> str:
    """Markdown: a row for each number, value and floor of each column; empty where it is not measured."""

    def cells(number: Number | None) -> list[str]:
        if number is None:
            return ["", ""]
        estimates = (number.value, number.interval), (number.floor, number.floor_interval)
        return [
            f"{value:.3g}" if low == high else f"{value:.3g} ({low:.3g} to {high:.3g})"
            for value, (low, high) in estimates
        ]

    lines = ["| number | " + " | ".join(f"{name} | floor" for name in columns) + " |"]
    lines.append("|---" * (1 + 2 * len(columns)) + "|")
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        row = [cell for column in columns.values() for cell in cells(column.get(name))]
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("HISTOLOOM_TEST_DATA", FOLDER)))
    parser.add_argument("--splits", type=int, default=12)
    parser.add_argument("--each", type=int, default=EACH, help="of the paper's ten patches of each cluster")
    parser.add_argument("--extractor", default="lpips-alex")
    parser.add_argument("--only", choices=("paper", "starter"))
    parsed = parser.parse_args(arguments)
    if not (parsed.data / "paper" / "figures").is_dir():
        print(f"skipped: the paper's figures are not at {parsed.data}; name the tests' real data with --data")
        return
    os.environ.setdefault(ENVIRONMENT, str(parsed.data / "weights"))
    parsed.out.mkdir(parents=True, exist_ok=True)
    extractors, missing = make_extractors([parsed.extractor], sources=ExtractorSources(CPU, download=False), size=128)
    if missing:
        parser.error(missing[parsed.extractor])

    columns: dict[str, FigurePatches] = {}
    if parsed.only != "starter":
        paper = paper_patches(parsed.data)
        paper = FigurePatches(paper.real[:, : parsed.each], paper.synthetic[:, : parsed.each])
        columns["paper"] = paper
        spread = spread_of_pairs(paper)
        for name, (mean, deviation) in spread.items():
            error = deviation / 1000**0.5
            print(f"{name}: {mean:.3f}, deviation {deviation:.3f}, standard error of 1,000 pairs {error:.4f}")
        print(f"VGG-16: {seconds_of_vgg(paper.real[0, 0]):.2f} CPU seconds an image")
    if parsed.only != "paper":
        columns["starter"] = starter_patches(parsed.data, parsed.out)
        own = columns["starter"]
        columns["starter, as in figures"] = FigurePatches(as_in_figures(own.real), as_in_figures(own.synthetic))

    results = {}
    for name, patches in columns.items():
        with TemporaryDirectory() as folder:
            results[name] = compare(patches, extractor=extractors[0], splits=parsed.splits, folder=Path(folder))
    print(table(results))
    record = {name: {row: asdict(number) for row, number in numbers.items()} for name, numbers in results.items()}
    (parsed.out / "paper_figures.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
