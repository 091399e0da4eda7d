"""What makes a training of the diffusion model cheaper: variants of its settings at the same number of images.

    python benchmarks/cheaper_training.py RUN --out FOLDER [--images 16000] [-n 512] [--only NAME ...]
        [--variant NAME key=value ...] [--set key=value ...] [--clusters key=value ...]

The stages of RUN up to ``clusters`` are made once, where they are missing. With ``--clusters`` the conditions are
clusters with these settings, made once in FOLDER, in place of the run's. Then the stage ``diffusion`` is trained for
each variant in a folder of its own, for the same number of images, except where the variant says another number. Each
draws n images with the run's sampler, of every cluster in its share of the held-out patches. The learning rate rises
over the first tenth of the images.

The table: processor seconds of the training, those of the alignment's targets (once, however long a training is), the
error of v on held-out latents; and, against the held-out patches: Frechet distance and recall by lpips-alex, with the
intervals of the evaluation (subsets of both sides; Wilson's) and the floor (training patches of the same clusters, in
the same number); accuracy and AUC of the two-sample test by texture, with its floor. Intervals say how well the value
of these images is known. How much a training varies is shown by the variant ``base`` beside ``base-again``, which has
another seed. Last come the errors of the trainings in their four quarters.

A variant that was interrupted continues from its checkpoint; its seconds are then unknown. Finished ones are not made
again, so that several processes may each train some (``--only``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from histoloom import pipeline
from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.clustering import stage as clusters_stage
from histoloom.clustering.clustering_set import Clustering
from histoloom.diffusion import stage as diffusion_stage
from histoloom.diffusion.alignment import feature_map, target_maps
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.diffusion.model.process import alphas_cumprod, predicted_data
from histoloom.diffusion.model.unet import make_unet, open_unet
from histoloom.evaluation.distribution import cluster_quotas, cluster_shares, compare_sets, draw_rows, rows_by_cluster
from histoloom.evaluation.extractors import Extractor, ExtractorSources, make_extractor
from histoloom.evaluation.feature_cache import cached_features
from histoloom.evaluation.images import ImageRows
from histoloom.evaluation.texture_features import TextureStatistics, feature_names
from histoloom.evaluation.two_sample import FeatureSet, two_sample_test
from histoloom.run.directory import Run, fingerprint, write_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import numpy_generator, torch_generator
from histoloom.setup import change_settings
from histoloom.slides.patch_set import PatchSet, Split
from histoloom.training.devices import autocast, resolve_device

EXTRACTOR = "lpips-alex"
LEARNED = 2000
"""training patches that the two-sample test learns from"""
SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""ratios of noise to signal at which denoising is measured"""
DENOISED, BATCH = 256, 64
"""held-out latents that are denoised at each of them; how many at once"""
SHOWN = 8
"""images of each cluster in a variant's picture"""
PHASE = "diffusion.training.phases.0"
VARIANTS = {
    "base": [],
    "base-again": ["seed=1"],
    "aligned-down-1": ["diffusion.alignment=0.5", "diffusion.alignment_block=down-1"],
    "aligned-down-2": ["diffusion.alignment=0.5", "diffusion.alignment_block=down-2"],
    "aligned-middle": ["diffusion.alignment=0.5", "diffusion.alignment_block=middle"],
    "aligned-up-2": ["diffusion.alignment=0.5", "diffusion.alignment_block=up-2"],
    "aligned-up-1": ["diffusion.alignment=0.5", "diffusion.alignment_block=up-1"],
    "rate-3e-4": [f"{PHASE}.lr=0.0003"],
    "rate-2e-3": [f"{PHASE}.lr=0.002"],
    "aligned-rate-3e-4": ["diffusion.alignment=0.5", f"{PHASE}.lr=0.0003"],
    "shift-1": ["diffusion.shift=1"],
    "shift-3": ["diffusion.shift=3"],
    "whitened": ["diffusion.whiten=0.99"],
    "all-components": ["diffusion.whiten=1"],
    "data": ["diffusion.prediction=data"],
    "epsilon": ["diffusion.prediction=epsilon"],
    "batch-64": ["diffusion.training.batch_size=64"],
    "batch-64-rate-2e-3": ["diffusion.training.batch_size=64", f"{PHASE}.lr=0.002"],
    "no-average": ["diffusion.training.ema=0"],
    "no-attention": ["diffusion.attention=[false, false, false, false]"],
    "3-levels": ["diffusion.channels=[96, 128, 144]", "diffusion.attention=[false, true, true]"],
    "narrow": ["diffusion.channels=[48, 96, 144, 144]"],
    "wide": ["diffusion.channels=[96, 192, 288, 288]"],
}


