"""Painted fields: layouts, windows that leave no trace, files, and jobs that continue."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from histoloom.cli.app import app
from histoloom.config import DiffusionConfig, SamplerConfig, TrainingConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import Student, StudentRecord
from histoloom.diffusion.painting import field as field_module
from histoloom.diffusion.painting import job
from histoloom.diffusion.painting.conditions import ConditionMap
from histoloom.diffusion.painting.field import FieldDiffusion, Windows, field_noise
from histoloom.diffusion.painting.job import PaintSettings, paint_array, paint_file
from histoloom.diffusion.painting.layout import Canvas, Layout, read_layout
from histoloom.diffusion.samplers import SAMPLERS
from histoloom.diffusion.sampling import sampling_levels
from histoloom.errors import UserError
from histoloom.names import add_name
from histoloom.slides.readers.open import open_slide

TRAINING = TrainingConfig.model_validate({"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 8}]})
CONFIG = DiffusionConfig(training=TRAINING, prediction="data", schedule="cosine")
SIDE = 8


class Output:
    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


class ConditionNetwork(nn.Module):
    """Predicts its condition's number everywhere, and with ``detail`` a smooth function of x as well."""

    def __init__(self, *, detail: float = 0.0) -> None:
        super().__init__()
        self.detail = detail
        self.maps = 0

    def forward(self, x_NCHW: Tensor, _step: Tensor, *, class_labels: Tensor, shares: Tensor | None = None) -> Output:
        if shares is not None:  # a map of conditions: their numbers, mixed by their shares
            class_labels = torch.einsum("np,nphw->nhw", class_labels.float(), shares)[:, None]
            self.maps += len(x_NCHW)
            return Output(class_labels + self.detail * torch.tanh(nn.functional.avg_pool2d(x_NCHW, 3, 1, 1)))
        around_NCHW = nn.functional.avg_pool2d(x_NCHW, 3, stride=1, padding=1)
        return Output(class_labels[:, None, None, None].float() + self.detail * torch.tanh(around_NCHW))


def a_field(folder: Path, cluster_hw: np.ndarray, **changes: object) -> FieldDiffusion:
    folder.mkdir(exist_ok=True)
    values: dict[str, object] = {
        "unet": ConditionNetwork(detail=0.5),
        "config": CONFIG,
        "sampler": SamplerConfig(method="unipc", steps=5, guidance=1.0),
        "conditions": ConditionMap(cluster_hw.astype(np.int16), 0.0),
        "condition_number": int,
        "null": 9,
        "channels": 2,
        "side": SIDE,
        "seed": 3,
        "folder": folder,
        "device": torch.device("cpu"),
        "batch_size": 4,
    }
    made = FieldDiffusion(**(values | changes))  # type: ignore[arg-type]
    made.create_files()
    return made


def sampled(field: FieldDiffusion) -> np.ndarray:
    for number in range(len(field.evaluations)):
        for band in field.windows.bands:
            field.evaluate(number, band)
    latents: np.ndarray = field.latents((0, field.windows.shape_hw[0])).numpy()
    return latents


def test_bands_are_the_field_and_weights_are_those_of_all_windows() -> None:
    windows = Windows((75, 21), SIDE)
    assert windows.tops[-1] == 75 - SIDE
    assert windows.lefts == [0, 4, 8, 12, 13]
    edges = [row for band in windows.bands for row in band]
    assert (edges[0], edges[-1]) == (0, 75)
    assert edges[1:-1:2] == edges[2:-1:2]
    for first, last in windows.bands:
        total = np.zeros((75, 21))
        for top, left in windows.in_band((first, last)):
            total[top : top + SIDE, left : left + SIDE] += windows.weight_SS
        np.testing.assert_allclose(windows.total_weight((first, last)), total[first:last], rtol=1e-5)
        assert windows.total_weight((first, last)).min() > 0


