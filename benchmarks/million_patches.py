"""The stage ``clusters`` on a million patches: seconds and memory of each step, beside k-means on the same features.

The data are generated: slides of patches on a grid, tissue in regions, and for each patch a histogram of 512 codes from
a mixture with as many components as ``--tissues``. The stage runs as in a run (features, training with neighbours on
the slide from k-means on, prediction, indices on a sample, choice of k, confounding), with the preset cpu and features
``codes``. Afterwards scikit-learn's MiniBatchKMeans clusters the same file of features for the same k.

    OMP_NUM_THREADS=2 python benchmarks/million_patches.py [--patches 1000000] [--k 8 10 12 14]

Prints a line a step: seconds, seconds of processor time (of all threads), and the largest memory of the process. Pages
of memory-mapped files count apart: the system takes them back when it needs memory. About 9 KB of disk a patch are
needed in ``--folder``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import normalized_mutual_info_score

from histoloom.clustering import stage
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.bank import FEATURES
from histoloom.config import make_config, read_preset, with_settings
from histoloom.run.directory import write_json
from histoloom.run.stage import EventLog, StageContext

SIDE, CODES = 40, 512  # patches along a slide's side; features
CONTRAST = 0.25  # deviation of the tissues' logarithms of shares; that of a patch in its tissue is 1
PIXELS, PATCH_UM = 8, 128  # images only need to have colours
ROWS = 10_000  # that are generated at once
STEPS = ("make_bank", "_train", "slide_neighbours", "predict", "_validity", "_decide", "examine")
MEGABYTE = 1 << 20
BATCH = 4096  # of MiniBatchKMeans

P = ParamSpec("P")
R = TypeVar("R")


class Steps:
    """Times steps, which may lie inside each other, and the largest memory in each: own, and pages of mapped files."""

    def __init__(self) -> None:
        self.open: list[list[float]] = []  # the largest [own, mapped] MB so far of each step that runs
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("ascii").splitlines())
            own, shared, mapped = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssShmem", "RssFile"))
            for most in self.open:
                most[:] = max(most[0], own + shared), max(most[1], mapped)
            time.sleep(0.02)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print what the code inside took."""
        self.open.append([0.0, 0.0])
        start, processor = time.perf_counter(), time.process_time()
        yield
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        time.sleep(0.05)
        own, mapped = self.open.pop()
        times = f"{seconds:>8.1f} s{processor:>8.1f} s CPU"
        print(f"{'  ' * len(self.open) + name:<45}{times}{own:>8.0f} MB{mapped:>8.0f} MB mapped", flush=True)

    def wrapped(self, name: str, function: Callable[P, R]) -> Callable[P, R]:
        """The function, as a step."""

        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.step(name):
                return function(*args, **kwargs)

        return timed


