"""A whole run on many small slides, stage by stage: seconds and memory, and how both grow with the patches.

The slides are generated: a few procedural pictures of 512 px, each slide one of them moved, turned and lightened, in a
tiled TIFF. The networks are tiny and their trainings have a fixed number of images, so that what remains is the work
that many slides and patches make: reading, encoding, clustering, evaluation on a sample, and the search for copies
among all training patches. Each stage runs in a process of its own, forked from one that has imported the modules:
times are without imports, and memory is with them.

    OMP_NUM_THREADS=1 python benchmarks/many_slides.py --slides 1000 --per-slide 1000

The same is done with parts of the slides (``--parts 0.1 1``). Prints a Markdown table with a line a stage: seconds by
the clock at the largest size; seconds of processor time at each size, for each patch, and for each further patch; the
largest memory (RSS) at each size; and the exponent p with which processor time and memory grow: t = c N^p from two
sizes, t = a + c N^p from three, which takes out the start of the process. Exponents above 1.1, growth faster than the
work, are bold. ``again`` is a run with nothing to do, ``atlas`` the first visit of its main pages and of a gallery.
Each cost is also printed as soon as it is measured. About 15 KB of disk a patch are needed in ``--folder``.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from histoloom import pipeline
from histoloom.clustering.clustering_set import Clustering
from histoloom.evaluation.originality import audit
from histoloom.pipeline import STAGE_NAMES
from histoloom.run.directory import Run
from histoloom.setup import init_run
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.procedural.slides import draw_slide, write_pyramid

SIDE, PICTURES = 512, 8  # px of a slide; procedural pictures, of which all slides are made
MODULES = [
    f"histoloom.{name}"
    for name in (
        "slides.stage",
        "autoencoder.stage",
        "autoencoder.latents_stage",
        "clustering.stage",
        "diffusion.stage",
        "diffusion.samples_stage",
        "evaluation.stage",
        "atlas.stage",
        "atlas.web.app",
    )
]
FASTER = 1.1  # a larger exponent is growth faster than the work
ATLAS = "atlas"
MEGABYTE, KILOBYTE = 1 << 20, 1 << 10
SETTINGS = (
    "patches.size=32",
    "patches.count=null",
    "patches.split.holdout=0.02",
    "autoencoder.channels=8",
    "autoencoder.perceptual=pyramid",
    "autoencoder.training.warmup_images=0",
    "autoencoder.training.phases.0.images=64",
    "clusters.features=codes",
    "clusters.surroundings=0",
    "clusters.k=[4, 6]",
    "clusters.channels=16",
    "clusters.null_draws=2",
    "clusters.null_points=200",
    "clusters.validity_points=500",
    "clusters.training.batch_size=64",
    "clusters.training.phases.0.images=640",
    "diffusion.channels=[16, 32]",
    "diffusion.attention=[false, true]",
    "diffusion.training.warmup_images=0",
    "diffusion.training.phases.0.images=64",
    "samples.per_cluster=4",
    "samples.sampler.steps=3",
    "evaluation.pairs=8",
    "evaluation.bootstrap=100",
    "evaluation.cluster_classifier.channels=8",
    "evaluation.cluster_classifier.training={batch_size: 16, phases: [{optimizer: adamw, lr: 0.002, images: 64}]}",
    "evaluation.extractors=[pixels, encoder]",
    "evaluation.distribution_patches=200",
    "report.map_slides=1",
    "report.map_patches=100",
    "report.embedded_patches=200",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.workers=1",
)
"""The preset demo with tiny networks, short trainings, and small samples where the product measures on samples."""


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    processor: float
    peak_mb: float


def make_slides(folder: Path, *, count: int) -> list[Path]:
    """Write ``count`` different slides into ``folder``."""
    pictures = [draw_slide(0, number=number, size=SIDE, mpp=1.0)[0] for number in range(1, PICTURES + 1)]
    folder.mkdir()
    paths = [folder / f"s{number:05d}.tif" for number in range(count)]
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        moved = np.roll(pictures[number % PICTURES], rng.integers(0, SIDE, 2), axis=(0, 1))
        lightened = np.rot90(moved, int(rng.integers(4))) * rng.uniform(0.9, 1.0, 3)
        write_pyramid(path, lightened.astype(np.uint8), mpp=1.0)
    return paths


def measure(connection: Connection, make: Callable[[], Run], until: str, held_out: int) -> None:
    """Bring the run that ``make`` gives up to date, to ``until`` included, and send what it cost.

    Originality compares at most ``held_out`` held-out patches.
    """
    start = time.perf_counter()
    audit.MAX_HELD_OUT = held_out
    run = make()
    if until == ATLAS:
        visit_atlas(run)
    elif until != "init":
        pipeline.execute(run, until=until)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    unit = MEGABYTE if sys.platform == "darwin" else KILOBYTE
    seconds = time.perf_counter() - start
    connection.send(Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit))


def visit_atlas(run: Run) -> None:
    """Open the main pages of the atlas and one gallery, the first visit of a fresh server."""
    from starlette.testclient import TestClient

    from histoloom.atlas.web.app import create_app
    from histoloom.atlas.web.security import Access

    k = Clustering.open(run.require("clusters")).chosen
    slide = PatchSet.open(run.require("patches")).slides["slide_id"].iloc[0]
    client = TestClient(create_app(run.path, access=Access()), base_url="http://127.0.0.1")
    pages = ("/", f"/clusters/{k}/0", f"/api/clusters/{k}/0/patches", "/slides", f"/slides/{slide}", "/map", "/name")
    for address in pages:
        answer = client.get(address)
        if answer.status_code != 200:
            raise SystemExit(f"{address}: {answer.status_code}")


def in_process(make: Callable[[], Run], *, until: str, held_out: int) -> Cost:
    """The cost of ``measure`` in a process of its own, which has imported all modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(there, make, until, held_out))
    process.start()
    there.close()
    try:
        cost = here.recv()
    except EOFError:
        raise SystemExit(f"the stage {until} failed") from None
    process.join()
    assert isinstance(cost, Cost)
    return cost


