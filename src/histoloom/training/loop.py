"""The only training loop: every network is trained, stopped and continued here.

What a step does depends on the seed, the step's number and the weights alone (see ``seeding``). So a training that was
killed anywhere continues from its checkpoint to the same weights, to the byte on a CPU. Progress is counted in images
seen. A training may continue with other learning rates or another length, which its log says; one that has seen more
images than it is now asked for ends with what its checkpoint holds. Several processes (torchrun) split each batch;
gradients are averaged once a step. Shapes: B is the batch of one micro-batch of one process.

Both ways of splitting a batch end with the weights of the undivided one, to rounding. Draws are made for the whole
batch. A task whose loss is a statistic of the batch is not split into micro-batches, and gathers what it needs over
processes (``distributed``). An objective may compute statistics of all micro-batches first (``prepare``). Only dropout
draws other masks for other splits.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from histoloom.config import RuntimeConfig, TrainingConfig
from histoloom.errors import TrainingDiverged, UserError
from histoloom.progress import meter
from histoloom.run.stage import EventLog
from histoloom.seeding import derive, torch_generator
from histoloom.training import distributed
from histoloom.training.batches import Prefetcher, step_rows
from histoloom.training.checkpoints import CheckpointWriter
from histoloom.training.checks import find_divergence, is_due, keep_good, run_check
from histoloom.training.devices import accelerator as make_accelerator
from histoloom.training.devices import begin_step, compiled, lay_out, lay_out_as_usual, lay_out_states
from histoloom.training.draws import DrawAhead, drawing_ahead
from histoloom.training.memory import is_out_of_memory, next_accumulate, out_of_memory_advice
from histoloom.training.optimizers import (
    average_decay,
    frozen,
    lr_factor,
    make_optimizer,
    other_parameters,
    phase_at,
    trained_parameters,
)
from histoloom.training.tasks import Batch, Objective, StepContext, Task, Trained

__all__ = ["Batch", "Objective", "StepContext", "Task", "Trained", "train"]

logger = logging.getLogger("histoloom")

LOG_EVENTS = 200
ASK_STEPS = 16


def train(
    task: Task, *, config: TrainingConfig, runtime: RuntimeConfig, seed: int, out: Path, log: EventLog
) -> Trained:
    """Train ``task``, continuing from ``out/checkpoints`` where there is one; returns its modules.

    Raises ``TrainingStopped`` where the task's callback says so, and ``TrainingDiverged`` when a loss or weight is
    no longer finite or a loss exploded, both on all processes; ``UserError`` when the batch does not divide over
    processes and micro-batches, and where a step does not fit into the device's memory (with
    ``runtime.accumulate: auto`` and one process only where a single image does not).
    """
    loop = _Loop(task, config=config, runtime=runtime, seed=seed, out=out, log=log)
    loop.resume()
    with loop.writer:
        loop.run()
    return loop.result()


class _Loop:
    def __init__(
        self, task: Task, *, config: TrainingConfig, runtime: RuntimeConfig, seed: int, out: Path, log: EventLog
    ) -> None:
        self.task, self.config, self.runtime, self.seed, self.log = task, config, runtime, seed, log
        self.accelerator: Accelerator = make_accelerator(runtime)
        self.checkpoint = distributed.shared_path(out / "checkpoints" / "last.pt")
        at_once = runtime.checkpoint_seconds == 0
        self.writer = CheckpointWriter(self.checkpoint, device=self.accelerator.device, at_once=at_once)
        self.images = 0
        self.total = math.ceil(config.images(n=task.n) / config.batch_size) * config.batch_size

        # With several processes, one whose memory is full could not tell the others, who wait for it.
        self.finds_accumulate = runtime.accumulate == "auto" and not task.whole_batch and distributed.size() == 1
        accumulate = 1 if task.whole_batch or runtime.accumulate == "auto" else runtime.accumulate
        if task.whole_batch and runtime.accumulate not in (1, "auto"):
            logger.info("%s: runtime.accumulate does not split its batch, whose statistics the loss needs", task.name)
        self._split(accumulate)

        for module in task.modules.values():
            module.to(self.accelerator.device).train()
        lay_out(task.modules.values(), runtime=runtime)
        self.averages = {name: copy.deepcopy(task.modules[name]).requires_grad_(False) for name in task.ema}
        parts = [part for module in task.modules.values() for part in module.modules()]
        self.has_dropout = any(isinstance(part, nn.Dropout) and part.p > 0 for part in parts)
        # Walking through modules takes milliseconds, so each step uses these lists: parameters stay the same objects.
        self.trained = {objective.name: trained_parameters(task, objective) for objective in task.objectives}
        self.others = {objective.name: other_parameters(task, objective) for objective in task.objectives}
        self.averaged: dict[str, tuple[list[Tensor], list[Tensor]]] = {
            name: (list(average.parameters()), list(task.modules[name].parameters()))
            for name, average in self.averages.items()
        }
        # Each objective's optimizer, with the index of the phase that it is of.
        self.optimizers: dict[str, tuple[int, AcceleratedOptimizer]] = {}
        self.ahead: DrawAhead | None = None

        # Since the last line of the log: sums of metrics, and over how many steps.
        self.sums: dict[str, Any] = {}
        self.summed_steps = 0
        self.first_losses: dict[str, float] = {}
        self.events = len(log)
        self.saved_at = time.monotonic()

    def _split(self, accumulate: int) -> None:
        """Split each batch over the processes, and over ``accumulate`` micro-batches whose gradients add up."""
        self.accumulate = accumulate
        self.micro_batch, rest = divmod(self.config.batch_size, distributed.size() * accumulate)
        if rest or not self.micro_batch:
            raise UserError(
                f"a batch of {self.config.batch_size} does not divide over {distributed.size()} processes x "
                f"{accumulate} micro-batches; change runtime.accumulate or the number of processes"
            )
        start = distributed.rank() * accumulate * self.micro_batch
        self.slices = [
            slice(start + i * self.micro_batch, start + (i + 1) * self.micro_batch) for i in range(accumulate)
        ]

    # -- the loop ------------------------------------------------------------------------------------------------
    def run(self) -> None:
        if self.finds_accumulate and not self.checkpoint.is_file():
            self._save()  # where a step that does not fit goes back to
        while self.images < self.total:
            try:
                self._steps()
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                more = self._more_micro_batches(error)
            # Outside the handler: the error holds the frames, and they the tensors, of what did not fit.
            self._restart(more)
        if self.images > self.total and self.task.callback is not None:
            self._check()  # the last check of a training that was made shorter than it is
        if self._due_to_save(at_end=True):
            self._save()

    def _steps(self) -> None:
        """All steps that are left."""
        with (
            meter(f"training {self.task.name}", total=self.total, done=self.images) as progress,
            Prefetcher(self._read, device=self.accelerator.device) as reader,
            compiled(self.task.compiled, runtime=self.runtime),
            drawing_ahead(self._stream, device=self.accelerator.device) as self.ahead,
        ):
            while self.images < self.total:
                batches = reader.take(self.images, then=self.images + self.config.batch_size)
                self._step(batches)
                self.images += self.config.batch_size
                self._after_step()
                progress.advance(self.config.batch_size)

    def _more_micro_batches(self, error: RuntimeError) -> int:
        """How many micro-batches to try after memory was full; ``UserError`` where they may not, or cannot, be more."""
        more = None
        if not self.task.whole_batch:
            more = next_accumulate(self.accumulate, batch_size=self.config.batch_size, processes=distributed.size())
        if more is None or not self.finds_accumulate:
            raise UserError(
                out_of_memory_advice(error, task=self.task.name, accumulate=more, setting=self.task.setting)
            ) from error
        return more

    def _restart(self, accumulate: int) -> None:
        """Go back to the last checkpoint, and on with smaller micro-batches."""
        logger.info("%s: memory is full; continuing with runtime.accumulate=%d", self.task.name, accumulate)
        self.optimizers.clear()
        self.accelerator.free_memory()
        for module in self.task.modules.values():
            module.zero_grad(set_to_none=True)
        clear_device_cache()
        self.writer.wait()
        self.resume()
        self._split(accumulate)

    def _step(self, batches: list[Batch]) -> None:
        """One step of every objective on the batch, which comes in micro-batches; then the averages."""
        begin_step(self.runtime)
        scratches: list[dict[str, Any]] = [{} for _ in batches]
        for objective in self.task.objectives:
            if self.images < objective.starts_at:
                continue
            optimizer = self._optimizer(objective)
            optimizer.zero_grad(set_to_none=True)

            with frozen(self.others[objective.name]):
                # Statistics of the whole batch come first, if the batch is split into micro-batches.
                if objective.prepare is not None and self.accumulate > 1:
                    with self.accelerator.autocast():
                        objective.prepare(batches, self._contexts(objective, scratches))
                for batch, context in zip(batches, self._contexts(objective, scratches), strict=True):
                    loss = self._loss(objective, batch, context)
                    self.accelerator.backward(loss / self.accumulate)

            parameters = self.trained[objective.name]
            distributed.average_gradients(parameters)
            if self.config.grad_clip is not None:
                self.accelerator.unscale_gradients(optimizer)
                norm = nn.utils.clip_grad_norm_(parameters, self.config.grad_clip)
                if self.accelerator.scaler is None:  # with fp16 an overflow is expected, and its step left out
                    self._add(f"{objective.name}.gradient", norm)
            optimizer.step()
        self._average_weights()

    def _loss(self, objective: Objective, batch: Batch, context: StepContext) -> Tensor:
        """The objective's loss of a micro-batch; adds it and its metrics to what is logged."""
        if self.has_dropout:  # it draws from torch's global stream, which a resumed training would not continue
            seed = (self.seed, self.task.name, objective.name, "dropout", context.step, context.rows.start)
            torch.manual_seed(derive(*seed))
        with self.accelerator.autocast():
            loss, metrics = objective.loss(batch, context)
        for name, value in {"loss": loss, **metrics}.items():
            self._add(f"{objective.name}.{name}", value.detach().float() / self.accumulate)
        return loss

    def _add(self, name: str, value: Tensor) -> None:
        """Add a step's ``value``, without a graph, to what the next line of the log is the mean of."""
        self.sums[name] = self.sums.get(name, 0.0) + value

    def _contexts(self, objective: Objective, scratches: list[dict[str, Any]]) -> list[StepContext]:
        """New contexts of this step's micro-batches: what draws from them twice draws the same."""
        step = self.images // self.config.batch_size
        return [
            StepContext(
                images=self.images,
                step=step,
                progress=self.images / self.total,
                device=self.accelerator.device,
                generator=self._stream(objective.name, step),
                rows=rows,
                batch_size=self.config.batch_size,
                scratch=scratch,
                draws=None if self.ahead is None else self.ahead.of(objective.name, step),
            )
            for rows, scratch in zip(self.slices, scratches, strict=True)
        ]

    def _stream(self, objective: str, step: int) -> torch.Generator:
        return torch_generator(self.seed, self.task.name, objective, step)

    def _read(self, images: int) -> list[Batch]:
        """This process's micro-batches of the step that starts at ``images``."""
        rows = step_rows(self.task, images=images, batch_size=self.config.batch_size, seed=self.seed)
        return [self.task.batch(rows[part]) for part in self.slices]

    def _after_step(self) -> None:
        self.writer.raise_error()
        self.summed_steps += 1
        steps = self.total // self.config.batch_size
        step = self.images // self.config.batch_size
        if step % max(1, steps // LOG_EVENTS) == 0 or step == steps:
            self._write_log()
        if is_due(self.task.callback, step=step, steps=steps):
            self._check()
            self._save()
            self.writer.wait()
            keep_good(self.checkpoint)
        elif self._due_to_save(at_end=False):
            self._save()

    def _check(self) -> None:
        modules = dict(self.task.modules) | self.averages
        run_check(self.task, modules, images=self.images, checkpoint=self.checkpoint, log=self.log)
        self.events = len(self.log)

    # -- optimizers and averages -----------------------------------------------------------------------------------
    def _optimizer(self, objective: Objective) -> AcceleratedOptimizer:
        """The optimizer of the objective's phase, with the learning rate of this step."""
        index, inside, length = phase_at(objective.phases, images=self.images - objective.starts_at, n=self.task.n)
        if objective.name not in self.optimizers or self.optimizers[objective.name][0] != index:
            self._prepare_optimizer(objective, index=index)
        optimizer = self.optimizers[objective.name][1]
        last = index == len(objective.phases) - 1
        factor = lr_factor(self.config, images=self.images, inside=inside, length=length, last=last)
        for group, rate in zip(optimizer.param_groups, (1.0, *objective.rates.values()), strict=True):
            group["lr"] = objective.phases[index].lr * factor * rate
        return optimizer

    def _prepare_optimizer(self, objective: Objective, *, index: int) -> None:
        if self.optimizers.pop(objective.name, None) is not None:
            self.accelerator.free_memory()  # it would keep the optimizer of the phase before, and its state
        optimizer = make_optimizer(self.task, objective, phase=objective.phases[index], betas=self.config.betas)
        self.optimizers[objective.name] = (index, self.accelerator.prepare_optimizer(optimizer))

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = average_decay(self.config, step=self.images // self.config.batch_size)
        for name, average in self.averages.items():
            module = self.task.modules[name]
            averaged, latest = self.averaged[name]
            torch._foreach_lerp_(averaged, latest, 1 - decay)
            for kept, new in zip(average.buffers(), module.buffers(), strict=True):
                kept.copy_(new)

    # -- log and checkpoints ---------------------------------------------------------------------------------------
    def _write_log(self) -> None:
        means = {name: value / self.summed_steps for name, value in self._checked_sums().items()}
        self.sums, self.summed_steps = {}, 0
        losses = {name: value for name, value in means.items() if name.endswith(".loss")}
        self.first_losses = losses | self.first_losses
        if distributed.rank() == 0:
            self.log.write({"images": self.images, **means})
            self.events = len(self.log)
            if self.runtime.tensorboard:
                _write_tensorboard(self.checkpoint.parent.parent / "tensorboard", means, images=self.images)

    def _checked_sums(self) -> dict[str, float]:
        """The sums of what is logged, averaged over processes; ``TrainingDiverged`` where something has diverged.

        The same on every process: one whose part of the batch is bad stops them all before any writes a checkpoint.
        """
        sums: dict[str, float] = {}
        if self.sums:
            values = [torch.as_tensor(value, device=self.accelerator.device).float() for value in self.sums.values()]
            sums = dict(zip(self.sums, distributed.averaged(torch.stack(values)).tolist(), strict=True))
        means = {name: value / self.summed_steps for name, value in sums.items()}
        modules = [*self.task.modules.items(), *self.averages.items()]
        divergence = find_divergence(means, modules=modules, first=self.first_losses)
        if divergence is not None:
            self.writer.wait()
            kept = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "no checkpoint yet"
            setting = self._lr_setting(divergence.name)
            advice = f"; lower {setting} with --set" if setting else ""
            raise TrainingDiverged(
                f"{self.task.name}: {divergence.message} after {self.images:,} images; {kept}{advice}"
            )
        return sums

    def _lr_setting(self, diverged: str) -> str:
        """The setting of the learning rate that trains the objective or module ``diverged``; empty where none does."""
        for objective in self.task.objectives:
            if diverged.split(".")[0] in (objective.name, *objective.modules):
                index = self.optimizers[objective.name][0] if objective.name in self.optimizers else 0
                phase = f"{self.task.setting}.phases.{index}.lr" if self.task.setting else ""
                return objective.lr_setting or phase
        return ""

    def _due_to_save(self, *, at_end: bool) -> bool:
        """Whether to write a checkpoint; several processes ask the first one's clock every few steps only."""
        if at_end or self.runtime.checkpoint_seconds == 0:
            return True
        if distributed.size() > 1 and self.images // self.config.batch_size % ASK_STEPS:
            return False
        return distributed.shared(time.monotonic() - self.saved_at >= self.runtime.checkpoint_seconds)

    def _save(self) -> None:
        sums = self._checked_sums()
        self.saved_at = time.monotonic()
        if distributed.rank() != 0:
            return
        state = {
            "images": self.images,
            "modules": {name: module.state_dict() for name, module in self.task.modules.items()},
            "averages": {name: module.state_dict() for name, module in self.averages.items()},
            "optimizers": {name: (index, o.state_dict()) for name, (index, o) in self.optimizers.items()},
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "sums": sums,
            "counted": self.summed_steps,
            "first": self.first_losses,
            "events": self.events,
            "accumulate": self.accumulate,
            "rates": self._rates(),
            "total": self.total,
        }
        self.writer.write(state)

    def resume(self) -> None:
        """Load the last checkpoint, where there is one."""
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.images, self.sums, self.summed_steps = state["images"], state["sums"], state["counted"]
        self.first_losses = state.get("first", {})
        if self.finds_accumulate:
            self._split(state.get("accumulate", 1))
        for name, module in self.task.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, module in self.averages.items():
            module.load_state_dict(state["averages"][name])
        for objective in self.task.objectives:
            if objective.name in state["optimizers"]:
                index, values = state["optimizers"][objective.name]
                self._prepare_optimizer(objective, index=index)
                self.optimizers[objective.name][1].load_state_dict(values)
                lay_out_states(self.optimizers[objective.name][1])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        changes = []
        if (before := state.get("rates", self._rates())) != self._rates():
            changes.append(f"with learning rates {self._rates()}, {before} before")
        if (total := state.get("total", self.total)) != self.total:
            changes.append(f"to {self.total:,} images, {total:,} before")
        if distributed.rank() == 0:
            self.log.keep(state["events"])
            if changes:
                message = f"continues after {self.images:,} images {' and '.join(changes)}"
                logger.info("%s: %s", self.task.name, message)
                self.log.write({"message": message})
        self.events = len(self.log) if distributed.rank() == 0 else state["events"]
        logger.info("%s: continuing after %s of %s images", self.task.name, f"{self.images:,}", f"{self.total:,}")

    def _rates(self) -> dict[str, list[float]]:
        """The learning rates of each objective's phases, which may change where a training is continued."""
        return {objective.name: [phase.lr for phase in objective.phases] for objective in self.task.objectives}

    def result(self) -> Trained:
        """What was trained; optimizers, their states and the gradients are released."""
        self.optimizers.clear()
        self.accelerator.free_memory()
        modules = dict(self.task.modules) | self.averages
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        lay_out_as_usual(modules.values())
        return Trained(modules={name: module.eval() for name, module in modules.items()}, images=self.images)


def _write_tensorboard(folder: Path, values: Mapping[str, float], *, images: int) -> None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("runtime.tensorboard needs the extra: pip install 'histoloom[tensorboard]'") from error
    with SummaryWriter(str(folder)) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, images)
