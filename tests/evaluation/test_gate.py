"""Copies are withheld when patches are drawn from a run that asks for it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from histoloom import pipeline
from histoloom.cli.app import app
from histoloom.diffusion.generation.run_request import Request, draw_request
from histoloom.errors import UserError
from histoloom.evaluation.originality.gate import Gate
from histoloom.evaluation.originality.greys import to_greys
from histoloom.evaluation.originality.nearest import Gallery
from histoloom.run.directory import Run, read_json, write_json
from histoloom.setup import change_settings
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.procedural.slides import draw_slide

CPU = torch.device("cpu")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


def table(path: Path) -> set[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["file_name"] for row in csv.DictReader(file)}


def test_a_turned_copy_is_withheld_and_tissue_of_another_slide_is_not() -> None:
    slides = [draw_slide(3, number=number, size=256, mpp=1.0)[0] for number in (1, 2)]
    train, other = (
        np.stack([slide[y : y + 64, x : x + 64] for y in range(0, 192, 48) for x in range(0, 192, 48)])
        for slide in slides
    )
    busiest = int(np.argmax(train.std(axis=(1, 2, 3))))
    gate = Gate(Gallery(to_greys(train)), 0.8)
    assert gate(np.rot90(train[busiest]).copy())
    assert not any(gate(patch) for patch in other)


def test_what_the_gate_withholds_never_lies_among_the_images(tiny_run: Path, tmp_path: Path) -> None:
    request = Request(n=6)
    free = files(draw_request(tiny_run, request, out=tmp_path / "free"))
    withheld_so_far: list[bool] = []

    def every_third(_image: np.ndarray) -> bool:
        withheld_so_far.append(len(withheld_so_far) % 3 == 0)
        return withheld_so_far[-1]

    out = draw_request(tiny_run, request, out=tmp_path / "gated", gate=every_third)
    assert len(withheld_so_far) == 6
    gated = files(out)
    withheld = {name.removeprefix("withheld/") for name in gated if name.startswith("withheld/")}
    assert len(withheld) == 2
    assert {name.removeprefix("withheld/"): content for name, content in gated.items()} == free
    assert table(out / "withheld" / "metadata.csv") == withheld
    assert table(out / "metadata.csv") == set(free) - withheld
    draw_request(tiny_run, request, out=out, gate=every_third)  # again: nothing is drawn or checked anew
    assert len(withheld_so_far) == 6
    assert files(out) == gated
    with pytest.raises(UserError, match="another request"):
        draw_request(tiny_run, request, out=out)


@pytest.fixture
def gated_run(tiny_run: Path, tmp_path: Path) -> Run:
    path = tmp_path / "run"
    shutil.copytree(tiny_run, path)
    return change_settings(Run.open(path), ["evaluation.originality=gate"], save=True)


def test_a_run_without_a_threshold_lets_nothing_through(gated_run: Run, tmp_path: Path) -> None:
    assert read_json(gated_run.path / "evaluation" / "originality.json")["threshold"] is None
    with pytest.raises(UserError, match="has no threshold: it needs enough patches of held-out slides"):
        Gate.of_run(gated_run, device=CPU)
    arguments = ["sample", str(gated_run.path), "-n", "1", "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code != 0
    assert not (tmp_path / "out").exists()


def test_the_command_withholds_by_the_threshold_of_the_run(gated_run: Run, tmp_path: Path) -> None:
    originality = read_json(gated_run.path / "evaluation" / "originality.json")
    for threshold, withheld in ((-1.0, 2), (1.0, 0)):
        write_json(gated_run.path / "evaluation" / "originality.json", originality | {"threshold": threshold})
        out = tmp_path / str(threshold)
        done = CliRunner().invoke(app, ["sample", str(gated_run.path), "-n", "2", "--out", str(out)])
        assert done.exit_code == 0
        assert len(list((out / "withheld").rglob("*.png"))) == withheld
        assert len(table(out / "metadata.csv")) == 2 - withheld


def test_what_is_like_a_held_out_patch_is_withheld_too(gated_run: Run) -> None:
    file = gated_run.path / "evaluation" / "originality.json"
    write_json(file, read_json(file) | {"threshold": 0.8})
    gate = Gate.of_home(gated_run.path)
    assert gate is not None
    patches = PatchSet.open(gated_run.folder("patches"))
    held = patches.rows("holdout")
    images = patches.images(held)
    busiest = int(np.argmax([0.0 if gate(image) else image.std() for image in images]))
    patch_id = str(patches.columns("patch_id")["patch_id"][held[busiest]])
    assert not gate(images[busiest])
    assert gate.with_patches(gated_run.path, names=[patch_id])(images[busiest])
    assert gate.with_patches(gated_run.path, names=["samples/none"]) is gate
    assert Gate.of_home(gated_run.path / "patches") is None


def test_asking_for_a_gate_makes_no_stage_stale(gated_run: Run) -> None:
    stages = [stage for stage in pipeline.status(gated_run) if stage.stage != "report"]
    assert {stage.state for stage in stages} == {"done"}
