"""Who draws the page's jobs: the run's generator, read when it is first needed and again when the run has another.

One thread at a time may draw. ``plan`` and ``picture`` read small files only and may be called from any.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from histoloom.atlas.jobs.generators import has_student
from histoloom.atlas.jobs.job_log import SUFFIX, JobLog
from histoloom.config import RuntimeConfig
from histoloom.diffusion.generation.generator import BATCH_SIZE, Generator
from histoloom.diffusion.generation.generator_spec import STUDENT, read_spec
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import check_request, draw_into, requested_sampler
from histoloom.diffusion.generation.sample_folder import JobCallbacks
from histoloom.diffusion.generation.source_images import Picture, patch_of, read_picture
from histoloom.diffusion.sampling import sampling_levels
from histoloom.errors import UserError
from histoloom.evaluation.originality.gate import Gate
from histoloom.names import clusters_of, current_names
from histoloom.run.directory import Run

DRAWN, SAMPLES = "drawn", "samples"
OF_TABLE = 1024
"""bytes a picture that its rows in tables take at most"""


@dataclass(frozen=True)
class Plan:
    """What a request comes to: ``total`` pictures, the request in words, and what they take on disk at most."""

    total: int
    title: str
    most_bytes: int


@dataclass(frozen=True)
class _Tools:
    """What is kept in memory, and what it was made from: fingerprints of stages, and settings."""

    made_from: tuple[object, ...]
    generator: Generator
    gate: Gate | None


class SampleRunner:
    """The generator of one run."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._tools: _Tools | None = None
        self._threads: int | None = None

    @property
    def batch(self) -> int:
        """Pictures that are drawn at once."""
        return BATCH_SIZE["cpu" if self._tools is None else self._tools.generator.device.type]

    def plan(self, request: Request) -> Plan:
        """Look a request over without the generator's weights; ``UserError`` where it cannot be drawn."""
        spec = read_spec(self._run)
        check_request(request)
        k = spec.chosen_k if request.k is None else request.k
        spec.conditions.offset(k)
        for tissue in request.tissues:
            clusters_of(current_names(self._run, k=k), tissue, k=k)
        if request.method != STUDENT:
            sampling_levels(requested_sampler(request, default=spec.sampler), config=spec.diffusion)
        elif not has_student(self._run):
            raise UserError("this run has no student that draws in a few steps; choose another method")
        pictures = [self.picture(name, size=spec.size) for name in request.init_images]
        total = request.n * max(1, len(request.tissues))
        most = total * (spec.size * spec.size * 3 + OF_TABLE)
        return Plan(total, _title(request, total=total, names=[picture.name for picture in pictures]), most)

    def draw(self, request: Request, *, out: Path, callbacks: JobCallbacks) -> None:
        """Draw a request into ``out``, as ``histoloom sample`` does. ``UserError``, and what ``callbacks`` raise."""
        tools = self._ready()
        size = tools.generator.spec.size
        pictures = {name: self.picture(name, size=size) for name in request.init_images}
        gate = tools.gate and tools.gate.besides(self._run, names=request.init_images)
        draw_into(tools.generator, request, out=out, gate=gate, pictures=pictures, callbacks=callbacks)

    def picture(self, name: str, *, size: int) -> Picture:
        """A patch by its id, ``samples/SAMPLE_ID``, or ``drawn/JOB_ID/NUMBER``; ``UserError`` where there is none.

        Names are looked up in the run's tables and never become paths.
        """
        kind, _, rest = name.partition("/")
        if kind == SAMPLES and rest:
            found = self._sample(rest, size=size)
        elif kind == DRAWN and rest:
            found = self._drawn(rest, size=size)
        else:
            found = patch_of(Run.open(self._run), patch_id=name)
        if found is None:
            raise UserError(f"this run has no picture {name[:200]!r}; it may have been deleted")
        return found

    def _sample(self, sample_id: str, *, size: int) -> Picture | None:
        table = self._run / SAMPLES / "metadata.csv"
        if not table.is_file():
            return None
        with table.open(encoding="utf-8", newline="") as file:
            row = next((row for row in csv.DictReader(file) if row["sample_id"] == sample_id), None)
        return None if row is None else _known(table.parent / row["file_name"], row, home=self._run, size=size)

    def _drawn(self, name: str, *, size: int) -> Picture | None:
        job_id, _, number = name.partition("/")
        files = {file.stem: file for file in (self._run / DRAWN).glob(f"*{SUFFIX}")}
        job = JobLog.read(files[job_id]) if job_id in files else None
        made = next((made for made in job.shown if str(made.number) == number), None) if job else None
        if job is None or made is None:
            return None
        return _known(job.folder / made.place, made.row, home=self._run, size=size)

    def _ready(self) -> _Tools:
        """Generator and gate, read anew where the run has changed since."""
        run = Run.open(self._run)
        stages = ("autoencoder", "diffusion", "patches", "evaluation")
        artifacts = [run.artifact(stage) for stage in stages]
        settings = run.config.samples.sampler, run.config.runtime, run.config.evaluation.originality
        made_from = (*(artifact and artifact.fingerprint for artifact in artifacts), *settings)
        if self._tools is None or self._tools.made_from != made_from:
            self._tools = None  # the old one leaves before the new one comes: never two in memory
            generator = Generator.load(self._run, runtime=self._runtime(run.config.runtime))
            self._tools = _Tools(made_from, generator, Gate.of_home(self._run))
        return self._tools

    def _runtime(self, runtime: RuntimeConfig) -> RuntimeConfig:
        """The run's own words, or all cores but one, which is the page's."""
        if self._threads is None:
            self._threads = max(1, torch.get_num_threads() - 1)
        return runtime if runtime.threads is not None else runtime.model_copy(update={"threads": self._threads})


def _known(path: Path, row: Mapping[str, Any], *, home: Path, size: int) -> Picture:
    """A picture whose table says its cluster; ``UserError`` where its file is gone."""
    read = read_picture(path, size=size)
    return Picture(path.relative_to(home).as_posix(), read.image_HW3, {int(row["k"]): int(row["cluster"])})


def _title(request: Request, *, total: int, names: list[str]) -> str:
    """A request in words."""
    if request.between is not None:
        return f"{total} between {names[0]} and {names[1]}"
    what = ", ".join(request.tissues) or ("its own tissue" if names else "all tissues")
    return f"{total} like {names[0]}, {what}" if names else f"{total} of {what}"
