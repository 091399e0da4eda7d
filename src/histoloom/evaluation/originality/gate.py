"""The gate: a drawn picture that looks like a copy of a training patch is withheld.

Its threshold is the one that the run's stage ``evaluation`` calibrated on held-out slides, so that it lets through and
withholds what that check would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from histoloom.diffusion.generation.source_images import patch_of
from histoloom.errors import UserError
from histoloom.evaluation.originality.audit import VERSION
from histoloom.evaluation.originality.greys import shrunk, small_greys
from histoloom.evaluation.originality.nearest import nearest
from histoloom.evaluation.originality.of_run import FILE, Rows
from histoloom.run.directory import Run, read_json
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device


@dataclass(frozen=True)
class Gate:
    """``train_MGG``: greys of the training patches; a score above ``threshold`` is withheld."""

    train_MGG: np.ndarray
    threshold: float
    device: torch.device

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

        Raises ``UserError`` where the run has calibrated no threshold: what cannot be judged is not let through.
        """
        if run.config.evaluation.originality != "gate":
            return None
        evaluation = run.require("evaluation") / FILE
        found = read_json(evaluation) if evaluation.is_file() else {"version": VERSION, "threshold": None}
        if found.get("version") != VERSION:
            raise UserError(f"{run.path} was evaluated by an earlier version of Histoloom: histoloom run {run.path}")
        threshold = found["threshold"]
        if threshold is None:
            raise UserError(
                f"evaluation.originality is gate, and {run.path} has no threshold: it needs enough patches of "
                f"held-out slides (patches.split), then histoloom run {run.path}; or set evaluation.originality=report"
            )
        patches = PatchSet.open(run.require("patches"))
        return Gate(small_greys(Rows(patches, patches.rows("train"))), float(threshold), device)

    def besides(self, home: Path, *, names: Sequence[str]) -> Gate:
        """Also compares with those of ``names`` that are patches of the run: what is drawn like a held-out one."""
        run = Run.open(home)
        found = [picture for name in names if (picture := patch_of(run, patch_id=name)) is not None]
        if not found:
            return self
        greys = shrunk(np.stack([picture.image_HW3 for picture in found]))
        return replace(self, train_MGG=np.concatenate([self.train_MGG, greys]))

    def __call__(self, image_HW3: np.ndarray) -> bool:
        """Whether to withhold a picture, uint8 (H, W, 3)."""
        found = nearest(shrunk(image_HW3[None]), self.train_MGG, device=self.device)
        return bool(found.score_N[0] > self.threshold)
