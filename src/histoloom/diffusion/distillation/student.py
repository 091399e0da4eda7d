"""``histoloom distil``: a student of the run's generator that draws in a few steps, kept in ``RUN/student``.

It is beside the pipeline: no stage waits for it, and ``histoloom sample --method student`` draws with it. A student of
weights that were since replaced is refused. Distilling again with other settings sets the earlier student aside, as
with stages.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.config import Phase, TrainingConfig
from histoloom.diffusion.distillation.loss import DistillationLoss
from histoloom.diffusion.generation.generator import STUDENT, GeneratorSpec, weights_digest
from histoloom.diffusion.model.unet import open_unet, save_unet
from histoloom.diffusion.stage import labels_of
from histoloom.errors import UserError
from histoloom.run.directory import Artifact, Run, disk_errors_explained, fingerprint, read_json, write_json
from histoloom.run.stage import EventLog
from histoloom.training.loop import Objective, Task, train

logger = logging.getLogger("histoloom")
FORMAT = 1


@dataclass(frozen=True)
class DistillConfig:
    """``steps``: network evaluations of the student; ``images`` seen; ``lr``; ``guidance`` that it learns, None: the
    run's."""

    steps: int = 4
    images: int = 20_000
    lr: float = 1e-4
    guidance: float | None = None


def distil(run: Run, lesson: DistillConfig) -> Path:
    """Train the student, continuing where a killed call stopped; returns its folder.

    Raises ``UserError`` where the run has no generator yet, for numbers that make no sense, and while another process
    works on the run.
    """
    if not 1 <= lesson.steps <= 8:
        raise UserError(f"a student has 1 to 8 steps, got {lesson.steps}; more are the other samplers' business")
    folder = run.require("diffusion")
    facts = GeneratorSpec.from_json(read_json(folder / "generator.json"))
    guidance = run.config.samples.sampler.guidance if lesson.guidance is None else lesson.guidance
    said = {"steps": lesson.steps, "guidance": guidance, "teacher": weights_digest(folder)}
    training = _training(run, lesson)
    wanted = fingerprint({"format": FORMAT, "seed": run.config.seed, "training": training.model_dump(), **said})
    with disk_errors_explained(run.path), run.locked():
        if run.state(STUDENT, wanted=wanted) == "done" or run.restore(STUDENT, wanted=wanted):
            return run.folder(STUDENT)
        out, start = run.begin(STUDENT, wanted=wanted), time.monotonic()
        _train(run, facts, said, training=training, out=out)
        write_json(out / "student.json", said | {"images": lesson.images})
        seconds = run.spent(STUDENT, seconds=time.monotonic() - start)
        config = {"training": training.model_dump(mode="json"), **said}
        run.publish(STUDENT, Artifact(STUDENT, FORMAT, wanted, config, {}, round(seconds, 1), 0.0))
    return run.folder(STUDENT)


def _training(run: Run, lesson: DistillConfig) -> TrainingConfig:
    """That of the teacher, shorter and gentler."""
    theirs = run.config.diffusion.training
    try:
        phase = Phase(optimizer="adamw", lr=lesson.lr, images=lesson.images)
    except ValidationError as error:
        raise UserError(f"distil: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}") from error
    return TrainingConfig(
        batch_size=theirs.batch_size,
        phases=(phase,),
        lr_decay="cosine",
        warmup_images=min(theirs.warmup_images, lesson.images // 20),
        grad_clip=1.0,
        ema=theirs.ema,
        ema_width=theirs.ema_width,
    )


def _train(run: Run, facts: GeneratorSpec, said: dict[str, Any], *, training: TrainingConfig, out: Path) -> None:
    folder = run.require("diffusion")
    latents = LatentSet.open(run.require("latents"))
    rows = latents.rows(split="train")
    labels_NS = labels_of(latents.table, Clustering.open(run.require("clusters")))[rows]
    numbers_NS = torch.from_numpy(facts.conditions.numbers(labels_NS))
    student, teacher = open_unet(folder), open_unet(folder)
    loss = DistillationLoss(
        facts.config,
        student=student,
        teacher=teacher,
        conditions=facts.conditions,
        segments=said["steps"],
        guidance=said["guidance"],
    )
    task = Task(
        name=STUDENT,
        modules={"unet": student},
        objectives=(Objective("unet", ("unet",), loss, training.phases),),
        n=len(rows),
        batch=lambda places: (facts.space.encode(latents.raw(rows[places])), numbers_NS[places]),
        ema=("unet",) if training.averages else (),
        compiled=(student, teacher),
    )
    log = EventLog(out / "log.jsonl")
    trained = train(task, config=training, runtime=run.config.runtime, seed=run.config.seed, out=out, log=log)
    save_unet(trained.modules["unet"], out / "unet")
