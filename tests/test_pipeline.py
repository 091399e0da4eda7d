"""The whole way on tiny real parts: what is written, what resumes, what is redone."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forked import Forked, run_forked, start_together

from histoloom import pipeline
from histoloom.errors import SlidesAbsent, UserError
from histoloom.names import add_label, add_name, undo
from histoloom.run.directory import Run
from histoloom.run.stage import EventLog
from histoloom.setup import change_settings, init_run
from histoloom.slides.inventory import find
from histoloom.slides.inventory.pseudonyms import real_file

COMPARED = {".npy", ".safetensors", ".png", ".csv", ".parquet", ".npz"}


def payload(run: Path) -> dict[str, bytes]:
    """Every compared file of the published stages, by its path in the run."""
    files = [f for stage in pipeline.STAGE_NAMES for f in (run / stage).rglob("*") if f.suffix in COMPARED]
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(files)}


def states(run: Path) -> list[str]:
    return [entry.state for entry in pipeline.status(Run.open(run))]


def test_every_stage_is_done_and_says_of_itself(tiny_run: Path) -> None:
    assert states(tiny_run) == ["done"] * len(pipeline.STAGES)
    for stage in pipeline.STAGES:
        artifact = json.loads((tiny_run / stage.name / "artifact.json").read_text())
        assert artifact["stage"] == stage.name
        assert set(artifact["inputs"]) == set(stage.inputs)
        assert set(stage.sections) <= set(artifact["config"])
        assert artifact["peak_memory_mb"] > 10
        assert not (tiny_run / stage.name / "checkpoints").exists()
    assert (tiny_run / "report.html").stat().st_size > 10_000
    assert (tiny_run / "report.html").read_bytes() == (tiny_run / "report" / "report.html").read_bytes()


def test_rows_join_by_patch_id(tiny_run: Path) -> None:
    ids = [set(pd.read_parquet(tiny_run / s / "index.parquet")["patch_id"]) for s in ("patches", "latents", "clusters")]
    assert ids[0] == ids[1] == ids[2]
    assert len(ids[0]) == 96


def test_no_slide_is_in_both_splits(tiny_run: Path) -> None:
    table = pd.read_parquet(tiny_run / "patches" / "index.parquet")
    assert set(table["split"]) == {"train", "holdout"}
    assert (table.groupby("slide_id")["split"].nunique() == 1).all()


def test_latents_have_the_measured_moments(tiny_run: Path) -> None:
    z = np.load(tiny_run / "latents" / "latents.npy").astype(np.float64)
    train = (pd.read_parquet(tiny_run / "latents" / "index.parquet")["split"] == "train").to_numpy()
    moments = json.loads((tiny_run / "latents" / "moments.json").read_text())
    np.testing.assert_allclose(moments["mean"], z[train].mean(axis=(0, 2, 3)), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(moments["std"], z[train].std(axis=(0, 2, 3)), rtol=1e-6)


def test_samples_are_there_for_every_cluster_of_every_k(tiny_run: Path) -> None:
    table = pd.read_csv(tiny_run / "samples" / "metadata.csv")
    assert len(table) == 3 * (2 + 3)
    assert table.groupby(["k", "cluster"]).size().tolist() == [3] * 5
    assert all((tiny_run / "samples" / name).is_file() for name in table["file_name"])
    assert table["sample_id"].is_unique


def test_done_stages_are_not_run_again(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_build", lambda *_args, **_kwargs: pytest.fail("a finished stage was built again"))
    pipeline.execute(Run.open(tiny_run))


def test_other_settings_make_stages_stale_and_coming_back_costs_nothing(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    before = payload(tmp_path / "run")
    run = change_settings(Run.open(tmp_path / "run"), ["samples.per_cluster=1"], save=True)
    assert states(run.path) == ["done"] * 5 + ["stale"] * 3
    pipeline.execute(run, until="samples")
    assert len(pd.read_csv(run.path / "samples" / "metadata.csv")) == 5
    back = change_settings(run, ["samples.per_cluster=3"], save=True)
    started = time.monotonic()
    pipeline.execute(back, until="samples")
    assert time.monotonic() - started < 60
    assert {name: data for name, data in payload(run.path).items() if name.startswith("samples")} == {
        name: data for name, data in before.items() if name.startswith("samples")
    }


def test_an_artefact_makes_the_scores_stale_and_nothing_before(tiny_run: Path, tmp_path: Path) -> None:
    run = Run.open(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    before = pipeline.wanted_fingerprints(run)
    add_label(run.path, cluster=0, k=2, rater="A", flag="unsure")
    unsure = pipeline.wanted_fingerprints(run)
    assert {name for name in before if before[name] != unsure[name]} == {"report"}
    add_label(run.path, cluster=0, k=2, rater="A", flag="artefact")
    artefact = pipeline.wanted_fingerprints(run)
    assert {name for name in unsure if unsure[name] != artefact[name]} == {"evaluation", "report"}
    undo(run.path, k=2, rater="A")
    assert pipeline.wanted_fingerprints(run)["evaluation"] == before["evaluation"]


def test_runtime_settings_change_no_result(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    run = change_settings(Run.open(tmp_path / "run"), ["runtime.checkpoint_seconds=5"], save=True)
    assert states(run.path) == ["done"] * len(pipeline.STAGES)


def test_a_finished_run_needs_no_slides(
    tiny_run: Path, tiny_slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny_slides), "/not/on/this/machine"), encoding="utf-8")
    add_name(tmp_path / "run", cluster=0, name="fat", k=3, rater="me")
    assert states(tmp_path / "run") == ["done"] * 7 + ["stale"]
    assert "/not/on/this/machine does not exist; give files or folders of slides; the finished patches" in caplog.text

    built: list[str] = []
    monkeypatch.setattr(
        pipeline, "_build", lambda _run, stage, wanted, **_: built.append(f"{stage.name} {len(wanted)}")
    )
    pipeline.execute(Run.open(tmp_path / "run"))
    assert built == ["report 8"]

    # Only what needs pixels of slides asks for them.
    run = change_settings(Run.open(tmp_path / "run"), ["patches.count=50"], save=False)
    cure = rf"the settings of patches changed, and .* histoloom run {tmp_path}/run --set slides\.paths=\[FOLDER\]$"
    with pytest.raises(SlidesAbsent, match=cure):
        pipeline.execute(run)
    assert {entry.state for entry in pipeline.status(run)} == {"stale"}
    with pytest.raises(UserError, match=r"slides\.paths: .*/nowhere does not exist"):
        change_settings(run, [f"slides.paths=[{tmp_path}/nowhere]"], save=False)

    # At their new place they are the same slides, and what reads them finds them there.
    shutil.copytree(tiny_slides, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    moved = change_settings(Run.open(tmp_path / "run"), ["slides.paths=[moved]"], save=True)
    assert moved.config.slides.paths == (str(tmp_path / "moved"),)
    assert states(tmp_path / "run") == ["done"] * 7 + ["stale"]
    stored = "/not/on/this/machine/slide-01.tif"
    assert real_file(stored, paths=moved.config.slides.paths) == tmp_path / "moved" / "slide-01.tif"
    assert real_file(stored, paths=["/nowhere"]) == Path(stored)


def test_a_run_that_was_made_with_the_ends_of_slides_alone_is_up_to_date(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    monkeypatch.setattr(find, "inventory_fingerprint", lambda _config, **_samples: "ends")
    earlier = pipeline.wanted_fingerprints(run)
    for stage, digest in earlier.items():
        path = run.folder(stage) / "artifact.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": digest}), encoding="utf-8")
    monkeypatch.setattr(find, "inventory_fingerprint", lambda _config, samples=14: "more" if samples else "ends")
    assert states(run.path) == ["done"] * len(pipeline.STAGES)
    monkeypatch.setattr(find, "inventory_fingerprint", lambda _config, samples=14: f"other slides, {samples}")
    assert states(run.path) == ["stale"] * len(pipeline.STAGES)


def killed_in(stage: str, run: Path) -> None:
    """Start ``histoloom run`` and kill -9 it once ``stage`` is under way (for a training, after a checkpoint)."""
    building = run / ".building" / stage
    trains = stage in {"autoencoder", "clusters", "diffusion"}
    sign = building / ("checkpoints/last.pt" if trains else "building.json")
    deeper = building / "restart-0" / "checkpoints" / "last.pt"
    started = Forked("histoloom", "run", run)
    started.kill_when(lambda: sign.exists() or deeper.exists())
    done = started.finish()
    assert done.returncode == -signal.SIGKILL, f"{stage} was over before it could be killed: {done.stdout[-1500:]}"
    assert building.exists()


def test_one_of_several_processes_saves_new_settings(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have them too, and do not want the run's lock, which the first may hold already."""
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with run.locked():
        changed = change_settings(run, ["samples.per_cluster=1"], save=True)
    assert changed.config.samples.per_cluster == 1
    assert Run.open(run.path).config == run.config
    monkeypatch.setenv("RANK", "0")
    change_settings(run, ["samples.per_cluster=1"], save=True)
    assert Run.open(run.path).config == changed.config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lr=1.0e-5"], r"continues after \d+ images with learning rates .*1e-05.* before"),
        (["epochs=null", "images=8"], r"continues after \d+ images to 8 images, \d+ before"),
    ],
)
def test_a_training_that_was_stopped_continues_with_another_schedule(
    settings: list[str], message: str, tiny_run: Path, tmp_path: Path
) -> None:
    """As after a divergence, by the setting that its message names, or to end it early."""
    shutil.copytree(tiny_run, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    shutil.rmtree(run.folder("diffusion"))
    killed_in("diffusion", run.path)
    changed = change_settings(run, [f"diffusion.training.phases.0.{setting}" for setting in settings], save=True)
    pipeline.execute(changed, until="diffusion")
    events = EventLog(changed.folder("diffusion") / "log.jsonl").read()
    messages = [str(event["message"]) for event in events if "message" in event]
    assert any(re.match(message, one) for one in messages)
    assert states(changed.path)[pipeline.STAGE_NAMES.index("diffusion")] == "done"


@pytest.mark.timeout(600)
def test_killed_in_every_stage_ends_with_the_same_bytes(tiny_run: Path, tiny_slides: Path, tmp_path: Path) -> None:
    settings = Run.open(tiny_run).config.model_dump(mode="json")
    run = init_run(
        tmp_path / "run",
        slides=[tiny_slides],
        preset="demo",
        settings=[*_as_settings(settings), "runtime.checkpoint_seconds=0"],
    )
    for stage in pipeline.STAGE_NAMES:
        killed_in(stage, run.path)
    done = run_forked("histoloom", "run", run.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("report.html")
    whole, resumed = payload(tiny_run), payload(run.path)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []


@pytest.mark.timeout(900)
def test_two_processes_bring_a_run_to_its_report(tiny_run: Path, tiny_slides: Path, tmp_path: Path) -> None:
    settings = Run.open(tiny_run).config.model_dump(mode="json")
    run = init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=_as_settings(settings))
    for started in start_together(2, "histoloom", "run", run.path):
        done = started.finish(timeout=800)
        assert done.returncode == 0, done.stderr[-3000:]
    assert states(run.path) == ["done"] * len(pipeline.STAGE_NAMES)
    assert (run.path / "report.html").is_file()
    assert list((run.path / "evaluation" / "classifiers").glob("*/log.jsonl")), "classifiers were trained"
    one, two = (json.loads((path / "autoencoder" / "quality.json").read_text()) for path in (tiny_run, run.path))
    assert two["psnr"] == pytest.approx(one["psnr"], abs=0.5)
    assert len(pd.read_csv(run.path / "samples" / "metadata.csv")) == len(list((run.path / "samples").rglob("*.png")))


def _as_settings(values: dict[str, object]) -> list[str]:
    """A configuration's sections, but for the slides, as --set arguments."""
    kept = {key: value for key, value in values.items() if key not in ("slides", "preset")}
    return [f"{key}={json.dumps(value)}" for key, value in kept.items()]
