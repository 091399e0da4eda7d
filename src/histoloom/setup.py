"""Making a run, and changing its settings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from histoloom.config import Config, make_config, read_preset, with_settings
from histoloom.errors import UserError
from histoloom.store import Run

logger = logging.getLogger("histoloom")


def init_run(
    path: Path,
    *,
    slides: Sequence[Path],
    preset: str = "modern",
    table: Path | None = None,
    mpp: float | None = None,
    settings: Sequence[str] = (),
    pseudonymise: bool = False,
) -> Run:
    """Make ``path`` a run over ``slides``; the slides are looked at, so that what is wrong with them shows now.

    ``pseudonymise`` keeps every name of a slide or patient out of the run (``histoloom.slides.private``).
    Raises ``UserError`` for a wrong preset or setting, slides that cannot be used, or a directory in other use.
    """
    from histoloom.slides.inventory import find_slides
    from histoloom.slides.private import conceal

    absent = [place for place in slides if not place.exists()]
    if absent:
        raise UserError(f"no such file or folder: {absent[0]}; give slides or folders of slides after --slides")
    values: dict[str, Any] = read_preset(preset)
    values["slides"] = {
        "paths": [str(place.resolve()) for place in slides],
        "table": None if table is None else str(table.resolve()),
        "mpp": mpp,
    }
    config = settled(make_config(with_settings(values, settings)))
    if pseudonymise:
        config = config.model_copy(update={"slides": conceal(config.slides, run=path)})
    find_slides(config.slides)
    return Run.create(path, config)


def settled(config: Config) -> Config:
    """``config`` with every ``auto`` that decides about results replaced by what it means on this machine."""
    if config.autoencoder.perceptual != "auto":
        return config
    from histoloom.autoencoder.weights import find_weights

    trunk = config.autoencoder.perceptual_trunk
    found = find_weights(trunk, download=False)
    chosen = "lpips" if found is not None else "pyramid"
    if found is None:
        logger.info("no LPIPS weights (%s) on this machine: the autoencoder's perceptual loss is pyramid", trunk)
    autoencoder = config.autoencoder.model_copy(update={"perceptual": chosen})
    return config.model_copy(update={"autoencoder": autoencoder})


def change_settings(run: Run, settings: Sequence[str], *, save: bool) -> Run:
    """``run`` with other settings; stages that depend on them become stale, and none is lost.

    Raises ``UserError`` when another process works on the run.
    """
    values = with_settings(run.config.model_dump(mode="json"), settings)
    changed = Run(run.path, settled(make_config(values)))
    if save:
        with run.locked():
            changed.save_config()
    return changed
