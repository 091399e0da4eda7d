"""What each choice of the diffusion model buys: the same run, the same images seen, the same seeds, one change a time.

For each variant the stage ``diffusion`` is trained anew on the run's latents and clusters, then draws the same requests
with the same sampler. Frechet distance to the real training latents as in ``sampler_curve.py`` (``pooled`` and
``layout`` features), all in one space: the principal components of the run's latents that keep 99 % of the variance.
The error is one standard deviation over tenths left out. The run's own settings are the variant ``base``; the run is
left as it was found but for ``superseded/``, where trained variants stay.

    python benchmarks/ablation.py RUN --out FOLDER [--images 16000] [-n 1024] --variant NAME key=value ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sampler_curve import FLOORS, GROUPS, Point, draw_point, features_of, floor, frechet

from histoloom import pipeline
from histoloom.autoencoder.latents import LatentSet
from histoloom.config import SamplerConfig
from histoloom.diffusion.generator import CHUNK, Generator
from histoloom.diffusion.latent_space import LatentSpace
from histoloom.setup import change_settings
from histoloom.store import Run, read_json, write_json

KEPT = 0.99
KINDS = ("pooled", "layout")


def common_space(run: Run) -> tuple[LatentSpace, dict[str, np.ndarray]]:
    """The space that every variant is looked at in, and the real features there."""
    latents = LatentSet.open(run.require("latents"))
    rows = latents.rows(split="train")
    space = LatentSpace.measured(latents.latents, rows=rows, whiten=KEPT)
    parts = [features_of(space.encode(latents.raw(rows[start : start + 512]))) for start in range(0, len(rows), 512)]
    return space, {kind: np.concatenate([part[kind] for part in parts]) for kind in KINDS}


def drawn(run: Run, *, space: LatentSpace, sampler: SamplerConfig, n: int) -> Point:
    """Features of ``n`` images by the run's generator as it is now."""
    generator = Generator.load(run.path)
    orders = generator.orders(None, n=n, seed=0)
    own = generator.facts.space
    return draw_point(
        generator,
        orders,
        sampler=sampler,
        batch=CHUNK[generator.device.type],
        see=lambda x_NChw: space.encode(own.decode(x_NChw)),
    )


def with_error(made_ND: np.ndarray, *, real_MD: np.ndarray) -> tuple[float, float]:
    """The distance, and one standard error by leaving out a tenth of the drawn at a time."""
    group_N = np.arange(len(made_ND)) % GROUPS
    left_out = np.array([frechet(made_ND[group_N != g], real_MD) for g in range(GROUPS)])
    return frechet(made_ND, real_MD), float(np.sqrt((GROUPS - 1) / GROUPS * ((left_out - left_out.mean()) ** 2).sum()))


def scored(run: Run, settings: Sequence[str], *, given: argparse.Namespace, name: str) -> dict[str, float]:
    """A variant's row; kept in ``--out``."""
    file = given.out / f"{name}-{given.images}-{given.n}.json"
    if file.is_file():
        return json.loads(file.read_text())
    changed = change_settings(run, [f"diffusion.training.phases.0.images={given.images}", *settings], save=False)
    pipeline.execute(changed, until="diffusion")
    space, real = common_space(run)
    sampler = SamplerConfig(method="dpm-solver++", steps=20, guidance=given.guidance)
    point = drawn(changed, space=space, sampler=sampler, n=given.n)
    seconds = read_json(run.path / "diffusion" / "artifact.json")["seconds"]
    row = {"images/s": given.images / seconds}
    for kind in KINDS:
        row[kind], row[f"{kind} +-"] = with_error(point.features[kind], real_MD=real[kind])
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(file, row)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("-n", type=int, default=1024)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--variant", dest="variants", nargs="+", action="append", default=[])
    given = parser.parse_args()
    run = Run.open(given.run)
    _, real = common_space(run)
    floors = {kind: floor(real[kind], n=given.n, seed=0) for kind in KINDS}
    said = ", ".join(f"{kind} {value:.4f}" for kind, value in floors.items())
    print(f"floor (mean of {FLOORS}): {said}")
    rows = {}
    for name, *settings in [["base"], *given.variants]:
        rows[name] = scored(run, settings, given=given, name=name)
        print(pd.DataFrame(rows).T.round(4).to_string(), flush=True)


if __name__ == "__main__":
    main()
