"""Copies in what a generator draws while it still trains: the judge of a run that asks for a gate.

Calibrated as the audit is, on held-out patches of two groups of slides, of which it takes fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from histoloom.evaluation.originality.audit import LEAST_A_PART, Calibration, calibrated, drawn
from histoloom.evaluation.originality.calibration import Share
from histoloom.evaluation.originality.greys import shrunk, small_greys
from histoloom.evaluation.originality.nearest import nearest
from histoloom.evaluation.originality.of_run import Rows
from histoloom.run.directory import Run
from histoloom.run.stage import CheckResult
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device

HELD_OUT = 600
"""held-out patches that set the threshold and test it, drawn at random where there are more"""
ADVICE = (
    "train for fewer images (diffusion.training.phases), on more patches (patches.count), or let it go on with "
    "--set evaluation.originality=report"
)


@dataclass(frozen=True)
class CopyWatch:
    """Says how many images look like copies; reason to stop where they are more than false alarms explain."""

    run: Run

    def __call__(self, images_NHW3: np.ndarray) -> CheckResult:
        """See ``histoloom.run.stage.ImageCheck``."""
        if self._calibration is None:
            return CheckResult(
                f"copies are not looked for while training: that needs {2 * LEAST_A_PART} held-out patches of at least "
                "two slides (patches.split)"
            )
        scores_N = nearest(shrunk(images_NHW3), self._train_MGG, device=self._device).score_N
        found = Share(int((scores_N > self._calibration.threshold).sum()), len(scores_N))
        tested = self._calibration.tested
        said = f"{found.count} of {found.n} drawn patches look like copies of training patches"
        if found.interval[0] <= tested.interval[1]:
            return CheckResult(f"{said} (false alarms of held-out patches: {tested.count} of {tested.n})")
        said += f" ({found.interval[0]:.1%} at least, where false alarms are {tested.interval[1]:.1%} at most)"
        return CheckResult(said, stop=True, advice=ADVICE)

    @cached_property
    def _patches(self) -> PatchSet:
        return PatchSet.open(self.run.require("patches"))

    @cached_property
    def _device(self) -> torch.device:
        return torch.device(resolve_device(self.run.config.runtime.device))

    @cached_property
    def _train_MGG(self) -> np.ndarray:
        return small_greys(Rows(self._patches, self._patches.rows("train")))

    @cached_property
    def _calibration(self) -> Calibration | None:
        holdout = self._patches.rows("holdout")
        held = holdout[drawn(len(holdout), HELD_OUT, seed=self.run.config.seed, what="watch")]
        slides = self._patches.columns("slide")["slide"].astype(str).to_numpy()[held]
        scores_H = nearest(small_greys(Rows(self._patches, held)), self._train_MGG, device=self._device).score_N
        return calibrated(slides.tolist(), scores_H)


def of_run(run: Run) -> CopyWatch | None:
    """The judge of a run; None where its configuration asks for no gate."""
    return CopyWatch(run) if run.config.evaluation.originality == "gate" else None
