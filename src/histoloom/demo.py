"""The demo: procedural slides, then the whole pipeline on them, beginning with the weights of the starter."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from histoloom import pipeline
from histoloom.config import make_config, read_preset, with_settings
from histoloom.errors import UserError
from histoloom.run.directory import Run
from histoloom.run.pretrained import is_start, with_start
from histoloom.setup import init_run

logger = logging.getLogger("histoloom")

SLIDES = 6
SLIDE_SIDE = 2048
SLIDE_MPP = 1.0


FROM_STARTER = (
    "patches.size=64",
    "patches.count=3000",
    "patches.tissue=all",
    "patches.split.holdout=0.2",
    "autoencoder.training.phases.0.images=3000",
    "clusters.k=[6, 7, 8, 9, 10]",
    "clusters.null_draws=6",
    "clusters.null_points=1000",
    "clusters.training.phases.0={optimizer: adamw, lr: 0.001, images: 51200}",
    "diffusion.training.batch_size=8",
    "diffusion.training.phases.0.images=16000",
    "diffusion.training.ema=0.998",
    "samples.per_cluster=16",
    "samples.sampler.steps=15",
    "evaluation.cluster_classifier={channels: 16, training: {batch_size: 32, warmup_images: 320, lr_decay: cosine, "
    "phases: [{optimizer: adamw, lr: 0.002, images: 4800}]}}",
)
"""Settings of the preset tune with which the demo trains the starter's networks on its slides."""


def run_demo(
    out: Path, *, seed: int = 0, settings: Sequence[str] = (), until: str = "report", from_scratch: bool = False
) -> Path:
    """Make slides in ``out/slides``, run the pipeline in ``out/run``; returns the report's path.

    The networks begin with the starter's weights and are trained further, or from random weights with the preset demo
    where ``from_scratch`` asks for that. The same call again continues where an earlier one stopped.
    """
    from histoloom.cost import describe
    from histoloom.diffusion.generation.generator_spec import STARTER, generator_home
    from histoloom.evaluation.results import Truth
    from histoloom.slides.procedural.slides import make_slides

    folder = out / "run"
    is_new = not (folder / "config.yaml").is_file()
    if not is_new:
        from_scratch = Run.open(folder).config.start is None
    starter = None if from_scratch else generator_home(STARTER)
    if starter is not None and not is_start(starter):
        raise UserError("this installation has no starter generator to begin with: histoloom demo --from-scratch")
    settings = [f"seed={seed}", *(FROM_STARTER if starter else ()), *settings]
    preset = "tune" if starter else "demo"
    if is_new:
        values = read_preset(preset) | {"slides": {"paths": [str((out / "slides").resolve())]}}
        values = values if starter is None else with_start(values, starter)
        logger.info("%s", describe(make_config(with_settings(values, settings))))
        if starter is not None:
            logger.info(
                "the networks begin with the weights of the starter generator, as for few slides of your own; "
                "all of it from random weights: histoloom demo --from-scratch"
            )
    logger.info("making %d procedural slides in %s", SLIDES, out / "slides")
    make_slides(out / "slides", seed=seed, count=SLIDES, size=SLIDE_SIDE, mpp=SLIDE_MPP)
    run = init_run(folder, slides=[out / "slides"], preset=preset, settings=settings, start=starter)
    pipeline.execute(run, until=until)
    truth = Truth.load(run.folder("evaluation"))
    for row in truth.agreements if truth is not None else ():
        logger.info("k = %d (%s): NMI with the true tissue %.3f", row.k, row.method, row.nmi)
    return (run.path / "report.html").resolve()


def next_steps(report: Path) -> str:
    """Where the demo's report and atlas are, and the commands for slides of one's own."""
    return f"""report: {report}
atlas:  histoloom atlas {shlex.quote(str(report.parent))}

Next, with your own slides:
  histoloom init my-run --slides FOLDER_OF_SLIDES --preset tune --from starter
  histoloom run my-run
  histoloom atlas my-run"""