@pytest.mark.parametrize("method", ["ddim", "unipc", "heun", "ddpm"])
def test_a_field_of_one_window_is_a_patch(method: str, tmp_path: Path) -> None:
    steps = 5
    sampler = SamplerConfig.model_validate({"method": method, "steps": steps, "guidance": 1.0})
    field = a_field(tmp_path, np.full((SIDE, SIDE), 2), sampler=sampler)
    network, draws = ConditionNetwork(detail=0.5), 0

    def noise() -> Tensor:
        nonlocal draws
        draws += 1
        return field_noise(3, draw=draws - 1, rows=(0, SIDE), shape=(2, SIDE))

    expected = SAMPLERS[sampler.method].draw(
        lambda x, _level: network(x, x, class_labels=torch.tensor([2])).sample,
        noise(),
        levels=sampling_levels(sampler, config=CONFIG),
        noise=noise,
    )
    np.testing.assert_allclose(sampled(field), expected.numpy(), atol=1e-5)


def test_the_field_depends_on_neither_batches_nor_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_hw = np.zeros((29, 19), int)
    cluster_hw[:, 9:] = 3
    map_of = ConditionMap(cluster_hw.astype(np.int16), 1.5)
    whole = sampled(a_field(tmp_path / "a", cluster_hw, conditions=map_of))
    single = sampled(a_field(tmp_path / "b", cluster_hw, conditions=map_of, batch_size=1))
    monkeypatch.setattr(field_module, "BAND", 1)
    banded = a_field(tmp_path / "c", cluster_hw, conditions=map_of)
    assert len(banded.windows.bands) > 3
    np.testing.assert_allclose(single, whole, atol=1e-5)
    np.testing.assert_allclose(sampled(banded), whole, atol=1e-5)


def test_no_window_shows_and_each_place_has_its_condition(tmp_path: Path) -> None:
    cluster_hw = np.zeros((24, 40), int)
    cluster_hw[:, 20:] = 4
    flat = sampled(a_field(tmp_path / "flat", cluster_hw, unet=ConditionNetwork()))
    np.testing.assert_allclose(flat[0, :, :, :20], 0, atol=1e-4)
    np.testing.assert_allclose(flat[0, :, :, 20:], 4, atol=1e-4)
    soft = a_field(tmp_path / "soft", cluster_hw, unet=ConditionNetwork(), conditions=ConditionMap(cluster_hw, 2.0))
    profile = sampled(soft)[0, 0].mean(axis=0)
    assert (np.diff(profile) > -1e-4).all()
    assert 0.2 < profile[18] < 1.9 < profile[20] < 3.8
    steps = np.abs(np.diff(sampled(a_field(tmp_path / "one", np.zeros((24, 40), int)))[0], axis=2)).mean(axis=(0, 1))
    borders = [left for left in Windows((24, 40), SIDE).lefts if left]
    others = [column for column in range(39) if column + 1 not in borders]
    assert abs(steps[[b - 1 for b in borders]].mean() / steps[others].mean() - 1) < 0.2


def test_a_network_that_takes_maps_is_called_once_a_window(tmp_path: Path) -> None:
    """With the masks of the layout as shares: this network is linear in them, so that the field is that of windows."""
    cluster_hw = np.zeros((29, 19), int)
    cluster_hw[:, 9:], cluster_hw[12:] = 3, 5
    soft = ConditionMap(cluster_hw.astype(np.int16), 1.5)
    mixed = sampled(a_field(tmp_path / "mixed", cluster_hw, conditions=soft))
    network = ConditionNetwork(detail=0.5)
    field = a_field(tmp_path / "maps", cluster_hw, unet=network, conditions=soft, maps=True, batch_size=1)
    np.testing.assert_allclose(sampled(field), mixed, atol=1e-4)
    places = [place for band in field.windows.bands for place in field.windows.in_band(band)]
    assert network.maps == len(places) * len(field.evaluations)
    batched = a_field(tmp_path / "batched", cluster_hw, conditions=soft, maps=True)
    np.testing.assert_allclose(sampled(batched), mixed, atol=1e-4)
    guided = SamplerConfig(method="unipc", steps=3, guidance=1.5)
    plain, maps = (
        sampled(a_field(tmp_path / str(maps), cluster_hw, conditions=soft, sampler=guided, maps=maps))
        for maps in (False, True)
    )
    np.testing.assert_allclose(maps, plain, atol=1e-4)


