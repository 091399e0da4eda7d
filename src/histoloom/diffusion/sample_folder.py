"""A folder of synthetic patches that ``datasets.load_dataset("imagefolder", data_dir=...)`` reads.

Images are PNG; ``metadata.csv`` says of each what it is. A job that was stopped continues: what is there is kept.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from histoloom.config import SamplerConfig
from histoloom.diffusion.generator import Drawn, Generator, Order
from histoloom.progress import meter
from histoloom.store import write_bytes, write_text

COLUMNS = ("file_name", "sample_id", "k", "cluster", "tissue", "seed", "index", "sampler", "steps", "guidance")


@dataclass(frozen=True)
class Job:
    """Orders with the file each becomes, relative to the folder."""

    orders: Sequence[Order]
    file_of: Callable[[Order], str]
    sampler: SamplerConfig


def write_samples(generator: Generator, job: Job, *, folder: Path) -> pd.DataFrame:
    """Draw what is not there yet, write it and the table; returns the table."""
    missing = [order for order in job.orders if not (folder / job.file_of(order)).is_file()]
    with meter("drawing patches", total=len(job.orders), done=len(job.orders) - len(missing)) as progress:
        for drawn in generator.draw(missing, sampler=job.sampler):
            path = folder / job.file_of(drawn.order)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, as_png(drawn))
            progress.advance(1)
    table = _table(generator, job)
    write_text(folder / "metadata.csv", table.to_csv(index=False, lineterminator="\n"))
    return table


def as_png(drawn: Drawn) -> bytes:
    """The image as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(drawn.image).save(buffer, format="PNG")
    return buffer.getvalue()


def cluster_file(order: Order) -> str:
    """``k10/cluster-03/000000.png``."""
    return f"k{order.k}/cluster-{order.cluster:02d}/{order.index:06d}.png"


def _table(generator: Generator, job: Job) -> pd.DataFrame:
    names = {k: generator.names(k) for k in {order.k for order in job.orders}}
    sampler = job.sampler
    rows = [
        (
            job.file_of(order),
            f"s{order.seed}-k{order.k}-c{order.cluster:02d}-{order.index:06d}",
            order.k,
            order.cluster,
            names[order.k][order.cluster],
            order.seed,
            order.index,
            sampler.method,
            sampler.steps,
            sampler.guidance,
        )
        for order in job.orders
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