def whole_run(
    folder: Path, slides: Sequence[Path], *, per_slide: int, settings: Sequence[str], held_out: int
) -> dict[str, Cost]:
    """The cost of each step of a run on ``slides``, in ``folder``; ``held_out``: see ``measure``."""
    (folder / "slides").mkdir(parents=True)
    for slide in slides:
        os.link(slide, folder / "slides" / slide.name)
    run = folder / "run"
    chosen = (*SETTINGS, f"patches.per_slide={per_slide}", *settings)
    made = partial(init_run, run, slides=[folder / "slides"], preset="demo", settings=chosen)
    costs = {}
    for step in ("init", *STAGE_NAMES, "again", ATLAS):
        until = STAGE_NAMES[-1] if step == "again" else step
        costs[step] = in_process(made if step == "init" else partial(Run.open, run), until=until, held_out=held_out)
        print(f"{len(slides):,} slides, {step}: {costs[step]}", file=sys.stderr, flush=True)
    return costs


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The p of ``value = c size^p`` through the first and the last, or of ``a + c size^p`` through three.

    NaN where three values grow by less than a twentieth, so that nothing can be said.
    """
    if len(sizes) < 3:
        return math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])
    low, middle, high = sizes[0], sizes[len(sizes) // 2], sizes[-1]
    first, second, third = values[0], values[len(sizes) // 2], values[-1]
    if third - first < 0.05 * third or second <= first:
        return math.nan
    wanted = (third - first) / (second - first)
    below, above = 0.01, 5.0
    for _ in range(60):
        p = (below + above) / 2
        ratio = ((high / low) ** p - 1) / ((middle / low) ** p - 1)
        below, above = (p, above) if ratio < wanted else (below, p)
    return below


def table(sizes: Sequence[int], costs: Sequence[dict[str, Cost]]) -> str:
    """The costs of each step at each number of patches, in Markdown."""
    texts = [f"{size:,}" for size in sizes]
    titles = [
        "stage",
        f"clock, s at {texts[-1]}",
        *(f"CPU, s at {text}" for text in texts),
        "CPU, ms a patch",
        "for a further patch",
        "exponent",
        *(f"MB at {text}" for text in texts),
        "exponent",
    ]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for step in costs[0]:
        seconds, memory = ([getattr(cost[step], name) for cost in costs] for name in ("processor", "peak_mb"))
        further = 1000 * (seconds[-1] - seconds[0]) / (sizes[-1] - sizes[0])
        growth = [exponent(sizes, values) for values in (seconds, memory)]
        shown = ["-" if math.isnan(p) else f"**{p:.2f}**" if p > FASTER else f"{p:.2f}" for p in growth]
        cells = [
            step,
            f"{costs[-1][step].seconds:.1f}",
            *(f"{value:.1f}" for value in seconds),
            f"{1000 * seconds[-1] / sizes[-1]:.2f}",
            f"{further:.2f}",
            shown[0],
            *(f"{value:,.0f}" for value in memory),
            shown[1],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=100)
    parser.add_argument("--per-slide", type=int, default=100, help="patches of each slide")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.1, 1.0], help="shares of the slides, two or more")
    parser.add_argument("--set", dest="settings", nargs="*", default=[], help="further settings, KEY=VALUE")
    parser.add_argument(
        "--held-out", type=int, default=audit.MAX_HELD_OUT, help="held-out patches that originality compares at most"
    )
    parser.add_argument("--folder", type=Path, help="where the data go, which are removed at the end")
    arguments = parser.parse_args()
    counts = sorted({round(part * arguments.slides) for part in arguments.parts})
    if len(counts) < 2 or counts[0] < 5:
        parser.error("--parts needs two or more different sizes, each of at least 5 slides")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        os.environ["HISTOLOOM_CACHE"] = str(Path(name, "cache"))
        slides = make_slides(Path(name, "slides"), count=counts[-1])
        costs = [
            whole_run(
                Path(name, str(count)),
                slides[:count],
                per_slide=arguments.per_slide,
                settings=arguments.settings,
                held_out=arguments.held_out,
            )
            for count in counts
        ]
    print(f"{counts[-1]:,} slides of {SIDE} px, {arguments.per_slide:,} patches each; {counts} slides:\n")
    print(table([count * arguments.per_slide for count in counts], costs))
    processor = sum(cost.processor for cost in costs[-1].values())
    print(f"\nProcessor time of all steps at the largest size: {processor:.0f} s.")


if __name__ == "__main__":
    main()
