"""Few-step students: what they learn, and how they are made, kept and drawn with."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from histoloom import pipeline
from histoloom.config import DiffusionConfig
from histoloom.diffusion.distillation import DistillationLoss, DistillConfig, LevelGrid, distil
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.run_request import Request, draw_request, requested_sampler, student_sampler
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.process import alphas_cumprod
from histoloom.diffusion.samplers import noise_levels
from histoloom.errors import UserError
from histoloom.run.directory import Run
from histoloom.setup import change_settings
from histoloom.sharing.export import export_generator
from histoloom.training.loop import StepContext

CONFIG = DiffusionConfig.model_validate(
    {
        "schedule": "cosine",
        "prediction": "v",
        "training": {"phases": [{"optimizer": "adamw", "lr": 1e-4, "images": 8}]},
    }
)
BAR_T = alphas_cumprod(CONFIG).float()


class Gaussian(nn.Module):
    """Predicts v of data that are normal with mean 0.5 and a deviation; exact."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor, step: Tensor, class_labels: Tensor) -> SimpleNamespace:  # noqa: ARG002
        bar = BAR_T[step.expand(len(x))][:, None, None, None]
        signal, noise = bar.sqrt(), (1 - bar).sqrt()
        gain = signal * self.deviation**2 / (bar * self.deviation**2 + 1 - bar)
        data = 0.5 + gain * (x - signal * 0.5)
        return SimpleNamespace(sample=(signal * x - data) / noise)


class Arrives(Gaussian):
    """Predicts the v whose data lead straight to where the flow of the Gaussian ends the segment; exact."""

    def __init__(self, deviation: float, *, segments: int) -> None:
        super().__init__(deviation)
        self.levels = noise_levels(alphas_cumprod(CONFIG), count=segments)

    def forward(self, x: Tensor, step: Tensor, class_labels: Tensor) -> SimpleNamespace:  # noqa: ARG002
        return SimpleNamespace(sample=torch.stack([self._of(a, int(b)) for a, b in zip(x, step, strict=True)]))

    def _of(self, x: Tensor, step: int) -> Tensor:
        here = noise_levels(alphas_cumprod(CONFIG)[: step + 1], count=1)[0]
        end = next(level for level in self.levels if level.step < step)

        def spread(level: object) -> float:
            return ((level.signal * self.deviation) ** 2 + level.noise**2) ** 0.5  # type: ignore[attr-defined]

        arrived = end.signal * 0.5 + (x - here.signal * 0.5) * spread(end) / spread(here)
        keep = end.noise / here.noise
        data = (arrived - keep * x) / (end.signal - keep * here.signal)
        return (here.signal * x - data) / here.noise


def loss_of(student: nn.Module, *, teacher: nn.Module, deviation: float, segments: int) -> float:
    loss = DistillationLoss(
        CONFIG, student=student, teacher=teacher, conditions=Conditions((2,)), segments=segments, guidance=1.5
    )
    generator = torch.Generator().manual_seed(0)
    z = 0.5 + deviation * torch.randn(256, 1, 2, 2, generator=generator)
    context = StepContext(0, 0, 0.0, torch.device("cpu"), generator, slice(0, 256), 256)
    value, _ = loss((z, torch.zeros(256, 1, dtype=torch.int64)), context)
    return float(value)


@pytest.mark.parametrize("segments", [1, 2, 4])
def test_segments_end_at_the_levels_of_a_sampling_of_as_many_steps(segments: int) -> None:
    grid = LevelGrid.of(CONFIG, segments=segments)
    steps = [level.step for level in noise_levels(alphas_cumprod(CONFIG), count=segments)]
    ends = grid.step_L[1:][grid.last_M].tolist()
    assert steps[1:] == ends
    assert grid.step_L[0] == steps[0]


@pytest.mark.parametrize("segments", [1, 4])
def test_of_one_possible_image_the_teacher_is_the_student(segments: int) -> None:
    assert loss_of(Gaussian(0.0), teacher=Gaussian(0.0), deviation=0.0, segments=segments) < 1e-6


@pytest.mark.parametrize("segments", [1, 4])
def test_the_flow_of_a_gaussian_is_learned(segments: int) -> None:
    settings: dict[str, Any] = {"teacher": Gaussian(0.7), "deviation": 0.7, "segments": segments}
    right = loss_of(Arrives(0.7, segments=segments), **settings)
    undistilled = loss_of(Gaussian(0.7), **settings)
    assert right < 0.1 * undistilled  # not 0: the teacher's fine steps are not infinitely fine