@dataclass(frozen=True)
class Row:
    """A variant's row of the table; ``seconds`` None where it was interrupted; no ``distances`` without images."""

    images: int
    weights: int
    seconds: float | None
    targets_seconds: float
    denoising: float
    distances: Mapping[str, float]


@dataclass(frozen=True)
class Real:
    """The real patches of a run that samples are compared with, and the clusters of all its patches at its chosen k."""

    patches: PatchSet
    k: int
    labels_N: np.ndarray
    cache: Path

    @classmethod
    def of(cls, run: Run, *, clusters: Path, cache: Path) -> Real:
        """Read from the finished stages of a run, and the clusters in their folder."""
        clustering, patches = Clustering.open(clusters), PatchSet.open(run.require("patches"))
        labels_N = clustering.labels_of(run.require("patches") / "index.parquet")[clustering.chosen]
        return cls(patches, clustering.chosen, labels_N, cache)

    def quotas(self, n: int) -> dict[int, int]:
        """How many of ``n`` images each cluster has, by its share of the held-out patches."""
        held_out = rows_by_cluster(self.labels_N, rows=self.patches.rows("holdout"))
        clusters = [cluster for cluster in sorted(held_out) if cluster >= 0]
        enough = {cluster: np.arange(n) for cluster in clusters}
        return cluster_quotas(cluster_shares(held_out, clusters=clusters), available=enough, most=n)

    def rows(self, split: Split, *, most: int) -> np.ndarray:
        """At most so many rows of a split, at random, in rising order."""
        rows = self.patches.rows(split)
        rows = rows[self.labels_N[rows] >= 0]
        return np.sort(numpy_generator(0, "cheaper", split).permutation(rows)[:most])

    def features(self, rows: np.ndarray, *, extractor: Extractor) -> np.ndarray:
        """Features of these patches, computed once."""
        return cached_features(
            ImageRows(self.patches.images, rows), extractor=extractor, cache=self.cache, what="real patches"
        )


def stage_context(run: Run, settings: Sequence[str], *, out: Path, clusters: Path | None = None) -> StageContext:
    """What a stage of the run is given with other settings, in a folder outside of the run."""
    inputs = {name: run.require(name) for name in ("patches", "autoencoder", "latents")}
    inputs |= {} if clusters is None else {"clusters": clusters}
    out.mkdir(parents=True, exist_ok=True)
    config = change_settings(run, settings, save=False).config
    return StageContext(run.path, config, out, inputs, EventLog(out / "log.jsonl"))


def clusters_of(run: Run, settings: Sequence[str], *, out: Path) -> Path:
    """The folder of the run's clusters, or with ``settings`` that of clusters which are made in ``out``."""
    needed = ("patches", "autoencoder", "latents", *([] if settings else ["clusters"]))
    if any(run.artifact(stage) is None for stage in needed):  # several processes may train at once, but not make stages
        pipeline.execute(run, until=needed[-1])
    if not settings:
        return run.require("clusters")
    folder = out / f"clusters-{fingerprint(list(settings))}"
    if not (folder / "choice.json").is_file():
        clusters_stage.run(stage_context(run, settings, out=folder))
    return folder


def train_variant(context: StageContext) -> tuple[float | None, float]:
    """Train; processor seconds of the training (None: it was interrupted) and of the targets; both are kept."""
    config, inputs = context.config, context.inputs
    file = context.out / "seconds.json"
    if file.is_file():
        seconds, targets_seconds = json.loads(file.read_text())
        return seconds, targets_seconds
    resumed = (context.out / "checkpoints" / "last.pt").is_file()

    # The targets are made before the training's time is taken, once for all variants: the stage then finds them.
    start = time.process_time()
    if config.diffusion.alignment:
        latents = LatentSet.open(inputs["latents"])
        unet = make_unet(config.diffusion, shape=latents.shape, conditions=2)
        side, _, _ = feature_map(unet, block=config.diffusion.alignment_block)
        shared = context.out.parent / f"targets-{side}"
        checkpoints = context.out / "checkpoints"
        if shared.is_dir() and not checkpoints.is_dir():  # of another variant
            shutil.copytree(shared, checkpoints)
        target_maps(context, rows_N=latents.rows(split="train"), side=side)
        if not shared.is_dir():
            shutil.copytree(checkpoints, shared)
    middle = time.process_time()
    diffusion_stage.run(context)
    seconds = None if resumed else time.process_time() - middle
    file.write_text(json.dumps([seconds, middle - start]))
    return seconds, middle - start


