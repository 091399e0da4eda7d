"""A folder of synthetic patches that ``datasets.load_dataset("imagefolder", data_dir=...)`` reads.

Images are PNG; ``metadata.csv`` describes each. A job that was stopped continues: finished images are kept. Several
processes (torchrun) each draw a share of the images, which depends on their number alone, so that none waits for or
repeats another's work. Threads write the images while the next batch is drawn; never more than ``WAITING`` images wait
for them. Before the table is written all images are flushed to the disk: until then a power cut may leave a file torn,
and whoever continues the job draws it again.
"""

from __future__ import annotations

import csv
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from histoloom.run.directory import flush_to_disk, replacing
from histoloom.run.own_output import png_text
from histoloom.training.distributed import rank, size, wait_for_all

logger = logging.getLogger("histoloom")

COLUMNS = (
    *("file_name", "sample_id", "k", "cluster", "tissue", "flag", "colour", "seed", "index"),
    *("sampler", "steps", "guidance"),
)
INIT_COLUMNS = ("source", "strength", "other", "fraction")
"""of images that start from pictures"""

WRITERS = 4
"""threads that compress and write images"""
WAITING = 256
"""images that may wait for them"""

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
    part = "" if size() == 1 else f" (share 1 of {size()})"
    with ThreadPoolExecutor(WRITERS) as pool:

        def is_drawn(spec: SampleSpec) -> bool:
            return any(_is_whole(path) for path in _places(job, spec, folder=folder))

        missing = [spec for spec, drawn in zip(share, pool.map(is_drawn, share), strict=True) if not drawn]
        with meter(f"drawing patches{part}", total=len(share), done=len(share) - len(missing)) as progress:
            waiting: deque[tuple[Future[None], WrittenSample]] = deque()

            def report(*, most: int) -> None:
                """Report what is written, in its order; wait until no more than ``most`` images are not."""
                while waiting and (len(waiting) > most or waiting[0][0].done()):
                    future, written = waiting.popleft()
                    future.result()
                    callbacks.on_written(written)
                    progress.advance(1)

            def on_step(done: int, total: int) -> None:
                report(most=0 if done else WAITING)  # the last batch's images are written by the second step
                if callbacks.on_step is not None:
                    callbacks.on_step(done, total)

            try:
                for sample in generator.draw(missing, sampler=job.sampler, sources=job.sources, on_step=on_step):
                    public, withheld = _places(job, sample.spec, folder=folder)
                    path = withheld if job.gate is not None and job.gate(sample.image) else public
                    row = {"file_name": job.file_of(sample.spec), **sample.record}
                    written = WrittenSample(row, path is withheld)
                    waiting.append((pool.submit(_write_png, path, sample.image), written))
                    report(most=WAITING)
            finally:
                report(most=0)

        def flush(spec: SampleSpec) -> None:
            flush_to_disk(next(path for path in _places(job, spec, folder=folder) if path.is_file()))

        list(pool.map(flush, share))  # most are on the disk by now, so that this is quick
    wait_for_all()
    if rank() == 0:
        _write_tables(generator, job, folder=folder)
    wait_for_all()
    return len(job.specs)


def _places(job: SampleJob, spec: SampleSpec, *, folder: Path) -> tuple[Path, Path]:
    """The file of an image, and its file if it is withheld."""
    file = job.file_of(spec)
    return folder / file, folder / WITHHELD / file


def _is_whole(path: Path) -> bool:
    """Whether a file is there, with every checksum right."""
    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError):
        return False
    return True


def _write_png(path: Path, image_HW3: np.ndarray) -> None:
    """The file appears whole; ``write_samples`` flushes it later."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, flush=False) as temporary:
        Image.fromarray(image_HW3).save(temporary, format="PNG", pnginfo=png_text())


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
