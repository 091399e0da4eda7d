"""The stage ``latents``: every patch encoded once, and the moments of each channel."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.augment import dihedral
from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.config import Config
from histoloom.progress import meter
from histoloom.run.directory import read_json, write_json
from histoloom.run.stage import StageContext
from histoloom.seeding import torch_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.stain.augment import jitter_stain
from histoloom.training.devices import accelerator, autocast, full_precision

CHUNK = 64


def run(context: StageContext) -> None:
    """Encode all patches, in chunks that a killed run does not repeat, and measure the training split."""
    patches = PatchSet.open(context.inputs["patches"])
    model = Autoencoder.load(context.inputs["autoencoder"])
    _encode_all(context, model=model, patches=patches)
    patches.columns("patch_id", "split", "slide_id").to_parquet(context.out / "index.parquet", index=False)
    latents = np.load(context.out / "latents.npy", mmap_mode="r")
    mean, std = moments(latents, rows=patches.rows(split="train"))
    write_json(context.out / "moments.json", {"mean": mean.tolist(), "std": std.tolist()})
    (context.out / "encoded.json").unlink()
    context.say(f"encoded {len(latents):,} patches to {LatentSet.open(context.out).shape}; deviation {std.mean():.3f}")


def _encode_all(context: StageContext, *, model: Autoencoder, patches: PatchSet) -> None:
    model.to(accelerator(context.config.runtime).device)
    outputs = _open_outputs(context.out, n=len(patches), config=context.config)
    marker = context.out / "encoded.json"
    done = read_json(marker)["rows"] if marker.is_file() else 0
    with meter("encoding patches", total=len(patches), done=done) as progress:
        for start in range(done, len(patches), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(patches)))
            encoded = _encode(patches.images(rows), model=model, config=context.config, start=start)
            for name, values in encoded.items():
                outputs[name][rows] = values.astype(outputs[name].dtype)
                outputs[name].flush()
            write_json(marker, {"rows": int(rows[-1]) + 1})
            progress.advance(len(rows))


@torch.no_grad()
def _encode(images_NHWC: np.ndarray, *, model: Autoencoder, config: Config, start: int) -> dict[str, np.ndarray]:
    """What each file holds of a chunk of patches; ``start`` is the number of its first."""
    x_NCHW = to_float(torch.from_numpy(images_NHWC).to(accelerator(config.runtime).device))
    restained = [
        jitter_stain(
            x_NCHW,
            strength=config.latents.stain_jitter,
            generator=torch_generator(config.seed, "latents", "stain", view, start),
        )
        for view in range(config.latents.stain_views)
    ]
    with full_precision():  # a patch that is classified later, elsewhere, has to get the same cluster
        z_NChw = model.encode(x_NCHW).float()
        copies = [model.encode(turned_NCHW).float() for turned_NCHW in _turned(x_NCHW, copies=config.latents.copies)]
    with autocast(config.runtime):
        views = [model.encode(seen_NCHW).float() for seen_NCHW in restained]
    encoded = {
        "latents": z_NChw.cpu().numpy(),
        "histograms": code_use(model.quantize(z_NChw).indices_NHW, codes=config.autoencoder.codes),
    }
    further = {"stain_views": views, "copies": copies}
    return encoded | {name: torch.stack(parts, dim=1).cpu().numpy() for name, parts in further.items() if parts}


def _turned(x_NCHW: Tensor, *, copies: int) -> Iterator[Tensor]:
    """Dihedral copies 1 to ``copies`` - 1 of each image."""
    for choice in range(1, copies):
        yield dihedral(x_NCHW, torch.full((len(x_NCHW),), choice, device=x_NCHW.device))


def _open_outputs(out: Path, *, n: int, config: Config) -> dict[str, np.memmap]:
    auto, views = config.autoencoder, config.latents.stain_views
    side = config.patches.size // auto.factor
    latent = (auto.code_dim, side, side)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "latents": ((n, *latent), config.latents.dtype),
        "histograms": ((n, auto.codes), "float32"),
    }
    for name, count in (("stain_views", views), ("copies", config.latents.copies - 1)):
        if count:
            shapes[name] = ((n, count, *latent), "float16")
    fresh = not (out / "encoded.json").is_file()
    maps = {}
    for name, (shape, dtype) in shapes.items():
        path = out / f"{name}.npy"
        maps[name] = np.lib.format.open_memmap(
            path, mode="w+" if fresh else "r+", dtype=dtype, shape=shape if fresh else None
        )
        _reserve(path)
    return maps


def _reserve(path: Path) -> None:
    """Take the file's blocks now: a memory map over blocks that a full disk cannot give kills the process."""
    with path.open("rb+") as file:
        if sys.platform == "linux":
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def code_use(indices_NHW: torch.Tensor, *, codes: int) -> np.ndarray:
    """Share of each patch's positions that use each code, float32 (N, codes)."""
    flat = indices_NHW.flatten(1).cpu()
    counts = torch.zeros(len(flat), codes).scatter_add_(1, flat, torch.ones(flat.shape))
    return (counts / flat.shape[1]).numpy()


def moments(latents: np.ndarray, *, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel over ``rows``, in double precision and bounded memory."""
    channels = latents.shape[1]
    total, squares, count = np.zeros(channels), np.zeros(channels), 0
    for start in range(0, len(rows), 1024):
        part = np.asarray(latents[rows[start : start + 1024]], dtype=np.float64)
        total += part.sum(axis=(0, 2, 3))
        squares += np.square(part).sum(axis=(0, 2, 3))
        count += part.size // channels
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
