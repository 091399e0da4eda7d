"""Bad input gets one line that says what to do, exit status 2, and nothing that was there is lost."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from command_line import Finished, histoloom, histoloom_process
from PIL import Image

from histoloom.run.directory import Run

SLIDE_OPTIONS = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb"}


def refused(done: Finished, *words: str) -> None:
    """Exit status 2, and the last line of the error output holds every word."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("histoloom: ")
    for word in words:
        assert word in line


def pixels(side: int = 600, *, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 40, (side, side, 3), dtype=np.uint8)
    return noise + np.array([200, 130, 180], dtype=np.uint8)


def write_slide(path: Path, *, mpp: float | None = 1.0, side: int = 600) -> Path:
    size = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, pixels(side), **SLIDE_OPTIONS, **size)
    return path


@pytest.fixture(autouse=True)
def _no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """``init`` times networks; test_cost.py and test_init.py test that."""
    monkeypatch.setattr("histoloom.cost.describe", lambda config: f"no estimate of {config.seed}")


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond 20 KB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    return folder


def init(run: Path, slides: Path, *more: str) -> Finished:
    return histoloom("init", run, "--slides", slides, "--preset", "demo", *more)


def small(tiny_settings: tuple[str, ...]) -> list[str]:
    return [part for setting in tiny_settings for part in ("--set", setting)]


def test_an_empty_folder(slides: Path, tmp_path: Path) -> None:
    refused(init(tmp_path / "run", slides), str(slides), "no slide")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(init(tmp_path / "run", tmp_path / "nowhere"), "nowhere", "--slides")
    alone = histoloom_process("init", tmp_path / "run", "--slides", tmp_path / "nowhere")
    refused(alone, "nowhere", "--slides")


def test_a_text_file_named_svs(slides: Path, tmp_path: Path) -> None:
    (slides / "notes.svs").write_text("not a slide at all")
    refused(init(tmp_path / "run", slides), "notes.svs")


def test_a_truncated_slide(slides: Path, tmp_path: Path) -> None:
    whole = write_slide(slides / "cut.tif").read_bytes()
    (slides / "cut.tif").write_bytes(whole[: len(whole) // 3])
    refused(init(tmp_path / "run", slides), "cut.tif")


def test_a_slide_without_mpp_says_what_to_type(slides: Path, tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(slides / "photo.png")
    refused(init(tmp_path / "run", slides), "photo.png", "--mpp")
    assert init(tmp_path / "run", slides, "--mpp", "1.0").returncode == 0


def test_a_patch_larger_than_the_slide(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "small.tif", side=300)
    assert init(tmp_path / "run", slides, "--set", "patches.size=512").returncode == 0
    refused(histoloom("run", tmp_path / "run"), "small.tif", "patches.size")


def test_fewer_patches_than_clusters(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "one.tif")
    assert init(tmp_path / "run", slides, "--set", "patches.count=5").returncode == 0
    refused(histoloom("run", tmp_path / "run"), "5", "10", "patches.count")


def test_a_broken_slide_among_good_ones_is_left_out(
    slides: Path, tmp_path: Path, tiny_settings: tuple[str, ...]
) -> None:
    write_slide(slides / "good.tif")
    write_slide(slides / "fine.tif")
    (slides / "bad.svs").write_text("no slide")
    assert init(tmp_path / "run", slides, *small(tiny_settings)).returncode == 0
    done = histoloom("run", tmp_path / "run", "--until", "patches")
    assert done.returncode == 0, done.stderr
    assert "bad.svs" in done.stderr
    status = pd.read_parquet(tmp_path / "run" / "patches" / "slides.parquet").set_index("slide_id")["status"]
    assert status["good"] == status["fine"] == "ok"
    assert len(status) == 3
    assert status["bad"] != "ok"


def test_a_typo_in_a_setting(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "one.tif")
    refused(init(tmp_path / "run", slides, "--set", "patches.cuont=5"), "patches.cuont", "did you mean 'count'")


def test_a_run_of_another_configuration(slides: Path, tmp_path: Path) -> None:
    write_slide(slides / "one.tif")
    assert init(tmp_path / "run", slides).returncode == 0
    refused(init(tmp_path / "run", slides, "--set", "seed=7"), "other settings", "seed", "--set")
    assert Run.open(tmp_path / "run").config.seed == 0


def test_a_directory_that_is_no_run(tmp_path: Path) -> None:
    refused(histoloom("run", tmp_path), "not a run", "histoloom init")
    refused(histoloom("status", tmp_path), "not a run")


def test_two_runs_on_one_directory(tiny_run: Path) -> None:
    with Run.open(tiny_run).locked():
        refused(histoloom_process("run", tiny_run), "another process")


def test_a_full_disk_keeps_what_is_there(slides: Path, tmp_path: Path, tiny_settings: tuple[str, ...]) -> None:
    for name in ("one", "two"):
        write_slide(slides / f"{name}.tif")
    run = tmp_path / "run"
    assert init(run, slides, *small(tiny_settings)).returncode == 0
    assert histoloom("run", run, "--until", "patches").returncode == 0
    kept = (run / "patches" / "index.parquet").read_bytes()
    with full_disk():
        full = histoloom("run", run, "--until", "latents")
    refused(full, "no space", "again")
    assert (run / "patches" / "index.parquet").read_bytes() == kept
    assert histoloom("run", run, "--until", "latents").returncode == 0


def test_an_unknown_stage(tiny_run: Path) -> None:
    refused(histoloom("run", tiny_run, "--until", "lattents"), "lattents", "latents")


def test_names_and_tissues_that_are_not_there(tiny_run: Path, tmp_path: Path) -> None:
    refused(histoloom("name", tiny_run, "7", "bone"), "cluster 7")
    refused(histoloom("name", tiny_run, "0", " "), "name")
    refused(histoloom("sample", tiny_run, "-n", "1", "--out", tmp_path / "o", "--tissue", "bone"), "bone", "cluster")
    refused(histoloom("sample", tiny_run, "-n", "1", "--out", tmp_path / "o", "--k", "9"), "k = 9", "2, 3")
    refused(histoloom("sample", tmp_path, "-n", "1", "--out", tmp_path / "o"), "neither a run nor an exported")
    assert not (tmp_path / "o").exists()


def test_an_output_folder_in_other_use(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    refused(histoloom("sample", tiny_run, "-n", "1", "--out", tmp_path), "not empty")
    refused(histoloom("export", tiny_run, tmp_path), "not empty")
    assert (tmp_path / "thesis.txt").read_text() == "years"


def test_an_option_that_does_not_exist() -> None:
    for run in (histoloom, histoloom_process):
        done = run("run", "--untill", "x")
        assert done.returncode == 2
        assert "--until" in done.stderr
