"""How quick the atlas is on a run of many patches, and how much memory it takes.

python benchmarks/atlas_speed.py --out FOLDER [--patches 100000] [--browser CHROMIUM]

The run is synthetic; its pictures are cut from a procedural slide. Every slide file holds the same ones, so that
100,000 patches of 256 px take 200 MB of disk. Next to the seconds of the clock stand the processor seconds of the
server, which other work on the machine does not change. Shape suffixes: N patches, K clusters.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPResponse, RemoteDisconnected
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import pandas as pd
import psutil
from PIL import Image
from safetensors.numpy import save_file

from histoloom.atlas.maps.patch_map import Embedding
from histoloom.config import make_config, read_preset, with_settings
from histoloom.run.directory import Run, write_json
from histoloom.seeding import numpy_generator
from histoloom.slides.procedural.slides import draw_slide

KS, CHOSEN, PER_SLIDE, SIDE, SAMPLES = tuple(range(8, 17)), 15, 1000, 2048, 40
AIMS = {"first page": 1.0, "gallery": 0.2}
CONNECTIONS = 6  # what browsers open to one server


def make_run(folder: Path, *, patches: int, size: int) -> Path:
    """A run of ``patches`` patches with clusters, samples and a 2-D map; one that is there is used again."""
    if (folder / "run" / "report" / "artifact.json").is_file():
        return folder / "run"
    values = with_settings(
        read_preset("cpu") | {"slides": {"paths": [str(folder)]}}, (f"patches.size={size}", f"clusters.k={list(KS)}")
    )
    run = Run.create(folder / "run", make_config(values))
    ids = _write_patches(run, patches=patches, size=size)
    labels_N = _write_clusters(run, ids=ids)
    _write_samples(run)
    _write_map(run, ids=ids, labels_N=labels_N)
    for stage in ("patches", "clusters", "samples", "report"):
        artifact: dict[str, object] = {"stage": stage, "format": 1, "fingerprint": "0" * 16, "config": {}, "inputs": {}}
        write_json(run.folder(stage) / "artifact.json", artifact | {"seconds": 1.0, "peak_memory_mb": 1.0})
    return run.path


def _write_patches(run: Run, *, patches: int, size: int) -> list[str]:
    out, generator = run.folder("patches"), numpy_generator(0, "speed", "patches")
    for part in ("images", "thumbnails"):
        (out / part).mkdir(parents=True, exist_ok=True)
    picture, _ = draw_slide(0, number=0, size=SIDE, mpp=1.0)
    x, y = (generator.integers(0, SIDE - size, PER_SLIDE) for _ in range(2))
    slides = [f"slide-{number:05d}" for number in range(-(-patches // PER_SLIDE))]
    np.save(
        out / "images" / f"{slides[0]}.npy",
        np.stack([picture[b : b + size, a : a + size] for a, b in zip(x, y, strict=True)]),
    )
    Image.fromarray(picture).resize((1024, 1024)).save(out / "thumbnails" / f"{slides[0]}.jpg")
    for slide in slides[1:]:
        for name in (f"images/{slides[0]}.npy", f"thumbnails/{slides[0]}.jpg"):
            os.link(out / name, out / name.replace(slides[0], slide))
    index = pd.DataFrame(
        {"slide_id": np.repeat(slides, PER_SLIDE), "x": np.tile(x, len(slides)), "y": np.tile(y, len(slides))}
    )
    index = index.head(patches).assign(extent=float(size), tissue=1.0, split="train")
    index["slide"], index["patient"] = index["slide_id"], index["slide_id"].str[:-1]
    index["patch_id"] = [
        f"{s}_x{a}_y{b}_{i}" for i, (s, a, b) in enumerate(zip(index["slide_id"], index["x"], index["y"], strict=True))
    ]
    index.to_parquet(out / "index.parquet", index=False)
    table = pd.DataFrame({"slide_id": slides, "slide": slides, "patient": [s[:-1] for s in slides]})
    table = table.assign(file="gone.tif", width=SIDE, height=SIDE, source_mpp=1.0, mpp_source="given", split="train")
    table.assign(status="ok", patches=PER_SLIDE).to_parquet(out / "slides.parquet", index=False)
    write_json(out / "meta.json", {"size": size, "mpp": 1.0, "n": patches})
    return index["patch_id"].tolist()


def _write_clusters(run: Run, *, ids: list[str]) -> np.ndarray:
    """Clusters that hold together over k, as those of a sweep do."""
    out, generator = run.folder("clusters"), numpy_generator(0, "speed", "clusters")
    out.mkdir(exist_ok=True)
    place_N, p_by_k, labels = generator.random(len(ids)), {}, {}
    for k in KS:
        distance_NK = 30 * k * (place_N[:, None] - (np.arange(k) + 0.5) / k) ** 2 + generator.random((len(ids), k))
        p_NK = np.exp(-distance_NK)
        p_by_k[f"k{k}"] = np.ascontiguousarray((p_NK / p_NK.sum(axis=1, keepdims=True)).astype(np.float32))
        labels[f"k{k}"] = p_by_k[f"k{k}"].argmax(axis=1)
    pd.DataFrame({"patch_id": ids} | labels).to_parquet(out / "index.parquet", index=False)
    save_file(p_by_k, out / "probabilities.safetensors")
    write_json(out / "choice.json", {"k": CHOSEN, "rule": "given", "evidence": ""})
    return np.asarray(labels[f"k{CHOSEN}"])


def _write_samples(run: Run) -> None:
    rows, out = [], run.folder("samples")
    first = run.folder("patches") / "images" / "slide-00000.npy"
    picture = Image.fromarray(np.load(first, mmap_mode="r")[0])
    for cluster in range(CHOSEN):
        folder = out / f"k{CHOSEN}" / f"cluster-{cluster:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(SAMPLES):
            picture.save(folder / f"{index:06d}.png")
            name = str((folder / f"{index:06d}.png").relative_to(out))
            rows.append(
                {"file_name": name, "sample_id": f"s{cluster}-{index}", "k": CHOSEN, "cluster": cluster, "index": index}
            )
    pd.DataFrame(rows).assign(tissue="", seed=0).to_csv(out / "metadata.csv", index=False)


def _write_map(run: Run, *, ids: list[str], labels_N: np.ndarray) -> None:
    generator = numpy_generator(0, "speed", "map")
    rows = np.sort(generator.permutation(len(ids))[: run.config.report.embedded_patches])
    xy = (labels_N[rows, None] / CHOSEN + 0.1 * generator.random((len(rows), 2))).round(4)
    near = generator.integers(0, len(rows), (len(rows), 10))
    run.folder("report").mkdir(exist_ok=True)
    embedding = Embedding({}, [ids[row] for row in rows], {"tsne": xy}, near)
    embedding.save(run.folder("report") / "embedding.json")


class Server:
    """A running `histoloom atlas`; ``started`` are seconds from its start until it prints its address."""

    def __init__(self, run: Path) -> None:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "histoloom", "atlas", str(run), "--port", "0", "--no-open"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None, "it is piped"
        match = re.search(r"http://([\d.]+):(\d+)/", self.process.stdout.readline())
        assert match, "it prints its address"
        self.started = time.perf_counter() - begin
        self.host, self.port, self.begin = match[1], int(match[2]), begin
        self._connections = local()

    @property
    def processor(self) -> float:
        """Seconds of the processor that it took so far."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def memory(self) -> int:
        """The most bytes that it ever held."""
        status = Path(f"/proc/{self.process.pid}/status")
        if status.is_file():
            return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0])
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def get(self, path: str) -> bytes:
        """A page, picture or JSON; each thread keeps a connection, as a browser does, until the server closes it."""
        if not hasattr(self._connections, "one"):
            self._connections.one = HTTPConnection(self.host, self.port, timeout=120)
        try:
            answered = self._answer(path)
        except RemoteDisconnected:
            self._connections.one.close()
            answered = self._answer(path)
        body: bytes = answered.read()
        assert answered.status == 200, (path, answered.status, body[:200])
        return body

    def _answer(self, path: str) -> HTTPResponse:
        self._connections.one.request("GET", path)
        response: HTTPResponse = self._connections.one.getresponse()
        return response


