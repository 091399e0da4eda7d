"""A sharper decoder for a run whose encoder, clusters and diffusion model stay as they are, and what it is worth.

    python benchmarks/decoder_alone.py RUN --out FOLDER [--images 40000]

Trains the decoder of RUN's autoencoder alone, with another head (``autoencoder.head_blocks``), losses that judge from
another place in every step (``loss_shift``) and a discriminator that sees single pixels, and continues where it was
stopped. ``FOLDER/autoencoder`` then holds the autoencoder: the run's encoder, so the same latents.

A table compares it with the run's own, by reconstructions. PSNR and LPIPS by AlexNet are of held-out patches. Frechet
distance, recall and the two-sample test by texture are of training patches, of every cluster in its share of the
held-out ones, against these, with other patches of the training slides as their floor: what a diffusion model could
reach that draws as real latents are.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cheaper_training import Real, measured

from histoloom.autoencoder.stage import fit
from histoloom.autoencoder.vqgan import Autoencoder, to_float, to_uint8
from histoloom.config import AutoencoderConfig
from histoloom.evaluation.distribution import draw_rows, rows_by_cluster
from histoloom.evaluation.pair_metrics import PairMetricSettings, make_metrics, measure
from histoloom.run.directory import Run
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import numpy_generator
from histoloom.setup import change_settings
from histoloom.slides.patch_set import PatchSet

CHANGES: dict[str, Any] = {
    "trained": "decoder",
    "head_blocks": 1,
    "latent_noise": 0.2,
    "loss_shift": 8,
    "adversarial": {
        "weight": 0.8,
        "start": 0.2,
        "warmup": 0.1,
        "max_adaptive": 0.1,
        "channels": 32,
        "layers": 3,
        "pixels": True,
        "lr": 4e-4,
        "betas": [0.5, 0.9],
    },
}
IMAGES, PIXELS, PATCHES, BATCH = 40_000, 400, 210, 30


def decoder_config(run: Run, *, images: int) -> AutoencoderConfig:
    """The settings of the run's autoencoder, with those of a decoder that is trained alone."""
    values = run.config.autoencoder.model_dump(mode="json")
    training = values["training"]
    training["phases"] = [{"optimizer": "adamw", "lr": 1e-3, "images": images}]
    training["lr_decay"] = "cosine"
    return AutoencoderConfig.model_validate(values | CHANGES | {"training": training})


def train_decoder(run: Run, *, folder: Path, images: int) -> None:
    """The run's autoencoder with a decoder of its own, in ``folder``; continued where it was stopped."""
    if (folder / "autoencoder.safetensors").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    context = StageContext(run.path, run.config, folder, {}, EventLog(folder / "log.jsonl"))
    patches = PatchSet.open(run.require("patches"))
    trained = fit(context, config=decoder_config(run, images=images), patches=patches, start=run.path)
    model = trained.modules["autoencoder"]
    assert isinstance(model, Autoencoder), "the task's module keeps its kind"
    model.cpu().save(folder)
    shutil.rmtree(folder / "checkpoints")


def reconstructions(model: Autoencoder, images_NHW3: np.ndarray) -> np.ndarray:
    """Images through the autoencoder, uint8 (N, H, W, 3)."""
    parts = []
    with torch.no_grad():
        for first in range(0, len(images_NHW3), BATCH):
            x_NCHW = to_float(torch.from_numpy(images_NHW3[first : first + BATCH]))
            parts.append(to_uint8(model.reconstruct(x_NCHW)).numpy())
    return np.concatenate(parts)


def qualities(model: Autoencoder, *, real: Real) -> dict[str, float]:
    """The columns of the table for one autoencoder."""
    held_out = real.patches.images(real.rows("holdout", most=PIXELS))
    again = reconstructions(model, held_out)
    errors = np.square(held_out.astype(float) - again).mean(axis=(1, 2, 3))
    columns = {"PSNR": float((10 * np.log10(255**2 / errors)).mean())}
    settings = PairMetricSettings(size=real.patches.size, trunk="alex", device=torch.device("cpu"), download=False)
    metrics, _ = make_metrics(settings)
    pairs = np.stack([np.arange(len(held_out))] * 2, axis=1)
    values = measure(metrics, left=lambda rows: held_out[rows], right=lambda rows: again[rows], pairs=pairs)
    columns |= {name: float(found.mean()) for name, found in values.items()}
    by_cluster = rows_by_cluster(real.labels_N, rows=real.rows("train", most=len(real.patches)))
    rows = draw_rows(by_cluster, quotas=real.quotas(PATCHES), rng=numpy_generator(0, "decoder-alone"))
    drawn = reconstructions(model, real.patches.images(rows))
    return columns | measured(real, drawn, real.labels_N[rows], device=torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument(
        "--set", dest="settings", nargs="*", default=[], help="settings of the run, as runtime.threads=1"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run = change_settings(Run.open(arguments.run), arguments.settings, save=False)
    real = Real.of(run, clusters=run.require("clusters"), cache=arguments.out / "features")
    folder = arguments.out / "autoencoder"
    train_decoder(run, folder=folder, images=arguments.images)
    table = {
        name: qualities(Autoencoder.load(where), real=real)
        for name, where in (("the run's", run.require("autoencoder")), ("decoder alone", folder))
    }
    (arguments.out / "decoders.json").write_text(json.dumps(table, indent=2), encoding="utf-8")
    for name, columns in table.items():
        logging.info("%s: %s", name, {key: round(value, 4) for key, value in columns.items()})


if __name__ == "__main__":
    main()
