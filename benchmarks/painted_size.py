"""Memory and time of painting a large field with a tiny network.

    OMP_NUM_THREADS=1 python benchmarks/painted_size.py --size 20000 --out FOLDER

The generator has random weights, patches of 128 px, latents of 32 x 32 with three components, and few channels, so that
what remains is the work of windows, files and the pyramid. Each size runs in a process of its own. Prints a line of
Markdown a size: seconds, processor seconds, and the largest memory (RSS).
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.config import AutoencoderConfig, DiffusionConfig, SamplerConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.unet import make_unet
from histoloom.diffusion.painting.job import PaintSettings, paint_file

K = 4
TRAINING = {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 8}]}


def tiny_generator(folder: Path) -> Generator:
    """A generator with random weights."""
    torch.manual_seed(0)
    auto = AutoencoderConfig.model_validate(
        {"channels": 8, "multipliers": [1], "stem": 4, "blocks": 1, "attention": False, "codes": 0, "code_dim": 3}
        | {"training": TRAINING}
    )
    diffusion = DiffusionConfig.model_validate(
        {"channels": [8, 8], "attention": [False, False], "blocks": 1, "norm_groups": 4, "training": TRAINING}
    )
    spec = GeneratorSpec(
        diffusion=diffusion,
        sampler=SamplerConfig(method="ddim", steps=2, guidance=1.0),
        space=LatentSpace.unscaled(3),
        shape=(3, 32, 32),
        ks=(K,),
        chosen_k=K,
        frequencies={K: (1 / K,) * K},
        size=128,
        mpp=1.0,
    )
    unet = make_unet(diffusion, shape=spec.shape, conditions=spec.conditions.count)
    return Generator(spec, unet=unet, autoencoder=Autoencoder(auto), home=folder)


def paint(folder: Path, size: int, steps: int) -> None:
    """Paint a field of ``size`` px with all tissues, and print what it took."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows, columns = np.indices((size // 256, size // 256))
    layout = folder / f"{size}.png"
    Image.fromarray(((rows // 2 + columns // 3) % K).astype(np.uint8)).save(layout)
    layout.with_suffix(".json").write_text("{" + ", ".join(f'"{c}": "{c}"' for c in range(K)) + "}", encoding="utf-8")
    settings = PaintSettings(sampler=SamplerConfig(method="ddim", steps=steps, guidance=1.0))
    paint_file(tiny_generator(folder), layout, out=folder / str(size), settings=settings, size_px=(size, size))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds, processor = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(f"| {size:,} | {seconds:.0f} | {processor:.0f} | {usage.ru_maxrss / 1024:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[2_500, 5_000, 20_000])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("| px of a side | s | CPU s | MB |\n|---|---|---|---|", flush=True)
    for size in arguments.size:
        process = multiprocessing.get_context("spawn").Process(
            target=paint, args=(arguments.out, size, arguments.steps)
        )
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"painting {size} px failed")


if __name__ == "__main__":
    main()
