"""``histoloom distil``: a student of the run's generator that draws in a few steps, kept in ``RUN/student``.

Multistep consistency distillation (Heek et al. 2024, algorithm 1) with a guided teacher. The way from noise to data is
cut into as many segments as the student has steps, and each segment into fine steps. From any level in a segment the
student predicts the data that lead, by one DDIM step, to the point of the segment's end where the teacher's fine DDIM
steps would arrive. The target for that point takes one fine step with the teacher and evaluates the student from there.
The teacher predicts under classifier-free guidance, so that the student learns the guidance as well: it needs one
evaluation a step where the guided teacher needs two.

Distillation is no stage of the pipeline: ``histoloom sample --method student`` draws with the student. A student of
weights that were since replaced is refused. Distilling again with other settings moves the earlier student to
``superseded``, as with stages. Shapes: B images, L levels with the clean one, M = L - 1 of them noisy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.config import DiffusionConfig, Phase, TrainingConfig
from histoloom.diffusion.corrections import TrainedCorrections
from histoloom.diffusion.generation.generator_spec import STUDENT, GeneratorSpec, StudentRecord, weights_digest
from histoloom.diffusion.model.condition_maps import drawn_conditions
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.process import alphas_cumprod, predicted_data
from histoloom.diffusion.model.unet import open_diffusers_unet, save_unet
from histoloom.diffusion.samplers import ddim_factors, noise_levels
from histoloom.diffusion.stage import place_numbers, sweep_labels
from histoloom.errors import UserError
from histoloom.run.directory import Artifact, Run, disk_errors_explained, fingerprint
from histoloom.run.row_file import RowFile
from histoloom.run.stage import EventLog
from histoloom.training.loop import Objective, StepContext, Task, train

FORMAT = 1
FINE_STEPS = 64
"""fine steps of all segments together"""
MOST_STEPS = 8


@dataclass(frozen=True)
class DistillConfig:
    """How a student is distilled.

    ``steps``: evaluations of its network in a sampling; ``images``: length of the training, in images seen; ``lr``:
    learning rate; ``guidance``: the strength that it is trained for, None: the run's.
    """

    steps: int = 4
    images: int = 20_000
    lr: float = 1e-4
    guidance: float | None = None


@dataclass(frozen=True)
class LevelGrid:
    """The levels from noise to data, with the DDIM factors between them (``ddim_factors``).

    ``next_M2``: to the next level; ``end_M2``: to the end of the segment; ``last_M``: whether the next one is the end.
    """

    step_L: Tensor
    signal_L: Tensor
    noise_L: Tensor
    next_M2: Tensor
    end_M2: Tensor
    last_M: Tensor

    @staticmethod
    def of(config: DiffusionConfig, *, segments: int) -> LevelGrid:
        """The levels of ``segments`` segments; their ends are the levels of a DDIM sampling of as many steps."""
        fine = min(FINE_STEPS, config.steps) // segments
        levels = noise_levels(alphas_cumprod(config), count=segments * fine)
        ends = [levels[(i // fine + 1) * fine] for i in range(segments * fine)]
        return LevelGrid(
            step_L=torch.tensor([level.step for level in levels]),
            signal_L=torch.tensor([level.signal for level in levels]),
            noise_L=torch.tensor([level.noise for level in levels]),
            next_M2=torch.tensor([ddim_factors(here, there) for here, there in pairwise(levels)]),
            end_M2=torch.tensor([ddim_factors(here, end) for here, end in zip(levels, ends, strict=False)]),
            last_M=torch.tensor([there is end for there, end in zip(levels[1:], ends, strict=True)]),
        )

    def to(self, device: torch.device) -> LevelGrid:
        """The same levels on ``device``."""
        return LevelGrid(**{name: values.to(device) for name, values in vars(self).items()})


class DistillationLoss:
    """Batches as for ``DiffusionLoss``: normalised latents (B, C, H, W), condition numbers at every k (B, S).

    A student of a teacher that takes maps of conditions learns from maps too; they come third (B, S, G, G).
    """

    def __init__(
        self,
        config: DiffusionConfig,
        *,
        student: nn.Module,
        teacher: nn.Module,
        conditions: Conditions,
        segments: int,
        guidance: float,
    ) -> None:
        self.config, self.conditions, self.guidance = config, conditions, guidance
        self.student = student
        self.teacher = teacher.eval().requires_grad_(False)
        self.grid = LevelGrid.of(config, segments=segments)

    def __call__(self, batch: tuple[Tensor, ...], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the student's data at a random level, weighted like an error of v (by 1 / noise^2)."""
        z_BCHW, numbers_BS, *maps = batch
        B, _, *size = z_BCHW.shape
        self.teacher.to(z_BCHW.device)
        self.grid = self.grid.to(z_BCHW.device)  # a copy at the first step alone
        conditions = drawn_conditions(numbers_BS, maps, context, size=(size[0], size[1]))
        level_B = context.randint(len(self.grid.next_M2), (B,))
        noise_BCHW = context.randn(tuple(z_BCHW.shape))
        x_BCHW = self._at(self.grid.signal_L, level_B, like=z_BCHW) * z_BCHW
        x_BCHW = x_BCHW + self._at(self.grid.noise_L, level_B, like=z_BCHW) * noise_BCHW

        target_BCHW = self._target(x_BCHW, level_B=level_B, conditions=conditions)
        data_BCHW = self._data(self.student, x_BCHW, level_B=level_B, conditions=conditions)
        error_B = (data_BCHW - target_BCHW).pow(2).mean(dim=(1, 2, 3))
        weight_B = self.grid.noise_L.to(error_B)[level_B].pow(-2)
        return (weight_B * error_B).mean(), {"mse": error_B.mean()}

    @torch.no_grad()
    def _target(self, x_BCHW: Tensor, *, level_B: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """The data that lead from x straight to where a fine step of the teacher, then the student, would arrive."""
        # One fine step with the guided teacher (Ho and Salimans 2022).
        data_BCHW = self._data(self.teacher, x_BCHW, level_B=level_B, conditions=conditions)
        if self.guidance != 1.0:
            null = conditions | {"class_labels": torch.full_like(conditions["class_labels"], self.conditions.null)}
            unconditional_BCHW = self._data(self.teacher, x_BCHW, level_B=level_B, conditions=null)
            data_BCHW = unconditional_BCHW + self.guidance * (data_BCHW - unconditional_BCHW)
        next_BCHW = self._ddim_step(x_BCHW, data_BCHW, factors_M2=self.grid.next_M2, level_B=level_B)

        # From there to the segment's end with the student. Where the fine step already ends the segment, the student's
        # output is not used; it is evaluated at a level that exists.
        there_B = (level_B + 1).clamp(max=len(self.grid.end_M2) - 1)
        student_BCHW = self._data(self.student, next_BCHW, level_B=there_B, conditions=conditions)
        beyond_BCHW = self._ddim_step(next_BCHW, student_BCHW, factors_M2=self.grid.end_M2, level_B=there_B)
        last_B111 = self.grid.last_M[level_B][:, None, None, None]
        end_BCHW = torch.where(last_B111, next_BCHW, beyond_BCHW)

        # The DDIM step from x to the segment's end, solved for the data.
        keep_B111, add_B111 = (self._at(self.grid.end_M2[:, i], level_B, like=x_BCHW) for i in (0, 1))
        return (end_BCHW - keep_B111 * x_BCHW) / add_B111

    def _data(self, network: nn.Module, x_BCHW: Tensor, *, level_B: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        """The data that a network predicts."""
        step_B = self.grid.step_L[level_B]
        output_BCHW = network(x_BCHW, step_B, **conditions).sample.float()
        signal, noise = (self._at(of, level_B, like=x_BCHW) for of in (self.grid.signal_L, self.grid.noise_L))
        return predicted_data(output_BCHW, x_NCHW=x_BCHW, signal=signal, noise=noise, prediction=self.config.prediction)

    def _ddim_step(self, x_BCHW: Tensor, data_BCHW: Tensor, *, factors_M2: Tensor, level_B: Tensor) -> Tensor:
        keep_B111, add_B111 = (self._at(factors_M2[:, i], level_B, like=x_BCHW) for i in (0, 1))
        return keep_B111 * x_BCHW + add_B111 * data_BCHW

    @staticmethod
    def _at(values: Tensor, level_B: Tensor, *, like: Tensor) -> Tensor:
        return values[level_B].to(like)[:, None, None, None]


def distil(run: Run, config: DistillConfig) -> Path:
    """Train the student, continuing where a killed call stopped; returns its folder.

    Raises ``UserError`` where the run has no generator yet, for numbers that make no sense, and while another process
    works on the run.
    """
    if not 1 <= config.steps <= MOST_STEPS:
        raise UserError(f"a student has 1 to {MOST_STEPS} steps, got {config.steps}; for more, use the other samplers")
    folder = run.require("diffusion")
    spec = GeneratorSpec.load(folder)
    record = StudentRecord(
        steps=config.steps,
        guidance=run.config.samples.sampler.guidance if config.guidance is None else config.guidance,
        teacher=weights_digest(folder),
        images=config.images,
        condition_maps=spec.diffusion.condition_maps,
    )

    # The training is that of the teacher, shorter and with a smaller learning rate.
    teachers = run.config.diffusion.training
    try:
        phase = Phase(optimizer="adamw", lr=config.lr, images=config.images)
    except ValidationError as error:
        raise UserError(f"distil: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from error
    training = TrainingConfig(
        batch_size=teachers.batch_size,
        phases=(phase,),
        lr_decay="cosine",
        warmup_images=min(teachers.warmup_images, config.images // 20),
        grad_clip=1.0,
        ema=teachers.ema,
    )

    decided = record.as_json()
    del decided["images"]
    # ema_width is a removed setting, which the fingerprints of existing students hold.
    values = training.model_dump(exclude={"betas"}) | {"ema_width": None}
    wanted = fingerprint({"format": FORMAT, "seed": run.config.seed, "training": values, **decided})
    with disk_errors_explained(run.path), run.locked():
        run.adopt(STUDENT, wanted=wanted)
        if run.state(STUDENT, wanted=wanted) == "done" or run.restore(STUDENT, wanted=wanted):
            return run.folder(STUDENT)
        out, start = run.begin(STUDENT, wanted=wanted), time.monotonic()
        try:
            _train_student(run, spec, record, training=training, out=out)
        except UserError:
            run.discard_if_empty(STUDENT)
            raise
        record.save(out)
        seconds = run.spent(STUDENT, seconds=time.monotonic() - start)
        settings = {"training": training.model_dump(mode="json"), **decided}
        run.publish(STUDENT, Artifact(STUDENT, FORMAT, wanted, settings, {}, round(seconds, 1), 0.0))
    return run.folder(STUDENT)


def _train_student(
    run: Run, spec: GeneratorSpec, record: StudentRecord, *, training: TrainingConfig, out: Path
) -> None:
    """Train from the teacher's weights; leaves ``unet/`` in ``out``."""
    folder = run.require("diffusion")
    latents = LatentSet.open(run.require("latents"))
    rows = latents.rows(split="train")
    clustering, corrections = Clustering.open(run.require("clusters")), TrainedCorrections.load(folder)
    labels_NS = sweep_labels(latents, clustering, corrections)[rows]
    numbers_NS = torch.from_numpy(spec.conditions.numbers(labels_NS))
    maps_NSGG: Tensor | None = None
    if record.condition_maps:
        from histoloom.clustering.dense_labels import FILE  # it can read slides, which other trainings do not need

        corrected_NS = labels_NS != sweep_labels(latents, clustering)[rows]
        places_NSGG = RowFile.open(folder / FILE)[:]
        maps_NSGG = place_numbers(places_NSGG, labels_NS=labels_NS, corrected_NS=corrected_NS, spec=spec)

    def batch(indices: np.ndarray) -> tuple[Tensor, ...]:
        z_BDhw = spec.space.encode(latents.raw(rows[indices]))
        maps = () if maps_NSGG is None else (maps_NSGG[indices].long(),)
        return z_BDhw, numbers_NS[indices], *maps

    student, teacher = open_diffusers_unet(folder), open_diffusers_unet(folder)
    loss = DistillationLoss(
        spec.diffusion,
        student=student,
        teacher=teacher,
        conditions=spec.conditions,
        segments=record.steps,
        guidance=record.guidance,
    )
    task = Task(
        name=STUDENT,
        modules={"unet": student},
        objectives=(Objective("unet", ("unet",), loss, training.phases),),
        n=len(rows),
        batch=batch,
        ema=("unet",) if training.averages else (),
        compiled=(student, teacher),
    )
    log = EventLog(out / "log.jsonl")
    trained = train(task, config=training, runtime=run.config.runtime, seed=run.config.seed, out=out, log=log)
    save_unet(trained.modules["unet"], out / "unet")
