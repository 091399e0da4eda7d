"""The sample runner of the jobs: the generator of a run or an export, loaded when it is needed and when it changes.

One thread at a time may draw. ``plan`` and ``picture`` read small files only and may be called from any thread.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from histoloom.atlas.jobs.field_job import (
    Preview,
    PreviewRequest,
    draw_examples,
    paint_job,
    paint_preview,
    size_on_disk,
)
from histoloom.atlas.jobs.job_log import SUFFIX, FieldSpec, JobLog
from histoloom.atlas.jobs.own_pictures import OWN, OwnPictures
from histoloom.config import RuntimeConfig, SamplerConfig
from histoloom.diffusion.generation.generator import BATCH_SIZE, Generator
from histoloom.diffusion.generation.generator_spec import STUDENT, GeneratorSpec, StudentRecord, read_spec
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import check_request, draw_into, requested_sampler
from histoloom.diffusion.generation.sample_folder import JobCallbacks
from histoloom.diffusion.generation.source_images import Picture, patch_of, read_picture
from histoloom.diffusion.painting.job import OnProgress
from histoloom.diffusion.sampling import sampling_levels
from histoloom.errors import UserError
from histoloom.evaluation.originality.gate import Gate
from histoloom.names import clusters_of_tissue
from histoloom.run.directory import Run

DRAWN, SAMPLES = "drawn", "samples"
TABLE_BYTES = 1024
"""bytes a picture that its rows in tables take at most"""


@dataclass(frozen=True)
class JobPlan:
    """A checked request: ``total`` pictures, the request in words, their size on disk at most, and the sampler."""

    total: int
    title: str
    max_bytes: int
    sampler: SamplerConfig
    evaluations: int


@dataclass(frozen=True)
class _Loaded:
    """What is kept in memory, and what it was made from: fingerprints of stages, and settings."""

    made_from: tuple[object, ...]
    generator: Generator
    gate: Gate | None


class SampleRunner:
    """The generator of one run or export; ``drawn``: the folder of the jobs' pictures."""

    def __init__(self, run: Path, *, drawn: Path | None = None) -> None:
        self._run = run
        self._drawn = drawn or run / DRAWN
        self._loaded: _Loaded | None = None
        self._threads: int | None = None

    @property
    def batch(self) -> int:
        """Pictures that are drawn at once."""
        return BATCH_SIZE["cpu" if self._loaded is None else self._loaded.generator.device.type]

    def plan(self, request: Request) -> JobPlan:
        """Check a request without the generator's weights; ``UserError`` where it cannot be drawn."""
        spec, k, sampler = self._checked(request)
        pictures = [self.picture(name, size=spec.size) for name in request.init_images]
        unknown = [picture.name for picture in pictures if k not in picture.clusters]
        if unknown and not request.tissues and not (self._run / "config.yaml").is_file():
            what = "choose a tissue" if request.between is None else "add it again at this k, with what it shows"
            raise UserError(f"the tissue of {unknown[0]} is not known at k = {k} without the run; {what}")
        sources = [picture.name for picture in pictures]
        total = request.n * max(1, len(request.tissues))

        tissues = ", ".join(request.tissues) or ("its own tissue" if sources else "all tissues")
        if request.between is not None:
            title = f"{total} between {sources[0]} and {sources[1]}"
        else:
            title = f"{total} similar to {sources[0]}, {tissues}" if sources else f"{total} of {tissues}"
        max_bytes = total * (spec.size * spec.size * 3 + TABLE_BYTES)
        return JobPlan(total, title, max_bytes, sampler, sampler.steps)

    def plan_field(self, request: Request, field: FieldSpec) -> JobPlan:
        """The same of a field; its tissues are named."""
        spec, _, sampler = self._checked(request)
        width, height = field.size
        evaluations = (
            sampler.steps if sampler.method == STUDENT else len(sampling_levels(sampler, config=spec.diffusion))
        )
        title = f"{width:,} x {height:,} px of {', '.join(request.tissues)}"
        max_bytes = size_on_disk(field.size, spec=spec, evaluations=evaluations)
        return JobPlan(1, title, max_bytes, sampler, evaluations)

    def _checked(self, request: Request) -> tuple[GeneratorSpec, int, SamplerConfig]:
        """The generator's specification, the k and the sampler of a request; ``UserError``."""
        spec = read_spec(self._run)
        check_request(request)
        k = spec.chosen_k if request.k is None else request.k
        spec.conditions.offset(k)
        names = {number: label.name for number, label in spec.labels(self._run, k=k).items()}
        for tissue in request.tissues:
            clusters_of_tissue(names, tissue, k=k)
        if request.method != STUDENT:
            sampler = requested_sampler(request, default=spec.sampler)
            sampling_levels(sampler, config=spec.diffusion)
            return spec, k, sampler
        student = StudentRecord.load(self._run / STUDENT)
        if student is None:
            raise UserError("this run has no student that draws in a few steps; choose another method")
        return spec, k, SamplerConfig(method="student", steps=student.steps, guidance=student.guidance)

    def paint(self, request: Request, *, field: FieldSpec, folder: Path, on_progress: OnProgress) -> None:
        """Paint the layout in ``folder``, as ``histoloom paint`` does. As ``draw``."""
        paint_job(self._load().generator, request, field=field, folder=folder, on_progress=on_progress)

    def preview(self, request: PreviewRequest, *, on_progress: OnProgress) -> Preview:
        """Paint a small field; as ``draw``."""
        return paint_preview(self._load().generator, request, on_progress=on_progress)

    def examples(self, tissues: Sequence[str], *, k: int, on_progress: OnProgress) -> dict[str, np.ndarray]:
        """A picture of each tissue, quickly; as ``draw``."""
        return draw_examples(self._load().generator, tissues, k=k, on_progress=on_progress)

    def draw(self, request: Request, *, out: Path, callbacks: JobCallbacks) -> None:
        """Draw a request into ``out``, as ``histoloom sample`` does. ``UserError``, and what ``callbacks`` raise."""
        loaded = self._load()
        size = loaded.generator.spec.size
        pictures = {name: self.picture(name, size=size) for name in request.init_images}
        gate = loaded.gate and loaded.gate.with_patches(self._run, names=request.init_images)
        draw_into(loaded.generator, request, out=out, gate=gate, pictures=pictures, callbacks=callbacks)

    def picture(self, name: str, *, size: int) -> Picture:
        """A patch by its id, ``samples/SAMPLE_ID``, ``drawn/JOB_ID/NUMBER`` or ``own/ID``.

        ``UserError`` where there is none.

        Names are looked up in the run's tables and never become paths.
        """
        kind, _, rest = name.partition("/")
        if kind == SAMPLES and rest:
            picture = self._sample(rest, size=size)
        elif kind == DRAWN and rest:
            picture = self._of_job(rest, size=size)
        elif kind == OWN and rest:
            picture = self._own(rest, size=size)
        elif (self._run / "config.yaml").is_file():
            picture = patch_of(Run.open(self._run), patch_id=name)
        else:
            picture = None
        if picture is None:
            raise UserError(f"this run has no picture {name[:200]!r}; it may have been deleted")
        return picture

    def _sample(self, sample_id: str, *, size: int) -> Picture | None:
        table = self._run / SAMPLES / "metadata.csv"
        if not table.is_file():
            return None
        with table.open(encoding="utf-8", newline="") as file:
            row = next((row for row in csv.DictReader(file) if row["sample_id"] == sample_id), None)
        if row is None:
            return None
        return self._read(table.parent / row["file_name"], row, name=f"{SAMPLES}/{row['file_name']}", size=size)

    def _own(self, picture_id: str, *, size: int) -> Picture | None:
        try:
            own, file = OwnPictures(self._drawn).find(picture_id)
        except KeyError:
            return None
        picture = Picture.of(read_picture(file, size=size).image_HW3, name=own.title)
        return picture if own.k is None or own.cluster is None else replace(picture, clusters={own.k: own.cluster})

    def _of_job(self, name: str, *, size: int) -> Picture | None:
        job_id, _, number = name.partition("/")
        files = {file.stem: file for file in self._drawn.glob(f"*{SUFFIX}")}
        job = JobLog.read(files[job_id]) if job_id in files else None
        if job is None:
            return None
        drawn = next((picture for picture in job.visible if str(picture.number) == number), None)
        if drawn is None:
            return None
        return self._read(job.folder / drawn.path, drawn.row, name=f"{DRAWN}/{job_id}/{drawn.path}", size=size)

    @staticmethod
    def _read(path: Path, row: Mapping[str, object], *, name: str, size: int) -> Picture:
        """A picture with the cluster in its row of ``metadata.csv``; ``UserError`` where its file is gone."""
        image_HW3 = read_picture(path, size=size).image_HW3
        return Picture(name, image_HW3, {int(str(row["k"])): int(str(row["cluster"]))})

    def _load(self) -> _Loaded:
        """Generator and gate, loaded again where the run has changed since. An export does not change, has no gate."""
        if not (self._run / "config.yaml").is_file():
            if self._loaded is None:
                threads = max(1, torch.get_num_threads() - 1)  # one core stays free for the page
                generator = Generator.load(self._run, runtime=RuntimeConfig(threads=threads))
                self._loaded = _Loaded((), generator, gate=None)
            return self._loaded
        run = Run.open(self._run)
        runtime = run.config.runtime
        artifacts = [run.artifact(stage) for stage in ("autoencoder", "diffusion", "patches", "evaluation")]
        settings = run.config.samples.sampler, runtime, run.config.evaluation.originality
        made_from = (*(artifact and artifact.fingerprint for artifact in artifacts), *settings)
        if self._loaded is None or self._loaded.made_from != made_from:
            self._loaded = None  # freed before the new one is loaded: never two in memory
            if self._threads is None:
                self._threads = max(1, torch.get_num_threads() - 1)
            if runtime.threads is None:  # one core stays free for the page
                runtime = runtime.model_copy(update={"threads": self._threads})
            self._loaded = _Loaded(made_from, Generator.load(self._run, runtime=runtime), Gate.of_home(self._run))
        return self._loaded
