"""Runs that start from a pretrained generator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from histoloom import Generator, Run, UserError, execute, init_run
from histoloom.autoencoder.stage import begin_with
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.cli.app import app
from histoloom.config import make_config
from histoloom.pipeline import wanted_fingerprints
from histoloom.run.pretrained import generator_digest, require_fit
from histoloom.run.stage import EventLog
from histoloom.setup import change_settings
from histoloom.sharing.export import export_generator

SHORT = (
    "patches.count=48",
    "patches.split.holdout=0.3",
    "clusters.k=[2, 4]",
    "clusters.channels=16",
    "clusters.validity_points=40",
    "clusters.null_draws=2",
    "clusters.training.batch_size=16",
    "clusters.training.phases.0.images=160",
    "autoencoder.training.phases.0.images=8",
    "autoencoder.training.phases.0.lr=1.0e-9",
    "autoencoder.codebook_decay=0.999999",
    "autoencoder.restart_below=0",
    "autoencoder.perceptual=pyramid",
    "diffusion.training.batch_size=8",
    "diffusion.training.phases.0.images=8",
    "diffusion.training.phases.0.lr=1.0e-9",
    "samples.per_cluster=1",
    "samples.sampler.steps=1",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.workers=1",
)


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "generator"
    export_generator(Run.open(tiny_run), folder)
    return folder


@pytest.fixture(scope="module")
def tuned(tiny_slides: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step at hardly any learning rate, from a generator that is gone by then."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(exported, folder / "pretrained")
    run = init_run(folder / "run", slides=[tiny_slides], preset="demo", settings=SHORT, start=folder / "pretrained")
    shutil.rmtree(folder / "pretrained")
    execute(run, until="samples")
    return run.path


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / name)


def test_the_networks_are_the_generators_and_the_training_the_presets(tuned: Path, exported: Path) -> None:
    config = Run.open(tuned).config
    spec = json.loads((exported / "generator.json").read_text())
    assert list(config.diffusion.channels) == spec["diffusion"]["channels"] == [16, 32]
    assert (config.patches.size, config.autoencoder.channels) == (32, 8)
    assert config.diffusion.training.phases[0].images == 8
    assert config.start is not None
    assert config.start.digest == generator_digest(exported) == generator_digest(tuned / "start")


def test_the_preset_tune_asks_for_a_generator(tiny_slides: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add --from starter"):
        init_run(tmp_path / "run", slides=[tiny_slides], preset="tune")
    assert not (tmp_path / "run").exists()
    config = init_run(tmp_path / "run", slides=[tiny_slides], preset="tune", start=exported).config
    assert (config.patches.size, config.patches.tissue, list(config.diffusion.channels)) == (32, "detect", [16, 32])


def test_training_starts_from_the_pretrained_weights(tuned: Path, exported: Path) -> None:
    name = "unet/diffusion_pytorch_model.safetensors"
    pretrained, mine = load_file(exported / name), weights(tuned / "diffusion", name)
    conditions = "class_embedding.weight"
    for key in pretrained.keys() - {conditions}:
        torch.testing.assert_close(mine[key], pretrained[key], atol=1e-6, rtol=0)
    assert len(mine[conditions]) == 2 + 4 + 1
    spec, record = (
        json.loads((tuned / "diffusion" / name).read_text()) for name in ("generator.json", "inheritance.json")
    )
    assert spec["ks"] == [2, 4]
    theirs = Generator.load(exported).spec
    assert record["generator"]["k"] == theirs.chosen_k
    parents = [theirs.conditions.number(k=theirs.chosen_k, cluster=c) for k in ("2", "4") for c in record["closest"][k]]
    wanted = pretrained[conditions][[*parents, theirs.conditions.null]]
    torch.testing.assert_close(mine[conditions], wanted, atol=1e-6, rtol=0)
    name = "autoencoder.safetensors"
    pretrained, mine = load_file(exported / "autoencoder" / name), weights(tuned / "autoencoder", name)
    for key, value in pretrained.items():
        torch.testing.assert_close(mine[key], value, atol=1e-3, rtol=1e-3)


def test_conditions_may_learn_faster_than_the_network(tuned: Path, tmp_path: Path) -> None:
    """A million times a learning rate at which nothing else moves."""
    shutil.copytree(tuned, tmp_path / "run")
    settings = ["diffusion.condition_rate=1.0e+6", "diffusion.training.warmup_images=0"]
    faster = change_settings(Run.open(tmp_path / "run"), settings, save=False)
    execute(faster, until="diffusion")
    name, conditions = "unet/diffusion_pytorch_model.safetensors", "class_embedding.weight"
    before, after = (weights(run / "diffusion", name) for run in (tuned, faster.path))
    assert (after[conditions] - before[conditions]).abs().max() > 1e-4
    for key in before.keys() - {conditions}:
        torch.testing.assert_close(after[key], before[key], atol=1e-6, rtol=0)


def test_a_run_may_train_the_decoder_alone(tuned: Path, exported: Path, tmp_path: Path) -> None:
    """The latents stay the generator's to the bit, so that its diffusion model stays valid."""
    shutil.copytree(tuned, tmp_path / "run")
    settings = ["autoencoder.trained=decoder", "autoencoder.training.phases.0.lr=0.01"]
    settings += ["autoencoder.quantize_decoded=false"]
    run = change_settings(Run.open(tmp_path / "run"), settings, save=False)
    execute(run, until="autoencoder")
    name = "autoencoder.safetensors"
    before, after = load_file(exported / "autoencoder" / name), weights(run.path / "autoencoder", name)
    changed = {key.split(".")[0] for key, value in before.items() if not torch.equal(after[key], value)}
    assert changed <= {"decoder", "head"}
    assert "decoder" in changed
    values = Run.open(tuned).config.model_copy(update={"start": None}).model_dump(mode="json")
    values["autoencoder"]["trained"] = "decoder"
    with pytest.raises(UserError, match=r"needs a generator whose encoder is kept; .*init \.\.\. --from"):
        make_config(values)


