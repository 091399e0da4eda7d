"""Slides on a real Dask cluster: the same store as from this machine, whatever happens to the workers."""

from __future__ import annotations

import hashlib
import operator
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from histoloom import pipeline
from histoloom.config import make_config, read_preset
from histoloom.errors import UserError
from histoloom.setup import change_settings, init_run
from histoloom.slides import stage
from histoloom.slides.entries import SlideEntry
from histoloom.slides.inventory.find import find_slides
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.patches.extract import (
    ExtractionJob,
    ThumbnailJob,
    extract_patches,
    make_thumbnail,
)
from histoloom.slides.patches.filters import Filters
from histoloom.slides.patches.sampling import CandidatePatches, Positions
from histoloom.slides.workers import dask_cluster
from histoloom.slides.workers.workers import Workers


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two worker processes, each started again by its nanny when it dies."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as local:
        yield local.scheduler_address


@pytest.fixture
def over(address, tmp_path):
    """Workers of the cluster that write under the test's folder."""
    with Workers(None, scheduler=address, place=tmp_path) as workers:
        yield workers


@pytest.fixture
def entries(slide_folder, configured):
    return find_slides(configured(slide_folder).slides)


class Fatal:
    """A job on a slide that ends each process which unpacks it."""

    def __init__(self, entry: SlideEntry) -> None:
        self.entry = entry

    def __reduce__(self):
        return os._exit, (1,)


def run_by(config, **runtime):
    return config.model_copy(update={"runtime": config.runtime.model_copy(update=runtime)})


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files, hidden ones too, but for the log."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "log.jsonl"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_midway(images: Path, *, processes: set[int], killed: list[int], give_up: threading.Event) -> None:
    """Kill one of ``processes`` while it writes a slide: it is stopped first, so that it cannot finish meanwhile."""
    while not give_up.wait(0.002):
        for part in images.glob(".*.part"):
            process = int(part.name.split(".")[-3])
            if process not in processes:
                continue
            os.kill(process, signal.SIGSTOP)
            time.sleep(0.02)
            if part.exists():
                os.kill(process, signal.SIGKILL)
                killed.append(len(list(images.glob("[!.]*.npy"))))
                return
            os.kill(process, signal.SIGCONT)


def test_a_worker_killed_midway_changes_nothing(address, configured, context, pyramid, picture, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed in range(6):
        pyramid(folder / f"{seed}.tif", picture(512, 512, seed=seed), mpp=0.5)
    config = configured(folder, patches={"count": 3000})
    local = context(run_by(config, workers=2), name="local")
    stage.run(local)
    spread = context(run_by(config, workers=None, scheduler=address), name="spread")
    with Client(address, set_as_default=False) as client:
        processes = set(client.run(os.getpid).values())
    killed: list[int] = []
    give_up = threading.Event()
    options = {"processes": processes, "killed": killed, "give_up": give_up}
    killer = threading.Thread(target=kill_midway, args=(spread.out / "images",), kwargs=options)
    killer.start()
    try:
        stage.run(spread)
    finally:
        give_up.set()
        killer.join()
    assert len(processes) == 2
    assert killed
    assert killed[0] < 6, "slides remained when the worker was killed"
    assert contents(spread.out) == contents(local.out)
    patches = PatchSet.open(spread.out)
    assert len(patches) == 3000
    assert patches.table["patch_id"].is_unique


def test_a_run_made_elsewhere_is_the_same_and_stays_up_to_date(
    address, tiny_slides, tiny_settings, tmp_path, monkeypatch
):
    """Through the whole pipeline, from a relative path: workers have other working directories."""
    monkeypatch.chdir(tmp_path)
    local = init_run(Path("local"), slides=[tiny_slides], preset="demo", settings=tiny_settings)
    pipeline.execute(local, until="patches")
    settings = (*tiny_settings, "runtime.workers=null", f"runtime.scheduler={address}")
    spread = init_run(Path("spread"), slides=[tiny_slides], preset="demo", settings=settings)
    pipeline.execute(spread, until="patches")
    expected, got = contents(local.folder("patches")), contents(spread.folder("patches"))
    assert len(expected) == 16
    assert {name for name in expected | got if expected.get(name) != got.get(name)} == {"artifact.json"}, "its seconds"
    home = change_settings(spread, ["runtime.scheduler=null"], save=True)
    assert pipeline.status(home)[0].state == "done"


def test_results_come_in_the_order_of_the_jobs(over):
    assert over.run(abs, jobs=list(range(-40, 0)), label="a") == list(range(40, 0, -1))
    assert over.run(abs, jobs=[], label="b") == []
    assert over.run(operator.itemgetter(0), jobs=[("a", 1)], label="c") == ["a"]


def test_equal_jobs_are_done_again(over, tmp_path):
    """Dask would otherwise hand out what it remembers of an earlier call."""
    folder = tmp_path / "made"
    for _ in range(2):
        over.run(os.mkdir, jobs=[folder], label="a")
        folder.rmdir()


def test_errors_reach_the_caller(over):
    with pytest.raises(TypeError):
        over.run(abs, jobs=[1, "x", 2], label="a")


def test_two_workers_on_one_slide_leave_one_whole_file(over, entries, tmp_path):
    count = 2000
    positions = Positions(np.arange(count) % 200, np.arange(count) % 190, np.ones(count), np.zeros(count))
    everything = CandidatePatches(positions, np.zeros(count, bool), wanted=count)
    whatever = Filters(blur=1e-9, pen=None)
    everything.save(tmp_path / "candidates.npz")
    same: dict[str, Any] = {"extent": 32.0, "size": 16, "candidates": tmp_path / "candidates.npz", "filters": whatever}
    jobs = [
        ExtractionJob(entries[0], **same, target=tmp_path / f"{name}.npy", checkpoint=tmp_path / f"{name}.json")
        for name in ("alone", "both", "both", "both", "both")
    ]
    for result in over.run(extract_patches, jobs=jobs, label="a"):
        assert result.positions is not None
        assert result.positions.x.tolist() == positions.x.tolist()
        assert sum(result.rejected.values()) == 0
    for kind in ("npy", "json"):
        assert (tmp_path / f"both.{kind}").read_bytes() == (tmp_path / f"alone.{kind}").read_bytes()
    assert not list(tmp_path.glob(".*.part"))


def test_a_slide_that_ends_its_workers_is_named(entries, tmp_path):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as doomed,
        Workers(None, scheduler=doomed.scheduler_address, place=tmp_path) as workers,
        pytest.raises(UserError, match=r"2 workers ended while they had a\.tif.*--memory-limit"),
    ):
        workers.run(make_thumbnail, jobs=[Fatal(entries[0])], label="a")  # type: ignore[arg-type]


