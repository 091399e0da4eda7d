"""How much of the device's memory each stage of a run needs, before anything is trained.

Two steps of each training, and the chunks of what is only evaluated, run on torch's meta device, whose tensors have
shapes and no values. The bytes of the tensors that live at once are added up. Counted are weights, averaged weights,
gradients, optimizer states, activations and the temporary tensors of each operation, in the number formats of the
run's precision. Not counted: what a library takes for itself (a CUDA context takes some 0.5 GB, cuDNN workspaces),
memory lost between blocks, and data held on the device.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from histoloom.autoencoder.latents_stage import CHUNK
from histoloom.autoencoder.losses import PyramidLoss, VQGANLosses
from histoloom.autoencoder.lpips import LPIPS
from histoloom.autoencoder.stage import make_objectives, make_task
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.config import LPIPS_MIN_SIZE, Config, PatchesConfig, RuntimeConfig
from histoloom.diffusion.generation.generator import BATCH_SIZE
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.process import DiffusionLoss
from histoloom.diffusion.model.unet import make_unet
from histoloom.errors import UserError
from histoloom.training.devices import resolve_device, resolve_precision
from histoloom.training.memory import next_accumulate
from histoloom.training.optimizers import frozen, other_parameters, trained_parameters
from histoloom.training.tasks import Batch, Objective, StepContext, Task

META = torch.device("meta")
GIB = 2**30
RESERVE = GIB
"""of a device's memory: for the CUDA context, libraries and what is lost between blocks"""

LOWER = frozenset(
    {"conv1d", "conv2d", "conv_transpose2d", "linear", "matmul", "__matmul__", "bmm", "baddbmm", "addmm"}
    | {"scaled_dot_product_attention"}
)
FULL = frozenset({"group_norm", "layer_norm", "softmax", "log_softmax", "norm", "mse_loss", "l1_loss", "cumsum", "sum"})
"""names of functions that CUDA's autocast computes in half, and in single precision (PyTorch's table of operations)"""


@dataclass(frozen=True)
class StageMemory:
    """The largest memory of a stage, in bytes; ``accumulate``: of a training, the micro-batches that it is for.

    What is only evaluated (None) needs less where this much is not there: its chunks are halved.
    """

    stage: str
    peak: int
    accumulate: int | None = None


@dataclass(frozen=True)
class Memory:
    """The memory of each stage. ``capacity``: the device's, in bytes; ``advice``: what to set where it is too small."""

    stages: tuple[StageMemory, ...]
    capacity: int
    advice: str = ""

    def __str__(self) -> str:
        """One line, in GB (10^9 bytes)."""
        parts = [f"{stage.stage} {stage.peak / 1e9:.1f}" for stage in self.stages]
        line = f"memory, estimated: {', '.join(parts)} GB, of {self.capacity / 1e9:.0f} GB on this device"
        return f"{line}; {self.advice}" if self.advice else f"{line}: all fit"


def describe(config: Config) -> str:
    """The estimate for a run on this machine's GPU as one line; empty for a run on the CPU or another machine."""
    try:
        return "" if resolve_device(config.runtime.device) == "cpu" else str(estimate(config))
    except UserError:  # the estimate of time reports a device that is absent
        return ""


def estimate(config: Config, *, capacity: int | None = None, kind: str | None = None) -> Memory:
    """The memory of the stages of a run with ``config``.

    ``capacity`` (bytes) and ``kind`` (cpu, mps or cuda) are those of the run's device on this machine where None.
    Raises ``UserError`` where the run's device is not there.
    """
    capacity = device_memory(config.runtime) if capacity is None else capacity
    kind = kind or resolve_device(config.runtime.device).split(":")[0]
    given = config.runtime.accumulate
    least = 1 if given == "auto" else given
    stages: list[StageMemory] = []
    needed, too_large = least, ""
    for stage, peak_of, batch_size in _trainings(config):
        first = least if batch_size else 1
        peak = peak_of(first)
        stages.append(StageMemory(stage, peak, first))
        accumulate: int | None = first
        while accumulate is not None and peak + RESERVE > capacity:
            accumulate = next_accumulate(accumulate, batch_size=batch_size or 1, processes=1)
            peak = peak_of(accumulate) if accumulate is not None else peak
        if accumulate is None:
            too_large = f"{stage} does not fit; take a smaller network, smaller patches or a smaller batch"
        elif batch_size:
            needed = max(needed, accumulate)
    stages += _evaluations(config, kind=kind)

    advice = too_large
    if not too_large and needed > least:
        advice = f"--set runtime.accumulate={needed} makes it fit"
        if given == "auto":
            advice = f"runtime.accumulate=auto will need {needed} micro-batches"
    return Memory(tuple(sorted(stages, key=lambda stage: ORDER.index(stage.stage))), capacity, advice)


