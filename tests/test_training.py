"""The training loop on a tiny real network: a linear map that has to learn another."""

from __future__ import annotations

import ast
import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import start_together
from torch import Tensor, nn

import histoloom
from histoloom.autoencoder.losses import VQGANLosses, perceptual_loss
from histoloom.autoencoder.stage import make_objectives, make_task
from histoloom.autoencoder.vqgan import Autoencoder, Discriminator
from histoloom.config import (
    AutoencoderConfig,
    Phase,
    RuntimeConfig,
    TrainingConfig,
    make_config,
    read_preset,
    with_settings,
)
from histoloom.errors import TrainingDiverged, TrainingStopped, UserError
from histoloom.run.stage import CheckResult, EventLog
from histoloom.training import distributed
from histoloom.training.loop import Objective, StepContext, Task, _Loop, train
from histoloom.training.optimizers import average_decay
from histoloom.training.tasks import Callback, Modules

N = 50
CPU = RuntimeConfig(device="cpu", precision="fp32", checkpoint_seconds=0)


class Interrupted(Exception):
    """Stands for a kill: nothing after it runs."""


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 4, generator=generator)
    return x, x @ torch.randn(4, 2, generator=generator)


def linear_task(*, stop_at: int | None = None, seen: list[int] | None = None, bad_at: int | None = None) -> Task:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    x, y = data()

    def batch(rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        return x[rows], y[rows], torch.from_numpy(rows)

    def loss(batch: tuple[Tensor, Tensor, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        if stop_at is not None and context.images >= stop_at:
            raise Interrupted
        if seen is not None:
            seen.extend(batch[2].tolist())
        noisy = batch[0] + 0.1 * context.randn(tuple(batch[0].shape))
        error = (network(noisy) - batch[1]).pow(2).mean()
        return (error * float("nan") if bad_at is not None and context.images >= bad_at else error), {"error": error}

    phases = (Phase(optimizer="adadelta", lr=0.1, epochs=2), Phase(optimizer="adam", lr=0.05, images=200))
    return Task(
        name="tiny",
        modules={"network": network},
        objectives=(Objective("network", ("network",), loss, phases),),
        n=N,
        batch=batch,
        ema=("network",),
    )


def settings(**changes: object) -> TrainingConfig:
    values = {
        "batch_size": 12,
        "phases": [{"optimizer": "adadelta", "lr": 0.1, "epochs": 2}, {"optimizer": "adam", "lr": 0.05, "images": 200}],
        "ema": 0.9,
        "grad_clip": 1.0,
    }
    return TrainingConfig.model_validate(values | changes)


def fit(task: Task, out: Path, *, runtime: RuntimeConfig = CPU, **changes: object) -> dict[str, Tensor]:
    out.mkdir(exist_ok=True)
    trained = train(task, config=settings(**changes), runtime=runtime, seed=5, out=out, log=EventLog(out / "log.jsonl"))
    return trained.modules["network"].state_dict()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns(tmp_path: Path) -> None:
    fit(linear_task(), tmp_path)
    errors = [float(str(event["network.error"])) for event in EventLog(tmp_path / "log.jsonl").read()]
    assert errors[-1] < errors[0] / 2


def test_the_norm_of_gradients_is_logged_where_it_is_clipped(tmp_path: Path) -> None:
    fit(linear_task(), tmp_path)
    events = EventLog(tmp_path / "log.jsonl").read()
    assert events
    assert all(0 < float(str(event["network.gradient"])) < 100 for event in events)


@pytest.mark.parametrize("stop_at", [12, 96, 108, 200, 288])
def test_resumed_equals_uninterrupted(stop_at: int, tmp_path: Path) -> None:
    whole = fit(linear_task(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(linear_task(stop_at=stop_at), tmp_path / "parts")
    resumed = fit(linear_task(), tmp_path / "parts")
    assert equal(whole, resumed)
    assert (tmp_path / "whole/log.jsonl").read_text() == (tmp_path / "parts/log.jsonl").read_text()


def with_rate(rate: float, *, stop_at: int | None = None, phases: tuple[Phase, ...] | None = None) -> Task:
    """Its last layer's weights learn so many times as fast."""
    task = linear_task(stop_at=stop_at)
    phases = phases or task.objectives[0].phases
    objective = dataclasses.replace(task.objectives[0], rates={"network.2.weight": rate}, phases=phases)
    return dataclasses.replace(task, objectives=(objective,), ema=())


def test_some_weights_may_learn_faster(tmp_path: Path) -> None:
    """Adam's first step is as long as the learning rate, whatever the gradient; AdamW's decay spares them."""
    one_step = (Phase(optimizer="adamw", lr=0.001, images=12),)
    before = {name: value.clone() for name, value in linear_task().modules["network"].state_dict().items()}
    after = fit(with_rate(30.0, phases=one_step), tmp_path, phases=one_step, ema=0.0)
    steps = {name: (after[name] - value).abs() for name, value in before.items()}
    torch.testing.assert_close(steps["2.weight"], torch.full_like(steps["2.weight"], 0.03), rtol=1e-3, atol=0)
    torch.testing.assert_close(steps["0.bias"], torch.full_like(steps["0.bias"], 0.001), rtol=0.02, atol=0)


@pytest.mark.parametrize("stop_at", [12, 108, 288])
def test_with_two_rates_resumed_equals_uninterrupted(stop_at: int, tmp_path: Path) -> None:
    whole = fit(with_rate(3.0), tmp_path / "whole")
    assert not equal(whole, fit(with_rate(1.0), tmp_path / "plain"))
    with pytest.raises(Interrupted):
        fit(with_rate(3.0, stop_at=stop_at), tmp_path / "parts")
    assert equal(whole, fit(with_rate(3.0), tmp_path / "parts"))


@pytest.mark.parametrize("images", [24, 480])
def test_a_stopped_training_takes_another_length(images: int, tmp_path: Path) -> None:
    """A longer one continues; one that has seen more than it is asked for ends with its weights, and is checked."""
    with pytest.raises(Interrupted):
        fit(linear_task(stop_at=108), tmp_path)
    kept = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    phases = (Phase(optimizer="adadelta", lr=0.1, images=12), Phase(optimizer="adam", lr=0.05, images=images - 12))
    seen: list[int] = []
    checked: list[int] = []

    def check(_modules: Modules, images: int) -> CheckResult:
        checked.append(images)
        return CheckResult("fine")

    task = linear_task(seen=seen)
    objective = dataclasses.replace(task.objectives[0], phases=phases)
    task = dataclasses.replace(task, callback=Callback(check, times=1), objectives=(objective,))
    after = fit(task, tmp_path, phases=phases)
    assert len(seen) == max(images - 108, 0)
    assert checked == [max(images, 108)]
    assert equal(after, kept["averages"]["network"]) == (images < 108)
    messages = [event["message"] for event in EventLog(tmp_path / "log.jsonl").read() if "message" in event]
    assert f"continues after 108 images to {images} images, 300 before" in messages


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = fit(linear_task(), tmp_path)
    assert equal(first, fit(linear_task(stop_at=0), tmp_path))


def test_every_row_comes_once_an_epoch(tmp_path: Path) -> None:
    seen: list[int] = []
    fit(linear_task(seen=seen), tmp_path)
    assert len(seen) == 300
    for epoch in range(6):
        assert sorted(seen[epoch * N : (epoch + 1) * N]) == list(range(N))


def test_versions_are_drawn_anew_and_the_same_after_a_stop_or_a_split(tmp_path: Path) -> None:
    def with_versions(rows_read: list[int], *, stop_at: int | None = None) -> Task:
        task = linear_task(stop_at=stop_at)

        def batch(rows: np.ndarray) -> object:
            rows_read.extend(rows.tolist())
            return task.batch(rows % N)

        return Task(**{**vars(task), "versions": 8, "batch": batch})

    whole: list[int] = []
    weights = fit(with_versions(whole), tmp_path / "whole")
    first, second = (whole[epoch * N : (epoch + 1) * N] for epoch in (0, 1))
    assert sorted(row % N for row in first) == list(range(N))
    assert len({row // N for row in first}) == 8
    versions = [
        dict(zip((row % N for row in rows), (row // N for row in rows), strict=True)) for rows in (first, second)
    ]
    assert versions[0] != versions[1]
    parts: list[int] = []
    with pytest.raises(Interrupted):
        fit(with_versions([], stop_at=108), tmp_path / "parts")
    assert equal(weights, fit(with_versions(parts), tmp_path / "parts"))
    assert parts == whole[108 : 108 + len(parts)]
    split: list[int] = []
    fit(with_versions(split), tmp_path / "split", runtime=CPU.model_copy(update={"accumulate": 4}))
    assert split == whole


def test_accumulation_equals_the_large_batch(tmp_path: Path) -> None:
    whole = fit(linear_task(), tmp_path / "whole")
    parts = fit(linear_task(), tmp_path / "parts", runtime=CPU.model_copy(update={"accumulate": 4}))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-5)


def test_the_average_is_not_the_last_step(tmp_path: Path) -> None:
    averaged = fit(linear_task(), tmp_path / "ema")
    task = linear_task()
    plain = fit(Task(**{**vars(task), "ema": ()}), tmp_path / "plain", ema=0.0)
    assert not equal(averaged, plain)


def test_the_first_weights_are_forgotten_at_once() -> None:
    config = TrainingConfig.model_validate({"ema": 0.999, "phases": [{"optimizer": "adam", "lr": 0.1, "images": 100}]})
    assert average_decay(config, step=0) == pytest.approx(0.1)
    assert average_decay(config, step=10**6) == 0.999


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"no longer finite.*last\.pt"):
        fit(linear_task(bad_at=60), tmp_path)
    state = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)
    assert state["images"] == 60
    assert all(value.isfinite().all() for value in state["modules"]["network"].values())


def with_loss(change: Callable[[Tensor, StepContext, nn.Module], Tensor]) -> Task:
    """The linear task with another loss made of its own."""
    task = linear_task()
    inner = task.objectives[0]

    def loss(batch: object, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = inner.loss(batch, context)
        return change(value, context, task.modules["network"]), metrics

    return Task(**{**vars(task), "objectives": (Objective(inner.name, inner.modules, loss, inner.phases),)})


def test_a_loss_that_explodes_stops_with_the_checkpoint_from_before(tmp_path: Path) -> None:
    task = with_loss(lambda value, context, _network: value * (1e6 if context.images >= 60 else 1.0))
    with pytest.raises(TrainingDiverged, match=r"network\.loss exploded: .* after 72 images.*last\.pt"):
        fit(task, tmp_path)
    assert torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)["images"] == 60


@pytest.mark.parametrize(("clip", "named"), [(1.0, "network.gradient"), (None, "a weight of network")])
def test_weights_that_are_not_finite_are_never_written(clip: float | None, named: str, tmp_path: Path) -> None:
    """A root at 0: the loss is finite, its gradient is not."""

    def change(value: Tensor, context: StepContext, network: nn.Module) -> Tensor:
        return value + (0 * network[0].weight).abs().sqrt().sum() if context.images >= 60 else value  # type: ignore[index]

    with pytest.raises(TrainingDiverged, match=rf"tiny: {named} is no longer finite after 72 images"):
        fit(with_loss(change), tmp_path, grad_clip=clip)
    state = torch.load(tmp_path / "checkpoints/last.pt", weights_only=True)
    assert state["images"] == 60
    assert all(value.isfinite().all() for value in state["modules"]["network"].values())


def checked(task: Task, *, stop_after: int = 10**6, seen: list[int] | None = None) -> Task:
    """The task with four checks, of which those after ``stop_after`` images ask to stop."""

    def check(modules: Modules, images: int) -> CheckResult:
        assert set(modules) == {"network"}
        if seen is not None:
            seen.append(images)
        return CheckResult(f"{images} copies", stop=images > stop_after, advice="train less")

    return dataclasses.replace(task, callback=Callback(check, 4))


def test_checks_change_nothing_and_come_at_equal_distances(tmp_path: Path) -> None:
    seen: list[int] = []
    whole = fit(checked(linear_task(), seen=seen), tmp_path / "checked")
    assert equal(whole, fit(linear_task(), tmp_path / "plain"))
    assert seen == [84, 156, 228, 300]
    log = EventLog(tmp_path / "checked" / "log.jsonl").read()
    assert [event["message"] for event in log if "message" in event] == [f"{images} copies" for images in seen]


def test_a_killed_training_checks_again_at_the_same_points(tmp_path: Path) -> None:
    whole = fit(checked(linear_task()), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(checked(linear_task(stop_at=180)), tmp_path / "parts")
    seen: list[int] = []
    assert equal(whole, fit(checked(linear_task(), seen=seen), tmp_path / "parts"))
    assert seen == [228, 300]
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_check_stops_with_the_last_good_checkpoint_and_stops_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(TrainingStopped, match=r"tiny: 228 copies after 228 images; .*good\.pt; train less"):
            fit(checked(linear_task(), stop_after=160), tmp_path)
    assert torch.load(tmp_path / "checkpoints/good.pt", weights_only=True)["images"] == 156
    with pytest.raises(TrainingStopped, match="no check before this one was good"):
        fit(checked(linear_task(), stop_after=0), tmp_path / "at-once")


def test_a_batch_that_does_not_divide_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="12 does not divide over 1 processes x 5"):
        fit(linear_task(), tmp_path, runtime=CPU.model_copy(update={"accumulate": 5}))


def test_an_objective_that_starts_later_waits(tmp_path: Path) -> None:
    task = linear_task()
    late = nn.Linear(1, 1)
    first_seen: list[int] = []

    def loss(_batch: object, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        first_seen.append(context.images)
        return late(context.rand((12, 1))).mean(), {}

    objective = Objective("late", ("late",), loss, (Phase(optimizer="adam", lr=0.1, images=100),), starts_at=100)
    fit(
        Task(**{**vars(task), "modules": {**task.modules, "late": late}, "objectives": (*task.objectives, objective)}),
        tmp_path,
    )
    assert first_seen[0] == 108


def test_lr_warms_up_and_decays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    original: Callable[..., object] = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    phases: list[dict[str, Any]] = [{"optimizer": "adam", "lr": 1.0, "images": 120}]
    task = linear_task()
    objective = Objective("network", ("network",), task.objectives[0].loss, (Phase(**phases[0]),))
    changed = Task(**{**vars(task), "objectives": (objective,)})
    fit(changed, tmp_path, phases=phases, lr_decay="cosine", warmup_images=60)
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) < 1.0
    assert rates[-1] == min(rates) < 0.05


def test_each_objective_has_its_own_momentum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[tuple[float, float]] = set()
    original = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *args: object) -> object:
        used.add(self.param_groups[0]["betas"])
        return original(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    task, critic = linear_task(), nn.Linear(1, 1)
    phases = (Phase(optimizer="adam", lr=0.1, images=24),)
    objective = Objective(
        "critic", ("critic",), lambda *_: (critic(torch.ones(1, 1)).mean(), {}), phases, betas=(0.5, 0.9)
    )
    modules = {**task.modules, "critic": critic}
    fit(dataclasses.replace(task, modules=modules, objectives=(*task.objectives, objective)), tmp_path)
    assert used == {(0.9, 0.999), (0.5, 0.9)}


def test_each_phase_and_the_end_release_optimizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate keeps every optimizer that it prepared; networks and Adam's states would stay in memory with it."""
    alive: list[int] = []
    made: list[weakref.ref[torch.optim.Optimizer]] = []
    for kind in (torch.optim.Adam, torch.optim.Adadelta):
        original = kind.__init__

        def spy(self: torch.optim.Optimizer, *args: object, original: Any = original, **options: object) -> None:
            original(self, *args, **options)
            made.append(weakref.ref(self))
            gc.collect()
            alive.append(sum(reference() is not None for reference in made))

        monkeypatch.setattr(kind, "__init__", spy)
    task = linear_task()
    weight = weakref.ref(next(task.modules["network"].parameters()))
    trained = train(task, config=settings(), runtime=CPU, seed=5, out=tmp_path, log=EventLog(tmp_path / "log.jsonl"))
    assert alive == [1, 1], "the first phase's optimizer is gone when the second one's is made"
    gc.collect()
    assert [reference() for reference in made] == [None, None]
    assert all(parameter.grad is None for parameter in trained.modules["network"].parameters())
    del task, trained
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize(("bad_at", "phase"), [(12, 0), (2 * N + 24, 1)])
def test_a_diverged_training_advises_the_learning_rate_of_its_phase(bad_at: int, phase: int, tmp_path: Path) -> None:
    task = dataclasses.replace(linear_task(bad_at=bad_at), setting="evaluation.cluster_classifier.training")
    advice = rf"lower evaluation\.cluster_classifier\.training\.phases\.{phase}\.lr with"
    with pytest.raises(TrainingDiverged, match=advice):
        fit(task, tmp_path)


def test_a_diverged_discriminator_advises_its_own_learning_rate(tmp_path: Path) -> None:
    values = {
        "channels": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "code_dim": 4,
        "perceptual": "pyramid",
        "adversarial": {"start": 0.0, "channels": 8, "layers": 1},
        "training": settings().model_dump(),
    }
    config = AutoencoderConfig.model_validate(values)
    task = make_task(config, seed=0, n=N)
    autoencoder, discriminator = task.modules["autoencoder"], task.modules["discriminator"]
    assert isinstance(autoencoder, Autoencoder)
    assert isinstance(discriminator, Discriminator)
    losses = VQGANLosses(
        config, autoencoder=autoencoder, discriminator=discriminator, perceptual=perceptual_loss(config)
    )
    first, second = make_objectives(losses, n=N)

    def bad(batch: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        value, metrics = second.loss(batch, context)
        return value * float("nan"), metrics

    images = torch.zeros(N, 16, 16, 3, dtype=torch.uint8)
    objectives = (first, dataclasses.replace(second, loss=bad))
    task = dataclasses.replace(task, objectives=objectives, batch=lambda rows: images[rows])
    with pytest.raises(TrainingDiverged, match=r"discriminator.* lower autoencoder\.adversarial\.lr with --set"):
        fit(task, tmp_path)
    make_config(with_settings({**read_preset("cpu"), "slides": {"paths": ["/s"]}}, ["autoencoder.adversarial.lr=1e-5"]))


def test_every_task_names_the_setting_of_its_training() -> None:
    source = Path(histoloom.__file__).parent
    named = set()
    for path in source.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Task":
                values = {keyword.arg: keyword.value for keyword in call.keywords}
                if "objectives" not in values or path.name == "distillation.py":  # a student's has no setting
                    continue
                setting = values.get("setting")
                assert isinstance(setting, ast.Constant), f"{path.name}: a task without the setting of its training"
                named.add(str(setting.value))
    expected = {"autoencoder", "clusters", "diffusion", "evaluation.cluster_classifier"}
    assert named == {f"{section}.training" for section in expected}
    settings = [f"{name}.phases.0.lr=0.1" for name in sorted(named)]
    preset = {**read_preset("cpu"), "slides": {"paths": ["/slides"]}}
    changed = make_config(with_settings(make_config(preset).model_dump(mode="json"), settings))
    for name in named:
        section: Any = changed
        for part in name.split("."):
            section = getattr(section, part)
        assert section.phases[0].lr == 0.1


TWO = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from forked import start_together
torch.set_num_threads(1)
import test_training as t
state = t.fit(t.linear_task(), Path(sys.argv[2]))
from histoloom.training.distributed import end_process
from histoloom.processes import is_main_process
if is_main_process():
    Path(sys.argv[3]).write_text(json.dumps({k: v.tolist() for k, v in state.items()}))
end_process(0)
"""


@pytest.mark.parametrize(("processes", "asked"), [(1, 32), (2, 2)])
def test_processes_ask_each_other_for_a_checkpoint_every_few_steps(
    processes: int, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[bool] = []
    config = TrainingConfig.model_validate({"batch_size": 8, "phases": [{"optimizer": "adam", "lr": 0.1, "images": 8}]})
    runtime = CPU.model_copy(update={"checkpoint_seconds": 1e9})
    loop = _Loop(linear_task(), config=config, runtime=runtime, seed=0, out=tmp_path, log=EventLog(tmp_path / "log"))
    monkeypatch.setattr(distributed, "size", lambda: processes)

    def shared(value: bool) -> bool:
        questions.append(value)
        return value

    monkeypatch.setattr(distributed, "shared", shared)
    for step in range(1, 33):
        loop.images = 8 * step
        assert not loop._due_to_save(at_end=False)
    assert len(questions) == asked
    assert loop._due_to_save(at_end=True)


def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    script, result = tmp_path / "two.py", tmp_path / "two.json"
    script.write_text(TWO)
    for started in start_together(2, script, Path(__file__).parent, tmp_path / "two", result):
        done = started.finish(timeout=200)
        assert done.returncode == 0, done.stderr[:3000]
    one = fit(linear_task(), tmp_path / "one")
    two = {name: torch.tensor(value) for name, value in json.loads(result.read_text()).items()}
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
