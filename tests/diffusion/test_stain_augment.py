"""Patches seen in other stains: told apart by their conditions, never drawn, and gone from the kept network."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from histoloom import pipeline
from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.clustering_set import Clustering
from histoloom.config import Config, DiffusionConfig, SamplerConfig
from histoloom.diffusion.generation.generator import Generator, GeneratorSpec
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.unet import make_unet, open_unet, save_unet
from histoloom.diffusion.samplers.guided import draw_latents
from histoloom.diffusion.stage import make_task
from histoloom.errors import UserError
from histoloom.run.directory import Run, read_json, write_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.setup import change_settings
from histoloom.training.loop import Task, train


def with_stains(run: Path, views: int) -> Config:
    """The run's settings, seeing so many other stains."""
    config = Run.open(run).config
    changes = {
        "latents": config.latents.model_copy(update={"stain_views": views}),
        "diffusion": config.diffusion.model_copy(update={"stain_augment": views > 0}),
    }
    return config.model_copy(update=changes)


def task_of(run: Path, *, config: Config, latents: LatentSet, facts: GeneratorSpec) -> Task:
    context = StageContext(run, config, run, {}, EventLog(run / "unused.jsonl"))
    unet = make_unet(facts.config, shape=facts.shape, conditions=2 * facts.conditions.count)
    clustering = Clustering.open(run / "clusters")
    return make_task(context, latents=latents, clustering=clustering, facts=facts, unet=unet)


def test_half_of_what_is_seen_is_in_another_stain_and_says_so(tiny_run: Path) -> None:
    facts = GeneratorSpec.from_json(read_json(tiny_run / "diffusion" / "generator.json"))
    latents = LatentSet.open(tiny_run / "latents")
    assert latents.stain_views is not None
    views = latents.stain_views.shape[1]
    assert views == 2
    task = task_of(tiny_run, config=with_stains(tiny_run, views), latents=latents, facts=facts)
    rows = latents.rows(split="train")
    assert task.versions == 2 * views
    z, numbers = task.batch(4 + task.n * np.arange(task.versions))
    own, count = latents.raw(rows[[4]]), facts.conditions.count
    others = torch.from_numpy(np.asarray(latents.stain_views[rows[4]], dtype=np.float32))
    torch.testing.assert_close(z, facts.space.encode(torch.cat([own, own, others])))
    assert torch.equal(numbers, numbers[:1] + count * torch.tensor([[0], [0], [1], [1]]))
    assert (numbers[0] < facts.conditions.null).all()


def test_the_null_of_another_stain_is_another_null() -> None:
    conditions = Conditions((2, 3))
    numbers = torch.tensor([0, 4, 6, 10])
    assert torch.equal(conditions.dropped(numbers), torch.tensor([5, 5, 11, 11]))


def test_other_stains_do_not_leak_into_what_is_drawn(tiny_run: Path, tmp_path: Path) -> None:
    """Patches are bright on the left, in the other stain on the right; the network draws what it is asked for."""
    config = with_stains(tiny_run, 1)
    training = {**config.diffusion.training.model_dump(), "batch_size": 32, "ema": 0.0, "lr_decay": "none"}
    training["phases"] = [{"optimizer": "adamw", "lr": 3e-3, "images": 32 * 80}]
    settings = config.diffusion.model_dump() | {"training": training, "channels": (16,), "attention": (False,)}
    diffusion = type(config.diffusion).model_validate(settings | {"embedding": "scale-shift", "condition_dropout": 0.3})
    config = config.model_copy(update={"diffusion": diffusion})
    given = LatentSet.open(tiny_run / "latents")
    noise = 0.1 * torch.randn(len(given), 2, 4, 4, generator=torch.Generator().manual_seed(0))
    left = torch.tensor([1.0, 1.0, -1.0, -1.0])
    np.save(tmp_path / "latents.npy", (left + noise).numpy())
    np.save(tmp_path / "stain_views.npy", (noise - left)[:, None].numpy().astype(np.float16))
    given.table.to_parquet(tmp_path / "index.parquet")
    write_json(tmp_path / "moments.json", {"mean": [0.0, 0.0], "std": [1.0, 1.0]})
    space = SimpleNamespace(encode=lambda z: z)
    facts = GeneratorSpec.from_json(read_json(tiny_run / "diffusion" / "generator.json"))
    facts = SimpleNamespace(config=diffusion, shape=(2, 4, 4), conditions=facts.conditions, space=space)
    torch.manual_seed(0)
    task = task_of(tiny_run, config=config, latents=LatentSet.open(tmp_path), facts=facts)
    trained = train(
        task,
        config=diffusion.training,
        runtime=config.runtime,
        seed=0,
        out=tmp_path / "out",
        log=EventLog(tmp_path / "log.jsonl"),
    )
    conditions = facts.conditions
    asked = [conditions.number(k=k, cluster=c) for k in conditions.ks for c in range(k)] + [conditions.null]

    def on_the_left(numbers: list[int]) -> torch.Tensor:
        x = draw_latents(
            trained.modules["unet"].eval(),
            config=diffusion,
            sampler=SamplerConfig.model_validate({"method": "ddim", "steps": 10, "guidance": 1.0}),
            shape=(2, 4, 4),
            conditions=numbers,
            null=conditions.null,
            generators=[torch.Generator().manual_seed(i) for i in range(len(numbers))],
            device=torch.device("cpu"),
        )
        return (x * left).mean(dim=(1, 2, 3))

    assert (on_the_left(asked) > 0.5).all()
    assert (on_the_left([number + conditions.count for number in asked]) < -0.5).all()


def test_the_kept_network_knows_only_what_may_be_drawn(tmp_path: Path) -> None:
    settings = {"channels": (8,), "attention": (False,), "blocks": 1}
    training = {"phases": [{"optimizer": "adamw", "lr": 1e-3, "images": 8}]}
    unet = make_unet(DiffusionConfig.model_validate(settings | {"training": training}), shape=(2, 8, 8), conditions=12)
    x, step = torch.randn(6, 2, 8, 8), torch.full((6,), 30)
    with torch.no_grad():
        before = unet.eval()(x, step, class_labels=torch.arange(6)).sample
        save_unet(unet, tmp_path / "unet", conditions=6)
        kept = open_unet(tmp_path).eval()
        assert kept.config["num_class_embeds"] == 6
        assert torch.equal(kept(x, step, class_labels=torch.arange(6)).sample, before)


def test_a_run_with_other_stains_draws_and_keeps_its_conditions(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(tiny_run, path)
    run = change_settings(Run.open(path), ["diffusion.stain_augment=true"], save=True)
    pipeline.execute(run, until="diffusion")
    generator = Generator.load(path)
    assert generator.unet.config["num_class_embeds"] == generator.facts.conditions.count
    drawn = generator.draw(generator.orders(None, n=2, seed=0), sampler=generator.facts.sampler)
    assert len([one.image for one in drawn]) == 2


def test_other_stains_must_be_encoded(tiny_run: Path) -> None:
    run = Run.open(tiny_run)
    with pytest.raises(UserError, match=r"stain_augment needs latents\.stain_views"):
        change_settings(run, ["diffusion.stain_augment=true", "latents.stain_views=0"], save=False)
