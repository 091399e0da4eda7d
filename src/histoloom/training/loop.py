"""The only training loop: every network is trained, stopped and continued here.

What a step does depends on the seed, the step's number and the weights alone (see ``seeding``). So a training that was
killed anywhere continues from its checkpoint to the same weights, to the byte on a CPU. Progress is counted in images
seen. Several processes (torchrun) split each batch; gradients are averaged once a step. Shapes: B is the batch of one
micro-batch of one process.

Both ways of splitting a batch end with the weights of the undivided one, to rounding. Draws are made for the whole
batch. A task whose loss is a statistic of the batch is not split into micro-batches, and gathers what it needs over
processes (``distributed``). An objective may survey all micro-batches first. Only dropout draws other masks for other
splits.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn

from histoloom.config import RuntimeConfig, TrainingConfig
from histoloom.errors import TrainingDiverged, UserError
from histoloom.progress import meter
from histoloom.run.directory import write_bytes
from histoloom.run.stage import EventLog
from histoloom.seeding import derive, numpy_generator, permutation, torch_generator
from histoloom.training import distributed
from histoloom.training.callbacks import is_due, keep_good, run_check
from histoloom.training.compiling import compiled, lay_out, lay_out_as_usual, lay_out_states
from histoloom.training.devices import accelerator as make_accelerator
from histoloom.training.divergence import divergence
from histoloom.training.prefetching import Prefetcher
from histoloom.training.schedules import average_decay, lr_factor, phase_at
from histoloom.training.tasks import Batch, Objective, StepContext, Task, Trained

__all__ = ["Batch", "Objective", "StepContext", "Task", "Trained", "train"]

logger = logging.getLogger("histoloom")

LOG_EVENTS = 200


def train(
    task: Task, *, config: TrainingConfig, runtime: RuntimeConfig, seed: int, out: Path, log: EventLog
) -> Trained:
    """Train ``task``, continuing from ``out/checkpoints`` where there is one; returns its modules.

    Raises ``TrainingStopped`` where the task's callback asks for it, and ``TrainingDiverged`` when a loss or weight is
    no longer finite or a loss exploded, both on all processes; ``UserError`` when the batch does not divide over
    processes and micro-batches.
    """
    loop = _Loop(task, config=config, runtime=runtime, seed=seed, out=out, log=log)
    loop.resume()
    loop.run()
    return loop.result()


class _Loop:
    def __init__(
        self,
        task: Task,
        *,
        config: TrainingConfig,
        runtime: RuntimeConfig,
        seed: int,
        out: Path,
        log: EventLog,
    ) -> None:
        self.task, self.config, self.runtime, self.seed, self.log = task, config, runtime, seed, log
        self.accelerator: Accelerator = make_accelerator(runtime)
        self.checkpoint = distributed.shared_path(out / "checkpoints" / "last.pt")
        self.images = 0
        self.total = math.ceil(config.images(n=task.n) / config.batch_size) * config.batch_size
        self.accumulate = 1 if task.whole else runtime.accumulate
        if task.whole and runtime.accumulate > 1:
            logger.info("%s: runtime.accumulate does not split its batch, whose statistics the loss needs", task.name)
        self.micro, rest = divmod(config.batch_size, distributed.size() * self.accumulate)
        if rest or not self.micro:
            raise UserError(
                f"a batch of {config.batch_size} does not divide over {distributed.size()} processes x "
                f"{self.accumulate} micro-batches; change runtime.accumulate or the number of processes"
            )
        for module in task.modules.values():
            module.to(self.accelerator.device).train()
        lay_out(task.modules.values(), runtime=runtime)
        self.averages = {name: copy.deepcopy(task.modules[name]).requires_grad_(False) for name in task.ema}
        self.optimizers: dict[str, tuple[int, Any]] = {}
        self.sums: dict[str, Any] = {}
        self.counted = 0
        self.first: dict[str, float] = {}
        parts = [part for module in task.modules.values() for part in module.modules()]
        self.has_dropout = any(isinstance(part, nn.Dropout) and part.p > 0 for part in parts)
        self.events = len(log)
        self.saved = time.monotonic()

    # -- the loop ------------------------------------------------------------------------------------------------
    def run(self) -> None:
        description = f"training {self.task.name}"
        with (
            meter(description, total=self.total, done=self.images) as progress,
            Prefetcher(self._read) as reader,
            compiled(self.task.compiled, runtime=self.runtime),
        ):
            while self.images < self.total:
                batches = reader.take(self.images, then=self.images + self.config.batch_size)
                self._step(batches)
                self.images += self.config.batch_size
                self._after_step()
                progress.advance(self.config.batch_size)
        if self._due_to_save(at_end=True):
            self._save()

    def _step(self, batches: list[Batch]) -> None:
        """One step of every objective: zero_grad, loss, backward, clip, step; then the averages."""
        batches = send_to_device(batches, self.accelerator.device)
        scratches: list[dict[str, Any]] = [{} for _ in batches]
        for objective in self.task.objectives:
            if self.images < objective.starts_at:
                continue
            optimizer = self._optimizer(objective)
            optimizer.zero_grad(set_to_none=True)

            with _only_trains(self.task, objective):
                # What a loss takes from the whole batch is surveyed first, where the batch comes in parts.
                if objective.survey is not None and self.accumulate > 1:
                    with self.accelerator.autocast():
                        objective.survey(batches, self._contexts(objective, scratches))
                for batch, context in zip(batches, self._contexts(objective, scratches), strict=True):
                    if self.has_dropout:  # of torch's global stream, which a resumed training would not continue
                        seed = (self.seed, self.task.name, objective.name, "dropout", context.step, context.rows.start)
                        torch.manual_seed(derive(*seed))
                    with self.accelerator.autocast():
                        loss, metrics = objective.loss(batch, context)
                    self.accelerator.backward(loss / self.accumulate)
                    for name, value in {"loss": loss, **metrics}.items():
                        key = f"{objective.name}.{name}"
                        self.sums[key] = self.sums.get(key, 0.0) + value.detach().float() / self.accumulate

            parameters = _parameters(self.task, objective)
            if distributed.size() > 1:
                gradients = [p.grad for p in parameters if p.grad is not None]
                mean = distributed.averaged(torch.cat([g.flatten() for g in gradients]))
                for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                    gradient.copy_(part.view_as(gradient))
            if self.config.grad_clip is not None:
                self.accelerator.unscale_gradients(optimizer)
                nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)
            optimizer.step()
        self._average_weights()

    def _contexts(self, objective: Objective, scratches: list[dict[str, Any]]) -> list[StepContext]:
        """New contexts of this step's micro-batches: what draws from them twice draws the same."""
        step = self.images // self.config.batch_size
        first = distributed.rank() * self.accumulate * self.micro
        return [
            StepContext(
                images=self.images,
                step=step,
                progress=self.images / self.total,
                device=self.accelerator.device,
                generator=torch_generator(self.seed, self.task.name, objective.name, step),
                rows=slice(first + i * self.micro, first + (i + 1) * self.micro),
                batch_size=self.config.batch_size,
                scratch=scratch,
            )
            for i, scratch in enumerate(scratches)
        ]

    def _after_step(self) -> None:
        self.counted += 1
        steps = self.total // self.config.batch_size
        step = self.images // self.config.batch_size
        if step % max(1, steps // LOG_EVENTS) == 0 or step == steps:
            self._write_log()
        if is_due(self.task.callback, step=step, steps=steps):
            modules = dict(self.task.modules) | self.averages
            run_check(self.task, modules, images=self.images, checkpoint=self.checkpoint, log=self.log)
            self.events = len(self.log)
            self._save()
            keep_good(self.checkpoint)
        elif self._due_to_save(at_end=False):
            self._save()

    # -- data ----------------------------------------------------------------------------------------------------
    def _read(self, images: int) -> list[Batch]:
        """This process's micro-batches of the step that starts at ``images``."""
        rows = self._order(images)
        start = distributed.rank() * self.accumulate * self.micro
        parts = range(start, start + self.accumulate * self.micro, self.micro)
        return [self.task.batch(rows[part : part + self.micro]) for part in parts]

    def _order(self, images: int) -> np.ndarray:
        """Rows of the step that starts at ``images``: consecutive places in a chain of permutations; then versions."""
        places = np.arange(images, images + self.config.batch_size)
        rows = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(places // self.task.n):
            order = permutation(self.seed, self.task.name, "order", int(epoch), n=self.task.n)
            here = places // self.task.n == epoch
            rows[here] = order[places[here] % self.task.n]
        if self.task.versions == 1:
            return rows
        draws = numpy_generator(self.seed, self.task.name, "versions", images // self.config.batch_size)
        return rows + self.task.n * draws.integers(self.task.versions, size=len(rows))

    # -- optimizers and averages -----------------------------------------------------------------------------------
    def _optimizer(self, objective: Objective) -> Any:
        """The optimizer of the objective's phase, with the learning rate of this step."""
        index, inside, length = phase_at(objective.phases, images=self.images - objective.starts_at, n=self.task.n)
        if objective.name not in self.optimizers or self.optimizers[objective.name][0] != index:
            self._make_optimizer(objective, index=index)
        optimizer = self.optimizers[objective.name][1]
        last = index == len(objective.phases) - 1
        factor = lr_factor(self.config, images=self.images, inside=inside, length=length, last=last)
        for group, rate in zip(optimizer.param_groups, (1.0, *objective.rates.values()), strict=True):
            group["lr"] = objective.phases[index].lr * factor * rate
        return optimizer

    def _make_optimizer(self, objective: Objective, *, index: int) -> None:
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adadelta": torch.optim.Adadelta}
        phase = objective.phases[index]
        # A step in one kernel: a third more training steps a second of a small network on a CPU.
        options = {} if phase.optimizer == "adadelta" else {"fused": True, "betas": objective.betas}
        self.optimizers.pop(objective.name, None)
        self.accelerator.free_memory()  # it would keep the optimizer of the phase before, and its state
        plain = kinds[phase.optimizer](_parameter_groups(self.task, objective), lr=phase.lr, **options)
        self.optimizers[objective.name] = (index, self.accelerator.prepare_optimizer(plain))

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = average_decay(self.config, step=self.images // self.config.batch_size)
        for name, average in self.averages.items():
            module = self.task.modules[name]
            torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
            for mine, theirs in zip(average.buffers(), module.buffers(), strict=True):
                mine.copy_(theirs)

    # -- log and checkpoints ---------------------------------------------------------------------------------------
    def _write_log(self) -> None:
        means = {name: value / self.counted for name, value in self._checked_sums().items()}
        self.sums, self.counted = {}, 0
        losses = {name: value for name, value in means.items() if name.endswith(".loss")}
        self.first = losses | self.first
        if distributed.rank() == 0:
            self.log.write({"images": self.images, **means})
            self.events = len(self.log)
            if self.runtime.tensorboard:
                _write_tensorboard(self.checkpoint.parent.parent / "tensorboard", means, images=self.images)

    def _checked_sums(self) -> dict[str, float]:
        """The sums of what is logged, averaged over processes; ``TrainingDiverged`` where something is wrong.

        The same on every process: one whose part of the batch is bad stops them all before any writes a checkpoint.
        """
        sums: dict[str, float] = {}
        if self.sums:
            values = [torch.as_tensor(value, device=self.accelerator.device).float() for value in self.sums.values()]
            sums = dict(zip(self.sums, distributed.averaged(torch.stack(values)).tolist(), strict=True))
        means = {name: value / self.counted for name, value in sums.items()}
        problem = divergence(means, modules=[*self.task.modules.items(), *self.averages.items()], first=self.first)
        if problem is not None:
            text, name = problem
            objective = next(o for o in self.task.objectives if name == o.name or name in o.modules)
            index = self.optimizers[objective.name][0] if objective.name in self.optimizers else 0
            setting = objective.lr_setting or (self.task.setting and f"{self.task.setting}.phases.{index}.lr")
            kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "no checkpoint yet"
            raise TrainingDiverged(
                f"{self.task.name}: {text} after {self.images:,} images; {kept}"
                + (f"; lower {setting} with --set" if setting else "")
            )
        return sums

    def _due_to_save(self, *, at_end: bool) -> bool:
        waited = time.monotonic() - self.saved >= self.runtime.checkpoint_seconds
        return distributed.shared(at_end or waited)

    def _save(self) -> None:
        sums = self._checked_sums()
        self.saved = time.monotonic()
        if distributed.rank() != 0:
            return
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "images": self.images,
            "modules": {name: module.state_dict() for name, module in self.task.modules.items()},
            "averages": {name: module.state_dict() for name, module in self.averages.items()},
            "optimizers": {name: (index, o.state_dict()) for name, (index, o) in self.optimizers.items()},
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "sums": sums,
            "counted": self.counted,
            "first": self.first,
            "events": self.events,
        }
        # Through memory: torch's own writer hides from us why a write failed.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.checkpoint, buffer.getbuffer())

    def resume(self) -> None:
        """Take the state of the last checkpoint, where there is one."""
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.images, self.sums, self.counted = state["images"], state["sums"], state["counted"]
        self.first = state.get("first", {})
        for name, module in self.task.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, module in self.averages.items():
            module.load_state_dict(state["averages"][name])
        for objective in self.task.objectives:
            if objective.name in state["optimizers"]:
                index, values = state["optimizers"][objective.name]
                self._make_optimizer(objective, index=index)
                self.optimizers[objective.name][1].load_state_dict(values)
                lay_out_states(self.optimizers[objective.name][1])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if distributed.rank() == 0:
            self.log.keep(state["events"])
        self.events = state["events"]
        logger.info("%s: continuing after %s of %s images", self.task.name, f"{self.images:,}", f"{self.total:,}")

    def result(self) -> Trained:
        """What was trained; optimizers, their states and the gradients are released."""
        self.optimizers.clear()
        self.accelerator.free_memory()
        modules = dict(self.task.modules) | self.averages
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        lay_out_as_usual(modules.values())
        return Trained(modules={name: module.eval() for name, module in modules.items()}, images=self.images)


def _parameters(task: Task, objective: Objective) -> list[nn.Parameter]:
    return [p for name in objective.modules for p in task.modules[name].parameters()]


def _parameter_groups(task: Task, objective: Objective) -> list[dict[str, Any]]:
    """The parameters with the phase's learning rate, then a group for each of the objective's ``rates``."""
    named = {f"{name}.{key}": p for name in objective.modules for key, p in task.modules[name].named_parameters()}
    special = [[name for name in named if name.endswith(ending)] for ending in objective.rates]
    assert all(special), f"each of {', '.join(objective.rates)} names a parameter"
    selected = {name for names in special for name in names}
    own: dict[str, Any] = {"params": [p for name, p in named.items() if name not in selected]}
    return [own, *({"params": [named[name] for name in names], "weight_decay": 0.0} for names in special)]


@contextmanager
def _only_trains(task: Task, objective: Objective) -> Iterator[None]:
    """Within it, parameters that only other objectives train get no gradient."""
    others = [p for other in task.objectives if other is not objective for p in _parameters(task, other)]
    mine = {id(p) for p in _parameters(task, objective)}
    frozen = [p for p in others if p.requires_grad and id(p) not in mine]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _write_tensorboard(folder: Path, values: Mapping[str, float], *, images: int) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("runtime.tensorboard needs the extra: pip install 'histoloom[tensorboard]'") from error
    with SummaryWriter(str(folder)) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, images)