ORDER = ("autoencoder", "latents", "clusters", "diffusion", "samples")


def device_memory(runtime: RuntimeConfig) -> int:
    """Bytes of the memory of the run's device; ``UserError`` where it is not there."""
    device = resolve_device(runtime.device)
    if device.startswith("cuda"):
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


# --- the stages

PeakOf = Callable[[int], int]
"""the peak with so many micro-batches, in bytes"""


def _trainings(config: Config) -> list[tuple[str, PeakOf, int | None]]:
    """Name, peak and batch size of each training of images; None: its batch cannot be split into micro-batches.

    The clusterer's own training, of vectors or latents, is small beside them.
    """
    auto, diffusion = config.autoencoder, config.diffusion
    n = max(1, config.patches.count or PatchesConfig().count or 1)

    half = mixed_precision(config.runtime)

    def autoencoder_peak(accumulate: int) -> int:
        b = auto.training.batch_size // accumulate
        images_BHW3 = torch.empty(b, config.patches.size, config.patches.size, 3, dtype=torch.uint8, device=META)
        last = auto.training.images(n=n) - 1  # every objective has joined
        return training_peak(autoencoder_task(config, n=n), [images_BHW3] * accumulate, images=last, half=half)

    def diffusion_peak(accumulate: int) -> int:
        b = diffusion.training.batch_size // accumulate
        task, shape = diffusion_task(config, n=n)
        labels_BS = torch.empty(b, len(config.clusters.k), dtype=torch.int64, device=META)
        batch = (torch.empty(b, *shape, device=META), labels_BS)
        return training_peak(task, [batch] * accumulate, images=0, half=half)

    paper_discriminator = auto.architecture == "paper" and auto.adversarial.weight > 0
    autoencoder = ("autoencoder", autoencoder_peak, None if paper_discriminator else auto.training.batch_size)
    if config.clusters.joint is not None:  # a statistic of the whole batch is in its loss
        return [autoencoder, ("clusters", diffusion_peak, None)]
    return [autoencoder, ("diffusion", diffusion_peak, diffusion.training.batch_size)]


def autoencoder_task(config: Config, *, n: int) -> Task:
    with META:
        task = make_task(config.autoencoder, seed=0, n=n)
        autoencoder, discriminator = task.modules["autoencoder"], task.modules.get("discriminator")
        assert isinstance(autoencoder, Autoencoder), "made by make_task"
        kind = config.autoencoder.perceptual
        perceptual: nn.Module | None = None
        if kind == "lpips" or (kind == "auto" and config.patches.size >= LPIPS_MIN_SIZE):
            perceptual = LPIPS.blank(config.autoencoder.perceptual_trunk)
        elif kind != "none":
            perceptual = PyramidLoss()
        losses = VQGANLosses(
            config.autoencoder, autoencoder=autoencoder, discriminator=discriminator, perceptual=perceptual
        )
    return Task(
        task.name,
        task.modules,
        make_objectives(losses, n=n),
        n,
        task.batch,
        ema=task.ema,
    )


def diffusion_task(config: Config, *, n: int) -> tuple[Task, tuple[int, int, int]]:
    """The U-Net's training, or that of one pair of the joint training, of which the U-Net is the larger part."""
    diffusion = config.diffusion
    side = config.patches.size // config.autoencoder.factor
    shape = (config.autoencoder.code_dim, side, side)
    conditions = Conditions((max(config.clusters.k),) if config.clusters.joint else tuple(config.clusters.k))
    with META:
        unet = make_unet(diffusion, shape=shape, conditions=conditions.count)
    loss = DiffusionLoss(diffusion, unet=unet, conditions=conditions)
    objective = Objective("unet", ("unet",), loss, diffusion.training.phases)
    ema = ("unet",) if diffusion.training.averages else ()
    return Task("diffusion", {"unet": unet}, (objective,), n, lambda rows: rows, ema=ema), shape


