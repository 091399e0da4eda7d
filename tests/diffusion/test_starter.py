"""The starter generator that comes with Histoloom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from histoloom import sharing
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import generator_home
from histoloom.diffusion.generation.run_request import Request, draw_request
from histoloom.run.directory import read_json
from histoloom.setup import init_run

STARTER = Path(__file__).resolve().parents[2] / "starter"
MOST = 60 * 10**6


def test_it_is_small_named_and_says_where_it_comes_from() -> None:
    weights = list(STARTER.rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in weights) <= MOST
    generator = Generator.load("starter")
    names = generator.names(generator.spec.chosen_k)
    assert not [name for cluster, name in names.items() if name == f"cluster {cluster}"]
    card = (STARTER / "README.md").read_text(encoding="utf-8")
    assert "Leavey" in card
    assert "CC BY 3.0" in card
    assert "license: cc-by-3.0" in card
    assert "Not for diagnosis" in card
    assert "an autoencoder with continuous latents" in card


def test_its_evaluation_and_originality_lie_beside_it() -> None:
    folder = STARTER / "evaluation"
    assert {entry["metric"] for entry in read_json(folder / "similarity.json")} == {"ssim", "ms_ssim", "lpips"}
    assert {entry["metric"] for entry in read_json(folder / "distribution.json")["entries"]} >= {"frechet", "kid"}
    originality = read_json(folder / "originality.json")
    assert originality["n"] == len(originality["samples"])
    assert originality["false_alarm_rate"] is not None
    faithful = read_json(folder / "faithfulness.json")
    assert faithful["judge"]["samples"]["n"] == originality["n"]
    assert read_json(folder / "two_sample.json")["texture"]["samples"]["n"][1] >= 100
    assert read_json(folder / "verdicts.json")["k"] == faithful["k"]


def test_it_draws_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert generator_home("starter") == STARTER
    names = Generator.load("starter").names(Generator.load("starter").spec.chosen_k)
    tissue = next(name for name in names.values() if "bone" in name)
    out = draw_request(Path("starter"), Request(n=1, tissues=(tissue,), steps=4), out=tmp_path / "images")
    assert len(list(out.rglob("*.png"))) == 1
    assert tissue in (out / "metadata.csv").read_text(encoding="utf-8")


def test_bone_is_pink_and_empty_space_is_white() -> None:
    generator = Generator.load("starter")
    names = generator.names(generator.spec.chosen_k).values()
    sampler = generator.spec.sampler.model_copy(update={"steps": 6})

    def mean(word: str) -> np.ndarray:
        tissue = next(name for name in names if word in name)
        images = [drawn.image for drawn in generator.sample(tissue, n=4, seed=0, sampler=sampler)]
        return np.stack(images).mean(axis=(0, 1, 2))

    assert mean("empty").min() > 220
    red, green, _ = mean("compact bone")
    assert red > green + 40


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "starter").mkdir()
    monkeypatch.chdir(tmp_path)
    assert generator_home("starter") == Path("starter")


def test_a_run_can_begin_with_it(tmp_path: Path, tiny_slides: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = init_run(tmp_path / "run", slides=[tiny_slides], preset="cpu", start=Path("starter"))
    assert run.config.start is not None
    assert run.config.patches.size == Generator.load("starter").spec.size
    assert (run.path / "start" / "unet" / "diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.parametrize(("ours", "copy"), [("pipeline.py", "."), ("tissue_decoder.py", "autoencoder")])
def test_its_code_for_diffusers_is_that_of_an_export_made_now(ours: str, copy: str) -> None:
    written = Path(sharing.__file__).with_name(ours).read_text(encoding="utf-8")
    assert (STARTER / copy / ours).read_text(encoding="utf-8") == written, "copy it again"