def test_a_decoder_trained_alone_may_have_another_head(tuned: Path) -> None:
    """The head begins anew; all else keeps the generator's weights, and a run that trains all is refused."""
    model = Autoencoder(Run.open(tuned).config.autoencoder)
    other = Autoencoder(model.config.model_copy(update={"stem": 2, "multipliers": (1,), "head_blocks": 1}))
    given = Autoencoder(other.config.model_copy(update={"head_blocks": 0}))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert begin_with(other, given)
    for name, value in other.state_dict().items():
        anew = name.startswith(("head.", "decoder.conv_out."))
        assert torch.equal(value, before[name] if anew else given.state_dict()[name]), name
    assert not begin_with(given, given)

    config = Run.open(tuned).config
    changed = {"autoencoder": config.autoencoder.model_copy(update={"head_blocks": 1})}
    with pytest.raises(UserError, match=r"autoencoder\.head_blocks is 1 here and 0 in the generator"):
        require_fit(config.model_copy(update=changed), tuned / "start")
    changed["autoencoder"] = changed["autoencoder"].model_copy(update={"trained": "decoder"})
    require_fit(config.model_copy(update=changed), tuned / "start")


def test_the_latent_space_is_the_pretrained_one(tuned: Path, exported: Path) -> None:
    pretrained, mine = (Generator.load(folder).spec for folder in (exported, tuned))
    assert pretrained.space.model_dump_json() == mine.space.model_dump_json()
    assert mine.conditions.ks == (2, 4)
    messages = [str(event.get("message", "")) for event in EventLog(tuned / "diffusion/log.jsonl").read()]
    assert any("of the variance of these latents" in message for message in messages)


def test_what_it_began_with_is_part_of_its_identity(tuned: Path, tmp_path: Path) -> None:
    run = Run.open(tuned)
    plain = Run(tuned, run.config.model_copy(update={"start": None}))
    with_start, without = wanted_fingerprints(run), wanted_fingerprints(plain)
    assert [stage for stage in ("patches", "autoencoder") if with_start[stage] != without[stage]] == ["autoencoder"]
    export_generator(run, tmp_path / "out")
    assert run.config.start is not None
    assert f"digest {run.config.start.digest}" in (tmp_path / "out/README.md").read_text()


def test_other_networks_than_the_given_ones_are_refused(
    tiny_slides: Path, exported: Path, tuned: Path, tmp_path: Path
) -> None:
    def init(*settings: str, start: Path = exported) -> Run:
        return init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=settings, start=start)

    with pytest.raises(UserError, match=r"diffusion\.channels is \[32, 64\] here and \[16, 32\] in the generator"):
        init("diffusion.channels=[32, 64]")
    with pytest.raises(UserError, match="neither a run nor an exported generator"):
        init(start=tiny_slides)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.iterdir())
    changed = change_settings(Run.open(tuned), ["autoencoder.codes=64"], save=False)
    with pytest.raises(UserError, match=r"autoencoder\.codes is 64 here and 128"):
        execute(changed, until="autoencoder")


def test_a_changed_copy_is_noticed_and_init_brings_it_back(tiny_slides: Path, exported: Path, tmp_path: Path) -> None:
    def init() -> Run:
        return init_run(tmp_path / "run", slides=[tiny_slides], preset="demo", settings=SHORT, start=exported)

    run = init()
    shutil.rmtree(run.path / "start")
    with pytest.raises(UserError, match=r"not the generator that this run begins with .*bring it back"):
        execute(run, until="autoencoder")
    assert generator_digest(init().path / "start") == generator_digest(exported)
    file = run.path / "start" / "generator.json"
    file.write_text(file.read_text().replace("0.02", "0.03"))
    with pytest.raises(UserError, match="not the generator that this run begins with"):
        execute(run, until="autoencoder")
    assert generator_digest(init().path / "start") == generator_digest(exported)


def test_the_command_makes_such_a_run(tiny_slides: Path, tiny_run: Path, tmp_path: Path) -> None:
    """From a run, too."""
    command = ["init", tmp_path / "run", "--slides", tiny_slides, "--preset", "demo", "--from", tiny_run]
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    assert Run.open(tmp_path / "run").config.start is not None
    assert (tmp_path / "run" / "start" / "generator.json").is_file()


def test_explained_variance_is_a_share_of_the_variance() -> None:
    from histoloom.diffusion.model.latent_space import LatentSpace

    rng = np.random.default_rng(0)
    scale = np.array([3.0, 1.0, 0.0])[:, None, None]
    latents = rng.normal(size=(200, 3, 4, 4)) * scale
    rows = np.arange(200)
    space = LatentSpace.fit(latents, rows=rows, whiten=0.8)
    assert len(space.enter) == 1
    assert space.explained_variance(latents, rows=rows) == pytest.approx(0.9, abs=0.02)
    swapped = latents[:, [1, 0, 2]]
    assert space.explained_variance(swapped, rows=rows) == pytest.approx(0.1, abs=0.02)
