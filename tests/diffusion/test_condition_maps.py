"""Maps of conditions: the network that takes them, the clusterer's dense predictions, and what a training sees."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from histoloom import pipeline
from histoloom.autoencoder.augment import dihedral
from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering import dense_labels as dense_module
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.dense_labels import PLACES, dense_labels
from histoloom.clustering.features.base import ImagesUnsupported
from histoloom.config import DiffusionConfig, make_config, read_preset, with_settings
from histoloom.diffusion import distillation, stage
from histoloom.diffusion.corrections import TrainedCorrections
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.model.condition_maps import ConditionMapUNet, place_shares
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import make_unet, open_unet, save_unet
from histoloom.errors import UserError
from histoloom.run.directory import Run
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import torch_generator
from histoloom.slides.patch_set import PatchSet, SlideRow
from histoloom.slides.patches.surroundings import fields_of, image_side
from histoloom.slides.readers.open import open_slide
from histoloom.training.loop import StepContext, Task, Trained, train

SHAPE = (2, 8, 8)


def a_config(**changes: object) -> DiffusionConfig:
    training = {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 8}]}
    values = {"training": training, "channels": (8, 16), "attention": (False, True), "blocks": 1, "norm_groups": 4}
    return DiffusionConfig.model_validate(values | changes)


def a_network(config: DiffusionConfig) -> ConditionMapUNet:
    torch.manual_seed(0)
    unet = make_unet(config, shape=SHAPE, conditions=5).eval().requires_grad_(False)
    assert isinstance(unet, ConditionMapUNet)
    unet.class_embedding.weight *= 10  # so that conditions differ clearly
    return unet


# --- the network


@pytest.mark.parametrize("embedding", ["add", "scale-shift"])
def test_one_condition_everywhere_is_the_plain_condition(embedding: str, tmp_path: Path) -> None:
    unet = a_network(a_config(embedding=embedding))
    save_unet(unet, tmp_path / "unet")
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["_class_name"] == "UNet2DModel"
    theirs = UNet2DModel.from_pretrained(tmp_path / "unet")
    x, steps, numbers = torch.randn(3, *SHAPE), torch.tensor([0, 400, 999]), torch.tensor([1, 3, 4])
    expected = theirs(x, steps, class_labels=numbers).sample
    for network in (unet, open_unet(tmp_path)):
        assert torch.equal(network(x, steps, class_labels=numbers).sample, expected)
        same = {"class_labels": numbers[:, None].expand(-1, 16), "shares": place_shares(4, size=SHAPE[1:])}
        torch.testing.assert_close(network(x, steps, **same).sample, expected, atol=1e-5, rtol=1e-4)


def test_each_position_has_its_condition() -> None:
    """Without what sees the whole map, halves are those of the plain conditions, beyond what convolutions reach."""
    unet = a_network(a_config(attention=(False, False)))
    unet.mid_block.attentions[0] = None
    unet.conv_norm_out = nn.Identity()
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            block.norm1, block.norm2 = nn.Identity(), nn.Identity()
    x, step = torch.randn(1, 2, 8, 128), torch.tensor(500)
    left = (torch.arange(128) < 64).float().expand(1, 1, 8, 128)
    mapped = unet(x, step, class_labels=torch.tensor([[1, 2]]), shares=torch.cat([left, 1 - left], dim=1)).sample
    one, other = (unet(x, step, class_labels=torch.tensor([number])).sample for number in (1, 2))
    assert (one - other).abs().mean() > 0.01
    torch.testing.assert_close(mapped[..., :24], one[..., :24])
    torch.testing.assert_close(mapped[..., -24:], other[..., -24:])


def test_places_share_the_positions() -> None:
    shares_1Phw = place_shares(4, size=(16, 16))
    torch.testing.assert_close(shares_1Phw.sum(dim=1), torch.ones(1, 16, 16))
    largest_hw = shares_1Phw[0].argmax(dim=0)
    expected_hw = torch.arange(16).view(4, 4).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(largest_hw, expected_hw)


def test_only_a_generator_that_has_maps_says_so(tiny_run: Path) -> None:
    plain = GeneratorSpec.load(tiny_run / "diffusion")
    assert not plain.diffusion.condition_maps
    assert "condition_maps" not in json.dumps(plain.as_json())
    with_maps = plain.model_copy(update={"diffusion": plain.diffusion.model_copy(update={"condition_maps": True})})
    assert with_maps.as_json()["diffusion"]["condition_maps"] is True  # type: ignore[index]
    assert GeneratorSpec.model_validate(with_maps.as_json()).diffusion == with_maps.diffusion


def test_settings_that_have_no_maps_are_refused() -> None:
    values = read_preset("paper") | {"slides": {"paths": ["/slides"]}}
    with pytest.raises(UserError, match="takes no maps of conditions"):
        make_config(with_settings(values, ["diffusion.condition_maps=true"]))


# --- the loss


class Recorder(nn.Module):
    """Remembers the conditions that it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions, self.shares = torch.empty(0), torch.empty(0)

    def forward(self, x: Tensor, _steps: Tensor, *, class_labels: Tensor, shares: Tensor) -> object:
        self.conditions, self.shares = class_labels, shares
        return type("Output", (), {"sample": x})