@contextmanager
def serving(run: Path) -> Iterator[Server]:
    server = Server(run)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(timeout=60)


def timed(server: Server, request: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock and of the server's processor."""
    processor, begin = server.processor, time.perf_counter()
    request()
    return time.perf_counter() - begin, server.processor - processor


def first_page(server: Server, pool: ThreadPoolExecutor) -> None:
    """The first page with its scripts and the pictures that are on the screen."""
    page = server.get("/").decode()
    pictures = re.findall(r'<img src="(/api[^"]*)"[^>]*alt=""(?! loading)', page)
    needed = [*re.findall(r'(?:href|src)="(/static/[^"]*|/clusters/\d+/colours.css)"', page), *pictures[:8]]
    list(pool.map(server.get, needed))


def gallery(server: Server, pool: ThreadPoolExecutor, *, cluster: int, order: str, page: int) -> None:
    """A page of 60 patches: what they are, and all their pictures."""
    gallery: dict[str, Any] = json.loads(
        server.get(f"/api/clusters/{CHOSEN}/{cluster}/patches?order={order}&page={page}")
    )
    assert len(gallery["patches"]) == 60, "a full page"
    list(pool.map(server.get, [patch["src"] for patch in gallery["patches"]]))


def tour(server: Server, pool: ThreadPoolExecutor) -> None:
    """Every page once, every k."""
    for k in KS:
        for path in (f"/?k={k}", f"/map?k={k}", f"/flow?k={k}", f"/api/map?k={k}"):
            server.get(path)
        list(pool.map(server.get, [f"/clusters/{k}/{cluster}" for cluster in range(k)]))


def in_browser(server: Server, chromium: str) -> dict[str, float]:
    """Seconds until a browser shows the first page, and a gallery, with all pictures on the screen."""
    from playwright.sync_api import sync_playwright

    loaded = """() => { const shown = [...document.images].filter((one) => one.loading !== "lazy");
                return shown.length > COUNT && shown.every((one) => one.complete && one.naturalWidth); }"""
    seconds = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto("about:blank")
        for name, path, count in (("first page", "/", 7), ("gallery", f"/clusters/{CHOSEN}/3", 30)):
            begin = time.perf_counter()
            page.goto(f"http://{server.host}:{server.port}{path}")
            page.wait_for_function(loaded.replace("COUNT", str(count)), polling=10)
            seconds[name] = time.perf_counter() - begin
        browser.close()
    return seconds


def measure(run: Path, *, chromium: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {}
    with serving(run) as server, ThreadPoolExecutor(CONNECTIONS) as pool:
        clock, processor = timed(server, lambda: first_page(server, pool))
        result["start"] = {"clock": server.started}
        result["first page"] = {"clock": clock, "processor": processor}
        result["first page with the start"] = {
            "clock": time.perf_counter() - server.begin,
            "processor": server.processor,
        }
        cases = [(c, order, page) for c in range(4) for order in ("typical", "random", "borderline") for page in (0, 5)]
        times = [
            timed(server, partial(gallery, server, pool, cluster=cluster, order=order, page=page))
            for cluster, order, page in cases
        ]
        clocks, processors = zip(*times, strict=True)
        result["gallery"] = {
            "clock": statistics.median(clocks),
            "worst": max(clocks),
            "processor": statistics.median(processors),
        }
        if chromium:
            result |= {f"{name} in Chromium": {"clock": value} for name, value in in_browser(server, chromium).items()}
        tour(server, pool)
        result["memory"] = {"MiB": server.memory / 2**20}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--patches", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--browser", metavar="CHROMIUM", help="also measure in this browser")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    run = make_run(arguments.out, patches=arguments.patches, size=arguments.size)
    measured = [measure(run, chromium=arguments.browser) for _ in range(arguments.repeat)]
    for name in measured[0]:
        best = {unit: min(one[name][unit] for one in measured) for unit in measured[0][name]}
        print(f"{name:28} " + "  ".join(f"{unit} {value:.2f}" for unit, value in best.items()))
    print(
        f"best of {arguments.repeat}; aims: first page {AIMS['first page']} s, gallery {AIMS['gallery']} s, 1,024 MiB"
    )
    print(f"load while it was measured: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()
