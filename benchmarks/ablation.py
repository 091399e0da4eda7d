"""What each setting of the diffusion model changes: the same run, images reference and seeds, one change at a time.

For each variant the stage ``diffusion`` is trained anew on the run's latents and clusters, then draws the same requests
with the same sampler. Frechet distance to the real training latents as in ``sampler_curve.py`` (``pooled`` and
``layout`` features), all in one space: the principal components of the run's latents that keep 99 % of the variance.
``--pictures`` adds features of the decoded images, against the run's training patches, these in orientations drawn at
random (``NAME turned``: what turned copies are to teach) and patches of held-out slides (``NAME held out``).
The error is one standard deviation over tenths left out. The run's own settings are the variant ``base``. Settings of
``samples.sampler`` change how a variant draws (and train nothing); those of ``latents`` encode anew, and cluster anew
to the same clusters; those of ``autoencoder`` have latents of their own, so that pictures alone compare them. Stages
that the run had come back at the end, from ``superseded/``, where trained variants stay.

    python benchmarks/ablation.py RUN --out FOLDER [--images 16000] [-n 1024] [--guidance 1] --variant NAME key=value

The whole table, for a run of the preset ``cpu`` (cosine schedule, v, whitened, constant average). For short trainings
give the run ``diffusion.training.ema=0`` first: an average over most of one hides what variants do.

    python benchmarks/ablation.py RUN --out FOLDER --images 16000 -n 1024 --guidance 1 \\
      --variant groups-32 diffusion.norm_groups=32 diffusion.embedding=add \\
      --variant groups-8 diffusion.embedding=add \\
      --variant no-average diffusion.training.ema=0 \\
      --variant epsilon diffusion.prediction=epsilon \\
      --variant data diffusion.prediction=data \\
      --variant shift-1 diffusion.shift=1 \\
      --variant shift-3 diffusion.shift=3 \\
      --variant linear diffusion.schedule=linear \\
      --variant not-whitened diffusion.whiten=null \\
      --variant copies latents.copies=8 \\
      --variant no-dropped-condition diffusion.condition_dropout=0 \\
      --variant guidance-1.8 samples.sampler.guidance=1.8 \\
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sampler_curve import FLOORS, GROUPS, FeatureExtraction, draw_point, floor

from histoloom import pipeline
from histoloom.autoencoder.latents import LatentSet
from histoloom.config import SamplerConfig, with_settings
from histoloom.diffusion.generation.generator import BATCH_SIZE, Generator
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.evaluation.set_metrics import frechet_distance
from histoloom.run.directory import Run, fingerprint, read_json, write_json
from histoloom.setup import change_settings
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device

KEPT = 0.99
DRAWS = "samples.sampler."


@dataclass(frozen=True)
class RealReference:
    """How features are extracted, and those of the real training latents and patches: (M, D) by kind."""

    extraction: FeatureExtraction
    real: dict[str, np.ndarray]


def real_reference(run: Run, *, pictures: str | None) -> RealReference:
    """Of the run's own latents, whatever a variant makes of them."""
    latents = LatentSet.open(run.require("latents"))
    space = LatentSpace.fit(latents.latents, rows=latents.rows(split="train"), whiten=KEPT)
    device = torch.device(resolve_device(run.config.runtime.device))
    extraction = FeatureExtraction(run, space=space, device=device, pictures=pictures)
    real = extraction.of_real()
    if pictures:
        real[f"{pictures} turned"] = extraction.of_patches("train", turned=True)
    if pictures and len(PatchSet.open(run.require("patches")).rows("holdout")):
        real[f"{pictures} held out"] = extraction.of_patches("holdout")
    return RealReference(extraction, real)