def generate(folder: Path, *, patches: int, tissues: int) -> np.ndarray:
    """Write the stages ``patches`` and ``latents``; returns the tissue of each patch, (N,)."""
    rng = np.random.default_rng(0)
    (folder / "patches" / "images").mkdir(parents=True)
    (folder / "latents").mkdir()
    slides = -(-patches // SIDE**2)
    slide_N, place_N = np.divmod(np.arange(patches), SIDE**2)

    # Tissue in regions: the largest of several smooth random fields on each slide
    tissue_N = np.empty(patches, np.int64)
    for slide in range(slides):
        fields = np.stack([gaussian_filter(rng.standard_normal((SIDE, SIDE)), 3, mode="wrap") for _ in range(tissues)])
        first = slide * SIDE**2
        tissue_N[first : first + SIDE**2] = fields.argmax(0).ravel()[: patches - first]

    # A histogram of codes for each patch, and images in the tissue's colour
    logits_TC = CONTRAST * rng.standard_normal((tissues, CODES))
    colour_T3 = rng.uniform(80, 240, (tissues, 3))
    histograms = np.lib.format.open_memmap(
        folder / "latents" / "histograms.npy", mode="w+", dtype=np.float32, shape=(patches, CODES)
    )
    for start in range(0, patches, ROWS):
        tissue_n = tissue_N[start : start + ROWS]
        shares_nC = np.exp(logits_TC[tissue_n] + rng.standard_normal((len(tissue_n), CODES)))
        histograms[start : start + ROWS] = shares_nC / shares_nC.sum(1, keepdims=True)
    del histograms
    for slide in range(slides):
        tissue_n = tissue_N[slide * SIDE**2 : (slide + 1) * SIDE**2]
        noise = rng.normal(0, 25, (len(tissue_n), PIXELS, PIXELS, 3))
        images = (colour_T3[tissue_n][:, None, None] + noise).clip(0, 255).astype(np.uint8)
        np.save(folder / "patches" / "images" / f"s{slide:05d}.npy", images)

    table = pd.DataFrame(
        {
            "patch_id": [f"p{number:08d}" for number in range(patches)],
            "slide_id": [f"s{number:05d}" for number in slide_N],
            "split": np.where(slide_N % 10 == 9, "holdout", "train"),
        }
    )
    table.to_parquet(folder / "latents" / "index.parquet", index=False)
    np.save(folder / "latents" / "latents.npy", np.zeros((patches, 1, 1, 1), np.float16))
    write_json(folder / "latents" / "moments.json", {"mean": [0.0], "std": [1.0]})
    table = table.assign(slide=table["slide_id"], patient=[f"a{number // 2:05d}" for number in slide_N])
    table = table.assign(x=place_N % SIDE * PATCH_UM, y=place_N // SIDE * PATCH_UM, extent=PATCH_UM)
    table.to_parquet(folder / "patches" / "index.parquet", index=False)
    write_json(folder / "patches" / "meta.json", {"size": PIXELS, "mpp": 1.0, "n": patches})
    return tissue_N


def run_stage(folder: Path, *, ks: Sequence[int], steps: Steps) -> Clustering:
    """The stage, each of its steps timed."""
    settings = (
        f"clusters.k=[{', '.join(map(str, ks))}]",
        "clusters.features=codes",
        "clusters.surroundings=0",
        "clusters.positives=neighbours",
        "clusters.validity_features=same",
        "clusters.restarts=1",
        "runtime.device=cpu",
        f"runtime.threads={torch.get_num_threads()}",
    )
    config = make_config(with_settings(read_preset("cpu") | {"slides": {"paths": ["unused"]}}, settings))
    out = folder / "clusters"
    out.mkdir()
    for name in STEPS:
        setattr(stage, name, steps.wrapped(name.strip("_").replace("_", " "), getattr(stage, name)))
    inputs = {name: folder / name for name in ("patches", "latents")}
    with steps.step("the whole stage"):
        stage.run(StageContext(folder, config, out, inputs, EventLog(out / "log.jsonl")))
    return Clustering.open(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=1_000_000)
    parser.add_argument("--tissues", type=int, default=12)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 10, 12, 14])
    parser.add_argument("--folder", type=Path, help="where the data go, which are removed at the end")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    print(f"{arguments.patches:,} patches, {CODES} features, {torch.get_num_threads()} threads")
    steps = Steps()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        with steps.step("generating the data (no part of the stage)"):
            tissue_N = generate(folder, patches=arguments.patches, tissues=arguments.tissues)
        clustering = run_stage(folder, ks=arguments.k, steps=steps)
        x_ND = np.load(folder / "clusters" / FEATURES, mmap_mode="r")
        kmeans = {}
        with steps.step("MiniBatchKMeans, all k"):
            for k in arguments.k:
                kmeans[k] = MiniBatchKMeans(k, batch_size=BATCH, n_init=3, random_state=0).fit(x_ND).labels_
        print(f"the stage's files: {sum(x.stat().st_size for x in (folder / 'clusters').rglob('*')) // MEGABYTE:,} MB")
        for k in arguments.k:
            labels = {"Histoloom": clustering.labels(k).to_numpy(), "MiniBatchKMeans": kmeans[k]}
            agreed = {who: round(normalized_mutual_info_score(tissue_N, found_N), 3) for who, found_N in labels.items()}
            print(f"k = {k}{' (chosen)' if k == clustering.chosen else ''}: NMI with the true tissue {agreed}")


if __name__ == "__main__":
    main()