def test_masks_do_not_depend_on_the_window() -> None:
    rng = np.random.default_rng(0)
    conditions = ConditionMap((np.kron(rng.integers(0, 3, (5, 5)), np.ones((8, 8)))).astype(np.int16), 1.0)
    one, other = conditions.masks(8, 8, side=16), conditions.masks(12, 8, side=16)
    for cluster in one.keys() & other.keys():
        np.testing.assert_allclose(
            one[cluster][4:], other[cluster][:12], atol=0.03
        )  # what is nowhere above 0.02 is left out
    for masks in (one, other):
        np.testing.assert_allclose(sum(masks.values()), 1, atol=1e-5)


# --- layouts


def square(name: str | None, x: int, y: int, side: int) -> dict[str, object]:
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    properties = {"objectType": "annotation", "classification": None if name is None else {"name": name}}
    return {"type": "Feature", "properties": properties, "geometry": {"type": "Polygon", "coordinates": [ring]}}


@pytest.fixture
def draw_layout(tmp_path: Path) -> Callable[..., Path]:
    def write(*squares: dict[str, object]) -> Path:
        file = tmp_path / "layout.geojson"
        file.write_text(json.dumps({"type": "FeatureCollection", "features": list(squares)}), encoding="utf-8")
        return file

    return write


CANVAS = Canvas((16, 32), factor=4, mpp=1.0)


