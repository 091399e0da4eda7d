"""The ablation's variants: what trains, what only draws; the table's command is one that can be run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import ablation
import numpy as np
import pytest

from histoloom import pipeline
from histoloom.config import SamplerConfig, make_config, read_preset, with_settings
from histoloom.run.directory import Run


def test_settings_of_the_sampler_change_the_shared_one() -> None:
    shared = SamplerConfig(method="dpm-solver++", steps=20, guidance=1.8)
    assert ablation.sampler_of(["diffusion.shift=2"], guidance=1.8) == shared
    changed = ablation.sampler_of(["samples.sampler.steps=10", "latents.copies=8"], guidance=1.8)
    assert changed == shared.model_copy(update={"steps": 10})


@pytest.mark.parametrize("line", re.findall(r"--variant (.*?)(?: \\)?\n", (ablation.__doc__ or "").split("cpu``")[1]))
def test_every_variant_of_the_table_is_a_valid_change_of_the_preset(line: str) -> None:
    _, *settings = shlex.split(line)
    values = {**read_preset("cpu"), "slides": {"paths": ["/slides"]}}
    plain = make_config(values)
    trained = [setting for setting in settings if not setting.startswith(ablation.DRAWS)]
    assert (make_config(with_settings(values, trained)) != plain) == bool(trained)
    assert (ablation.sampler_of(settings, guidance=1) != ablation.sampler_of([], guidance=1)) == (
        len(trained) < len(settings)
    )


def test_a_variant_is_trained_and_evaluated_and_the_run_has_its_own_stages_again(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "run", tmp_path / "rows"
    shutil.copytree(tiny_run, path)
    before = (path / "diffusion" / "artifact.json").read_bytes()
    words = [str(path), "--out", str(out), "--images", "16", "-n", "12", "--pictures", "pixels"]
    words += [
        "--variant",
        "data",
        "diffusion.prediction=data",
        "--variant",
        "rotation",
        "autoencoder.gradient=rotation",
    ]
    monkeypatch.setattr("sys.argv", ["ablation.py", *words])
    ablation.main()
    rows = {file.name.split("-")[0]: json.loads(file.read_text()) for file in out.glob("*.json")}
    assert set(rows) == {"base", "data", "rotation"}
    assert rows["base"]["pooled"] != rows["data"]["pooled"]
    assert "pooled" not in rows["rotation"], "latents of another VQ-GAN"
    kinds = {"pixels", "pixels turned", "pixels held out"}
    assert all(np.isfinite(list(row.values())).all() and kinds <= row.keys() for row in rows.values())
    assert (path / "diffusion" / "artifact.json").read_bytes() == before
    run = Run.open(path)
    wanted = pipeline.wanted_fingerprints(run)
    assert all(
        run.state(stage, wanted=wanted[stage]) == "done"
        for stage in ("autoencoder", "latents", "clusters", "diffusion")
    )
