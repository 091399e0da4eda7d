"""What ``init`` prints: the next command, and how long the run will take."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from command_line import histoloom

from histoloom import cost


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "TIMED_SECONDS", 0.0)


def test_init_prints_the_estimate_beside_what_scripts_read(
    tiny_slides: Path, tiny_settings: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = [part for setting in tiny_settings for part in ("--set", setting)]
    made = histoloom("init", run, "--slides", tiny_slides, "--preset", "demo", *settings)
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{run} is ready; next: histoloom run {run}\n"
    line = made.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"about [\d.,]+ minutes on this machine \(autoencoder [\d.,]+, latents [\d.,]+, clusters [\d.,]+, "
        r"diffusion [\d.,]+, samples [\d.,]+, evaluation not counted\)",
        line,
    )
    status = histoloom("status", run, "--json")
    assert {entry["state"] for entry in json.loads(status.stdout)["stages"]} == {"missing"}


def test_a_run_for_another_machine_is_made_without_an_estimate(
    tiny_slides: Path, tiny_settings: tuple[str, ...], tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device that the test takes to be absent")
    run = tmp_path / "run"
    settings = [part for setting in (*tiny_settings, "runtime.device=cuda") for part in ("--set", setting)]
    made = histoloom("init", run, "--slides", tiny_slides, "--preset", "demo", *settings)
    assert made.returncode == 0
    assert made.stderr.splitlines()[-1].startswith("no estimate of the time: runtime.device is cuda")
