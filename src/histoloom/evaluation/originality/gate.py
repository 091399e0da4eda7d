"""The gate: with ``evaluation.originality: gate`` generated images that look like training patches are withheld.

``Gate`` withholds images of a finished run; its threshold is the one that the stage ``evaluation`` calibrated on
held-out slides. ``CopyCheck`` looks for copies while the generator still trains; it calibrates itself, on fewer
patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from histoloom.diffusion.generation.source_images import patch_of
from histoloom.errors import UserError
from histoloom.evaluation.images import ImageRows
from histoloom.evaluation.originality.audit import VERSION, draw_rows
from histoloom.evaluation.originality.calibration import MIN_PER_HALF, Calibration, Share, calibrate
from histoloom.evaluation.originality.greys import read_greys, to_greys
from histoloom.evaluation.originality.nearest import Gallery, nearest
from histoloom.evaluation.results import Originality
from histoloom.run.directory import Run
from histoloom.run.row_file import appended
from histoloom.run.stage import CheckResult
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device

HELD_OUT = 600
"""held-out patches that set the threshold of a check and test it, drawn at random where there are more"""
ADVICE = (
    "train for fewer images (diffusion.training.phases), on more patches (patches.count), or let it go on with "
    "--set evaluation.originality=report"
)


@dataclass(frozen=True)
class Gate:
    """``train``: the training patches; an image with a score above ``threshold`` is withheld."""

    train: Gallery
    threshold: float

    @staticmethod
    def of_home(home: Path) -> Gate | None:
        """The gate of a run that asks for one; an exported generator has no training patches to compare with.

        Raises ``UserError`` as ``of_run`` does.
        """
        if not (home / "config.yaml").is_file():
            return None
        run = Run.open(home)
        return Gate.of_run(run, device=torch.device(resolve_device(run.config.runtime.device)))

    @staticmethod
    def of_run(run: Run, *, device: torch.device) -> Gate | None:
        """The gate of a run, None where its configuration asks for none.

        Raises ``UserError`` where the run has calibrated no threshold: what cannot be checked is not let through.
        """
        if run.config.evaluation.originality != "gate":
            return None
        originality = Originality.load(run.require("evaluation"))
        if originality is not None and originality.version != VERSION:
            raise UserError(f"{run.path} was evaluated by an earlier version of Histoloom: histoloom run {run.path}")
        if originality is None or originality.threshold is None:
            raise UserError(
                f"evaluation.originality is gate, and {run.path} has no threshold: it needs enough patches of "
                f"held-out slides (patches.split), then histoloom run {run.path}; or set evaluation.originality=report"
            )
        patches = PatchSet.open(run.require("patches"))
        greys = read_greys(ImageRows(patches.images, patches.rows("train")), folder=run.path)
        return Gate(Gallery(greys, device=device), originality.threshold)

    def with_patches(self, home: Path, *, names: Sequence[str]) -> Gate:
        """Also compares with those of ``names`` that are patches of the run, such as a held-out initial image."""
        run = Run.open(home)
        pictures = [picture for name in names if (picture := patch_of(run, patch_id=name)) is not None]
        if not pictures:
            return self
        greys = to_greys(np.stack([picture.image_HW3 for picture in pictures]))
        every = appended(self.train.greys_MGG, greys, folder=home)
        return replace(self, train=Gallery(every, device=self.train.device))

    def __call__(self, image_HW3: np.ndarray) -> bool:
        """Whether to withhold an image, uint8 (H, W, 3)."""
        result = nearest(to_greys(image_HW3[None]), self.train)
        return bool(result.score_N[0] > self.threshold)


@dataclass(frozen=True)
class CopyCheck:
    """Counts generated images that look like copies; a reason to stop where they are more than false alarms explain."""

    run: Run

    @staticmethod
    def of_run(run: Run) -> CopyCheck | None:
        """The check of a run; None where its configuration asks for no gate."""
        return CopyCheck(run) if run.config.evaluation.originality == "gate" else None

    def __call__(self, images_NHW3: np.ndarray) -> CheckResult:
        """See ``histoloom.run.stage.ImageCheck``."""
        if self._calibration is None:
            return CheckResult(
                f"copies are not looked for while training: that needs {2 * MIN_PER_HALF} held-out patches of at least "
                "two slides (patches.split)"
            )
        score_N = nearest(to_greys(images_NHW3), self._train).score_N
        copies = Share(int((score_N > self._calibration.threshold).sum()), len(score_N))
        tested = self._calibration.tested
        message = f"{copies.count} of {copies.n} generated patches look like copies of training patches"
        if copies.interval[0] <= tested.interval[1]:
            return CheckResult(f"{message} (false alarms of held-out patches: {tested.count} of {tested.n})")
        message += f" ({copies.interval[0]:.1%} at least; false alarms are {tested.interval[1]:.1%} at most)"
        return CheckResult(message, stop=True, advice=ADVICE)

    @cached_property
    def _patches(self) -> PatchSet:
        return PatchSet.open(self.run.require("patches"))

    @cached_property
    def _train(self) -> Gallery:
        train = ImageRows(self._patches.images, self._patches.rows("train"))
        greys = read_greys(train, folder=self.run.path)
        return Gallery(greys, device=torch.device(resolve_device(self.run.config.runtime.device)))

    @cached_property
    def _calibration(self) -> Calibration | None:
        holdout = self._patches.rows("holdout")
        # "watch" names the random stream, as in earlier versions.
        held_out = holdout[draw_rows(len(holdout), HELD_OUT, seed=self.run.config.seed, what="watch")]
        slides = self._patches.columns("slide", rows=held_out)["slide"].astype(str)
        greys_HGG = read_greys(ImageRows(self._patches.images, held_out))
        return calibrate(slides.tolist(), nearest(greys_HGG, self._train).score_N)
