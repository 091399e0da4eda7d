"""The fast mode: the same training, laid out and computed in another way. Compiled without a compiler's back end."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from histoloom.autoencoder import stage as autoencoder_stage
from histoloom.autoencoder.losses import PyramidLoss, VQGANLosses
from histoloom.autoencoder.lpips import LPIPS
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.clustering.independence import IndependentLoss
from histoloom.clustering.infomax import VectorNet
from histoloom.clustering.losses import InfoMaxLoss
from histoloom.clustering.neighbours import LinearNet, NeighbourLoss
from histoloom.config import (
    Config,
    Phase,
    RuntimeConfig,
    SamplerConfig,
    TrainingConfig,
    make_config,
    read_preset,
    with_settings,
)
from histoloom.diffusion.alignment import COMPONENTS, AlignedUNet
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.generation.sample_spec import SampleSpec
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import make_unet
from histoloom.run.stage import EventLog
from histoloom.training import devices
from histoloom.training.loop import Objective, StepContext, Task, Trained, train
from histoloom.training.optimizers import frozen, other_parameters

IMAGES = 96
FAST, PLAIN = (RuntimeConfig(device="cpu", precision="fp32", checkpoint_seconds=0, fast=fast) for fast in ("on", "off"))


class Interrupted(Exception):
    """Stands for a kill: nothing after it runs."""


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "BACKEND", "aot_eager")


class Network(nn.Sequential):
    """Convolutions, which have two layouts, and a record of whether they were entered without being compiled."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 3, 3, padding=1))
        self.plainly = 0

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.plainly += 1
        return super().forward(x_NCHW)