def draw_images(run: Run, *, folder: Path, quotas: dict[int, int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (N, H, W, 3), and their clusters (N,), by the run's sampler."""
    generator = Generator(
        GeneratorSpec.load(folder),
        unet=open_unet(folder),
        autoencoder=Autoencoder.load(run.require("autoencoder")),
        home=run.path,
        runtime=run.config.runtime,
    )
    specs = [SampleSpec(k, cluster, index, seed=0) for cluster, n in quotas.items() for index in range(n)]
    images = [sample.image for sample in generator.draw(specs, sampler=run.config.samples.sampler)]
    return np.stack(images), np.array([spec.cluster for spec in specs])


@torch.no_grad()
def denoising_error(run: Run, *, folder: Path, real: Real, device: torch.device) -> float:
    """The error of v on held-out latents, mean over ``SIGMAS``; comparable where the latent space is the same.

    The prediction of the data is computed from what the network predicts, and its squared error times 1 + 1/sigma^2 is
    that of v. The noise is the same for every variant.
    """
    spec, unet = GeneratorSpec.load(folder), open_unet(folder).to(device).eval()
    rows = real.rows("holdout", most=DENOISED)
    z_NDhw = spec.space.encode(LatentSet.open(run.require("latents")).raw(rows))
    conditions_N = torch.tensor([spec.conditions.number(k=real.k, cluster=int(c)) for c in real.labels_N[rows]])
    bar_T = alphas_cumprod(spec.diffusion)
    errors = []
    for number, sigma in enumerate(SIGMAS):
        step = int((bar_T - 1 / (1 + sigma**2)).abs().argmin())
        signal, noise = float(bar_T[step].sqrt()), float((1 - bar_T[step]).sqrt())
        generator = torch_generator(0, "cheaper", "noise", number)
        x_NDhw = signal * z_NDhw + noise * torch.randn(z_NDhw.shape, generator=generator)
        for some in torch.arange(len(rows)).split(BATCH):
            x_BDhw = x_NDhw[some].to(device)
            with autocast(run.config.runtime):
                output_BDhw = unet(x_BDhw, torch.tensor(step), class_labels=conditions_N[some].to(device)).sample
            data_BDhw = predicted_data(
                output_BDhw.float(), x_NCHW=x_BDhw, signal=signal, noise=noise, prediction=spec.diffusion.prediction
            )
            errors.append((data_BDhw.cpu() - z_NDhw[some]).square().mean() / noise**2)
    return float(torch.stack(errors).mean())


def measured(real: Real, images_NHW3: np.ndarray, clusters_N: np.ndarray, *, device: torch.device) -> dict[str, float]:
    """The columns of the table that compare images with held-out patches."""
    held_out = real.rows("holdout", most=len(real.patches))
    by_cluster = rows_by_cluster(real.labels_N, rows=real.rows("train", most=len(real.patches)))
    quotas = dict(zip(*(part.tolist() for part in np.unique(clusters_N, return_counts=True)), strict=True))
    floor = draw_rows(by_cluster, quotas=quotas, rng=numpy_generator(0, "cheaper", "floor"))

    extractor = make_extractor(EXTRACTOR, sources=ExtractorSources(device))
    target_ND = real.features(held_out, extractor=extractor)
    comparisons = compare_sets(
        [(target_ND, extractor.features(images_NHW3))],
        [(target_ND, real.features(floor, extractor=extractor))],
        extractor=EXTRACTOR,
        seed=0,
        path=["cheaper"],
    )
    columns: dict[str, float] = {}
    for one in comparisons:
        if one.metric in ("frechet", "recall", "precision"):
            columns |= {one.metric: one.value, f"{one.metric}_floor": one.floor}
        if one.metric in ("frechet", "recall"):
            columns |= {f"{one.metric}_low": one.interval[0], f"{one.metric}_high": one.interval[1]}

    statistics = TextureStatistics(device)
    sides: list[FeatureSet] = []
    for rows in (real.rows("train", most=LEARNED), held_out):
        slides_N = real.patches.columns("slide_id", rows=rows)["slide_id"].astype(str).to_numpy()
        sides.append(FeatureSet(real.features(rows, extractor=statistics), real.labels_N[rows], slides_N))
    names = [str(number) for number in range(len(images_NHW3))]
    result = two_sample_test(
        sides[0],
        sides[1],
        FeatureSet(statistics.features(images_NHW3), clusters_N, np.array(names)),
        names=feature_names(real.patches.size, real.patches.mpp),
        files=names,
        seed=0,
        path=["cheaper"],
    )
    texture = result.texture
    assert texture is not None, "enough images"
    assert texture.samples is not None, "enough images"
    assert texture.floor is not None, "enough images"
    return columns | {
        "accuracy": texture.samples.accuracy,
        "accuracy_floor": texture.floor.accuracy,
        "auc": texture.samples.auc,
        "auc_floor": texture.floor.auc,
    }


def save_picture(images_NHW3: np.ndarray, clusters_N: np.ndarray, *, path: Path) -> None:
    """The first images of each cluster, a row a cluster."""
    lines = []
    for cluster in np.unique(clusters_N):
        own = images_NHW3[clusters_N == cluster][:SHOWN]
        blank = np.full((SHOWN - len(own), *own.shape[1:]), 255, np.uint8)
        lines.append(np.concatenate([*own, *blank], axis=1))
    Image.fromarray(np.concatenate(lines)).save(path)


def score(
    run: Run, name: str, settings: Sequence[str], *, arguments: argparse.Namespace, real: Real, clusters: Path
) -> Row:
    """A variant's row; kept in ``--out``."""
    folder = (
        arguments.out
        / f"{name}-{fingerprint([list(settings), arguments.images, arguments.clusters, *arguments.settings])}"
    )
    file = folder / f"row-{arguments.n}.json"
    if file.is_file():
        return Row(**json.loads(file.read_text()))
    warmup = f"diffusion.training.warmup_images={arguments.images // 10}"
    changed = [f"{PHASE}.images={arguments.images}", warmup, *arguments.settings, *settings]
    seconds, targets_seconds = train_variant(stage_context(run, changed, out=folder, clusters=clusters))
    device = torch.device(resolve_device(run.config.runtime.device))
    denoising = denoising_error(run, folder=folder, real=real, device=device)
    distances: Mapping[str, float] = {}
    if arguments.n:
        images_NHW3, clusters_N = draw_images(run, folder=folder, quotas=real.quotas(arguments.n), k=real.k)
        save_picture(images_NHW3, clusters_N, path=folder / "samples.png")
        distances = measured(real, images_NHW3, clusters_N, device=device)
    row = Row(
        images=int(str(EventLog(folder / "log.jsonl").read()[-1]["images"])),
        weights=sum(p.numel() for p in open_unet(folder).parameters()),
        seconds=seconds,
        targets_seconds=targets_seconds,
        denoising=denoising,
        distances=distances,
    )
    write_json(file, asdict(row))
    return row


def loss_curves(out: Path) -> str:
    """The error of each training in its four quarters, and its difference from ``base``, also of unfinished ones.

    Steps of equal numbers have the same patches, noise and conditions where seed and batch size are the same, so that
    differences are of pairs. +- is one standard error over the logged points. Variants with another prediction or
    noise schedule have other errors for the same quality.
    """
    curves: dict[str, dict[int, float]] = {}
    for path in sorted(out.glob("*/log.jsonl")):
        name = path.parent.name.rpartition("-")[0]
        events = [event for event in EventLog(path).read() if "unet.mse" in event]
        if events:
            curves[name] = {int(str(event["images"])): float(str(event["unet.mse"])) for event in events}
    base = curves.get("base", {})
    ends = np.linspace(0, max(base, default=0), 5)
    lines = []
    for name, curve in curves.items():
        parts = []
        for low, high in pairwise(ends):
            shared = [images for images in base if low < images <= high and images in curve]
            if len(shared) > 1:
                mean = np.mean([curve[images] for images in shared])
                gains = np.array([curve[images] - base[images] for images in shared])
                error = gains.std(ddof=1) / len(gains) ** 0.5
                parts.append(f"to {high:,.0f}: {mean:.3f} ({gains.mean():+.4f} +- {error:.4f})")
        lines.append(f"{name:24} {'; '.join(parts)}")
    return "\n".join(lines)


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("-n", type=int, default=512, help="images that are drawn; 0: none")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the variants that are built in")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="key=value", help="of every variant")
    parser.add_argument("--clusters", nargs="+", default=[], metavar="key=value", help="settings of other conditions")
    parser.add_argument("--variant", dest="variants", nargs="+", action="append", default=[])
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    clusters = clusters_of(run, arguments.clusters, out=arguments.out)
    real = Real.of(run, clusters=clusters, cache=arguments.out / "features")
    variants = {name: VARIANTS[name] for name in (VARIANTS if arguments.only is None else arguments.only)}
    variants |= {name: settings for name, *settings in arguments.variants}
    rows = {}
    for name, settings in variants.items():
        row = score(run, name, settings, arguments=arguments, real=real, clusters=clusters)
        rows[name] = {**asdict(row), **row.distances}
        del rows[name]["distances"]
        print(pd.DataFrame(rows).T.astype(float).round(3).to_string(), flush=True)
    print(loss_curves(arguments.out))


if __name__ == "__main__":
    main()
