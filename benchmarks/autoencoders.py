"""Settings of the VQ-GAN, one run each: what they do to patches of held-out slides (or patients).

Each variant is a few settings on top of the preset. The table shows PSNR, SSIM and LPIPS (where its weights are on this
machine) of reconstructions, codes in use (perplexity over held-out positions), the number of principal components that
keep 99 % of the latents' variance, the bits per patch that the codes can hold, and training images per second. What
has no codebook has neither perplexity nor bits. Patches are cut once; finished variants are not trained again.

    python benchmarks/autoencoders.py --slides FOLDER --out FOLDER [--preset cpu] [--set key=value ...]
        --variant base --variant rotation autoencoder.gradient=rotation ...
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from histoloom import pipeline
from histoloom.autoencoder.quantizer import perplexity, positions
from histoloom.autoencoder.vqgan import Autoencoder, to_float, to_uint8
from histoloom.evaluation.pair_metrics import PairMetricSettings, make_metrics, measure
from histoloom.run.directory import Run, read_json, write_json
from histoloom.seeding import numpy_generator
from histoloom.setup import change_settings, init_run
from histoloom.slides.patch_set import PatchSet

PATCHES, CHUNK, KEPT = 400, 16, 0.99


@torch.no_grad()
def measure_run(run: Run) -> dict[str, float]:
    """Measure the trained autoencoder of ``run`` on held-out patches."""
    patches, model = PatchSet.open(run.path / "patches"), Autoencoder.load(run.path / "autoencoder")
    rows = patches.rows(split="holdout")
    assert len(rows), "the benchmark needs held-out patches: patches.split.holdout"
    real = patches.images(np.sort(numpy_generator(0, "benchmark", "autoencoders").permutation(rows)[:PATCHES]))
    reconstructions, latents, counts_K = [], [], torch.zeros(max(1, model.config.codes))
    for start in range(0, len(real), CHUNK):
        z_NCHW = model.encode(to_float(torch.from_numpy(real[start : start + CHUNK])))
        reconstructions.append(to_uint8(model.decode_codes(model.codes(z_NCHW))).numpy())
        latents.append(positions(z_NCHW))
        if model.quantizer is not None:
            counts_K += torch.bincount(model.quantize(z_NCHW).indices_NHW.flatten(), minlength=len(counts_K))
    fake = np.concatenate(reconstructions)
    mse_N = np.square(real.astype(np.float64) - fake).mean(axis=(1, 2, 3))
    settings = PairMetricSettings(size=real.shape[1], trunk="alex", device=torch.device("cpu"), download=False)
    metrics, _ = make_metrics(settings)
    pairs = np.stack([np.arange(len(real))] * 2, axis=1)
    values = measure(metrics, left=lambda rows: real[rows], right=lambda rows: fake[rows], pairs=pairs)
    variance_C = torch.linalg.eigvalsh(torch.cov(torch.cat(latents).T.double())).flip(0)
    side = real.shape[1] // model.config.factor
    return {
        "PSNR": float(np.mean(10 * np.log10(255.0**2 / mse_N))),
        **{name: float(scores.mean()) for name, scores in values.items() if name != "ms_ssim"},
        "perplexity": float(perplexity(counts_K)) if model.quantizer is not None else math.nan,
        "codes": model.config.codes,
        "components": int((variance_C.cumsum(0) / variance_C.sum() < KEPT).sum()) + 1,
        "bits": round(side * side * math.log2(model.config.codes)) if model.config.codes else math.nan,
    }


def train_variant(run: Run, settings: list[str], *, out: Path) -> dict[str, float]:
    """Train and measure one variant; its scores are kept in ``out``."""
    if out.is_file():
        return json.loads(out.read_text())
    changed = change_settings(run, settings, save=False)
    pipeline.execute(changed, until="autoencoder")
    images = changed.config.autoencoder.training.images(n=len(PatchSet.open(run.path / "patches").rows("train")))
    seconds = read_json(run.path / "autoencoder" / "artifact.json")["seconds"]
    scores = measure_run(changed) | {"images/s": images / seconds}
    write_json(out, {name: None if math.isnan(score) else score for name, score in scores.items()})
    return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--set", dest="settings", nargs="+", default=[])
    parser.add_argument("--variant", dest="variants", nargs="+", action="append", default=[])
    arguments = parser.parse_args()
    run = init_run(
        arguments.out / "run",
        slides=[arguments.slides],
        table=arguments.table,
        preset=arguments.preset,
        settings=arguments.settings,
    )
    rows = {}
    for name, *settings in arguments.variants or [["base"]]:
        rows[name] = train_variant(run, settings, out=arguments.out / f"{name}.json")
        print(pd.DataFrame(rows).T.round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()
