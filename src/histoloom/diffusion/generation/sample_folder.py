"""A folder of synthetic patches that ``datasets.load_dataset("imagefolder", data_dir=...)`` reads.

Images are PNG; ``metadata.csv`` says of each what it is. A job that was stopped continues: what is there is kept.
Several processes (torchrun) each draw a share of the images, which depends on their number alone, so that none waits
for or repeats another's work; never more than a batch is held in memory.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator import Drawn, Generator, SampleSpec, record
from histoloom.diffusion.generation.source_images import Source
from histoloom.diffusion.samplers.guided import Callback
from histoloom.progress import meter
from histoloom.run.directory import replacing, write_bytes
from histoloom.training.distributed import rank, size, wait_for_all

logger = logging.getLogger("histoloom")

COLUMNS = (
    *("file_name", "sample_id", "k", "cluster", "tissue", "flag", "colour", "seed", "index"),
    *("sampler", "steps", "spacing", "guidance", "guidance_interval"),
)
ORIGIN_COLUMNS = ("source", "strength", "other", "fraction")
"""of images that begin from pictures"""

WITHHELD = "withheld"
"""the folder, inside the job's, of images that a gate did not let through"""

Gate = Callable[[np.ndarray], bool]
"""Says of an image, uint8 (H, W, 3), whether to withhold it."""


@dataclass(frozen=True)
class Job:
    """Orders with the file each becomes, relative to the folder; what ``gate`` withholds never comes there.

    ``sources``: the pictures that orders begin from.
    """

    orders: Sequence[SampleSpec]
    file_of: Callable[[SampleSpec], str]
    sampler: SamplerConfig
    gate: Gate | None = None
    sources: Sequence[Source] = ()


@dataclass(frozen=True)
class Written:
    """An image that has just come to the disk: its ``row`` of the table, and whether it was withheld."""

    row: Mapping[str, object]
    withheld: bool


@dataclass(frozen=True)
class Follow:
    """Who wants to know how a job goes. What ``step`` raises ends it, with every image whole."""

    step: Callback | None = None
    written: Callable[[Written], None] = lambda _: None


def write_samples(generator: Generator, job: Job, *, folder: Path, follow: Follow | None = None) -> int:
    """Draw what is not there yet, write it and then the table; returns the number of images of the job.

    Every process returns when all are done. The first one writes the table, last of all.
    """
    follow = follow or Follow()
    share = job.orders[rank() :: size()]
    missing = [order for order in share if not any(path.is_file() for path in _places(job, order, folder=folder))]
    whose = "" if size() == 1 else f" (share 1 of {size()})"
    with meter(f"drawing patches{whose}", total=len(share), done=len(share) - len(missing)) as progress:
        for drawn in generator.draw(missing, sampler=job.sampler, sources=job.sources, watch=follow.step):
            public, withheld = _places(job, drawn.order, folder=folder)
            path = withheld if job.gate is not None and job.gate(drawn.image) else public
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, as_png(drawn))
            follow.written(Written({"file_name": job.file_of(drawn.order), **drawn.record}, path is withheld))
            progress.advance(1)
    wait_for_all()
    if rank() == 0:
        _write_tables(generator, job, folder=folder)
    wait_for_all()
    return len(job.orders)


def _places(job: Job, order: SampleSpec, *, folder: Path) -> tuple[Path, Path]:
    """Where an image is put, and where if it is withheld."""
    file = job.file_of(order)
    return folder / file, folder / WITHHELD / file


def as_png(drawn: Drawn) -> bytes:
    """The image as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(drawn.image).save(buffer, format="PNG")
    return buffer.getvalue()


def cluster_file(order: SampleSpec) -> str:
    """``k10/cluster-03/000000.png``."""
    return f"k{order.k}/cluster-{order.cluster:02d}/{order.index:06d}.png"


def _write_tables(generator: Generator, job: Job, *, folder: Path) -> None:
    """A table of the images, and one of those withheld where there are any."""
    withheld = [order for order in job.orders if _places(job, order, folder=folder)[1].is_file()]
    if withheld:
        _write_table(generator, replace(job, orders=withheld), path=folder / WITHHELD / "metadata.csv")
        said = (
            "image looks like a copy of a training patch and is"
            if len(withheld) == 1
            else ("images look like copies of training patches and are")
        )
        logger.warning("%s of %s %s in %s", f"{len(withheld):,}", f"{len(job.orders):,}", said, folder / WITHHELD)
    kept = set(withheld)
    public = [order for order in job.orders if order not in kept]
    _write_table(generator, replace(job, orders=public), path=folder / "metadata.csv")


def _write_table(generator: Generator, job: Job, *, path: Path) -> None:
    write_table(path, rows=_rows(generator, job), begun=bool(job.sources))


def write_table(path: Path, *, rows: Iterable[Mapping[str, object]], begun: bool) -> None:
    """``metadata.csv`` of ``rows``, in one step; with more columns where images were ``begun`` from pictures."""
    columns = COLUMNS + (ORIGIN_COLUMNS if begun else ())
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _rows(generator: Generator, job: Job) -> Iterator[dict[str, object]]:
    labels = {k: generator.labels(k) for k in {order.k for order in job.orders}}
    for order in job.orders:
        label = labels[order.k][order.cluster]
        yield {"file_name": job.file_of(order), **record(order, label=label, sampler=job.sampler)}
