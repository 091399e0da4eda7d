"""How long the five exact validity indices take, beside a direct evaluation with all pair distances in memory.

Points of a mixture of 14 Gaussians in 64 dimensions. The direct way (SciPy's distances, NumPy's partition) is run up to
``--direct`` points: its memory grows with the square of their number. Each row runs in a process of its own, for its
peak memory.

    python benchmarks/validity.py [--points 2000 10000 100000] [--direct 10000]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import pdist

from histoloom.clustering.validity.indices import validity_indices
from histoloom.progress import meter
from histoloom.seeding import numpy_generator

K, D = 14, 64


def mixture(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_generator(0, "benchmark", "validity")
    centres, labels = 1.5 * rng.standard_normal((K, D)), rng.integers(0, K, n)
    return centres[labels] + rng.standard_normal((n, D)), labels


def direct(x: np.ndarray, labels: np.ndarray) -> float:
    """The C index with every distance held; the other indices come on the way."""
    distances = pdist(x)
    first, second = np.triu_indices(len(x), 1)
    within = distances[labels[first] == labels[second]]
    count = len(within)
    distances.partition((count, len(distances) - count))
    smallest, largest = distances[:count].sum(), distances[-count:].sum()
    return float((within.sum() - smallest) / (largest - smallest))


def measured(way: str, n: int) -> dict[str, object]:
    x, labels = mixture(n)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    if way == "direct":
        value = direct(x, labels)
    else:
        points = torch.from_numpy(x), torch.from_numpy(labels)
        value = validity_indices(*points, progress=lambda text, total: meter(text, total=total)).c_index
    seconds = time.perf_counter() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"way": way, "points": n, "seconds": seconds, "more memory, MB": grown / 1024, "C index": value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[2000, 10_000, 100_000])
    parser.add_argument("--direct", type=int, default=10_000)
    parser.add_argument("--row", nargs=2, metavar=("WAY", "N"), help="one row, as JSON")
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(measured(arguments.row[0], int(arguments.row[1]))))
        return
    rows = []
    for n in arguments.points:
        for way in ("blocks", "direct") if n <= arguments.direct else ("blocks",):
            command = [sys.executable, __file__, "--row", way, str(n)]
            rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
    table = pd.DataFrame(rows)
    ours = table[table["way"] == "blocks"].set_index("points")["seconds"]
    table["time / blocks'"] = table["seconds"] / table["points"].map(ours)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
