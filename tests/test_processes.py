"""The real trainings, tiny, on two processes: to rounding what one process makes of the same batches.

This file is also the program of the two processes: ``python test_processes.py ACTION FOLDER``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from forked import Finished, start_together
from torch import Tensor, nn

from histoloom import paper
from histoloom.autoencoder.losses import VQGANLosses, perceptual_loss
from histoloom.autoencoder.stage import make_objectives, make_task
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.clustering.clusterer import Architecture, build
from histoloom.clustering.independence import IndependentLoss
from histoloom.clustering.infomax import Network
from histoloom.clustering.losses import InfoMaxLoss
from histoloom.config import (
    AutoencoderConfig,
    ClustersConfig,
    DiffusionConfig,
    RuntimeConfig,
    TrainingConfig,
    make_config,
    read_preset,
    with_settings,
)
from histoloom.diffusion.alignment import COMPONENTS, AlignedUNet
from histoloom.diffusion.joint import JointLoss
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import CONDITION_EMBEDDING, make_unet
from histoloom.errors import TrainingDiverged
from histoloom.run.stage import EventLog
from histoloom.seeding import torch_generator
from histoloom.training import distributed
from histoloom.training.loop import Batch, Objective, StepContext, Task, train

N, BATCH, STEPS = 20, 8, 6
CPU = RuntimeConfig(device="cpu", precision="fp32", checkpoint_seconds=0)


def training() -> TrainingConfig:
    """Adadelta, whose epsilon is well above rounding: Adam makes whole steps of gradients that are 0 but for it."""
    phases = [{"optimizer": "adadelta", "lr": 1.0, "images": BATCH * STEPS}]
    return TrainingConfig.model_validate({"batch_size": BATCH, "phases": phases, "ema": 0.9, "grad_clip": 1.0})


def autoencoder_task() -> Task:
    config = AutoencoderConfig.model_validate(
        {"stem": 2, "channels": 8, "multipliers": [1, 2], "blocks": 1, "codes": 16, "code_dim": 4, "augment": True}
        | {"perceptual": "pyramid", "restart_below": 0.5, "training": training().model_dump()}
        | {"adversarial": {"start": 0.4, "channels": 8, "layers": 1}}
    )
    images = torch.randint(256, (N, 16, 16, 3), generator=torch_generator(0, "images"), dtype=torch.uint8)
    # Of seeds 1 to 8, one by which no latent lies between two codes: rounding then picks another code, a jump of 1e-4.
    task = make_task(config, seed=4, n=N)
    modules = task.modules
    losses = VQGANLosses(
        config,
        autoencoder=modules["autoencoder"],  # type: ignore[arg-type]
        discriminator=modules["discriminator"],
        perceptual=perceptual_loss(config),
    )
    return Task("autoencoder", modules, make_objectives(losses, n=N), n=N, batch=lambda rows: images[rows])


def clusters_task() -> Task:
    unaveraged = training().model_copy(update={"ema": 0.0})
    config = ClustersConfig(k=(2, 3), channels=8, independence=1.0, training=unaveraged)
    torch.manual_seed(2)
    network = build(Architecture(4, 8, (2, 3))).network
    assert isinstance(network, Network)
    z_NVChw = torch.randn(N, 2, 4, 6, 6, generator=torch_generator(0, "latents"))
    slides_N = torch.arange(N) % 3
    loss = IndependentLoss(InfoMaxLoss(config, network=network), weight=1.0, slides=3)
    objective = Objective("network", ("network",), loss, unaveraged.phases)

    def batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return z_NVChw[rows], slides_N[rows]

    return Task("clusters", {"network": network}, (objective,), n=N, batch=batch, whole_batch=True)


def diffusion_task(*, dropout: float = 0.0, alignment: float = 0.0) -> Task:
    values = {"channels": [8, 16], "attention": [False, True], "blocks": 1, "training": training().model_dump()}
    config = DiffusionConfig.model_validate(values | {"dropout": dropout, "alignment": alignment})
    torch.manual_seed(3)
    conditions = Conditions((2, 3))
    unet = make_unet(config, shape=(4, 8, 8), conditions=conditions.count)
    z_NChw = torch.randn(N, 4, 8, 8, generator=torch_generator(0, "latents"))
    numbers_NS = torch.stack([torch.arange(N) % 2, 2 + torch.arange(N) % 3], dim=1)
    modules: dict[str, nn.Module] = {"unet": unet}
    network, data = unet, [z_NChw, numbers_NS]
    if alignment:
        assert isinstance(unet, UNet2DModel)
        network = aligned = AlignedUNet(unet, block="down-1")
        modules["alignment"] = aligned.projection
        data.append(torch.randn(N, COMPONENTS, 4, 4, generator=torch_generator(0, "targets")).half())
    loss = DiffusionLoss(config, unet=network, conditions=conditions)
    objective = Objective("unet", tuple(modules), loss, config.training.phases, rates={CONDITION_EMBEDDING: 3.0})

    def batch(rows: np.ndarray) -> tuple[Tensor, ...]:
        return tuple(values[rows] for values in data)

    return Task("diffusion", modules, (objective,), n=N, batch=batch, ema=("unet",))


def paper_autoencoder_task() -> Task:
    """Batch normalisation in the discriminator, and a codebook with its own loss."""
    config = AutoencoderConfig.model_validate(
        {"architecture": "paper", "pixel_range": "unit", "channels": 8, "multipliers": [1, 2], "blocks": 1}
        | {"codes": 16, "code_dim": 4, "codebook_decay": None, "restart_below": 0, "perceptual": "pyramid"}
        | {"training": training().model_dump()}
        | {"adversarial": {"loss": "least-squares", "start": 0.4, "warmup": 0, "max_adaptive": None, "channels": 8}}
    )
    images = torch.randint(256, (N, 32, 32, 3), generator=torch_generator(0, "images"), dtype=torch.uint8)
    task = make_task(config, seed=4, n=N)
    autoencoder = task.modules["autoencoder"]
    assert isinstance(autoencoder, Autoencoder)
    losses = VQGANLosses(
        config,
        autoencoder=autoencoder,
        discriminator=task.modules["discriminator"],
        perceptual=perceptual_loss(config),
    )
    return replace(task, objectives=make_objectives(losses, n=N), batch=lambda rows: images[rows])


def joint_task() -> Task:
    """Clusterer and U-Net of the paper, in the three phases of their training."""
    values = with_settings(
        {**read_preset("paper"), "slides": {"paths": ["/slides"]}},
        ["diffusion.channels=[16, 16, 16]", "diffusion.attention=[true, true, true]", "diffusion.norm_groups=4"],
    )
    config = make_config(values)
    phases = (2, 2, 2)
    phase = {"optimizer": "adadelta", "lr": 1.0}
    lengths = [{**phase, "images": BATCH * steps} for steps in phases]
    diffusion = config.diffusion.model_copy(
        update={"training": TrainingConfig.model_validate({"batch_size": BATCH, "phases": lengths})}
    )
    config = config.model_copy(update={"diffusion": diffusion})
    torch.manual_seed(3)
    unet = make_unet(diffusion, shape=(4, 8, 8), conditions=3)
    clusterer = paper.Clusterer(4, channels=8, k=3, side=8)
    z_NChw = torch.randn(N, 4, 8, 8, generator=torch_generator(0, "latents"))
    images = torch.randint(256, (N, 8, 8, 3), generator=torch_generator(0, "images"), dtype=torch.uint8)
    loss = JointLoss(
        config,
        k=3,
        n=N,
        unet=unet,
        clusterer=clusterer,
        space=LatentSpace.unscaled(4),
        view=lambda x_B3HW, context: x_B3HW + 0.1 * context.randn(tuple(x_B3HW.shape)),
        encode=lambda x_B3HW: torch.cat([x_B3HW, x_B3HW[:, :1]], dim=1),
    )
    objective = Objective("pair", ("unet", "clusterer"), loss, diffusion.training.phases)

    def batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return z_NChw[rows], images[rows]

    return Task("joint", {"unet": unet, "clusterer": clusterer}, (objective,), n=N, batch=batch, whole_batch=True)


TASKS: dict[str, Callable[[], Task]] = {
    "autoencoder": autoencoder_task,
    "clusters": clusters_task,
    "diffusion": diffusion_task,
    "aligned": partial(diffusion_task, alignment=0.5),
    "paper-autoencoder": paper_autoencoder_task,
    "joint": joint_task,
}
KINDS = tuple(TASKS)


def fit(task: Task, out: Path, *, accumulate: int = 1) -> dict[str, Tensor]:
    """Weights and buffers after training, by name."""
    out.mkdir(parents=True, exist_ok=True)
    runtime = CPU.model_copy(update={"accumulate": accumulate})
    trained = train(task, config=training(), runtime=runtime, seed=5, out=out, log=EventLog(out / "log.jsonl"))
    return {f"{n}.{k}": v for n, module in trained.modules.items() for k, v in module.state_dict().items()}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5, msg=partial("{}: {}".format, name))


def disturbed(task: Task, *, at: int, kill: bool) -> Task:
    """``task``, at ``at`` images killed, or with a loss that is NaN on the second process alone.

    The first process is killed, its checkpoint written; torchrun then ends the other.
    """
    first, *others = task.objectives

    def loss(batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        if kill and context.images >= at and distributed.rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        value, metrics = first.loss(batch, context)
        bad = context.images >= at and distributed.rank() == 1
        return value * (float("nan") if bad else 1.0), metrics

    return replace(task, objectives=(replace(first, loss=loss), *others))


def main(action: str, folder: Path) -> None:
    torch.set_num_threads(1)
    if action == "kill":
        fit(disturbed(autoencoder_task(), at=3 * BATCH, kill=True), folder / "killed")
    for kind in KINDS:
        state = fit(TASKS[kind](), folder / kind)
        torch.save(state, folder / f"{kind}-{distributed.rank()}.pt")
    torch.save(fit(autoencoder_task(), folder / "killed"), folder / f"resumed-{distributed.rank()}.pt")
    try:
        fit(disturbed(diffusion_task(), at=3 * BATCH, kill=False), folder / "nan")
    except TrainingDiverged as error:
        (folder / f"nan-{distributed.rank()}.txt").write_text(str(error))
        distributed.wait_for_all()
        raise


def launch(action: str, folder: Path) -> list[Finished]:
    """Run ``action`` on two processes; how each of them ended."""
    return [started.finish(timeout=900) for started in start_together(2, __file__, action, folder)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left: killed once, then started again for the rest; the last training breaks off."""
    folder = tmp_path_factory.mktemp("two")
    killed, left = launch("kill", folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert left.returncode != 0
    assert torch.load(folder / "killed/checkpoints/last.pt", weights_only=True)["images"] == 3 * BATCH
    for done in launch("rest", folder):
        assert done.returncode != 0
        assert "TrainingDiverged" in done.stderr, done.stderr[-3000:]
    return folder


@pytest.mark.timeout(1900)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_with_the_weights_of_one(kind: str, two: Path, tmp_path: Path) -> None:
    states = [torch.load(two / f"{kind}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in states[1].items():
        assert torch.equal(states[0][name], value), f"{name} differs between the processes"
    assert_close(fit(TASKS[kind](), tmp_path), states[0])


@pytest.mark.timeout(1900)
def test_two_processes_killed_and_resumed_end_with_the_same_bytes(two: Path) -> None:
    whole, resumed = (torch.load(two / f"{name}-0.pt", weights_only=True) for name in ("autoencoder", "resumed"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.timeout(1900)
def test_nan_on_one_process_stops_both_and_names_the_last_good_checkpoint(two: Path) -> None:
    messages = [(two / f"nan-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    last = two / "nan" / "checkpoints" / "last.pt"
    assert f"no longer finite after {4 * BATCH} images; the last good checkpoint is {last}" in messages[0]
    state = torch.load(last, weights_only=True)
    assert state["images"] == 3 * BATCH
    assert all(value.isfinite().all() for part in state["modules"].values() for value in part.values())


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_equals_the_large_batch(kind: str, tmp_path: Path) -> None:
    """Codebook, adaptive weight, batch normalisation and marginal entropy are those of the whole batch."""
    assert_close(fit(TASKS[kind](), tmp_path / "whole"), fit(TASKS[kind](), tmp_path / "parts", accumulate=4))


def test_dropout_is_resumed_too(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stopping(task: Task) -> Task:
        inner = task.objectives[0]

        def loss(batch: Batch, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
            if context.step == 2:
                raise Interrupted
            return inner.loss(batch, context)

        return replace(task, objectives=(replace(inner, loss=loss),))

    whole = fit(diffusion_task(dropout=0.3), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(stopping(diffusion_task(dropout=0.3)), tmp_path / "parts")
    torch.rand(5)  # the process has drawn something else in between
    resumed = fit(diffusion_task(dropout=0.3), tmp_path / "parts")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
