"""The benchmark of a day with a GPU, rehearsed whole on the CPU at a tiny size, and what it does when a step fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import gpu_day
import gpu_day_checks  # noqa: F401 - loaded once: the steps below are forks of this process
import gpu_day_generator
import gpu_day_pack
import gpu_day_speed  # noqa: F401
import numpy as np
import pytest
from diffusers import UNet2DModel
from gpu_day import Day, Launch, Result, Step
from gpu_day_generator import images_in
from PIL import Image

from histoloom.diffusion.generation.generator import Generator

QUICK = Step("quick", 1, "nowhere:quick", 5)
SLOW = Step("slow", 2, "nowhere:slow", 10_000)
TRAINING = Step("training", 4, "nowhere:training", 60, endless=True)


@pytest.fixture
def day(tmp_path: Path) -> Day:
    """Two painted fields, and three wheels, of which one is for another Python."""
    fields = tmp_path / "pack" / "fields"
    fields.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(2):
        colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        colours.resize((64, 64)).save(fields / f"field-{number}.jpg")
    (tmp_path / "pack" / "wheels").mkdir()
    for module, tags in (("carried", "py3-none-any"), ("stable", "cp311-abi3-linux"), ("other", "cp39-cp39-linux")):
        with zipfile.ZipFile(tmp_path / "pack" / "wheels" / f"{module}-1-{tags}.whl", "w") as wheel:
            wheel.writestr(f"{module}.py", "VALUE = 1\n")
    return Day(tmp_path / "pack", tmp_path / "work", tmp_path / "out", "cpu", tiny=True, until=time.time() + 3600)


def launch_fork(step: Step, day: Day, log: Path) -> int:
    """A step as a fork of this process, where PyTorch is loaded already."""

    def work() -> None:
        with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            gpu_day.run_step(step, day)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode or 0


def launched(statuses: dict[str, int], *, goes_on: bool = False) -> Launch:
    """Stands for steps that end with these statuses; says 0 for others."""

    def launch(step: Step, day: Day, log: Path) -> int:
        log.write_text(f"Traceback of {step.name}")
        day.result(step.name).parent.mkdir(exist_ok=True)
        if statuses.get(step.name, 0) == 0:
            Result(("what",), (("number",),), goes_on=goes_on and step.endless).save(day.result(step.name))
        return statuses.get(step.name, 0)

    return launch


def states(day: Day) -> dict[str, str]:
    records = json.loads((day.work / "state.json").read_text())
    return {name: record["state"] for name, record in records.items()}


@pytest.mark.timeout(600)
def test_the_whole_day_at_a_tiny_size(day: Day) -> None:
    steps = [step for step in gpu_day.STEPS if step.name != "pipeline"]  # test_pipeline.py runs that
    assert gpu_day.run(day, steps=steps, launch=launch_fork), (day.work / "state.json").read_text()
    assert set(states(day).values()) == {"done"}, (day.out / "report.md").read_text()
    assert sorted(path.name for path in (day.work / "site").iterdir()) == ["carried.py", "stable.py"]

    # Every loss is the CPU's, the killed training ends with the same weights, and every speed is one.
    values = {step.name: Result.load(day.result(step.name)).values for step in steps}
    assert set(values["losses"].values()) == {0.0}
    assert values["resume"]["difference"] == 0.0
    assert 0 < values["resume"]["images"] < values["resume"]["total"]
    for step in steps:
        if step.phase == 3:
            rates = [value for name, value in values[step.name].items() if name.endswith("images/s")]
            assert rates, step.name
            assert all(rate > 0 for rate in rates)
    assert values["unet-modern"]["U-Net modern, batch 4, share of the peak"] > 0

    # What is carried back: few files, a report with a table of each step, and a generator that draws.
    carried = sorted(path.name for path in day.out.iterdir())
    assert carried == ["generator.zip.000", "log.txt", "report.md", "results.json", "sheet.jpg"]
    report = (day.out / "report.md").read_text()
    assert all(f"## {step.name}" in report for step in steps)
    assert "aten::" in (day.out / "log.txt").read_text()  # the profiles
    home = day.work / "unpacked"
    gpu_day.join_parts(day.out, home)
    generator = Generator.load(home)
    assert isinstance(generator.unet, UNet2DModel)
    assert generator.sample("0", n=1)[0].image.shape == (32, 32, 3)

    # The next day starts with these weights.
    (day.pack / "weights").mkdir()
    (day.out / "generator.zip.000").rename(day.pack / "weights" / "generator.zip.000")
    again = replace(day, work=day.work.parent / "work-2", out=day.out.parent / "out-2")
    assert gpu_day.run(again, steps=[step for step in steps if step.phase == 4], launch=launch_fork)
    seen = [json.loads((place / "generator" / "images.json").read_text())["images"] for place in (day.work, again.work)]
    assert 16 <= seen[0] < seen[1]
    assert [
        images_in(place / "generator" / "diffusion" / "checkpoints" / "last.pt") for place in (day.work, again.work)
    ] == [seen[0], seen[1] - seen[0]]
    old, new = (place / "generator" for place in (day.work, again.work))
    assert np.array_equal(np.load(old / "labels.npy"), np.load(new / "labels.npy"))


def test_a_step_that_fails_is_recorded_and_the_next_one_starts(day: Day) -> None:
    assert gpu_day.run(day, steps=[QUICK, replace(QUICK, name="next")], launch=launched({"quick": 1}))
    assert states(day) == {"quick": "failed", "next": "done", "packing": "done"}
    assert "Traceback of quick" in (day.out / "report.md").read_text()
    gpu_day.run(day, steps=[QUICK], launch=launched({}))
    assert states(day)["quick"] == "failed"
    gpu_day.run(day, steps=[QUICK], launch=launched({}), again=["quick"])
    assert states(day)["quick"] == "done"


def test_a_step_that_does_not_fit_waits_and_the_training_takes_the_time(day: Day) -> None:
    assert not gpu_day.run(day, steps=[SLOW, TRAINING], launch=launched({}, goes_on=True))
    assert states(day) == {"slow": "open", "training": "open", "packing": "done"}
    assert (day.work / "results" / "training.json").is_file()
    longer = replace(day, until=time.time() + 20_000)
    gpu_day.run(longer, steps=[SLOW, TRAINING], launch=launched({}, goes_on=True))
    assert states(day)["slow"] == "done"


def test_a_step_that_is_cut_off_twice_is_not_tried_again(day: Day) -> None:
    for state in ("cut off", "failed"):
        gpu_day.run(day, steps=[QUICK], launch=launched({"quick": -9}))
        assert states(day)["quick"] == state

    def ended(_step: Step, _day: Day, _log: Path) -> int:
        raise KeyboardInterrupt  # the whole call is ended

    other = replace(day, work=day.work.parent / "other")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            gpu_day.run(other, steps=[QUICK], launch=ended)
    for _ in range(3):  # the training is always tried again
        with pytest.raises(KeyboardInterrupt):
            gpu_day.run(other, steps=[TRAINING], launch=ended)
    assert gpu_day.run(other, steps=[QUICK, TRAINING], launch=launched({}))
    assert states(other) == {"quick": "failed", "training": "done", "packing": "done"}


def test_a_file_is_split_into_parts_and_joined(tmp_path: Path) -> None:
    archive = tmp_path / "generator.zip"
    content = os.urandom(3000)
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("unet/weights", content)
    parts = gpu_day.split_file(archive, tmp_path, bytes_each=1000)
    assert [part.name for part in parts] == [f"generator.zip.00{number}" for number in range(4)]
    gpu_day.join_parts(tmp_path, tmp_path / "joined")
    assert (tmp_path / "joined" / "unet" / "weights").read_bytes() == content
    with pytest.raises(SystemExit, match=r"generator\.zip\.000"):
        gpu_day.join_parts(tmp_path / "joined", tmp_path / "nowhere")


def test_packing_counts_everything_and_refuses_too_much(
    day: Day, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def download(names: list[str], folder: Path) -> None:
        asked.extend(names)
        folder.mkdir()
        (folder / f"{names[0]}.whl").write_bytes(b"0" * 2**20)

    monkeypatch.setattr(gpu_day_pack, "download", download)
    monkeypatch.setattr(gpu_day_pack, "tracked_bytes", lambda: 2**20)
    present = tmp_path / "present.txt"
    present.write_text("Pillow 11.0\nsafetensors==0.8\n")
    with pytest.raises(SystemExit, match="more than 2"):
        gpu_day_pack.pack(tmp_path / "p", fields=day.pack / "fields", weights=None, present=present, limit=2)
    # Two wheels of one MiB and the checkout: the optional one does not fit.
    gpu_day_pack.pack(tmp_path / "q", fields=day.pack / "fields", weights=None, present=present, limit=2.5)
    assert len(list((tmp_path / "q" / "wheels").iterdir())) == 1
    printed = capsys.readouterr().out
    assert "MiB  in all, of 2" in printed
    assert "left out, for want of space: openslide-bin.whl" in printed
    assert {"diffusers", "pydantic", "pydantic-core"} <= set(asked)
    assert not {"torch", "numpy", "pillow", "safetensors"} & set(asked)


def test_the_recipe_fits_what_can_be_carried() -> None:
    import torch

    from histoloom.diffusion.model.unet import make_unet

    day = Day(Path(), Path(), Path(), "cpu", tiny=False, until=0.0)
    config = gpu_day_generator.configuration(day)
    side = config.patches.size // config.autoencoder.factor
    with torch.device("meta"):
        unet = make_unet(config.diffusion, shape=(config.autoencoder.code_dim, side, side), conditions=109)
    weights = sum(weight.numel() for weight in unet.parameters())
    # Beside the next day's checkout without the starter (6 MiB), fields (9), wheels (9) and small networks (3).
    assert weights > 15e6
    assert 2 * weights < (64 - 27) * 2**20
