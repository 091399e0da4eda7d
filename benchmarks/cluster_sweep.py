"""Where the time of the stage ``clusters`` goes: the sweep k = 10..16 with restarts on 10,000 patches.

Procedural slides, 256-px patches, latents of 16 x 32 x 32 from a hardly trained VQ-GAN, preset cpu's clustering (its
length, its null models) but for the sweep and the restarts. Only the stage is timed, by a profiler; what comes before
it is made once in ``--out`` and reused. Needs the machine to itself.

    python benchmarks/cluster_sweep.py --out FOLDER [--patches 10000] [--restarts 3] [--set key=value ...]
"""

from __future__ import annotations

import argparse
import cProfile
import inspect
import pstats
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from histoloom import pipeline
from histoloom.clustering import stage
from histoloom.demo import SLIDE_MPP, SLIDE_SIDE, SLIDES
from histoloom.run.directory import Run
from histoloom.setup import change_settings, init_run
from histoloom.slides.procedural.slides import make_slides

SWEEP = list(range(10, 17))
PARTS: dict[str, Callable[..., object]] = {
    "training": stage._train,
    "prediction": stage.predict,
    "features": stage.validity_features,
    "k-means": stage.kmeans_labels,
    "five indices": stage.validity_indices,
    "null models": stage.decide_by_nulls,
    "confounding": stage.examine,
}


def prepared(out: Path, *, patches: int, settings: list[str]) -> Run:
    """A run of ``patches`` patches whose latents are there and whose clusters are not."""
    make_slides(out / "slides", seed=0, count=SLIDES, size=SLIDE_SIDE, mpp=SLIDE_MPP)
    short = ["autoencoder.training.phases.0.images=320", "autoencoder.training.warmup_images=0"]
    sizes = ["patches.size=256", f"patches.count={patches}", f"clusters.k={SWEEP}"]
    if (out / "run" / "config.yaml").is_file():
        run = change_settings(Run.open(out / "run"), [*sizes, *settings], save=False)
    else:
        run = init_run(out / "run", slides=[out / "slides"], preset="cpu", settings=[*short, *sizes, *settings])
    for folder in (run.path / "superseded", run.path / "clusters"):
        shutil.rmtree(folder, ignore_errors=True)
    pipeline.execute(run, until="latents")
    return run


def seconds_of(statistics: pstats.Stats) -> dict[str, float]:
    """Cumulative seconds of each part, by the code that does it."""
    found = dict.fromkeys(PARTS, 0.0)
    for (file, line, name), (_, _, _, cumulative, _) in statistics.stats.items():  # type: ignore[attr-defined]
        for part, function in PARTS.items():
            code = inspect.unwrap(function).__code__
            if (file, line, name) == (code.co_filename, code.co_firstlineno, code.co_name):
                found[part] += cumulative
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patches", type=int, default=10_000)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--set", dest="settings", nargs="+", default=[])
    given = parser.parse_args()
    run = prepared(given.out, patches=given.patches, settings=[f"clusters.restarts={given.restarts}", *given.settings])
    profile, started = cProfile.Profile(), time.perf_counter()
    profile.runcall(pipeline.execute, run, until="clusters")
    total = time.perf_counter() - started
    found = seconds_of(pstats.Stats(profile))
    found["the rest"] = total - sum(found.values())
    table = pd.DataFrame({"seconds": found, "share": {part: value / total for part, value in found.items()}})
    print(f"\n{given.patches} patches, k = {SWEEP[0]}..{SWEEP[-1]}, {given.restarts} restarts: {total:.0f} s")
    print(table.round({"seconds": 1, "share": 3}).to_string())
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
