"""How near to real tissue a diffusion model comes while it trains: distances against images seen.

    python benchmarks/training_curve.py RUN --out FOLDER [-n 210] [--every 50000 --watch]

Reads the last checkpoint of the stage ``diffusion`` of RUN, or the finished stage, and leaves the training alone. The
averaged weights go to FOLDER/images-N as a generator; it draws n images with the run's sampler, of every cluster in its
share of the held-out patches, and each call adds a line to FOLDER/curve.csv: images seen, Frechet distance and recall
by lpips-alex with their intervals, precision, accuracy and AUC of the two-sample test by texture, each with its floor,
and the error of v on held-out latents. ``samples.png`` in the same folder shows the first images of each cluster.

With ``--watch`` the script waits for the training's checkpoints and measures each time that another so many images
(``--every``) have been seen, until the training has ended. A number of images that has been measured is not again.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from pathlib import Path

import torch
from cheaper_training import Real, denoising_error, draw_images, measured, save_picture

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.unet import make_unet, save_unet
from histoloom.diffusion.stage import make_spec
from histoloom.errors import UserError
from histoloom.run.directory import Run
from histoloom.run.stage import EventLog, StageContext
from histoloom.training.devices import resolve_device

WAIT = 30
"""seconds between two looks at the checkpoint"""


def keep_generator(run: Run, *, out: Path, unlike: set[int], least: int) -> tuple[int, Path] | None:
    """The generator of the last checkpoint and the images that it had seen; None before ``least`` images.

    Nor is a number of images in ``unlike`` taken again. A run that began with another generator's weights has its
    latent space, and is refused.
    """
    if run.config.start is not None:
        raise UserError(f"{run.path} began with another generator's weights; its curve is not drawn by this script")
    finished, checkpoint = run.artifact("diffusion"), run.building("diffusion") / "checkpoints" / "last.pt"
    if finished is not None:
        images = run.config.diffusion.training.images(n=len(LatentSet.open(run.require("latents")).rows("train")))
        return None if images in unlike else (images, run.require("diffusion"))
    if not checkpoint.is_file():
        return None
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    images = int(state["images"])
    if images < least or images in unlike:
        return None
    folder = out / f"images-{images}"
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {name: run.require(name) for name in ("patches", "autoencoder", "latents", "clusters")}
    context = StageContext(run.path, run.config, folder, inputs, EventLog(folder / "log.jsonl"))
    latents, clustering = LatentSet.open(inputs["latents"]), Clustering.open(inputs["clusters"])
    config = run.config.diffusion
    if config.scaling == "none":
        space = LatentSpace.unscaled(latents.shape[0])
    else:
        space = LatentSpace.fit(latents.latents, rows=latents.rows(split="train"), whiten=config.whiten)
    spec = make_spec(context, latents=latents, clustering=clustering, space=space)
    unet = make_unet(config, shape=spec.shape, conditions=spec.conditions.count)
    unet.load_state_dict((state["averages"] or state["modules"])["unet"])
    save_unet(unet, folder / "unet")
    spec.save(folder)
    return images, folder


def add_point(run: Run, *, images: int, folder: Path, out: Path, n: int, real: Real) -> None:
    """Draw from the generator in ``folder``, measure, and add a line to the curve."""
    drawn_NHW3, clusters_N = draw_images(run, folder=folder, quotas=real.quotas(n), k=real.k)
    (out / f"images-{images}").mkdir(parents=True, exist_ok=True)
    save_picture(drawn_NHW3, clusters_N, path=out / f"images-{images}" / "samples.png")
    device = torch.device(resolve_device(run.config.runtime.device))
    row: dict[str, float] = {"images": images, "drawn": len(drawn_NHW3)}
    row |= measured(real, drawn_NHW3, clusters_N, device=device)
    row["denoising"] = denoising_error(run, folder=folder, real=real, device=device)
    curve = out / "curve.csv"
    with curve.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if not curve.stat().st_size:
            writer.writeheader()
        writer.writerow({name: round(value, 4) for name, value in row.items()})
    logging.info("%s images: %s", f"{images:,}", {name: round(value, 3) for name, value in row.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-n", type=int, default=210)
    parser.add_argument("--every", type=int, default=50_000)
    parser.add_argument("--watch", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    run, curve = Run.open(arguments.run), arguments.out / "curve.csv"
    real = Real.of(run, clusters=run.require("clusters"), cache=arguments.out / "features")
    while True:
        seen: set[int] = set()
        if curve.is_file():
            with curve.open(newline="", encoding="utf-8") as file:
                seen = {int(float(line["images"])) for line in csv.DictReader(file)}
        least = max(seen, default=0) // arguments.every * arguments.every + arguments.every if arguments.watch else 0
        ended = run.artifact("diffusion") is not None
        if (found := keep_generator(run, out=arguments.out, unlike=seen, least=least)) is not None:
            images, folder = found
            add_point(run, images=images, folder=folder, out=arguments.out, n=arguments.n, real=real)
        if ended or not arguments.watch:
            return
        time.sleep(WAIT)


if __name__ == "__main__":
    main()
