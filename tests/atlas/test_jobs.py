"""Jobs that draw for the page: their order, their ends, and what is left on disk."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from forked import Forked
from PIL import Image

from histoloom.atlas.jobs.job_log import ENDED, JobLog, JobSpec
from histoloom.atlas.jobs.queue import JobQueue, JobStatus, Limits, State
from histoloom.atlas.jobs.sample_runner import SampleRunner
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import draw_request
from histoloom.diffusion.generation.sample_folder import JobCallbacks, WrittenSample
from histoloom.errors import UserError
from histoloom.run.directory import Run, read_json, write_json
from histoloom.setup import change_settings
from histoloom.slides.patch_set import PatchSet


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may draw into."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def queue(run: Path) -> Iterator[JobQueue]:
    made = JobQueue(run)
    yield made
    made.close()


class Slow(SampleRunner):
    """Waits at the first step until ``go_on`` is set."""

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.began, self.go_on = threading.Event(), threading.Event()

    def draw(self, request: Request, *, out: Path, callbacks: JobCallbacks) -> None:
        def step(done: int, total: int) -> None:
            self.began.set()
            assert self.go_on.wait(60)
            assert callbacks.on_step is not None
            callbacks.on_step(done, total)

        super().draw(request, out=out, callbacks=JobCallbacks(on_step=step, on_written=callbacks.on_written))


@pytest.fixture
def slow(run: Path) -> Iterator[tuple[JobQueue, Slow]]:
    runner = Slow(run)
    queue = JobQueue(run, sample_runner=runner, limits=Limits(pictures=30, waiting=2))
    yield queue, runner
    runner.go_on.set()
    queue.close()


def wait(queue: JobQueue, job_id: str, until: Callable[[JobStatus], bool] | None = None) -> JobStatus:
    until = until or (lambda status: status.state in ENDED)
    for _ in range(6000):
        if until(queue.status(job_id)):
            return queue.status(job_id)
        time.sleep(0.01)
    raise AssertionError(f"waited in vain: {queue.status(job_id)}")


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


def table(folder: Path) -> list[str]:
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        return sorted(row["file_name"] for row in csv.DictReader(file))


def test_a_job_is_what_the_command_draws(run: Path, queue: JobQueue, tmp_path: Path) -> None:
    request = Request(n=10, tissues=("0",), k=2, seed=4, steps=2)
    job_id = queue.submit(request)
    status = wait(queue, job_id)
    assert (status.state, status.made, status.share, status.title) == ("done", 10, 1.0, "10 of 0")
    same = draw_request(run, request, out=tmp_path / "same")
    assert pictures(queue.folder(job_id)) == pictures(same)
    assert (queue.folder(job_id) / "metadata.csv").read_bytes() == (same / "metadata.csv").read_bytes()
    assert [made.number for made in queue.pictures(job_id)] == list(range(10))
    assert queue.file(job_id, 3).read_bytes() in pictures(same).values()


def test_jobs_are_drawn_in_the_order_of_submission(slow: tuple[JobQueue, Slow]) -> None:
    queue, runner = slow
    first, second, third = (queue.submit(Request(n=1, steps=1, seed=seed)) for seed in range(3))
    assert runner.began.wait(60)
    assert [(queue.status(job).state, queue.status(job).ahead) for job in (first, second, third)] == [
        ("drawing", 0),
        ("waiting", 1),
        ("waiting", 2),
    ]
    with pytest.raises(UserError, match="2 jobs wait already"):
        queue.submit(Request(n=1))
    queue.cancel(second)
    assert queue.status(second).state == "cancelled"
    assert queue.status(third).ahead == 1
    runner.go_on.set()
    assert wait(queue, third).state == "done"
    assert wait(queue, first).state == "done"
    assert queue.status(second).made == 0
    assert {status.job_id for status in queue.jobs()} == {first, second, third}


def test_a_job_that_is_drawn_ends_at_the_next_step_and_goes_on_later(slow: tuple[JobQueue, Slow]) -> None:
    queue, runner = slow
    request = Request(n=20, steps=2)
    job = queue.submit(request)
    assert runner.began.wait(60)
    queue.cancel(job)
    runner.go_on.set()
    status = wait(queue, job)
    assert (status.state, status.made) == ("cancelled", 0)
    queue.cancel(job)
    assert queue.status(job).state == "cancelled"
    queue.resume(job)
    assert wait(queue, job).state == "done"
    queue.cancel(job)  # it was done while the page still said that it was drawn
    assert queue.status(job).state == "done"
    assert len(pictures(queue.folder(job))) == 20
    with pytest.raises(UserError, match="only one that ended early"):
        queue.resume(job)


def test_what_was_drawn_before_a_cancel_stays_with_its_table(run: Path, tmp_path: Path) -> None:
    class Cancels(SampleRunner):
        def draw(self, request: Request, *, out: Path, callbacks: JobCallbacks) -> None:
            def written(new: WrittenSample) -> None:
                callbacks.on_written(new)
                if len(queue.pictures(job)) == 8:
                    queue.cancel(job)

            super().draw(request, out=out, callbacks=JobCallbacks(on_step=callbacks.on_step, on_written=written))

    queue = JobQueue(run, sample_runner=Cancels(run))
    job = queue.submit(Request(n=20, steps=2))
    assert (wait(queue, job).state, queue.status(job).made) == ("cancelled", 8)
    whole = pictures(draw_request(run, Request(n=20, steps=2), out=tmp_path / "whole"))
    kept = pictures(queue.folder(job))
    assert len(kept) == 8
    assert kept.items() <= whole.items()
    assert table(queue.folder(job)) == sorted(kept)
    queue.resume(job)
    assert wait(queue, job).state == "done"
    assert pictures(queue.folder(job)) == whole
    queue.close()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(n=1, tissues=("nowhere",)), "no tissue 'nowhere'"),
        (Request(n=1, k=99), "no k = 99"),
        (Request(n=1, method="heun", steps=4), "sampler: heun"),
        (Request(n=1, method="student"), "has no student"),
        (Request(n=1, steps=5000), "at most 1000"),
        (Request(n=501), "at most 500"),
        (Request(n=1, like="../../etc/passwd"), "has no picture"),
        (Request(n=1, like="drawn/../0"), "has no picture"),
        (Request(n=1, like="samples/../config.yaml"), "has no picture"),
        (Request(n=1, strength=0.5), "no effect"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(queue: JobQueue, request_: Request, message: str) -> None:
    with pytest.raises(UserError, match=message):
        queue.submit(request_)
    assert queue.jobs() == []


def test_the_disk_has_a_limit(run: Path) -> None:
    queue = JobQueue(run, limits=Limits(disk_bytes=20_000))
    job = queue.submit(Request(n=4, steps=1))
    assert wait(queue, job).state == "done"
    with pytest.raises(UserError, match="delete a job"):
        queue.submit(Request(n=4, steps=1))
    queue.delete(job)
    assert not list((run / "drawn").glob("2*"))
    assert wait(queue, queue.submit(Request(n=4, steps=1))).state == "done"
    queue.close()


def test_a_restart_shows_all_jobs_and_a_second_window_draws_nothing(run: Path, queue: JobQueue) -> None:
    job = queue.submit(Request(n=2, steps=1))
    before = wait(queue, job)
    second = JobQueue(run)
    assert second.jobs() == [before]
    with pytest.raises(UserError, match="another window"):
        second.submit(Request(n=1))
    with pytest.raises(UserError, match="another window"):
        second.delete(job)
    second.close()
    queue.close()
    third = JobQueue(run)
    assert third.jobs() == [before]
    assert third.file(job, 0).is_file()
    third.delete(job)
    third.close()


def test_closing_interrupts_and_the_job_goes_on_afterwards(slow: tuple[JobQueue, Slow], run: Path) -> None:
    queue, runner = slow
    drawn, waiting = queue.submit(Request(n=3, steps=1)), queue.submit(Request(n=2, steps=1))
    assert runner.began.wait(60)
    threading.Timer(0.05, runner.go_on.set).start()
    queue.close()
    again = JobQueue(run)
    assert [again.status(job).state for job in (drawn, waiting)] == ["interrupted"] * 2
    for job in (drawn, waiting):
        again.resume(job)
    assert [wait(again, job).state for job in (drawn, waiting)] == ["done"] * 2
    again.close()


KILLED = """
import sys, time
from pathlib import Path
from histoloom.atlas.jobs.queue import JobQueue
from histoloom.diffusion.generation.run_request import Request
queue = JobQueue(Path(sys.argv[1]))
queue.submit(Request(n=200, steps=1, guidance=1.0))
time.sleep(600)
"""


def test_killed_it_leaves_whole_pictures_and_a_job_marked_interrupted(run: Path, tmp_path: Path) -> None:
    (tmp_path / "draws.py").write_text(KILLED)
    # A batch is recorded after its pictures: once there are more than two of them, the first one is.
    started = Forked(tmp_path / "draws.py", run)
    started.kill_when(lambda: len(list((run / "drawn").rglob("*.png"))) > 16)
    assert started.finish().returncode == -signal.SIGKILL
    queue = JobQueue(run)
    (status,) = queue.jobs()
    assert status.state == "interrupted"
    assert "was stopped" in status.message
    folder = queue.folder(status.job_id)
    assert 0 < status.made < 200
    assert table(folder) == sorted(pictures(folder))
    assert len(table(folder)) == status.made
    assert all(np.array(Image.open(folder / name)).shape == (32, 32, 3) for name in table(folder))
    queue.close()


def test_a_line_torn_by_a_crash_is_left_out(run: Path, queue: JobQueue) -> None:
    job = queue.submit(Request(n=2, steps=1))
    wait(queue, job)
    file = run / "drawn" / f"{job}.jsonl"
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:20])
    read = JobLog.read(file)
    assert read is not None
    assert (read.state, len(read.pictures)) == ("drawing", 1)
    read.set_state("interrupted")
    again = JobLog.read(file)
    assert again is not None
    assert again.state == "interrupted"
    for number, text in enumerate(("", "[]\n", '{"ask": {}}\n', '{"ask": {"request": {"other": 1}}}\n')):
        (run / "drawn" / f"{number}.jsonl").write_text(text)
        assert JobLog.read(run / "drawn" / f"{number}.jsonl") is None


def test_jobs_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Their requests have settings that were removed since."""
    spec = JobSpec(Request(n=2, tissues=("0",)), total=2, title="2 of 0", time="2026-01-01")
    job = JobLog.create(tmp_path, job_id="1", spec=spec)
    line = json.loads(job.file.read_text())
    line["ask"]["request"] |= {"spacing": None, "guidance_interval": [0.2, 3.0]}
    job.file.write_text(json.dumps(line) + "\n")
    read = JobLog.read(job.file)
    assert read is not None
    assert read.spec == spec


