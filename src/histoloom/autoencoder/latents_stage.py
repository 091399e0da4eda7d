"""The stage ``latents``: every patch encoded once, and the moments of each channel.

Shapes: N patches in all, n of a chunk, C x h x w latents, V stain views.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.augment import dihedral
from histoloom.autoencoder.latents import ChannelMoments
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.config import Config
from histoloom.progress import meter
from histoloom.run.directory import read_json, write_json
from histoloom.run.row_file import RowFile
from histoloom.run.stage import StageContext
from histoloom.seeding import torch_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.stain.augment import jitter_stain
from histoloom.training.devices import accelerator, autocast, full_precision
from histoloom.training.memory import in_fitting_parts

CHUNK = 64


def run(context: StageContext) -> None:
    """Encode all patches, in chunks that a killed run does not repeat, and measure the training split."""
    patches = PatchSet.open(context.inputs["patches"])
    model = Autoencoder.load(context.inputs["autoencoder"])
    model.to(accelerator(context.config.runtime).device)
    outputs = _open_outputs(context.out, n=len(patches), config=context.config)

    marker = context.out / "encoded.json"
    done = read_json(marker)["rows"] if marker.is_file() else 0
    with meter("encoding patches", total=len(patches), done=done) as progress:
        for start in range(done, len(patches), CHUNK):
            rows_n = np.arange(start, min(start + CHUNK, len(patches)))
            encoded = _encode(patches.images(rows_n), model=model, config=context.config, start=start)
            for name, values in encoded.items():
                outputs[name][start : start + len(rows_n)] = values
                outputs[name].flush()
            write_json(marker, {"rows": int(rows_n[-1]) + 1})
            progress.advance(len(rows_n))

    patches.columns("patch_id", "split", "slide_id").to_parquet(context.out / "index.parquet", index=False)
    latents = outputs["latents"]
    moments = ChannelMoments.of(latents, rows=patches.rows(split="train"))
    moments.save(context.out)
    marker.unlink()
    context.say(f"encoded {len(latents):,} patches to {latents.shape[1:]}; deviation {moments.std_C.mean():.3f}")


@torch.no_grad()
def _encode(images_nHWC: np.ndarray, *, model: Autoencoder, config: Config, start: int) -> dict[str, np.ndarray]:
    """The rows of each output file for a chunk of patches, whose first has the number ``start``."""
    x_nCHW = to_float(torch.from_numpy(images_nHWC).to(accelerator(config.runtime).device))
    stain_views = [
        jitter_stain(
            x_nCHW,
            strength=config.latents.stain_jitter,
            generator=torch_generator(config.seed, "latents", "stain", view, start),
        )
        for view in range(config.latents.stain_views)
    ]
    with full_precision():  # a patch that is classified later, elsewhere, has to get the same cluster
        z_nChw = _latents(model, x_nCHW)
        z_copies = [
            _latents(model, dihedral(x_nCHW, torch.full((len(x_nCHW),), copy, device=x_nCHW.device)))
            for copy in range(1, config.latents.copies)
        ]
    with autocast(config.runtime):
        z_views = [_latents(model, view_nCHW) for view_nCHW in stain_views]

    encoded = {"latents": z_nChw.cpu().numpy()}
    if model.quantizer is not None:  # the share of each patch's positions that use each code
        codes_nP = model.quantize(z_nChw).indices_NHW.flatten(1).cpu()
        counts_nK = torch.zeros(len(codes_nP), config.autoencoder.codes)
        counts_nK.scatter_add_(1, codes_nP, torch.ones(codes_nP.shape))
        encoded["histograms"] = (counts_nK / codes_nP.shape[1]).numpy()
    further = {"stain_views": z_views, "copies": z_copies}
    return encoded | {name: torch.stack(parts, dim=1).cpu().numpy() for name, parts in further.items() if parts}


def _latents(model: Autoencoder, x_nCHW: Tensor) -> Tensor:
    return torch.cat(in_fitting_parts(model.latents, x_nCHW, name="encoding patches"))


def _open_outputs(out: Path, *, n: int, config: Config) -> dict[str, RowFile]:
    """All output files: new ones, or those of an interrupted call."""
    auto = config.autoencoder
    side = config.patches.size // auto.factor
    latent = (auto.code_dim, side, side)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {"latents": ((n, *latent), config.latents.dtype)}
    if auto.codes:
        shapes["histograms"] = ((n, auto.codes), "float32")
    for name, count in (("stain_views", config.latents.stain_views), ("copies", config.latents.copies - 1)):
        if count:
            shapes[name] = ((n, count, *latent), "float16")

    fresh = not (out / "encoded.json").is_file()
    paths = {name: out / f"{name}.npy" for name in shapes}
    if fresh:
        return {name: RowFile.create(paths[name], shape=shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    return {name: RowFile.open(path, writable=True) for name, path in paths.items()}