def test_a_training_sees_maps_whole_patches_and_the_null() -> None:
    network, B, conditions = Recorder(), 400, Conditions((2, 3))
    loss = DiffusionLoss(a_config(condition_maps=True, condition_dropout=0.2), unet=network, conditions=conditions)
    numbers_BS = torch.tensor([1, 4]).expand(B, 2)
    map_SGG = torch.stack([torch.arange(4).view(2, 2) % 2, 2 + torch.arange(4).view(2, 2) % 3])
    context = StepContext(0, 0, 0.0, torch.device("cpu"), torch_generator(0, "loss"), slice(0, B), B)
    loss((torch.randn(B, *SHAPE), numbers_BS, map_SGG.expand(B, 2, 2, 2)), context)
    rows = [tuple(row) for row in network.conditions.tolist()]
    expected = {(1,) * 4: 0.2, (4,) * 4: 0.2, (0, 1, 0, 1): 0.2, (2, 3, 4, 2): 0.2, (5,) * 4: 0.2}
    assert set(rows) == set(expected)
    for row, share in expected.items():
        assert abs(rows.count(row) / B - share) < 0.07, row
    assert network.shares.shape == (1, 4, 8, 8)


# --- dense predictions


def context_of(run: Path, *, out: Path, **diffusion: object) -> StageContext:
    out.mkdir(exist_ok=True)
    config = Run.open(run).config
    config = config.model_copy(update={"diffusion": config.diffusion.model_copy(update=diffusion)})
    inputs = {name: run / name for name in pipeline.STAGE_NAMES}
    return StageContext(run, config, out, inputs, EventLog(out / "log.jsonl"))


def test_the_cluster_of_a_place_is_that_of_the_patch_about_it(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense_module, "CHUNK", 2)
    context = context_of(tiny_run, out=tmp_path / "out", condition_maps=True)
    patches = PatchSet.open(tiny_run / "patches")
    rows, ks = patches.rows("train")[:6], context.config.clusters.k
    labels, seen = Classifier.labels, 0

    def stopped(self: Classifier, *images: np.ndarray) -> dict[int, np.ndarray]:
        nonlocal seen
        if seen == 4:
            raise KeyboardInterrupt
        seen += len(images[0]) // PLACES**2
        return labels(self, *images)

    monkeypatch.setattr(Classifier, "labels", stopped)
    with pytest.raises(KeyboardInterrupt):
        dense_labels(context, rows=rows, ks=ks)
    assert seen == 4
    seen = -10
    labels_NSGG = dense_labels(context, rows=rows, ks=ks)
    assert seen == -8, "what was classified stays so"
    assert labels_NSGG.shape == (6, len(ks), PLACES, PLACES)
    assert len(np.unique(labels_NSGG[:, -1])) > 1

    # A later training with the same clusters takes them over.
    run = tmp_path / "run"
    shutil.copytree(tiny_run / "diffusion", run / "diffusion")
    for name in (dense_module.FILE, dense_module.MARKER):
        shutil.copy(context.out / name, run / "diffusion")
    (tmp_path / "again").mkdir()
    again = replace(context, run=run, out=tmp_path / "again")
    np.testing.assert_array_equal(dense_labels(again, rows=rows, ks=ks), labels_NSGG)
    assert seen == -8, "nothing was classified again"

    # The same, a patch at a time, as it is read from the slide.
    classifier = Classifier.load(
        autoencoder=tiny_run / "autoencoder",
        latents=tiny_run / "latents",
        clusters=tiny_run / "clusters",
        device=torch.device("cpu"),
    )
    size, slides = patches.size, {slide.slide_id: slide for slide in SlideRow.load(tiny_run / "patches")}
    same = []
    for row, place in zip((0, 3, 5), ((0, 0), (1, 2), (3, 3)), strict=True):
        entry = patches.table.iloc[rows[row]]
        with open_slide(Path(slides[entry["slide_id"]].file)) as slide:
            middles = [entry[a] + (p + 0.5) / PLACES * entry["extent"] for a, p in zip("xy", place[::-1], strict=True)]
            limits = [side - entry["extent"] for side in slide.dimensions]
            x, y = (np.clip(m - entry["extent"] / 2, 0, limit) for m, limit in zip(middles, limits, strict=True))
            image = slide.read(x, y, extent=entry["extent"], size=size)
            around = fields_of(np.array([x]), np.array([y]), extent=entry["extent"], dimensions=slide.dimensions)[0]
            field = slide.read(around[0], around[1], extent=around[2], size=image_side(size))
        expected = labels(classifier, image[None], field[None])
        same += [expected[k][0] == labels_NSGG[row, i, place[0], place[1]] for i, k in enumerate(ks)]
    assert np.mean(same) > 0.8, "resampling differs by a fraction of a pixel"

    monkeypatch.setattr(dense_module, "real_file", lambda *_, **__: tmp_path / "gone.tif")
    with pytest.raises(UserError, match=r"condition_maps reads the slides again, and slide .* put it back"):
        dense_labels(replace(context, out=tmp_path), rows=rows, ks=ks)

    def of_files(**_: object) -> None:
        raise ImagesUnsupported

    monkeypatch.setattr(Classifier, "load", of_files)
    with pytest.raises(UserError, match="features from files have no maps"):
        dense_labels(replace(context, out=tmp_path), rows=rows, ks=ks)