@pytest.fixture(scope="module")
def distilled(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run, with a student."""
    path = tmp_path_factory.mktemp("student") / "run"
    shutil.copytree(tiny_run, path)
    distil(Run.open(path), DistillConfig(steps=2, images=64))
    return path


def test_a_student_draws_in_its_steps_and_its_request_goes_on(distilled: Path, tmp_path: Path) -> None:
    out = draw_request(distilled, Request(n=3, method="student"), out=tmp_path / "images")
    before = {file.name: file.read_bytes() for file in out.rglob("*.png")}
    assert len(before) == 3
    assert (out / "metadata.csv").read_text().count("student,2,") == 3
    next(out.rglob("*.png")).unlink()
    draw_request(distilled, Request(n=3, method="student"), out=out)
    assert {file.name: file.read_bytes() for file in out.rglob("*.png")} == before


def test_a_student_differs_from_its_teacher_and_is_made_once(distilled: Path) -> None:
    files = {file.relative_to(distilled): file.read_bytes() for file in (distilled / "student").rglob("*.*")}
    assert distil(Run.open(distilled), DistillConfig(steps=2, images=64)) == distilled / "student"
    assert {file.relative_to(distilled): file.read_bytes() for file in (distilled / "student").rglob("*.*")} == files
    weights = Path("unet") / "diffusion_pytorch_model.safetensors"
    assert (distilled / "student" / weights).read_bytes() != (distilled / "diffusion" / weights).read_bytes()


def test_a_killed_distillation_continues_to_the_same_weights(
    distilled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    shutil.copytree(distilled, path)
    shutil.rmtree(path / "student")
    run = change_settings(Run.open(path), ["runtime.checkpoint_seconds=0"], save=False)
    saves = 0
    from histoloom.training import checkpoints

    write = checkpoints.write_bytes

    def killed(*arguments: object) -> None:
        nonlocal saves
        write(*arguments)  # type: ignore[arg-type]
        saves += 1
        if saves == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        distil(run, DistillConfig(steps=2, images=64))
    monkeypatch.setattr(checkpoints, "write_bytes", write)
    distil(run, DistillConfig(steps=2, images=64))
    weights = Path("student") / "unet" / "diffusion_pytorch_model.safetensors"
    assert (path / weights).read_bytes() == (distilled / weights).read_bytes()


def test_a_refused_distillation_leaves_nothing(distilled: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(distilled, path)
    shutil.rmtree(path / "student")
    shutil.rmtree(path / "clusters")
    shutil.rmtree(path / ".building", ignore_errors=True)
    before = sorted(path.rglob("*"))
    with pytest.raises(UserError, match="has no clusters yet"):
        distil(Run.open(path), DistillConfig(steps=2, images=64))
    assert sorted(path.rglob("*")) == before


def test_an_export_takes_the_student_along(distilled: Path, tmp_path: Path) -> None:
    export_generator(Run.open(distilled), tmp_path / "export")
    sampler = student_sampler(Request(n=2, method="student"), Generator.load(distilled))
    assert sampler is not None
    assert (sampler.steps, sampler.method) == (2, "student")
    there = Generator.load(tmp_path / "export").sample(n=2, sampler=sampler)
    here = Generator.load(distilled).sample(n=2, sampler=sampler)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one.image, other.image)


def test_what_a_student_cannot_do_is_one_line(distilled: Path, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="histoloom distil"):
        draw_request(tiny_run, Request(n=1, method="student"), out=tmp_path / "a")
    with pytest.raises(UserError, match="has learned guidance"):
        draw_request(distilled, Request(n=1, method="student", guidance=3.0), out=tmp_path / "b")
    with pytest.raises(UserError, match="draws in 2 steps, not 5"):
        draw_request(distilled, Request(n=1, method="student", steps=5), out=tmp_path / "c")
    with pytest.raises(UserError, match="1 to 8 steps"):
        distil(Run.open(distilled), DistillConfig(steps=9))
    with pytest.raises(UserError, match="sample --method student"):
        change_settings(Run.open(distilled), ["samples.sampler.method=student"], save=False)
    assert requested_sampler(Request(n=1), default=Generator.load(distilled).spec.sampler).method != "student"


def test_a_student_of_replaced_weights_is_refused(distilled: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(distilled, path)
    run = change_settings(Run.open(path), ["diffusion.training.phases.0.images=8"], save=True)
    pipeline.execute(run, until="diffusion")
    with pytest.raises(UserError, match="since replaced"):
        draw_request(path, Request(n=1, method="student"), out=tmp_path / "a")
    export_generator(run, tmp_path / "export")
    assert not (tmp_path / "export" / "student").exists()
