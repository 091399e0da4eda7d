"""What the report says of copies: the numbers of ``evaluation/originality.json`` and its most suspicious pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histoloom.atlas.report.figures import Picture, picture
from histoloom.evaluation.originality.by_features import features_said
from histoloom.run.directory import read_json


@dataclass(frozen=True)
class Pair:
    """A sample and its nearest training patch; ``copy``: it is above the threshold."""

    sample: Picture
    nearest: Picture
    score: float
    copy: bool


@dataclass(frozen=True)
class Originality:
    """``sentences``: what was found; ``notes``: what it leaves open; ``pairs``: the most suspicious first."""

    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    pairs: tuple[Pair, ...]
    threshold: float | None


def originality_of(folder: Path) -> Originality | None:
    """The part of the report; None where the run's evaluation did not look for copies."""
    path = folder / "originality.json"
    if not path.is_file():
        return None
    found = read_json(path)
    return Originality(_sentences(found), tuple(found["notes"]), _pairs(folder, found), found["threshold"])


def _sentences(found: Mapping[str, Any]) -> tuple[str, ...]:
    if found["copy_rate"] is None:
        return (f"Nothing could be calibrated, so that none of the {found['n']} samples is called a copy or original.",)
    low, high = found["interval"]
    alarm_low, alarm_high = found["false_alarm_interval"]
    said = [
        f"{found['copies']} of {found['n']} samples look like copies of a training patch: {found['copy_rate']:.1%} "
        f"({low:.1%} to {high:.1%}).",
        f"Of {found['n_test']} real patches of held-out slides, which cannot be copies, "
        f"{found['false_alarm_rate']:.1%} do ({alarm_low:.1%} to {alarm_high:.1%}).",
    ]
    if found["membership"] is not None:
        member = found["membership"]
        said.append(
            f"Training patches are nearer to the samples than held-out ones are in {member['auc']:.0%} of comparisons "
            f"({member['interval'][0]:.0%} to {member['interval'][1]:.0%}; 50 % where the samples give nothing "
            "away; other slides differ by themselves too)."
        )
    return (*said, *map(features_said, found.get("by_features", ())))


def _pairs(folder: Path, found: Mapping[str, Any]) -> tuple[Pair, ...]:
    path = folder / "suspicious.npz"
    if not path.is_file():
        return ()
    with np.load(path) as kept:
        shown = list(zip(kept["sample"], kept["nearest"], found["samples"], strict=False))
    return tuple(
        Pair(
            picture(sample, text=f"Synthetic patch {entry['file']}", at_most=128),
            picture(nearest, text=f"Its nearest training patch, {entry['nearest']}", at_most=128),
            float(entry["score"]),
            bool(entry["copy"]),
        )
        for sample, nearest, entry in shown
    )
