"""Checkpoints that a thread writes: the training continues meanwhile, and waits where it must."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from torch import Tensor, nn

from histoloom.config import Phase, RuntimeConfig, TrainingConfig
from histoloom.errors import TrainingDiverged, UserError
from histoloom.run.directory import disk_errors_explained
from histoloom.run.stage import CheckResult, EventLog
from histoloom.training import checkpoints
from histoloom.training.checkpoints import CheckpointWriter, copy_state, write_checkpoint
from histoloom.training.loop import Objective, StepContext, Task, _Loop, train
from histoloom.training.tasks import Callback

IMAGES, BATCH = 64, 8
EACH = RuntimeConfig(device="cpu", precision="fp32", checkpoint_seconds=0)  # the training waits for each checkpoint
BESIDE = EACH.model_copy(update={"checkpoint_seconds": 1e-9})  # as many, beside the training
LAST = EACH.model_copy(update={"checkpoint_seconds": 1e9})
FULL = "CUDA out of memory. Tried to allocate 10.00 GiB"


class Interrupted(Exception):
    """Stands for a kill: nothing after it runs."""


def nothing(_images: int) -> None:
    """What a step does besides."""


def task(*, at_step: Callable[[int], None] = nothing, fits: int = BATCH, callback: Callback | None = None) -> Task:
    """A linear map that has to learn another; ``at_step`` is called in each step with its images.

    From the third step on, memory is full where more than ``fits`` images come at once.
    """
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))

    def batch(rows: np.ndarray) -> Tensor:
        return x[rows]

    def loss(x_BD: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        at_step(context.images)
        if context.images >= 2 * BATCH and len(x_BD) > fits:
            raise torch.OutOfMemoryError(FULL)
        return (network(x_BD + 0.1 * context.randn(tuple(x_BD.shape))) - x_BD[:, :2]).pow(2).mean(), {}

    objective = Objective("network", ("network",), loss, (Phase(optimizer="adam", lr=0.01, images=IMAGES),))
    return Task("tiny", {"network": network}, (objective,), 32, batch, ema=("network",), callback=callback)


def fit(out: Path, made: Task, *, runtime: RuntimeConfig) -> dict[str, Tensor]:
    out.mkdir(exist_ok=True)
    phases = [{"optimizer": "adam", "lr": 0.01, "images": IMAGES}]
    config = TrainingConfig.model_validate({"batch_size": BATCH, "phases": phases, "ema": 0.9})
    trained = train(made, config=config, runtime=runtime, seed=5, out=out, log=EventLog(out / "log.jsonl"))
    return trained.modules["network"].state_dict()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def images(checkpoint: Path) -> int:
    """How far the training was; the whole file is read."""
    return int(torch.load(checkpoint, weights_only=True)["images"])


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The disk is slow; the images of the checkpoints that are written."""
    written: list[int] = []

    def write(path: Path, state: checkpoints.State) -> None:
        time.sleep(0.02)
        write_checkpoint(path, state)
        written.append(images(path))

    monkeypatch.setattr(checkpoints, "write_checkpoint", write)
    return written


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second_step = threading.Event()
    events: list[str] = []

    def write(path: Path, state: checkpoints.State) -> None:
        assert second_step.wait(timeout=30), "the step waits for the checkpoint"
        write_checkpoint(path, state)
        events.append(f"checkpoint of {images(path)}")

    def at_step(images: int) -> None:
        events.append(f"step at {images}")
        if images == BATCH:
            second_step.set()

    monkeypatch.setattr(checkpoints, "write_checkpoint", write)
    fit(tmp_path, task(at_step=at_step), runtime=BESIDE)
    assert events.index(f"step at {BATCH}") < events.index(f"checkpoint of {BATCH}")
    # One at a time: the checkpoint after the second step has waited for that of the first.
    assert events.index(f"checkpoint of {BATCH}") < events.index(f"step at {2 * BATCH}")
    assert events[-1] == f"checkpoint of {IMAGES}"


def test_a_checkpoint_of_every_step_is_written_before_the_next_one(tmp_path: Path, slow: list[int]) -> None:
    written: list[list[int]] = []
    fit(tmp_path, task(at_step=lambda _images: written.append(list(slow))), runtime=EACH)
    assert written == [list(range(BATCH, images + 1, BATCH)) for images in range(0, IMAGES, BATCH)]


