from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from histoloom.config import Config, identity, make_config, read_preset
from histoloom.errors import UserError
from histoloom.run.directory import (
    Artifact,
    Run,
    disk_errors_explained,
    file_digest,
    fingerprint,
    git_revision,
    replacing,
    write_json,
    write_text,
)


def a_config(**changes: object) -> Config:
    return make_config({**read_preset("cpu"), "slides": {"paths": ["/slides"]}, **changes})


def publish(run: Run, *, wanted: str, text: str) -> None:
    folder = run.begin("patches", wanted=wanted)
    (folder / "payload.txt").write_text(text)
    run.publish("patches", Artifact("patches", 1, wanted, {}, {}, 1.0, 1.0))


def test_fingerprint_does_not_depend_on_key_order() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_file_digest_sees_head_tail_and_size(tmp_path: Path) -> None:
    path = tmp_path / "slide"
    data = bytearray(300_000)
    digests = set()
    for place in (0, 299_999):
        data[place] = 1
        path.write_bytes(data)
        digests.add(file_digest(path))
    path.write_bytes(data + b"\0")
    assert len({*digests, file_digest(path)}) == 3


@pytest.mark.parametrize("size", [10, 131_072, 131_073, 180_000, 188_417, 2_000_000])
def test_file_digest_samples_between_the_ends(tmp_path: Path, size: int) -> None:
    path, data = tmp_path / "slide", bytearray(size)
    path.write_bytes(data)
    plain, sampled = file_digest(path), file_digest(path, samples=14)
    start = 65_536
    middle = range(start, size - start, 70_000 if size > 1_000_000 else 5_000)
    for place in (*middle, size - start - 1):
        path.write_bytes(data[:place] + b"\1" * (1 if size < 190_000 else 140_000) + data[place + 1 :])
        changed = bytearray(path.read_bytes()[:size])
        path.write_bytes(changed)
        assert file_digest(path, samples=14) != sampled
    path.write_bytes(data)
    assert (plain == sampled) == (size <= 2 * start)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_create_again_with_the_same_settings_is_fine_and_with_others_is_not(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", a_config())
    Run.create(tmp_path / "run", a_config(runtime={"device": "cpu"}))
    with pytest.raises(UserError, match=r"other settings \(seed: 0 there, 1 here\).*--set"):
        Run.create(tmp_path / "run", a_config(seed=1))
    assert Run.open(tmp_path / "run").config.seed == 0


def test_a_directory_in_other_use_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a run"):
        Run.create(tmp_path, a_config())
    with pytest.raises(UserError, match="histoloom init"):
        Run.open(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_states_and_superseding(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    assert run.state("patches", wanted="one") == "missing"
    run.begin("patches", wanted="one")
    assert run.state("patches", wanted="one") == "partial"
    publish(run, wanted="one", text="first")
    assert run.state("patches", wanted="one") == "done"
    assert run.state("patches", wanted="two") == "stale"
    publish(run, wanted="two", text="second")
    assert (run.folder("patches") / "payload.txt").read_text() == "second"
    assert run.restore("patches", wanted="one")
    assert (run.folder("patches") / "payload.txt").read_text() == "first"
    assert run.restore("patches", wanted="two")
    assert not run.restore("patches", wanted="three")


def test_an_unfinished_build_continues_only_for_its_own_fingerprint(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    (run.begin("patches", wanted="one") / "half").write_text("x")
    assert (run.begin("patches", wanted="one") / "half").exists()
    assert not (run.begin("patches", wanted="two") / "half").exists()


def test_an_unfinished_build_comes_back_with_its_settings(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    (run.begin("patches", wanted="one") / "half").write_text("first")
    (run.begin("patches", wanted="two") / "half").write_text("second")
    assert (run.begin("patches", wanted="one") / "half").read_text() == "first"
    assert (run.begin("patches", wanted="two") / "half").read_text() == "second"
    assert not run.restore("patches", wanted="one")  # unfinished


def test_an_unfinished_build_continues_with_another_schedule(tmp_path: Path) -> None:
    """And with the digest of those, so that what is published is up to date."""
    run = Run.create(tmp_path / "run", a_config())
    (run.begin("diffusion", wanted="one", but_schedule="same") / "half").write_text("x")
    assert (run.begin("diffusion", wanted="two", but_schedule="same") / "half").exists()
    assert (run.begin("diffusion", wanted="two", but_schedule="other") / "half").exists()
    assert (run.begin("diffusion", wanted="four", but_schedule="other") / "half").exists()  # as in builds of before
    assert not (run.begin("diffusion", wanted="three", but_schedule="another loss") / "half").exists()


EARLIER = """\
seed: 0
preset: demo
slides:
  paths: [/slides]
  table: null
  columns: null
  mpp: null
  follow_links: false
  pseudonyms: null
start: null
patches:
  size: 64
  mpp: 1.0
  count: 3000
  per_slide: null
  sampling: random
  overlap: 0.0
  tissue: all
  min_tissue: 0.5
  background_share: 0.1
  filters: {blur: auto, pen: auto}
  stain: none
  stain_reference: null
  split: {by: slide, holdout: 0.2}
autoencoder:
  stem: 2
  channels: 48
  multipliers: [1, 2]
  blocks: 1
  attention: false
  norm_groups: 32
  codes: 128
  code_dim: 16
  code_space: plane
  gradient: straight-through
  equivariance: 0.0
  commitment: 0.25
  codebook_decay: 0.99
  restart_below: 0.05
  perceptual: pyramid
  perceptual_trunk: squeeze
  perceptual_weight: 0.5
  l1_weight: 1.0
  mse_weight: 0.0
  adversarial:
    weight: 0.0
    start: 0.5
    warmup: 0.1
    max_adaptive: 1.0
    channels: 64
    layers: 3
    lr: 0.0001
    betas: [0.9, 0.999]
  augment: true
  training:
    batch_size: 8
    phases:
    - {optimizer: adamw, lr: 0.001, epochs: null, images: 8000}
    lr_decay: cosine
    warmup_images: 800
    grad_clip: 1.0
    ema: 0.0
    ema_width: null
latents: {dtype: float32, stain_views: 2, stain_jitter: 0.25, copies: 1}
clusters:
  features: latents
  encoder: null
  selfsup: null
  k: [6, 7, 8, 9, 10]
  channels: 64
  marginal_weight: 2.0
  marginal_end: 1.0
  consistency: augment
  consistency_weight: 1.0
  independence: 0.0
  restarts: 1
  validity_features: pooled
  validity_points: 10000
  chooser: nulls
  null_draws: 6
  null_points: 1000
  training:
    batch_size: 64
    phases:
    - {optimizer: adamw, lr: 0.002, epochs: null, images: 48000}
    lr_decay: cosine
    warmup_images: 0
    grad_clip: null
    ema: 0.0
    ema_width: null
diffusion:
  steps: 1000
  schedule: cosine
  beta_start: 0.0001
  beta_end: 0.02
  shift: 2.0
  prediction: v
  whiten: 0.99
  zero_terminal_snr: false
  fold: 1
  weighting: plain
  weighting_centre: null
  min_snr: null
  channels: [64, 128, 128]
  blocks: 1
  attention: [false, false, true]
  norm_groups: 8
  embedding: scale-shift
  dropout: 0.0
  condition_dropout: 0.1
  condition_rate: 1.0
  augment: false
  stain_augment: false
  training:
    batch_size: 8
    phases:
    - {optimizer: adamw, lr: 0.0005, epochs: null, images: 12000}
    lr_decay: cosine
    warmup_images: 1600
    grad_clip: 1.0
    ema: 0.995
    ema_width: null
samples:
  per_cluster: 8
  k: all
  sampler: {method: unipc, steps: 15, spacing: 1.0, guidance: 1.5, guidance_interval: null}
evaluation:
  pairs: 32
  lpips_trunk: squeeze
  bootstrap: 1000
  extractors: [pixels, lpips-alex, encoder]
  judge:
    channels: 16
    training:
      batch_size: 32
      phases:
      - {optimizer: adamw, lr: 0.002, epochs: null, images: 4800}
      lr_decay: cosine
      warmup_images: 320
      grad_clip: null
      ema: 0.0
      ema_width: null
  distribution_patches: 2000
  originality: report
report:
  k: null
  patches_per_cluster: 8
  map_slides: 6
  map_patches: 4000
  embeddings: [pca, tsne]
  embedded_patches: 1500
runtime: {device: auto, precision: auto, threads: null, workers: null, scheduler: null, fast: auto, accumulate: 1,
  checkpoint_seconds: 60.0, tensorboard: false}
"""
"""config.yaml of a run of the preset demo, as an earlier version wrote it: with removed and renamed settings."""

EARLIER_SECTIONS = {
    "patches": "a79716bb2bb71dbc",
    "autoencoder": "45dc28571ad54908",
    "latents": "1ac2507679267dd0",
    "clusters": "aef5e268f32fb8d9",
    "diffusion": "f21b9f07ec8f2c21",
    "samples": "bdb888b2521d20e8",
    "evaluation": "94309db30d0df57e",
    "report": "6a8488ecf96cece0",
}
"""What that version had in the stages' fingerprints for these sections."""


def test_a_run_of_an_earlier_version_opens_and_none_of_its_stages_is_stale(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(EARLIER)
    run = Run.open(tmp_path)
    assert run.config.evaluation.cluster_classifier is not None
    assert run.config.evaluation.cluster_classifier.channels == 16
    sections = identity(run.config)
    assert {name: fingerprint(sections[name]) for name in EARLIER_SECTIONS} == EARLIER_SECTIONS

    # What this version writes is read as the same run.
    run.save_config()
    assert Run.open(tmp_path).config == run.config


class Killed(BaseException):
    """Stands for a kill: nothing after it runs."""


OPERATIONS = (
    (Path, "rename"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "mkdir"),
    (Path, "write_bytes"),
    (os, "fsync"),
    (shutil, "rmtree"),
)
"""What publishing does to the disk."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_point_of_publishing_loses_nothing(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = 0
    for kill_at in itertools.count(1):
        run = Run.create(tmp_path / str(kill_at), a_config())
        publish(run, wanted="one", text="first")
        folder = run.begin("patches", wanted="two")
        (folder / "payload.txt").write_text("second")
        (folder / "inner" / "checkpoints").mkdir(parents=True)
        (folder / "inner" / "checkpoints" / "last.pt").write_text("pickle")

        count = 0
        with monkeypatch.context() as patched:
            for owner, name in OPERATIONS:
                original = getattr(owner, name)

                def killing(*args: Any, original: Any = original, kill_at: int = kill_at, **options: Any) -> Any:
                    nonlocal count
                    count += 1
                    if when == "before" and count == kill_at:
                        raise Killed
                    result = original(*args, **options)
                    if count == kill_at:
                        raise Killed
                    return result

                patched.setattr(owner, name, killing)
            try:
                run.publish("patches", Artifact("patches", 1, "two", {}, {}, 1.0, 1.0))
                finished = True
            except Killed:
                finished = False
        if finished:
            break
        points = kill_at

        # What the next call of the pipeline does: adopt, then build where the stage is not there.
        run.adopt("patches", wanted="two")
        if run.state("patches", wanted="two") != "done":
            again = run.begin("patches", wanted="two")
            assert (again / "payload.txt").read_text() == "second", f"point {kill_at}: work was lost"
            assert (again / "inner" / "checkpoints" / "last.pt").exists(), f"point {kill_at}: the checkpoint was lost"
            run.publish("patches", Artifact("patches", 1, "two", {}, {}, 1.0, 1.0))
        assert run.state("patches", wanted="two") == "done"
        assert (run.folder("patches") / "payload.txt").read_text() == "second"
        assert not list(run.folder("patches").rglob("checkpoints"))
        assert not (run.folder("patches") / "building.json").exists()
        assert run.restore("patches", wanted="one")
        assert (run.folder("patches") / "payload.txt").read_text() == "first"
    assert points >= 6


def test_a_finished_build_of_other_settings_is_kept(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    folder = run.begin("patches", wanted="one")
    (folder / "payload.txt").write_text("first")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_text("pickle")
    values = vars(Artifact("patches", 1, "one", {}, {}, 1.0, 1.0))
    write_json(folder / "artifact.json", values)  # and a crash
    assert not run.adopt("patches", wanted="two")
    assert not (run.begin("patches", wanted="two") / "payload.txt").exists()
    assert run.restore("patches", wanted="one")
    assert (run.folder("patches") / "payload.txt").read_text() == "first"
    assert sorted(path.name for path in run.folder("patches").iterdir()) == ["artifact.json", "payload.txt"]


def test_the_git_revision_is_that_of_the_package_alone(tmp_path: Path) -> None:
    """A package installed below somebody's repository is in that checkout, but not tracked by it."""
    module = tmp_path / "site-packages" / "package.py"
    module.parent.mkdir()
    module.write_text("")
    assert git_revision(module) is None
    author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert git_revision(module) is None
    for command in (["add", "."], [*author, "commit", "-q", "-m", "ours"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    assert git_revision(module) is not None


def test_a_missing_stage_says_how_to_make_it(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    with pytest.raises(UserError, match=r"histoloom run .*run --until clusters"):
        run.require("clusters")


HOLD = "import sys,time; from pathlib import Path; from histoloom.run.directory import Run\n"
HOLD += "with Run.open(Path(sys.argv[1])).locked():\n  print('held', flush=True); time.sleep(60)"


def test_two_processes_cannot_hold_a_run_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", a_config())
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process is working"), run.locked():
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with run.locked():
                return
        except UserError:
            time.sleep(0.1)
    pytest.fail("the lock of a killed process was never freed")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(UserError, match="no space left"), disk_errors_explained(tmp_path):
        Path("/dev/full").write_text("x" * 100_000)


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()
