"""An exported generator: its card, diffusers' own loading, half precision, and the records of its images."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from PIL import Image

from histoloom import Generator, UserError
from histoloom.config import RuntimeConfig
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.names import add_label
from histoloom.run.directory import Run
from histoloom.setup import change_settings
from histoloom.sharing.export import Terms, export_generator
from histoloom.sharing.model_card import USAGE

AS_DIFFUSERS = RuntimeConfig(device="cpu", precision="fp32")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run with a named cluster; its stages are links."""
    folder = tmp_path_factory.mktemp("named") / "run"
    folder.mkdir()
    for part in tiny_run.iterdir():
        (folder / part.name).symlink_to(part)
    chosen = Generator.load(folder).spec.chosen_k
    add_label(folder, cluster=1, name="bone, edge", k=chosen, rater="Dr A", colour="#0072b2", flag="mixed")
    return Run.open(folder)


@pytest.fixture(scope="module")
def exported(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "generator"
    export_generator(run, folder, terms=Terms(licence="cc-by-4.0", data="Procedural slides, made for tests."))
    return folder


def test_the_card_is_read_by_hugging_face(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "diffusers")
    assert {"histopathology", "synthetic-data"} <= set(card.data.tags or [])


def test_the_card_says_what_one_has_to_know(exported: Path) -> None:
    text = (exported / "README.md").read_text(encoding="utf-8")
    assert "slides: a VQ-GAN," in text
    for part in ("Not for diagnosis", "## Limits", "Procedural slides, made for tests.", "bone, edge", "96 patches"):
        assert part in text
    assert re.search(r"\| ssim \| real against real \| \d", text), "each number stands with its floor"
    assert re.search(r"\| 1 \| bone, edge \| mixed \| #0072b2 \| \d", text), "flag and colour stand with the name"
    assert "Dr A" not in "".join(f.read_text(errors="ignore") for f in exported.rglob("*") if f.is_file())


def test_what_only_the_user_knows_is_marked_to_fill_in(run: Run, tmp_path: Path) -> None:
    export_generator(run, tmp_path / "plain")
    assert (tmp_path / "plain/README.md").read_text().count("Fill this in before you share this folder") == 2
    with pytest.raises(UserError, match="such as cc-by-4"):
        Terms(licence="CC BY: 4")


def test_the_documented_lines_draw_with_diffusers_alone(exported: Path, tmp_path: Path) -> None:
    text = (exported / "README.md").read_text(encoding="utf-8")
    lines = text.split("```python\n")[1].split("```")[0]
    assert lines == USAGE.format(tissue="bone, edge")
    assert USAGE.format(tissue="bone") in (ROOT / "docs/how-to/share-a-generator.md").read_text(encoding="utf-8")
    ends = (
        "import sys\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'histoloom']\n"
        "assert [image.size for image in images] == [(32, 32)] * 4\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines + ends],
        cwd=exported,
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture
def pipeline_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """diffusers' own loading of an exported folder."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(folder: Path) -> Any:
        pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


def with_sampler(run: Run, folder: Path, **settings: object) -> Run:
    """The run with another default sampler; all but its settings are links."""
    folder.mkdir()
    for part in run.path.iterdir():
        if part.name == "config.yaml":
            shutil.copy(part, folder)
        elif part.name != ".lock":
            (folder / part.name).symlink_to(part)
    words = [f"samples.sampler.{key}={json.dumps(value)}" for key, value in settings.items()]
    return change_settings(Run.open(folder), words, save=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 1.0},
        {"guidance": 1.0, "method": "unipc"},
        {"guidance": 3.0},
    ],
)
def test_diffusers_draws_as_the_default_sampler_says(
    run: Run, tmp_path: Path, pipeline_of: Callable[[Path], Any], settings: dict[str, object]
) -> None:
    out = tmp_path / "out"
    sampler = {"method": "dpm-solver++", "steps": 6} | settings
    export_generator(with_sampler(run, tmp_path / "run", **sampler), out)
    pipeline, generator = pipeline_of(out), Generator.load(out, runtime=AS_DIFFUSERS)
    assert generator.spec.sampler.model_dump(include=set(sampler)) == sampler
    specs = [SampleSpec(generator.spec.chosen_k, 1, i, seed=0) for i in range(2)]
    ours = list(generator.draw(specs, sampler=generator.spec.sampler))
    theirs = pipeline("bone, edge", n=2, generator=[spec.noise_stream() for spec in specs])
    assert_alike([drawn.image for drawn in ours], theirs, levels=1)
    plain = generator.spec.sampler.model_copy(update={"guidance": 1.8})
    assert apart(next(generator.draw(specs[:1], sampler=plain)).image, np.asarray(theirs[0])) > 1


def test_clusters_of_one_name_take_turns_in_diffusers(
    run: Run, tmp_path: Path, pipeline_of: Callable[[Path], Any]
) -> None:
    shared = with_sampler(run, tmp_path / "run")
    (shared.path / "names.jsonl").unlink()
    k = Generator.load(run.path).spec.chosen_k
    ends = (0, k - 1)
    for cluster in ends:
        add_label(shared.path, cluster=cluster, name="fat", k=k, rater="Dr A")
    export_generator(shared, tmp_path / "out")
    pipeline = pipeline_of(tmp_path / "out")
    first = pipeline.conditions(0)[0]
    assert pipeline.conditions("Fat") == [first, first + k - 1]
    ours = [pipeline(cluster, generator=torch.Generator().manual_seed(3))[0] for cluster in ends]
    theirs = pipeline("fat", n=2, generator=[torch.Generator().manual_seed(3) for _ in range(2)])
    assert_alike([np.asarray(image) for image in ours], theirs, levels=1)


def test_diffusers_draws_the_images_that_histoloom_draws(exported: Path, pipeline_of: Callable[[Path], Any]) -> None:
    pipeline = pipeline_of(exported)
    generator = Generator.load(exported, runtime=AS_DIFFUSERS)
    k = generator.spec.chosen_k
    ours = list(generator.draw([SampleSpec(k, 1, i, seed=0) for i in range(3)], sampler=generator.spec.sampler))
    theirs = pipeline("Bone, edge", n=3, generator=[sample.spec.noise_stream() for sample in ours])
    assert_alike([drawn.image for drawn in ours], theirs, levels=1)
    with pytest.raises(ValueError, match="there are cluster 0, bone, edge"):
        pipeline("fat")


def assert_alike(ours: list[np.ndarray], theirs: list[Image.Image] | list[np.ndarray], *, levels: float) -> None:
    """The median difference of the images is at most ``levels`` of 255, and of two different ones it is not.

    Rounding can take a latent position to another code, which changes the picture around it: so not the mean.
    """
    for one, other in zip(ours, theirs, strict=True):
        assert apart(one, np.asarray(other)) <= levels
    assert apart(ours[0], np.asarray(theirs[1])) > levels


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.median(np.abs(one.astype(float) - other.astype(float))))


def test_half_precision_halves_the_weights_and_hardly_changes_an_image(
    run: Run, exported: Path, tmp_path: Path
) -> None:
    export_generator(run, tmp_path / "half", half=True)
    sizes = [sum(f.stat().st_size for f in p.rglob("*.safetensors")) for p in (exported, tmp_path / "half")]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    whole, half = (Generator.load(p) for p in (exported, tmp_path / "half"))
    assert whole.digest() != half.digest()
    pairs = [[drawn.image for drawn in g.sample("bone, edge", n=4, seed=2)] for g in (whole, half)]
    apart = [np.abs(one.astype(float) - other).mean() for one, other in zip(*pairs, strict=True)]
    assert np.mean(apart) < 3, "a code that flips changes its place in one image, not the images"


def test_images_come_with_records_that_draw_them_again(exported: Path) -> None:
    generator = Generator.load(exported)
    first, second = generator.sample(tissue="bone, edge", n=2, seed=0)
    assert (second.image.dtype, second.image.shape) == (np.uint8, (32, 32, 3))
    record: dict[str, Any] = second.record
    assert (record["tissue"], record["cluster"], record["index"]) == ("bone, edge", 1, 1)
    assert (record["flag"], record["colour"]) == ("mixed", "#0072b2")
    spec = SampleSpec(record["k"], record["cluster"], record["index"], record["seed"])
    again = next(generator.draw([spec], sampler=second.sampler))
    assert np.array_equal(again.image, second.image)
    assert not np.array_equal(first.image, second.image)


def test_an_export_does_not_overwrite(run: Run, exported: Path) -> None:
    with pytest.raises(UserError, match="not empty"):
        export_generator(run, exported)