def _evaluations(config: Config, *, kind: str) -> list[StageMemory]:
    """Encoding of patches in single precision, and drawing of a batch of samples."""
    auto, diffusion, sampler = config.autoencoder, config.diffusion, config.samples.sampler
    size, side = config.patches.size, config.patches.size // auto.factor
    shape = (auto.code_dim, side, side)
    with META:
        autoencoder = Autoencoder(auto).eval()
        unet = make_unet(diffusion, shape=shape, conditions=Conditions(config.clusters.k).count).eval()

    with torch.no_grad():
        with PeakMemory(autoencoder) as encoding:
            autoencoder.latents(torch.empty(CHUNK, 3, size, size, device=META))
        n = BATCH_SIZE[kind]
        both = n if sampler.guidance in (0.0, 1.0) else 2 * n
        with PeakMemory(autoencoder, unet) as drawing, Autocast(mixed_precision(config.runtime)):
            steps_N = torch.zeros(both, dtype=torch.int64, device=META)
            unet(torch.empty(both, *shape, device=META), steps_N, class_labels=steps_N)
            autoencoder.decode(torch.empty(n, *shape, device=META))
    return [StageMemory("latents", encoding.peak), StageMemory("samples", drawing.peak)]


# --- the count


def training_peak(task: Task, batches: Sequence[Batch], *, images: int, half: torch.dtype | None) -> int:
    """Bytes of the tensors that live at once in two steps of a training, whose networks and batches are on meta.

    ``batches``: the micro-batches of a step. ``images``: how many the training has seen; objectives that start later
    have no part in it. ``half``: the number format of mixed precision, None: single precision.
    """
    averages = [copy.deepcopy(task.modules[name]).requires_grad_(False) for name in task.ema]
    objectives = [objective for objective in task.objectives if images >= objective.starts_at]
    states: dict[str, list[Tensor]] = {}
    with PeakMemory(*task.modules.values(), *averages) as memory:
        for step in range(2):
            scratches: list[dict[str, Any]] = [{} for _ in batches]
            for objective in objectives:
                parameters = trained_parameters(task, objective)
                for parameter in parameters:
                    parameter.grad = None
                contexts = [
                    _context(batch, step=step, images=images, scratch=scratch)
                    for batch, scratch in zip(batches, scratches, strict=True)
                ]
                with frozen(other_parameters(task, objective)):
                    if objective.prepare is not None and len(batches) > 1:
                        with Autocast(half):
                            objective.prepare(batches, contexts)
                    # The third micro-batch and later ones need what the second does.
                    for batch, context in list(zip(batches, contexts, strict=True))[:2]:
                        with Autocast(half):
                            loss, _ = objective.loss(batch, context)
                        loss.backward()
                        del loss
                # A fused step has no tensors of its own. Adam and Adadelta both keep two for each weight.
                states[objective.name] = [torch.empty_like(p) for p in parameters for _ in range(2)]
    return memory.peak


def _context(batch: Batch, *, step: int, images: int, scratch: dict[str, Any]) -> StepContext:
    b = len(batch[0]) if isinstance(batch, tuple) else len(batch)
    return StepContext(
        images=images,
        step=step,
        progress=1.0,
        device=META,
        generator=torch.Generator(),
        rows=slice(0, b),
        batch_size=b,
        scratch=scratch,
    )


def mixed_precision(runtime: RuntimeConfig) -> torch.dtype | None:
    """The number format of mixed precision; None: single precision."""
    precision = resolve_precision(runtime.precision, device=resolve_device(runtime.device))
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


class PeakMemory(TorchDispatchMode):
    """Adds up the bytes of the tensors on the meta device that live at once: those of ``modules``, then new ones."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, int] = {}
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self._count(tensor)

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        _types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.device.type == "meta":
                self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self._known.pop(key)


class Autocast(TorchFunctionMode):
    """Mixed precision on the meta device, which has none of its own: what CUDA's autocast does; None: nothing.

    Weights are cast once within a ``with`` block, as autocast does.
    """

    def __init__(self, half: torch.dtype | None) -> None:
        super().__init__()
        self.half = half
        self._cast: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self.half is not None and name in LOWER:
            args, kwargs = tree_map(self._lower, args), tree_map(self._lower, kwargs)
        elif self.half is not None and name in FULL:
            args, kwargs = tree_map(_raised, args), tree_map(_raised, kwargs)
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.half)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(self.half)
        return self._cast[id(value)]


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value