def test_a_geojson_and_a_png_give_the_same_layout(draw_layout: Callable[..., Path], tmp_path: Path) -> None:
    file = draw_layout(square("bone", 0, 0, 32), square("fat", 32, 0, 32))
    from_areas = read_layout(file, CANVAS, mpp=2.0)
    assert from_areas.names == ("bone", "fat")
    values = np.zeros((8, 16), np.uint8)
    values[:, 8:] = 7
    Image.fromarray(values).save(tmp_path / "map.png")
    (tmp_path / "map.json").write_text('{"0": "bone", "7": "fat"}', encoding="utf-8")
    from_png = read_layout(tmp_path / "map.png", CANVAS, mpp=8.0)
    assert from_png.names == from_areas.names
    np.testing.assert_array_equal(from_png.tissue_hw, from_areas.tissue_hw)
    assert (from_areas.tissue_hw == np.arange(32) // 16).all()


def test_a_place_in_no_area_needs_a_background(draw_layout: Callable[..., Path]) -> None:
    layout = read_layout(draw_layout(square("bone", 0, 0, 64)), CANVAS, mpp=1.0)
    with pytest.raises(UserError, match=r"50.0% of the field lies in no area of the layout"):
        layout.with_background(None)
    assert layout.with_background("fat").names == ("bone", "fat")


@pytest.mark.parametrize(
    ("squares", "mpp", "message"),
    [
        ([square("bone", 0, 0, 32), square("fat", 16, 0, 32)], 1.0, "'bone' and 'fat' in layout.geojson overlap"),
        ([], 1.0, "has no areas"),
        ([square(None, 0, 0, 32)], 1.0, "1 of 1 areas of layout.geojson have no class"),
        ([square("bone", 500, 500, 32)], 1.0, "no area of layout.geojson lies on the field"),
        ([square("bone", 0, 0, 32)], 40.0, "40 um/px does not fit a field of 1 um/px"),
    ],
)
def test_a_layout_that_cannot_be_painted_is_refused(
    squares: list[dict[str, object]], mpp: float, message: str, draw_layout: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match=message):
        read_layout(draw_layout(*squares), CANVAS, mpp=mpp)


# --- jobs


@pytest.fixture
def named_run(tiny_run: Path, tmp_path: Path) -> Path:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for cluster, name in enumerate(("bone", "fat", "fat")):
        add_name(run, cluster=cluster, name=name, k=Generator.load(run).spec.chosen_k, rater="A")
    return run


def test_a_field_its_labels_and_its_record(
    named_run: Path, draw_layout: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = draw_layout(square("bone", 0, 0, 64), square("fat", 64, 0, 64))
    command = ["paint", str(named_run), "--layout", str(layout), "--out", str(tmp_path / "out"), "--size", "128", "64"]
    evaluate, done = FieldDiffusion.evaluate, 0

    def stopped(self: FieldDiffusion, number: int, band: tuple[int, int]) -> None:
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt
        evaluate(self, number, band)

    monkeypatch.setattr(FieldDiffusion, "evaluate", stopped)
    assert CliRunner().invoke(app, command).exit_code == 130
    assert not (tmp_path / "out" / "field.ome.tif").exists()
    monkeypatch.setattr(FieldDiffusion, "evaluate", evaluate)
    finished = CliRunner().invoke(app, command)
    assert finished.exit_code == 0, finished.output
    whole = paint_file(
        Generator.load(named_run), layout, out=tmp_path / "whole", settings=PaintSettings(), size_px=(128, 64)
    )
    pixels = tifffile.imread(tmp_path / "out" / "field.ome.tif")
    np.testing.assert_array_equal(pixels, tifffile.imread(whole))
    assert pixels.shape == (64, 128, 3)

    with open_slide(whole) as slide:
        assert slide.mpp == pytest.approx(Generator.load(named_run).spec.mpp)
        np.testing.assert_array_equal(slide.pixels(0, 0, level=0, width=128, height=64), pixels)
    with Image.open(tmp_path / "out" / "mask.png") as image:
        mask = np.asarray(image)
    assert json.loads((tmp_path / "out" / "mask.json").read_text()) == {"0": "bone", "1": "fat"}
    np.testing.assert_array_equal(mask, np.tile(np.arange(128) // 64, (64, 1)))
    canvas = Canvas((16, 32), factor=4, mpp=1.0)
    again = read_layout(tmp_path / "out" / "map.geojson", canvas, mpp=1.0)
    np.testing.assert_array_equal(again.tissue_hw, mask[2::4, 2::4])
    record = json.loads((tmp_path / "out" / "field.json").read_text())
    assert (record["synthetic"], record["size"], record["tissues"]) == (True, [128, 64], ["bone", "fat"])
    assert not (tmp_path / "out" / "work").exists()

    assert CliRunner().invoke(app, command).exit_code == 0, "a finished field stays"
    other = CliRunner().invoke(app, [*command, "--seed", "1"])
    assert isinstance(other.exception, UserError)


def test_processes_share_a_field(named_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads in the place of two processes: each paints its bands, and waits where processes wait."""
    generator = Generator.load(named_run)
    painting = job.Painting.of(
        generator,
        Layout(np.zeros((40, 8), np.int16), ("bone",)),
        canvas=Canvas((40, 8), 4, 1.0),
        settings=PaintSettings(sampler=SamplerConfig(method="ddim", steps=2, guidance=1.0)),
    )
    monkeypatch.setattr(field_module, "BAND", 2)
    painting.draw(tmp_path / "alone")
    here, barrier, painted = threading.local(), threading.Barrier(2), []
    evaluate = FieldDiffusion.evaluate

    def counted(self: FieldDiffusion, number: int, band: tuple[int, int]) -> None:
        painted.append((here.rank, number, band))
        evaluate(self, number, band)

    monkeypatch.setattr(FieldDiffusion, "evaluate", counted)
    monkeypatch.setattr(job, "rank", lambda: here.rank)
    monkeypatch.setattr(job, "size", lambda: 2)
    monkeypatch.setattr(job, "wait_for_all", barrier.wait)

    def work(number: int) -> None:
        here.rank = number
        painting.draw(tmp_path / "shared")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    bands = painting.windows.bands
    assert sorted(painted) == sorted((b % 2, e, band) for e in range(2) for b, band in enumerate(bands))
    alone, shared = (np.load(painting.pixel_file(tmp_path / name)) for name in ("alone", "shared"))
    np.testing.assert_array_equal(shared, alone)


def test_a_tissue_of_several_clusters_has_all_of_them(named_run: Path) -> None:
    generator = Generator.load(named_run)
    layout = Layout(np.ones((64, 64), np.int16), ("bone", "fat"))
    painting = job.Painting.of(generator, layout, canvas=Canvas((64, 64), 4, 1.0), settings=PaintSettings())
    assert set(np.unique(painting.conditions.cluster_hw)) == {1, 2}
    wrong = Layout(layout.tissue_hw, ("bone", "bonne"))
    with pytest.raises(UserError, match="no tissue 'bonne'"):
        job.Painting.of(generator, wrong, canvas=Canvas((64, 64), 4, 1.0), settings=PaintSettings())


def test_networks_that_learned_from_maps_paint_with_them(
    named_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student as its record says, other samplers as the generator says."""
    generator = Generator.load(named_run)
    with_maps = generator.spec.diffusion.model_copy(update={"condition_maps": True})
    generator.spec = generator.spec.model_copy(update={"diffusion": with_maps})
    layout, canvas = Layout(np.arange(128).reshape(8, 16) // 64, ("bone", "fat")), Canvas((8, 16), 4, 1.0)
    used = []
    monkeypatch.setattr(FieldDiffusion, "evaluate", lambda self, *_: used.append(self.maps))
    for number, (method, maps) in enumerate((("ddim", True), ("student", False), ("student", True))):
        settings = PaintSettings(sampler=SamplerConfig.model_validate({"method": method, "steps": 1, "guidance": 1.0}))
        record = StudentRecord(steps=1, guidance=1.0, teacher="", images=1, condition_maps=maps)
        monkeypatch.setattr(Generator, "student", Student(generator.unet, record, ""))
        job.Painting.of(generator, layout, canvas=canvas, settings=settings).draw(tmp_path / str(number))
    assert used == [True, False, True]
    assert "condition_maps" not in StudentRecord(steps=1, guidance=1.0, teacher="", images=1).as_json()


def test_painting_from_python(named_run: Path) -> None:
    generator = Generator.load(named_run)
    labels = np.zeros((40, 64), np.int64)
    labels[:, 32:] = 1
    sampler = SamplerConfig(method="ddim", steps=1, guidance=1.0)
    painted = generator.paint(labels, names=["bone", "fat"], settings=PaintSettings(sampler=sampler))
    steps: list[tuple[float, float]] = []

    def on_progress(done: float, total: float) -> None:
        steps.append((done, total))
        if len(steps) > 8:
            raise InterruptedError

    settings = PaintSettings(sampler=SamplerConfig(method="ddim", steps=4, guidance=1.0))
    with pytest.raises(InterruptedError):
        paint_array(generator, labels, names=["bone", "fat"], settings=settings, on_progress=on_progress)
    assert [total for _, total in steps] == [5] * 9
    assert [done for done, _ in steps] == sorted({done for done, _ in steps}), "it rises"
    assert (steps[0][0], steps[-1][0] < 5) == (0, True)
    assert painted.image.shape == (40, 64, 3)
    np.testing.assert_array_equal(painted.mask, labels)
    with pytest.raises(UserError, match="smaller than a patch"):
        generator.paint(labels[:16], names=["bone", "fat"])
    with pytest.raises(UserError, match="values from -1 to 0"):
        generator.paint(labels, names=["bone"])