def test_the_gate_of_the_run_is_respected(run: Path) -> None:
    change_settings(Run.open(run), ["evaluation.originality=gate"], save=True)
    queue = JobQueue(run)
    refused = wait(queue, queue.submit(Request(n=2, steps=1)))
    assert (refused.state, refused.made) == ("failed", 0)
    assert "has no threshold" in refused.message
    file = run / "evaluation" / "originality.json"
    write_json(file, read_json(file) | {"threshold": -1.0})
    job = queue.submit(Request(n=2, steps=1))
    status = wait(queue, job)
    assert (status.state, status.made, status.withheld) == ("done", 0, 2)
    assert queue.pictures(job) == []
    with pytest.raises(KeyError):
        queue.file(job, 0)
    queue.close()


def test_pictures_can_begin_from_patches_samples_and_drawn_ones(run: Path, queue: JobQueue) -> None:
    patch = str(PatchSet.open(run / "patches").columns("patch_id")["patch_id"][5])
    with (run / "samples" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        sample = next(csv.DictReader(file))
    first = queue.submit(Request(n=2, steps=1, tissues=("1",), k=2))
    drawn = wait(queue, first)
    requests: dict[str, Request] = {
        patch: Request(n=2, steps=2, like=patch, strength=0.3),
        f"samples/{sample['file_name']}": Request(n=2, steps=2, like=f"samples/{sample['sample_id']}", strength=0.3),
        f"drawn/{first}/1": Request(n=3, steps=2, between=(f"drawn/{first}/1", patch), k=2),
    }
    for name, request in requests.items():
        job = queue.submit(request)
        assert wait(queue, job).state == "done", queue.status(job).message
        source = str(queue.pictures(job)[0].row["source"])
        assert source == name or source.startswith(f"drawn/{first}/1/c01-")
        assert len(table(queue.folder(job))) == request.n
    assert drawn.state == "done"


def test_an_error_that_nobody_foresaw_ends_the_job_and_not_the_queue(run: Path) -> None:
    class Breaks(SampleRunner):
        def draw(self, request: Request, *, out: Path, callbacks: JobCallbacks) -> None:
            if request.seed == 0:
                raise ZeroDivisionError("of\nmemory")
            super().draw(request, out=out, callbacks=callbacks)

    queue = JobQueue(run, sample_runner=Breaks(run))
    broken, fine = queue.submit(Request(n=1, steps=1)), queue.submit(Request(n=1, steps=1, seed=1))
    status = wait(queue, broken)
    ended: State = "failed"
    assert (status.state, status.message) == (ended, "ZeroDivisionError: of memory")
    assert wait(queue, fine).state == "done"
    queue.close()
