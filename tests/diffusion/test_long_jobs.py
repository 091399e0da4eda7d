"""Sampling jobs: shared by processes, killed and continued, in memory that does not grow with them."""

from __future__ import annotations

import os
import shutil
import signal
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from forked import Forked, start_together

from histoloom import Generator, Run, UserError
from histoloom.diffusion.generation.run_request import Request, draw_request
from histoloom.run.directory import read_json, write_json
from histoloom.sharing.export import export_generator

REQUEST = Request(n=120, k=2, steps=1, guidance=1.0)


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def whole(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_request(tiny_run, REQUEST, out=tmp_path_factory.mktemp("whole") / "job")


def command(run: Path, out: Path) -> list[str]:
    start = ["histoloom", "sample", str(run)]
    return [*start, "-n", "120", "--k", "2", "--steps", "1", "--guidance", "1", "--out", str(out)]


@pytest.mark.timeout(600)
def test_killed_shared_and_continued_without_drawing_anything_twice(
    tiny_run: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "job"
    started = Forked(*command(tiny_run, out))
    started.kill_when(lambda: any(out.rglob("*.png")))
    assert started.finish().returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert 0 < len(kept) < 120
    assert not (out / "metadata.csv").exists()
    (next(iter(kept)).parent / ".torn.png.1.part").write_bytes(b"torn")
    together = [each.finish() for each in start_together(2, *command(tiny_run, out))]
    assert [done.returncode for done in together] == [0, 0], [done.stderr[-3000:] for done in together]
    assert "".join(done.stdout for done in together).split() == [str(out.resolve())]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert pictures(out) == pictures(whole)
    assert (out / "metadata.csv").read_bytes() == (whole / "metadata.csv").read_bytes()
    assert not list(out.rglob("*.part"))


def test_an_image_that_a_power_cut_tore_is_drawn_again(tiny_run: Path, whole: Path, tmp_path: Path) -> None:
    job = shutil.copytree(whole, tmp_path / "job")
    torn, zeroed, *others = sorted(job.rglob("*.png"))
    times = [path.stat().st_mtime_ns for path in others]
    torn.write_bytes(torn.read_bytes()[:200])
    pixels = bytearray(zeroed.read_bytes())
    pixels[100:300] = bytes(200)  # as long as it was
    zeroed.write_bytes(pixels)
    draw_request(tiny_run, REQUEST, out=job)
    assert pictures(job) == pictures(whole)
    assert [path.stat().st_mtime_ns for path in others] == times


def test_the_table_has_a_row_an_image(whole: Path) -> None:
    table = pd.read_csv(whole / "metadata.csv")
    assert sorted(table["file_name"]) == sorted(pictures(whole))
    assert table["sample_id"].is_unique
    assert read_json(whole / "job.json")["seed"] == 0


def test_two_jobs_do_not_share_a_folder(tiny_run: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "job")
    with FileLock(tmp_path / "job" / ".lock"), pytest.raises(UserError, match="another process writes to"):
        draw_request(tiny_run, REQUEST, out=tmp_path / "job")


def test_a_job_is_not_continued_with_another_decoder(tiny_run: Path, tmp_path: Path) -> None:
    """One that was trained alone: its diffusion model is that of the generator before."""
    export_generator(Run.open(tiny_run), tmp_path / "generator")
    folder, request = tmp_path / "generator" / "autoencoder", Request(n=1, k=2, steps=1, guidance=1.0)
    draw_request(tmp_path / "generator", request, out=tmp_path / "job")
    settings = read_json(folder / "autoencoder.json")
    write_json(folder / "autoencoder.json", settings | {"trained": "decoder"})
    with pytest.raises(UserError, match="of another request"):
        draw_request(tmp_path / "generator", request, out=tmp_path / "job")


def test_images_are_not_kept_in_memory(tiny_run: Path) -> None:
    generator = Generator.load(tiny_run)
    specs = generator.sample_specs(None, n=64, seed=0, k=2)
    sampler = generator.spec.sampler.model_copy(update={"steps": 1, "guidance": 1.0})
    size = 32 * 32 * 3
    tracemalloc.start()
    try:
        for number, drawn in enumerate(generator.draw(specs, sampler=sampler)):
            assert drawn.image.nbytes == size
            if number == 8:
                first = tracemalloc.get_traced_memory()[0]
        assert tracemalloc.get_traced_memory()[0] - first < 16 * size
    finally:
        tracemalloc.stop()


def test_progress_is_of_this_process_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from histoloom import progress

    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    caplog.set_level("INFO", logger="histoloom")
    for rank in ("1", "0"):
        monkeypatch.setitem(os.environ, "RANK", rank)
        with progress.meter("drawing", total=10, done=2) as meter:
            meter.advance(4)
    assert [record.message.split(",")[0] for record in caplog.records] == ["drawing: 6 of 10"]
    assert "min left" in caplog.records[0].message
