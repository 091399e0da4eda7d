"""The demo: procedural slides, then the whole pipeline on them."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from histoloom import pipeline
from histoloom.config import make_config, read_preset, with_settings
from histoloom.setup import init_run

logger = logging.getLogger("histoloom")

SLIDES = 6
SLIDE_SIDE = 2048
SLIDE_MPP = 1.0


def run_demo(out: Path, *, seed: int = 0, settings: Sequence[str] = (), until: str = "report") -> Path:
    """Make slides in ``out/slides``, run the pipeline in ``out/run``; returns the report's path.

    The same call again continues where an earlier one stopped.
    """
    from histoloom.cost import describe
    from histoloom.evaluation.results import Truth
    from histoloom.slides.procedural.slides import make_slides

    if not (out / "run").exists():
        values = read_preset("demo") | {"slides": {"paths": [str((out / "slides").resolve())]}}
        logger.info("%s", describe(make_config(with_settings(values, settings))))
    logger.info("making %d procedural slides in %s", SLIDES, out / "slides")
    make_slides(out / "slides", seed=seed, count=SLIDES, size=SLIDE_SIDE, mpp=SLIDE_MPP)
    run = init_run(out / "run", slides=[out / "slides"], preset="demo", settings=[f"seed={seed}", *settings])
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
