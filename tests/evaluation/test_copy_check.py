"""A run with a gate looks for copies while it trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from histoloom import pipeline
from histoloom.errors import TrainingStopped
from histoloom.evaluation.originality.gate import CopyCheck
from histoloom.run.directory import Run
from histoloom.run.stage import EventLog
from histoloom.setup import change_settings
from histoloom.slides.patch_set import PatchSet


@pytest.fixture
def gated(tiny_run: Path, tmp_path: Path) -> Run:
    """A finished run that gets a gate, and has to train again."""
    shutil.copytree(tiny_run, tmp_path / "run")
    run = change_settings(Run.open(tmp_path / "run"), ["evaluation.originality=gate"], save=True)
    for stage in ("diffusion", "samples", "evaluation", "report"):
        shutil.rmtree(run.folder(stage))
    return run


@pytest.fixture
def few_patches_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histoloom.evaluation.originality.calibration.RATE", 0.2)
    monkeypatch.setattr("histoloom.evaluation.originality.calibration.MIN_PER_HALF", 4)


def test_without_a_gate_there_is_no_check(tiny_run: Path) -> None:
    assert CopyCheck.of_run(Run.open(tiny_run)) is None


def test_too_few_held_out_patches_are_reported_and_stop_nothing(gated: Run, tiny_run: Path) -> None:
    pipeline.execute(gated, until="diffusion")
    messages = [str(event.get("message")) for event in EventLog(gated.folder("diffusion") / "log.jsonl").read()]
    assert sum("copies are not looked for while training" in message for message in messages) == 4
    weights = "diffusion/unet/diffusion_pytorch_model.safetensors"
    assert (gated.path / weights).read_bytes() == (tiny_run / weights).read_bytes()


@pytest.mark.usefixtures("few_patches_suffice")
def test_copies_are_reason_to_stop_and_other_pictures_are_not(gated: Run) -> None:
    patches = PatchSet.open(gated.require("patches"))
    train = patches.images(patches.rows("train"))
    rich = np.argsort(-train.std(axis=(1, 2, 3)))[:12]
    check = CopyCheck(gated)
    result = check(train[rich])
    assert result.stop
    assert "look like copies" in result.message
    assert "patches.count" in result.advice
    empty = check(np.full_like(train[:12], 240))
    assert not empty.stop


def test_a_check_that_finds_copies_stops_the_stage(gated: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from histoloom.run.stage import CheckResult

    def check(_self: CopyCheck, images: np.ndarray) -> CheckResult:
        assert images.shape[1:] == (32, 32, 3)
        return CheckResult("all are copies", stop=True, advice="stop it")

    monkeypatch.setattr(CopyCheck, "__call__", check)
    with pytest.raises(TrainingStopped, match="diffusion: all are copies after 80 images"):
        pipeline.execute(gated, until="diffusion")
    assert gated.artifact("diffusion") is None