def task(*, stop_at: int = IMAGES) -> tuple[Task, Network]:
    torch.manual_seed(0)
    network = Network()
    x_NCHW = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def batch(rows: np.ndarray) -> Tensor:
        return x_NCHW[rows]

    def loss(batch: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        if context.images >= stop_at:
            raise Interrupted
        return (network(batch + 0.1 * context.randn(tuple(batch.shape))) - batch.flip(1)).pow(2).mean(), {}

    phases = (Phase(optimizer="adam", lr=0.01, images=IMAGES),)
    objective = Objective("network", ("network",), loss, phases)
    return Task("tiny", {"network": network}, (objective,), 32, batch, ema=("network",), compiled=(network,)), network


def fit(out: Path, *, runtime: RuntimeConfig, stop_at: int = IMAGES) -> tuple[Trained, Network]:
    out.mkdir(exist_ok=True)
    phases = [{"optimizer": "adam", "lr": 0.01, "images": IMAGES}]
    config = TrainingConfig.model_validate({"batch_size": 8, "phases": phases, "ema": 0.9})
    made, network = task(stop_at=stop_at)
    trained = train(made, config=config, runtime=runtime, seed=5, out=out, log=EventLog(out / "log.jsonl"))
    return trained, network


def weights(trained: Trained) -> dict[str, Tensor]:
    return trained.modules["network"].state_dict()


def alike(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_a_fast_training_ends_with_the_weights_of_a_plain_one(tmp_path: Path) -> None:
    (plain, network), (fast, compiled) = fit(tmp_path / "plain", runtime=PLAIN), fit(tmp_path / "fast", runtime=FAST)
    assert alike(weights(plain), weights(fast))
    assert network.plainly == IMAGES // 8
    assert compiled.plainly == 0
    assert all(value.is_contiguous() for value in weights(fast).values())


def test_a_network_is_its_own_again_after_a_fast_training(tmp_path: Path) -> None:
    _, network = fit(tmp_path / "fast", runtime=FAST)
    assert network._compiled_call_impl is None
    network(torch.zeros(3, 3, 4, 4))
    assert network.plainly == 1


def test_a_copy_of_a_compiled_network_computes_with_its_own_weights_and_mode() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x_BD = torch.ones(2, 4)
    with devices.compiled([network], runtime=FAST):
        network(x_BD)
        copied = copy.deepcopy(network).eval()
        with torch.no_grad():
            for weight in copied.parameters():
                weight.fill_(1.0)
        assert torch.equal(copied(x_BD), torch.full((2, 4), 5.0))
        assert network.training


@pytest.mark.parametrize(("first", "then"), [(PLAIN, FAST), (FAST, PLAIN), (FAST, FAST)])
def test_either_mode_goes_on_from_a_checkpoint_of_either(
    tmp_path: Path, first: RuntimeConfig, then: RuntimeConfig
) -> None:
    whole, _ = fit(tmp_path / "whole", runtime=PLAIN)
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", runtime=first, stop_at=40)
    ended, _ = fit(tmp_path / "parts", runtime=then)
    assert alike(weights(whole), weights(ended))


@pytest.mark.parametrize("before", [False, True])
def test_convolutions_are_timed_in_a_fast_training_only(before: bool) -> None:
    with torch.backends.cudnn.flags(enabled=True, benchmark=before):
        for runtime in (PLAIN, FAST):
            with devices.compiled([], runtime=runtime):
                assert torch.backends.cudnn.benchmark is (before or runtime is FAST)
            assert torch.backends.cudnn.benchmark is before


def test_auto_is_plain_without_a_cuda_device() -> None:
    assert not devices.is_fast(RuntimeConfig(device="cpu"))


@pytest.mark.parametrize(
    ("card", "capability", "precision"),
    [("P100", (6, 0), "fp32"), ("T4", (7, 5), "fp16"), ("A100", (8, 0), "bf16"), ("H100", (9, 0), "bf16")],
)
def test_cards_that_emulate_bf16_get_fp16(
    card: str, capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert devices.resolve_precision("auto", device="cuda:0") == precision, card


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_full_precision_is_full_in_matrix_products_too(before: str) -> None:
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        with devices.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(kept)


# -- the networks that are compiled --------------------------------------------------------------------------------
SMALL = {
    "demo": (
        "patches.size=32",
        "autoencoder.channels=16",
        "diffusion.channels=[16, 32]",
        "diffusion.attention=[false, true]",
    ),
    "modern": (
        "patches.size=32",
        "autoencoder.channels=16",
        "autoencoder.multipliers=[1, 2]",
        "autoencoder.blocks=1",
        "autoencoder.attention=false",
        "autoencoder.adversarial.channels=8",
        "autoencoder.adversarial.layers=1",
    ),
    "paper": (
        "patches.size=32",
        "autoencoder.channels=16",
        "autoencoder.multipliers=[1, 2]",
        "autoencoder.blocks=1",
        "diffusion.channels=[16, 16]",
        "diffusion.attention=[true, true]",
        "diffusion.norm_groups=8",
    ),
}


def in_one_piece(network: nn.Module, step: Callable[[int], Tensor]) -> None:
    """Two steps of a training compile ``network`` once, without a break in its graph."""
    with (
        devices.compiled([network], runtime=FAST),
        torch._dynamo.config.patch(suppress_errors=False, error_on_recompile=True),
    ):
        for number in range(2):
            step(number).backward()


@pytest.fixture
def whole_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A break in a graph is an error."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, fullgraph=True))


def small_config(preset: str) -> Config:
    return make_config(with_settings(read_preset(preset) | {"slides": {"paths": ["/slides"]}}, SMALL[preset]))


def step_context(number: int, *, rows: int) -> StepContext:
    generator = torch.Generator().manual_seed(number)
    return StepContext(8 * number, number, 0.5, torch.device("cpu"), generator, slice(0, rows), rows)


def random_lpips() -> LPIPS:
    network = LPIPS.blank("alex")
    for head_C in network.heads:
        nn.init.uniform_(head_C)
    return network


@pytest.mark.usefixtures("whole_graphs")
@pytest.mark.parametrize(
    ("preset", "perceptual", "backend"),
    [("modern", functools.partial(PyramidLoss, levels=1), "aot_eager"), ("paper", random_lpips, "eager")],
    ids=["modern", "paper"],
)
def test_the_vqgan_is_compiled_in_whole_pieces_with_the_gradients_of_a_plain_one(
    preset: str, perceptual: Callable[[], nn.Module], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``modern`` has the adaptive weight, which differentiates the last layer by itself; ``paper`` its own networks."""
    monkeypatch.setattr(devices, "BACKEND", backend)  # tracing of gradients too costs twice the time
    config = small_config(preset).autoencoder
    made = autoencoder_stage.make_task(config, seed=0, n=8)
    autoencoder, discriminator = made.modules["autoencoder"], made.modules["discriminator"]
    assert isinstance(autoencoder, Autoencoder)
    losses = VQGANLosses(config, autoencoder=autoencoder, discriminator=discriminator, perceptual=perceptual())
    objectives = autoencoder_stage.make_objectives(losses, n=8)
    task = dataclasses.replace(made, objectives=objectives, compiled=losses.compiled)
    start = copy.deepcopy({name: module.state_dict() for name, module in made.modules.items()})

    def gradients(number: int) -> dict[str, Tensor]:
        """Of both networks, in a step from the first weights."""
        found: dict[str, Tensor] = {}
        for name, module in made.modules.items():
            module.load_state_dict(start[name])
        generator = torch.Generator().manual_seed(number)
        images_BHWC = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator)
        context = step_context(number, rows=2)
        for objective in objectives:
            module = made.modules[objective.name]
            module.zero_grad()
            with frozen(other_parameters(task, objective)):
                objective.loss(images_BHWC, context)[0].backward()
            found |= {
                f"{objective.name}.{name}": p.grad.clone()
                for name, p in module.named_parameters()
                if p.grad is not None
            }
        return found

    plain = gradients(2)
    with (
        devices.compiled(task.compiled, runtime=FAST),
        torch._dynamo.config.patch(suppress_errors=False),
    ):
        gradients(1)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled = gradients(2)
    assert alike(plain, compiled)


@pytest.mark.usefixtures("whole_graphs")
@pytest.mark.parametrize(("preset", "alignment"), [("demo", 0.0), ("demo", 0.5), ("paper", 0.0)])
def test_the_unet_is_compiled_once_in_one_piece(preset: str, alignment: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "BACKEND", "eager")  # tracing of gradients too costs twice the time
    config, conditions = small_config(preset).diffusion, Conditions((2, 3))
    config = config.model_copy(update={"alignment": alignment})
    unet = make_unet(config, shape=(4, 8, 8), conditions=conditions.count)
    targets: tuple[Tensor, ...] = ()
    if alignment:
        assert isinstance(unet, UNet2DModel)
        unet, targets = AlignedUNet(unet, block="down-1"), (torch.ones(2, COMPONENTS, 4, 4),)
    loss = DiffusionLoss(config, unet=unet, conditions=conditions)

    def step(number: int) -> Tensor:
        z_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(number))
        return loss((z_BCHW, torch.tensor([[0, 2], [1, 4]]), *targets), step_context(number, rows=2))[0]

    in_one_piece(unet, step)


@pytest.mark.usefixtures("whole_graphs")
def test_a_break_in_a_graph_is_found() -> None:
    class Breaking(Network):
        def forward(self, x_NCHW: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().forward(x_NCHW)

    network = Breaking()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        in_one_piece(network, lambda number: network(torch.full((1, 3, 4, 4), float(number))).sum())


@pytest.mark.usefixtures("whole_graphs")
def test_a_second_compilation_is_found() -> None:
    network = Network()
    with pytest.raises(torch._dynamo.exc.RecompileError):
        in_one_piece(network, lambda number: network(torch.zeros(1, 3, 4 + number, 4)).sum())


# -- clusterers and drawing ----------------------------------------------------------------------------------------
@pytest.mark.usefixtures("whole_graphs")
@pytest.mark.parametrize("positives", ["views", "neighbours"])
def test_the_losses_of_clusterers_are_compiled_once_with_the_gradients_of_plain_ones(
    positives: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the weight of the marginal entropy falls, which gives each step another number."""
    monkeypatch.setattr(devices, "BACKEND", "eager")
    config = small_config("demo").clusters.model_copy(update={"marginal_weight": 2.0, "marginal_end": 1.0})
    torch.manual_seed(0)
    network = VectorNet(6, channels=4, ks=(2, 3)) if positives == "views" else LinearNet(6, ks=(2, 3), of_patch=6)
    inner = InfoMaxLoss(config, network=network) if positives == "views" else NeighbourLoss(network)
    loss = IndependentLoss(inner, weight=0.1, slides=3)
    batch = torch.randn(16, 3, 6), torch.arange(16) % 3

    def gradients(number: int) -> dict[str, Tensor]:
        network.zero_grad()
        context = dataclasses.replace(step_context(number, rows=16), progress=0.4 + 0.1 * number)
        loss(batch, context)[0].backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    assert len(loss.compiled) == 2
    plain = gradients(2)
    with devices.compiled(loss.compiled, runtime=FAST), torch._dynamo.config.patch(suppress_errors=False):
        gradients(1)
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert alike(plain, gradients(2))


@pytest.mark.parametrize(("fast", "images", "asked"), [("on", 2000, True), ("on", 1999, False), ("auto", 2000, False)])
def test_networks_are_compiled_to_draw_many_images_only_where_it_is_asked_for(
    fast: str, images: int, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "BACKEND", "eager")
    config = small_config("demo")
    small = {"channels": (16,), "attention": (False,), "blocks": 1}
    config = config.model_copy(update={"diffusion": config.diffusion.model_copy(update=small)})
    runtime = FAST.model_copy(update={"fast": fast})
    sampler = SamplerConfig(method="unipc", steps=2, guidance=1.0)
    spec = GeneratorSpec(
        diffusion=config.diffusion,
        sampler=sampler,
        space=LatentSpace.unscaled(4),
        shape=(4, 8, 8),
        ks=(2,),
        chosen_k=2,
        frequencies={2: (0.5, 0.5)},
        size=32,
        mpp=1.0,
    )
    torch.manual_seed(0)
    unet = make_unet(config.diffusion, shape=spec.shape, conditions=Conditions((2,)).count)
    auto = Autoencoder(config.autoencoder.model_copy(update={"code_dim": 4}))
    generator = Generator(spec, unet=unet, autoencoder=auto, home=tmp_path, runtime=runtime)
    specs = [SampleSpec(k=2, cluster=i % 2, index=i, seed=0) for i in range(3)]
    plain = [sample.image for sample in generator.draw(specs, sampler=sampler)]
    generator.compile_if_asked(images=images)
    assert (unet._compiled_call_impl is not None) is asked
    drawn = [sample.image for sample in generator.draw(specs, sampler=sampler)]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(plain, drawn, strict=True))


def test_bf16_is_not_chosen_where_its_instructions_are_forbidden() -> None:
    """A process of its own: oneDNN reads the limit once."""
    code = "from histoloom.training.devices import resolve_precision; print(resolve_precision('auto', device='cpu'))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fp32"
