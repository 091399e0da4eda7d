"""Images a second of the three trainings and of sampling on this machine, against plain loops around diffusers.

Both sides, the networks and the data are those of ``gpu_day_speed.py``, where they are described. The two sides take
turns; the table has the median over the turns of both speeds and of their ratio. ``vqgan`` compares with diffusers'
network of the same factor, which sees pixels that are not folded; a preset that does not fold pixels (``paper``)
compares the same network.

    python benchmarks/training_speed.py [--preset cpu] [--turns 5] [--only unet sampling] [key=value ...]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import gpu_day_speed
import torch
from gpu_day import Day, Result, table_of

COMPARED: dict[str, Callable[..., Result]] = {
    "vqgan": gpu_day_speed.vqgan_reconstruction,
    "clusterer": gpu_day_speed.clusterer,
    "unet": gpu_day_speed.unet,
    "sampling": gpu_day_speed.sampling,
}


def median_row(results: list[Result], title: str) -> tuple[str, ...]:
    """What, images a second of both sides, and the ratio with the lowest and the highest of a turn."""
    ours, plain, ratios = (
        [result.values[f"{title}, {what}"] for result in results] for what in ("images/s", "plain images/s", "ratio")
    )
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return title, f"{statistics.median(ours):.4g}", f"{statistics.median(plain):.4g}", ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=COMPARED, default=list(COMPARED))
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="such as runtime.fast=on, which the plain loop does not have"
    )
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        settings = tuple(arguments.settings)
        day = Day(work, work, work, arguments.device, tiny=False, until=time.time() + 86400, settings=settings)
        results: dict[str, list[Result]] = {name: [] for name in arguments.only}
        for _ in range(arguments.turns):
            for name, some in results.items():
                with redirect_stdout(StringIO()):  # profiles
                    some.append(COMPARED[name](day, arguments.preset))
    rows = [median_row(some, row[0]) for some in results.values() for row in some[0].rows]
    columns = ("what", "images/s", "plain loop", f"ratio, median of {arguments.turns} (lowest to highest)")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("\n".join(table_of(Result(columns, tuple(rows)))))


if __name__ == "__main__":
    main()