@pytest.mark.parametrize("stop_at", [8, 40, 56])
@pytest.mark.usefixtures("slow")
def test_it_is_resumed_to_the_same_bytes(stop_at: int, tmp_path: Path) -> None:
    def stop(images: int) -> None:
        if images >= stop_at:
            raise Interrupted

    whole = fit(tmp_path / "whole", task(), runtime=EACH)
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", task(at_step=stop), runtime=BESIDE)
    assert images(tmp_path / "parts/checkpoints/last.pt") == stop_at
    assert equal(fit(tmp_path / "parts", task(), runtime=BESIDE), whole)
    files = [(tmp_path / name / "checkpoints/last.pt").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


@pytest.mark.parametrize("runtime", [EACH, BESIDE, LAST])
def test_a_full_disk_is_one_line(runtime: RuntimeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def full(_path: Path, _data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_bytes", full)
    with pytest.raises(UserError, match="no space left"), disk_errors_explained(tmp_path):
        fit(tmp_path, task(at_step=steps.append), runtime=runtime)
    assert len(steps) == {EACH: 1, BESIDE: 2, LAST: IMAGES // BATCH}[runtime]


def test_a_stop_waits_for_the_checkpoint_and_says_when_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It fails in the middle of the file: the checkpoint before it is whole."""
    stopped = threading.Event()
    write_bytes = Path.write_bytes

    def torn(path: Path, data: memoryview) -> int:
        if "last.pt" in path.name and (tmp_path / "checkpoints/last.pt").exists():
            write_bytes(path, data[: len(data) // 2])
            assert stopped.wait(timeout=30)
            raise OSError(errno.EIO, "Input/output error")
        return write_bytes(path, data)

    def stop(images: int) -> None:
        if images == 2 * BATCH:
            stopped.set()
            raise Interrupted

    monkeypatch.setattr(Path, "write_bytes", torn)
    with caplog.at_level(logging.WARNING, logger="histoloom"), pytest.raises(Interrupted):
        fit(tmp_path, task(at_step=stop), runtime=BESIDE)
    assert "the last checkpoint was not written: [Errno 5] Input/output error" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.pt"]
    assert images(tmp_path / "checkpoints/last.pt") == BATCH


@pytest.mark.usefixtures("slow")
def test_a_diverged_training_names_the_checkpoint_that_was_being_written(tmp_path: Path) -> None:
    def diverge(images: int) -> None:
        if images == BATCH:
            nn.init.constant_(weight, float("nan"))

    made = task(at_step=diverge)
    weight = next(made.modules["network"].parameters())
    with pytest.raises(TrainingDiverged, match=r"the last good checkpoint is .*last\.pt"):
        fit(tmp_path, made, runtime=BESIDE)
    assert images(tmp_path / "checkpoints/last.pt") == BATCH


@pytest.mark.usefixtures("slow")
def test_the_good_checkpoint_is_that_of_the_check(tmp_path: Path) -> None:
    good = tmp_path / "checkpoints/good.pt"
    before: list[int] = []

    def check(_modules: object, _images: int) -> CheckResult:
        before.extend([images(good)] if good.exists() else [])
        return CheckResult("good")

    fit(tmp_path, task(callback=Callback(check, 4)), runtime=BESIDE)
    assert before == [16, 32, 48]
    assert images(good) == IMAGES


def test_a_restart_with_micro_batches_waits_for_the_checkpoint(
    tmp_path: Path, slow: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is full from the third step on: the checkpoint of the second one is being written."""
    read: list[list[int]] = []
    resume = _Loop.resume

    def counted(loop: _Loop) -> None:
        read.append(list(slow))
        resume(loop)

    monkeypatch.setattr(_Loop, "resume", counted)
    fit(tmp_path, task(fits=BATCH // 2), runtime=BESIDE.model_copy(update={"accumulate": "auto"}))
    assert read == [[], [0, BATCH, 2 * BATCH]]


def test_a_copy_keeps_what_was_and_shares_what_was_shared() -> None:
    x = torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last)
    numbers = {"a": 1.0}
    state = {"x": x, "again": [(x.detach(), numbers)], "images": 3}
    copied = copy_state(state)
    before = x.clone()
    x.zero_()
    numbers["a"] = 2.0
    kept, again = copied["x"], copied["again"]
    assert isinstance(kept, Tensor)
    assert isinstance(again, list)
    assert torch.equal(kept, before)
    assert kept.stride() == x.stride()
    assert kept.data_ptr() == again[0][0].data_ptr()
    assert (again[0][1], copied["images"]) == ({"a": 1.0}, 3)


def test_from_a_gpu_it_is_copied_without_a_wait_and_written_once_it_has_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = threading.Event()
    write_copy = CheckpointWriter._write_copy

    def later(writer: CheckpointWriter, copied: checkpoints.State, arrived: torch.cuda.Event | None) -> None:
        assert changed.wait(timeout=30)
        write_copy(writer, copied, arrived)

    monkeypatch.setattr(CheckpointWriter, "_write_copy", later)
    with fake_cuda() as record:
        network = nn.Linear(3, 2).cuda()
        before = {name: value.cpu() for name, value in network.state_dict().items()}
        waits = record.waits.total()
        with CheckpointWriter(tmp_path / "last.pt", device=torch.device("cuda", 0), at_once=False) as writer:
            writer.write({"network": network.state_dict(), "images": 8})
            assert record.waits.total() == waits
            with torch.no_grad():
                network.weight.zero_()
            changed.set()
        assert record.waits.total() == waits + 1
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert equal(dict(state["network"]), before)
