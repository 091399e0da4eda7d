"""Generators against the held-out patches of one run, all by the same numbers: which is nearer to real tissue?

    python benchmarks/generators_compared.py RUN GENERATOR... --out FOLDER [-n 210]
        [--method METHOD] [--steps N] [--guidance G]

Each generator draws n images by its own sampler, or with the settings that are named, of every cluster in its share of
the patches that it was trained on. They are compared with all held-out patches of RUN as one set, since generators have
different clusters: Frechet distance, precision and recall by lpips-alex, and the two-sample test by texture. The floor
is n training patches of RUN. Features of real patches and a picture of each generator are kept in FOLDER. Prints a
Markdown table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from cheaper_training import Real, measured
from PIL import Image

from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import sampler_of
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.evaluation.distribution import cluster_quotas
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device

ROWS, COLUMNS = 6, 12
"""of the picture of each generator's images"""


def drawn(generator: Generator, *, n: int, sampler: SamplerConfig) -> np.ndarray:
    """``n`` images, uint8 (N, H, W, 3), of each cluster of the generator's k in its share."""
    k = generator.spec.chosen_k
    shares = dict(enumerate(generator.spec.frequencies[k]))
    quotas = cluster_quotas(shares, available={cluster: np.arange(n) for cluster in shares}, most=n)
    specs = [SampleSpec(k, cluster, index, seed=0) for cluster, count in quotas.items() for index in range(count)]
    return np.stack([sample.image for sample in generator.draw(specs, sampler=sampler)])


def picture(images_NHW3: np.ndarray) -> Image.Image:
    """Images at even distances in their order, which is that of the clusters."""
    shown_NHW3 = images_NHW3[np.linspace(0, len(images_NHW3) - 1, ROWS * COLUMNS).astype(int)]
    _, height, width, _ = shown_NHW3.shape
    grid = shown_NHW3.reshape(ROWS, COLUMNS, height, width, 3).transpose(0, 2, 1, 3, 4)
    return Image.fromarray(grid.reshape(ROWS * height, COLUMNS * width, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("generators", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-n", type=int, default=210)
    parser.add_argument("--method")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    arguments = parser.parse_args()
    wanted = Request(n=1, method=arguments.method, steps=arguments.steps, guidance=arguments.guidance)
    run = Run.open(arguments.run)
    patches = PatchSet.open(run.require("patches"))
    real = Real(patches, 1, np.zeros(len(patches), np.int64), arguments.out / "features")
    device = torch.device(resolve_device(run.config.runtime.device))
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("| generator | Frechet distance by lpips-alex | recall | precision | accuracy by texture |")
    print("|---|---|---|---|---|")
    for folder in arguments.generators:
        generator = Generator.load(folder)
        if generator.spec.size != patches.size:
            parser.error(f"{folder} draws {generator.spec.size} px, and the patches of {run.path} have {patches.size}")
        images_NHW3 = drawn(generator, n=arguments.n, sampler=sampler_of(wanted, generator))
        picture(images_NHW3).save(arguments.out / f"{folder.resolve().name}.png")
        row = measured(real, images_NHW3, np.zeros(len(images_NHW3), np.int64), device=device)
        print(
            f"| {folder} | {row['frechet']:.3f} ({row['frechet_low']:.3f} to {row['frechet_high']:.3f}) "
            f"| {row['recall']:.2f} ({row['recall_low']:.2f} to {row['recall_high']:.2f}) | {row['precision']:.2f} "
            f"| {row['accuracy']:.3f} |",
            flush=True,
        )
    print(
        f"| floor | {row['frechet_floor']:.3f} | {row['recall_floor']:.2f} | {row['precision_floor']:.2f} "
        f"| {row['accuracy_floor']:.3f} |"
    )


if __name__ == "__main__":
    main()