def drawn_features(
    run: Run, *, extraction: FeatureExtraction, sampler: SamplerConfig, n: int, latents: bool
) -> dict[str, np.ndarray]:
    """Features of ``n`` images by the run's present generator: (N, D) by kind."""
    generator = Generator.load(run.path)
    specs = generator.sample_specs(None, n=n, seed=0)
    point = draw_point(generator, specs, sampler=sampler, batch=BATCH_SIZE[generator.device.type])
    return extraction.of_drawn(point.x_NChw, generator=generator, latents=latents)


def with_error(made_ND: np.ndarray, *, real_MD: np.ndarray) -> tuple[float, float]:
    """The distance, and one standard error by leaving out a tenth of the samples at a time."""
    group_N = np.arange(len(made_ND)) % GROUPS
    left_out = np.array([frechet_distance(made_ND[group_N != g], real_MD) for g in range(GROUPS)])
    return frechet_distance(made_ND, real_MD), float(
        np.sqrt((GROUPS - 1) / GROUPS * ((left_out - left_out.mean()) ** 2).sum())
    )


def sampler_of(settings: Sequence[str], *, guidance: float) -> SamplerConfig:
    """The sampler of every variant, with what this one changes about it."""
    shared = {"samples": {"sampler": {"method": "dpm-solver++", "steps": 20, "guidance": guidance}}}
    changed = with_settings(shared, [setting for setting in settings if setting.startswith(DRAWS)])
    return SamplerConfig.model_validate(changed["samples"]["sampler"])


def scored(
    run: Run, settings: Sequence[str], *, arguments: argparse.Namespace, name: str, reference: RealReference
) -> dict[str, float]:
    """A variant's row; kept in ``--out``."""
    key = fingerprint([list(settings), arguments.images, arguments.n, arguments.guidance, arguments.pictures])
    file = arguments.out / f"{name}-{key}.json"
    if file.is_file():
        return json.loads(file.read_text())
    trained = [setting for setting in settings if not setting.startswith(DRAWS)]
    changed = change_settings(run, [f"diffusion.training.phases.0.images={arguments.images}", *trained], save=False)
    pipeline.execute(changed, until="diffusion")
    sampler = sampler_of(settings, guidance=arguments.guidance)
    same_latents = not any(setting.startswith("autoencoder.") for setting in settings)
    made = drawn_features(
        changed, extraction=reference.extraction, sampler=sampler, n=arguments.n, latents=same_latents
    )
    seconds = read_json(run.path / "diffusion" / "artifact.json")["seconds"]
    row = {"images/s": arguments.images / seconds}
    for kind, real_MD in reference.real.items():
        features = kind.split()[0]
        if features in made:
            row[kind], row[f"{kind} +-"] = with_error(made[features], real_MD=real_MD)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(file, row)
    return row


def put_back(run: Run) -> None:
    """Give the run the stages of its own settings again, where they were made before."""
    wanted = pipeline.wanted_fingerprints(run)
    with run.locked():
        for stage in ("autoencoder", "latents", "clusters", "diffusion"):
            if run.state(stage, wanted=wanted[stage]) != "done":
                run.restore(stage, wanted=wanted[stage])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("-n", type=int, default=1024)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--pictures", metavar="FEATURES", help="of the decoded images too, as in histoloom evaluate")
    parser.add_argument("--variant", dest="variants", nargs="+", action="append", default=[])
    arguments = parser.parse_args()
    run = Run.open(arguments.run)
    reference = real_reference(run, pictures=arguments.pictures)
    floors = {kind: floor(real_MD, n=arguments.n, seed=0) for kind, real_MD in reference.real.items()}
    text = ", ".join(f"{kind} {value:.4f}" for kind, value in floors.items())
    print(f"floor (mean of {FLOORS}): {text}")
    rows = {}
    try:
        for name, *settings in [["base"], *arguments.variants]:
            rows[name] = scored(run, settings, arguments=arguments, name=name, reference=reference)
            print(pd.DataFrame(rows).T.round(4).to_string(), flush=True)
    finally:
        put_back(run)


if __name__ == "__main__":
    main()