def test_workers_that_do_not_see_the_slides_are_reported_before_the_work(over, entries, tmp_path):
    unseen = replace(entries[1], file=tmp_path / "elsewhere" / "b.tif")
    jobs = [ThumbnailJob(entry, tmp_path / f"{entry.slide_id}.jpg") for entry in (entries[0], unseen)]
    with pytest.raises(UserError, match=r"the Dask worker on .* cannot read .*b\.tif: every worker needs .* share"):
        over.run(make_thumbnail, jobs=jobs, label="a")
    assert not list(tmp_path.glob("*.jpg"))


def test_workers_that_do_not_see_the_run_are_reported_before_the_work(over, tmp_path):
    (tmp_path / dask_cluster.TOKEN_FILE).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"does not see this run in .*: every worker needs the run's folder"):
        over.run(abs, jobs=[-1], label="a")


def test_a_worker_that_comes_later_checks_for_itself(entries, tmp_path):
    (tmp_path / dask_cluster.TOKEN_FILE).write_text("1")
    requirements = dask_cluster.Requirements(dask_cluster.versions(), tmp_path, "1")
    job = ThumbnailJob(entries[0], tmp_path / "a.jpg")
    assert dask_cluster.run_job(pickle.dumps((make_thumbnail, job)), requirements=requirements).reason == ""
    others = {**requirements.versions, "pillow": "0.1"}
    with pytest.raises(UserError, match=r"has pillow .*, this process 0\.1: .*install the same there"):
        dask_cluster.run_job(b"", requirements=replace(requirements, versions=others))
    hidden = replace(job, entry=replace(entries[0], file=tmp_path / "none.tif"))
    with pytest.raises(UserError, match=r"cannot read .*none\.tif"):
        dask_cluster.run_job(pickle.dumps((make_thumbnail, hidden)), requirements=requirements)
    with pytest.raises(UserError, match="does not see this run"):
        dask_cluster.run_job(b"", requirements=replace(requirements, token="of a run that is over"))


def test_a_killed_run_leaves_nothing_that_the_next_one_publishes(slide_folder, configured, context):
    plain, job = (context(configured(slide_folder), name=name) for name in ("plain", "after"))
    stage.run(plain)
    (job.out / dask_cluster.TOKEN_FILE).write_text("of a run that was killed")
    stage.run(job)
    assert contents(job.out) == contents(plain.out)


def test_no_scheduler_is_one_line_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as free:
        nowhere = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=rf"no Dask scheduler answers at {nowhere}; .*runtime\.scheduler=null"):
        Workers(None, scheduler=nowhere, place=tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_a_scheduler_without_workers_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_cluster, "WORKERS_SECONDS", 0.2)
    with (
        LocalCluster(n_workers=0, processes=False, protocol="tcp", dashboard_address=":0") as idle,
        Workers(None, scheduler=idle.scheduler_address, place=tmp_path) as workers,
        pytest.raises(UserError, match=r"has no workers; start some \(dask worker tcp://"),
    ):
        workers.run(abs, jobs=[-1], label="a")


def test_a_missing_extra_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'histoloom\[cluster\]'"):
        Workers(None, scheduler="tcp://127.0.0.1:1", place=tmp_path).__enter__()


def test_dask_is_not_imported_unless_used():
    code = "import sys, histoloom.slides.workers.workers\nassert not {'dask', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_that_make_no_sense(tmp_path):
    values = {**read_preset("cpu"), "slides": {"paths": ["/slides"]}, "runtime": {"scheduler": "head:8786"}}
    with pytest.raises(UserError, match=r"runtime\.scheduler.*tcp.*head:8786"):
        make_config(values)
    with pytest.raises(UserError, match=r"runtime\.workers=4 counts .*--set runtime\.workers=null"):
        Workers(4, scheduler="tcp://head:8786", place=tmp_path)