@pytest.fixture
def places(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Dense predictions that are not computed but drawn at random."""
    n = len(LatentSet.open(tiny_run / "latents").rows(split="train"))
    rng = np.random.default_rng(0)
    ks = Run.open(tiny_run).config.clusters.k
    values = np.stack([rng.integers(0, k, (n, PLACES, PLACES)) for k in ks], axis=1).astype(np.int16)
    monkeypatch.setattr(dense_module, "dense_labels", lambda *_, **__: values)
    return values


def test_maps_turn_with_their_patches_and_corrections_are_of_whole_patches(
    tiny_run: Path, tmp_path: Path, places: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(tiny_run, out=tmp_path / "out", condition_maps=True)
    config = context.config
    context = replace(
        context,
        config=config.model_copy(update={"latents": config.latents.model_copy(update={"copies": 8})}),
    )
    monkeypatch.setattr(LatentSet, "raw_copies", lambda self, rows, **_: self.raw(rows))
    latents, clustering = LatentSet.open(tiny_run / "latents"), Clustering.open(tiny_run / "clusters")
    spec = GeneratorSpec.load(tiny_run / "diffusion")
    rows, ks = latents.rows(split="train"), spec.ks
    patch = str(latents.table["patch_id"][rows[2]])
    label = stage.sweep_labels(latents, clustering)[rows[2], -1]
    moved = int((label + 1) % ks[-1])
    task = stage.make_task(
        context,
        latents=latents,
        clustering=clustering,
        spec=spec,
        unet=make_unet(spec.diffusion, shape=spec.shape, conditions=spec.conditions.count),
        corrections=TrainedCorrections(numbers={ks[-1]: {patch: moved}}),
    )
    # Place (row, column) of the map is what lies there in a picture: both are turned alike.
    copies = np.arange(8)
    _, _, maps_BSGG = task.batch(1 + task.n * copies)
    picture_1GG = torch.from_numpy(places[1, 0].astype(np.float32))[None]
    turned_BGG = dihedral(picture_1GG[None].expand(8, 1, -1, -1), torch.from_numpy(copies))[:, 0]
    assert torch.equal(maps_BSGG[:, 0], turned_BGG.long() + spec.conditions.offset(ks[0]))
    assert len({tuple(one.flatten().tolist()) for one in maps_BSGG[:, 0]}) == 8

    _, _, maps_BSGG = task.batch(np.array([2]))
    assert (maps_BSGG[0, -1] == spec.conditions.number(k=ks[-1], cluster=moved)).all()
    expected = places[2, 0].astype(int) + spec.conditions.offset(ks[0])
    np.testing.assert_array_equal(maps_BSGG[0, 0].numpy(), expected)


def test_a_run_trains_on_maps_and_so_does_its_student(
    tiny_run: Path, tmp_path: Path, places: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step; the generator says what it can, and draws patches as before."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    training = Run.open(run).config.diffusion.training
    short = training.model_copy(update={"phases": (training.phases[0].model_copy(update={"images": 8}),)})
    context = context_of(run, out=tmp_path / "out", condition_maps=True, training=short)
    stage.run(context)
    shutil.copytree(tmp_path / "out", run / "diffusion", dirs_exist_ok=True)
    generator = Generator.load(run)
    assert generator.spec.diffusion.condition_maps
    assert len(generator.sample("0", n=1)) == 1

    np.save(run / "diffusion" / dense_module.FILE, places)
    seen: list[Task] = []

    def recorded(task: Task, **settings: object) -> Trained:
        seen.append(task)
        return train(task, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(distillation, "train", recorded)
    distillation.distil(Run.open(run), distillation.DistillConfig(steps=1, images=8))
    _, numbers_BS, maps_BSGG = seen[0].batch(np.array([3]))
    offsets_S = [generator.spec.conditions.offset(k) for k in generator.spec.ks]
    np.testing.assert_array_equal(maps_BSGG[0].numpy(), places[3] + np.array(offsets_S)[:, None, None])
    assert numbers_BS.shape == (1, len(offsets_S))
    assert Generator.load(run).student.record.condition_maps
