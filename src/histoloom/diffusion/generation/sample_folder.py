"""A folder of synthetic patches that ``datasets.load_dataset("imagefolder", data_dir=...)`` reads.

Images are PNG; ``metadata.csv`` describes each. A job that was stopped continues: finished images are kept. Several
processes (torchrun) each draw a share of the images, which depends on their number alone, so that none waits for or
repeats another's work. Never more than a batch is held in memory.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.diffusion.generation.source_images import EncodedPicture
from histoloom.diffusion.sampling import StepCallback
from histoloom.progress import meter
from histoloom.run.directory import replacing, write_bytes
from histoloom.training.distributed import rank, size, wait_for_all

logger = logging.getLogger("histoloom")

COLUMNS = (
    *("file_name", "sample_id", "k", "cluster", "tissue", "flag", "colour", "seed", "index"),
    *("sampler", "steps", "guidance"),
)
INIT_COLUMNS = ("source", "strength", "other", "fraction")
"""of images that start from pictures"""

WITHHELD = "withheld"
"""the folder, inside the job's, of images that a gate did not let through"""

Gate = Callable[[np.ndarray], bool]
"""Whether to withhold an image, uint8 (H, W, 3)."""


@dataclass(frozen=True)
class SampleJob:
    """Samples to draw, and the file that each becomes, relative to the folder.

    ``gate``: images that it withholds never come into the folder itself. ``sources``: the pictures that samples start
    from.
    """

    specs: Sequence[SampleSpec]
    file_of: Callable[[SampleSpec], str]
    sampler: SamplerConfig
    gate: Gate | None = None
    sources: Sequence[EncodedPicture] = ()


@dataclass(frozen=True)
class WrittenSample:
    """An image that was just written: its ``row`` of the table, and whether it was withheld."""

    row: Mapping[str, object]
    withheld: bool


@dataclass(frozen=True)
class JobCallbacks:
    """Called while a job is drawn. What ``on_step`` raises ends the job, with every finished image whole."""

    on_step: StepCallback | None = None
    on_written: Callable[[WrittenSample], None] = lambda _: None


def write_samples(generator: Generator, job: SampleJob, *, folder: Path, callbacks: JobCallbacks | None = None) -> int:
    """Draw the images that are not there yet, then write the table; returns the number of images of the job.

    Every process returns when all are done. The first one writes the table, last of all.
    """
    callbacks = callbacks or JobCallbacks()
    share = job.specs[rank() :: size()]
    missing = [spec for spec in share if not any(path.is_file() for path in _places(job, spec, folder=folder))]
    part = "" if size() == 1 else f" (share 1 of {size()})"
    with meter(f"drawing patches{part}", total=len(share), done=len(share) - len(missing)) as progress:
        for sample in generator.draw(missing, sampler=job.sampler, sources=job.sources, on_step=callbacks.on_step):
            public, withheld = _places(job, sample.spec, folder=folder)
            path = withheld if job.gate is not None and job.gate(sample.image) else public
            path.parent.mkdir(parents=True, exist_ok=True)
            png = io.BytesIO()
            Image.fromarray(sample.image).save(png, format="PNG")
            write_bytes(path, png.getvalue())
            row = {"file_name": job.file_of(sample.spec), **sample.record}
            callbacks.on_written(WrittenSample(row, path is withheld))
            progress.advance(1)
    wait_for_all()
    if rank() == 0:
        _write_tables(generator, job, folder=folder)
    wait_for_all()
    return len(job.specs)


def _places(job: SampleJob, spec: SampleSpec, *, folder: Path) -> tuple[Path, Path]:
    """The file of an image, and its file if it is withheld."""
    file = job.file_of(spec)
    return folder / file, folder / WITHHELD / file


def _write_tables(generator: Generator, job: SampleJob, *, folder: Path) -> None:
    """A table of the images, and one of those withheld where there are any."""
    labels = {k: generator.labels(k) for k in {spec.k for spec in job.specs}}
    withheld = [spec for spec in job.specs if _places(job, spec, folder=folder)[1].is_file()]
    if withheld:
        logger.warning(
            "%s of %s images look like copies of training patches and are withheld in %s",
            f"{len(withheld):,}",
            f"{len(job.specs):,}",
            folder / WITHHELD,
        )
    kept_back = set(withheld)
    public = [spec for spec in job.specs if spec not in kept_back]
    tables = [(folder, public), *([(folder / WITHHELD, withheld)] if withheld else [])]
    for place, specs in tables:
        records = (spec.record(label=labels[spec.k][spec.cluster], sampler=job.sampler) for spec in specs)
        rows = ({"file_name": job.file_of(spec), **record} for spec, record in zip(specs, records, strict=True))
        write_table(place / "metadata.csv", rows=rows, with_init=bool(job.sources))


def write_table(path: Path, *, rows: Iterable[Mapping[str, object]], with_init: bool) -> None:
    """Write ``metadata.csv``, atomically; ``with_init``: with the columns of images that start from pictures."""
    columns = COLUMNS + (INIT_COLUMNS if with_init else ())
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        # Jobs that an earlier version drew in part have columns of settings that were removed since.
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def cluster_file(spec: SampleSpec) -> str:
    """``k10/cluster-03/000000.png``."""
    return f"k{spec.k}/cluster-{spec.cluster:02d}/{spec.index:06d}.png"
