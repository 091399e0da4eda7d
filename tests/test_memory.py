"""A device whose memory is full: inference goes on in parts, trainings say how, or find it by themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from histoloom.config import Phase, RuntimeConfig, TrainingConfig
from histoloom.errors import UserError
from histoloom.run.stage import EventLog
from histoloom.training import memory
from histoloom.training.loop import Objective, StepContext, Task, train
from histoloom.training.memory import in_fitting_parts, is_out_of_memory, next_accumulate

FULL = "CUDA out of memory. Tried to allocate 10.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
IMAGES = 64
CPU = RuntimeConfig(device="cpu", precision="fp32", checkpoint_seconds=0)
AUTO = CPU.model_copy(update={"accumulate": "auto"})


class Interrupted(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_largest", {})


class Network:
    """Doubles numbers, where at most ``fits`` of them come at once."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.sizes: list[int] = []

    def __call__(self, x_B: Tensor) -> Tensor:
        self.sizes.append(len(x_B))
        if len(x_B) > self.fits:
            raise torch.OutOfMemoryError(FULL)
        return 2 * x_B


def test_inference_goes_on_in_parts_that_fit() -> None:
    network, x_B = Network(fits=3), torch.arange(16.0)
    assert torch.equal(torch.cat(in_fitting_parts(network, x_B, name="numbers")), 2 * x_B)
    assert network.sizes == [16, 8, 4, *[2] * 8]


def test_the_size_that_fits_is_kept_for_the_same_work_only() -> None:
    in_fitting_parts(Network(fits=3), torch.arange(16.0), name="numbers")
    same, other = Network(fits=3), Network(fits=16)
    in_fitting_parts(same, torch.arange(5.0), name="numbers")
    in_fitting_parts(other, torch.arange(16.0), name="other numbers")
    assert (same.sizes, other.sizes) == ([2, 2, 1], [16])


def test_arrays_lists_and_nothing_are_batches_too() -> None:
    assert in_fitting_parts(sum, [1, 2, 3], name="list") == [6]
    assert in_fitting_parts(np.sum, np.arange(4), name="array") == [6]
    assert [len(part) for part in in_fitting_parts(Network(fits=3), torch.empty(0), name="empty")] == [0]


def test_a_single_item_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"drawing images: the device's memory is full, even for a single one.*cpu"):
        in_fitting_parts(Network(fits=0), torch.arange(4.0), name="drawing images")


def test_other_errors_are_not_taken_for_a_full_memory() -> None:
    def broken(_x_B: Tensor) -> Tensor:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    with pytest.raises(RuntimeError, match="must match"):
        in_fitting_parts(broken, torch.arange(4.0), name="numbers")
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))


@pytest.mark.parametrize(
    ("accumulate", "batch_size", "processes", "more"), [(1, 8, 1, 2), (2, 6, 1, 6), (4, 8, 2, None), (1, 9, 1, 3)]
)
def test_micro_batches_divide_the_batch(accumulate: int, batch_size: int, processes: int, more: int | None) -> None:
    assert next_accumulate(accumulate, batch_size=batch_size, processes=processes) == more


def task(*, fits: int, seen: list[int], whole_batch: bool = False, stop_at: int = IMAGES) -> Task:
    """A linear map that has to learn another, on a device on which the second objective needs more memory."""
    torch.manual_seed(0)
    modules = {"first": nn.Linear(4, 2), "second": nn.Linear(4, 2)}
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))

    def objective(name: str, *, starts_at: int) -> Objective:
        def loss(x_BD: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
            if context.images >= stop_at:
                raise Interrupted
            seen.append(len(x_BD))
            if name == "second" and len(x_BD) > fits:
                raise torch.OutOfMemoryError(FULL)
            return (modules[name](x_BD + 0.1 * context.randn(tuple(x_BD.shape))) - x_BD[:, :2]).pow(2).mean(), {}

        return Objective(name, (name,), loss, (Phase(optimizer="adam", lr=0.01, images=IMAGES),), starts_at=starts_at)

    objectives = (objective("first", starts_at=0), objective("second", starts_at=16))
    return Task(
        "tiny",
        modules,
        objectives,
        32,
        lambda rows: x[rows],
        ema=("first",),
        whole_batch=whole_batch,
        setting="diffusion.training",
    )


def fit(out: Path, made: Task, *, runtime: RuntimeConfig) -> dict[str, Tensor]:
    out.mkdir(exist_ok=True)
    phases = [{"optimizer": "adam", "lr": 0.01, "images": IMAGES}]
    config = TrainingConfig.model_validate({"batch_size": 8, "phases": phases, "ema": 0.9})
    trained = train(made, config=config, runtime=runtime, seed=5, out=out, log=EventLog(out / "log.jsonl"))
    return {f"{name}.{key}": value for name, m in trained.modules.items() for key, value in m.state_dict().items()}


def test_a_training_that_does_not_fit_names_the_setting(tmp_path: Path) -> None:
    line = r"tiny: a training step does not fit into the device's memory .*runtime\.accumulate=2, or with .*=auto"
    with pytest.raises(UserError, match=line):
        fit(tmp_path, task(fits=3, seen=[]), runtime=CPU)
    with pytest.raises(UserError, match=r"runtime\.accumulate=4"):
        fit(tmp_path, task(fits=3, seen=[]), runtime=CPU.model_copy(update={"accumulate": 2}))
    parts = CPU.model_copy(update={"accumulate": 4})
    continued = fit(tmp_path, task(fits=3, seen=[]), runtime=parts)
    whole = fit(tmp_path / "whole", task(fits=8, seen=[]), runtime=CPU)
    assert all(torch.allclose(continued[name], whole[name], atol=1e-6) for name in whole)


@pytest.mark.parametrize(("fits", "message"), [(8, "smaller diffusion.training.batch_size"), (0, "runtime.device=cpu")])
def test_what_cannot_be_split_says_what_else_helps(fits: int, message: str, tmp_path: Path) -> None:
    whole_batch = fits == 8
    with pytest.raises(UserError, match=message):
        fit(tmp_path, task(fits=fits - 1, seen=[], whole_batch=whole_batch), runtime=AUTO)


def test_auto_finds_the_micro_batches_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    seen: list[int] = []
    found = fit(tmp_path / "auto", task(fits=3, seen=seen), runtime=AUTO)
    assert [size for i, size in enumerate(seen) if i == 0 or size != seen[i - 1]] == [8, 4, 2]
    whole = fit(tmp_path / "whole", task(fits=8, seen=[]), runtime=CPU)
    assert all(torch.allclose(found[name], whole[name], atol=1e-6) for name in whole)


def test_a_killed_training_keeps_the_micro_batches_that_fit(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", task(fits=3, seen=[]), runtime=AUTO)
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", task(fits=3, seen=[], stop_at=40), runtime=AUTO)
    seen: list[int] = []
    ended = fit(tmp_path / "parts", task(fits=3, seen=seen), runtime=AUTO)
    assert set(seen) == {2}
    assert all(torch.equal(ended[name], whole[name]) for name in whole)
