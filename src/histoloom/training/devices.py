"""The device, the precision and the processes that a run uses (accelerate), and the fast mode of a training on a GPU.

The fast mode is channels-last weights and compiled networks. It is no setting of a result: weights agree with those of
the plain mode to rounding, and a checkpoint of either mode is resumed in the other. What is kept is laid out as ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor, nn

from histoloom.config import RuntimeConfig
from histoloom.errors import UserError

BACKEND = "inductor"


def resolve_device(device: str) -> str:
    """``auto`` becomes cuda, mps or cpu; a device that is not there is a ``UserError``."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"runtime.device is {device}, but torch sees no CUDA device; use --set runtime.device=cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("runtime.device is mps, but torch sees none; use --set runtime.device=cpu")
    return device


def resolve_precision(precision: str, *, device: str) -> str:
    """``auto`` becomes bf16 where the device computes in it at speed, else fp16 where it does in that, else fp32."""
    if precision != "auto":
        if precision == "fp16" and not device.startswith("cuda"):
            raise UserError(f"runtime.precision fp16 needs a CUDA device, not {device}; use fp32 or bf16")
        return precision
    if device.startswith("cuda"):
        return _cuda_precision(device)
    return "bf16" if device == "cpu" and _cpu_computes_in_bf16() else "fp32"


def _cuda_precision(device: str) -> str:
    """bf16 on Ampere and later and on AMD's cards; fp16 on Volta and Turing, which emulate bf16; fp32 on older ones.

    Pascal computes in fp16 at a fraction of its speed in fp32 (CUDA C++ Programming Guide, arithmetic throughput).
    """
    if torch.version.hip:
        return "bf16"
    generation, _ = torch.cuda.get_device_capability(device)
    return "bf16" if generation >= 8 else "fp16" if generation >= 7 else "fp32"


@lru_cache(maxsize=1)
def _cpu_computes_in_bf16() -> bool:
    """Whether the CPU has instructions for it (AVX512-BF16, AMX); elsewhere it would be emulated, and slow.

    ``ONEDNN_MAX_CPU_ISA`` may forbid them, which oneDNN knows.
    """
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines() if cpu_info.is_file() else []
    flags = {word for line in lines if line.startswith("flags") for word in line.split()}
    has_instructions = bool(flags & {"avx512_bf16", "amx_bf16"})
    return has_instructions and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def accelerator(runtime: RuntimeConfig) -> Accelerator:
    """The process's accelerator for ``runtime``; also sets the number of CPU threads."""
    device = resolve_device(runtime.device)
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    if device.startswith("cuda:"):
        torch.cuda.set_device(int(device.split(":")[1]))
    return _accelerator(device == "cpu", resolve_precision(runtime.precision, device=device))


@lru_cache(maxsize=1)
def _accelerator(cpu: bool, precision: str) -> Accelerator:  # noqa: FBT001 - the cache's key
    mixed = "no" if precision == "fp32" else precision
    # accelerate keeps one precision for a process's whole life; a second run in it may want another.
    AcceleratorState._reset_state()
    # Stages that run on the main process alone keep the others waiting for as long as they take.
    patience = InitProcessGroupKwargs(timeout=timedelta(days=14))
    return Accelerator(cpu=cpu, mixed_precision=mixed, kwargs_handlers=[patience])


def autocast(runtime: RuntimeConfig) -> AbstractContextManager[Any]:
    """Mixed precision for inference on the run's device, where it uses one."""
    device = resolve_device(runtime.device)
    precision = resolve_precision(runtime.precision, device=device)
    if precision == "fp32":
        return nullcontext()
    kind = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.split(":")[0], dtype=kind)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Single precision for what half precision would spoil, within mixed precision on ``device``."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return torch._C.DisableTorchFunction()  # on meta, mixed precision is a mode of functions (memory_cost)


@contextmanager
def full_precision() -> Iterator[None]:
    """Single precision that is single: for what has to come out the same elsewhere.

    By themselves GPUs take TensorFloat-32 for convolutions, which keeps three digits. The environment
    (``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE``) or a program around us may have allowed it for matrix products too.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def is_fast(runtime: RuntimeConfig) -> bool:
    """Whether the run uses the fast mode; ``auto``: on CUDA devices, where compiling pays."""
    if runtime.fast == "auto":
        return resolve_device(runtime.device).startswith("cuda")
    return runtime.fast in ("on", "graphs")


def lay_out(modules: Iterable[nn.Module], *, runtime: RuntimeConfig) -> None:
    """Lay the weights of convolutions out channels-last, in place, in the fast mode."""
    if is_fast(runtime):
        for module in modules:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def lay_out_as_usual(modules: Iterable[nn.Module]) -> None:
    """Lay them out contiguous again, as safetensors and other programs expect."""
    for module in modules:
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def lay_out_states(optimizer: Any) -> None:
    """Lay an optimizer's state out as the weights that it is of, in place: a fused step pairs memory, not places.

    A checkpoint has the layout of the mode that wrote it.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def compiled(modules: Sequence[nn.Module], *, runtime: RuntimeConfig) -> Iterator[None]:
    """Run what ``modules`` compute compiled for the shapes they see, in the fast mode; afterwards as before.

    What cannot be compiled runs as it is, with a warning. cuDNN tries its algorithms for each shape of a convolution
    and takes the fastest.
    """
    if not is_fast(runtime):
        yield
        return
    with compiling():
        compile_modules(modules, graphs=runtime.fast == "graphs")
        try:
            yield
        finally:
            for module in modules:
                module._compiled_call_impl = None


def compile_modules(modules: Iterable[nn.Module], *, graphs: bool = False) -> None:
    """Let ``modules`` be compiled when they are called, for as long as they live; they are called in ``compiling``.

    ``graphs``: a call's kernels are captured and launched as one (CUDA graphs), and write over what they wrote before.
    """
    mode = "reduce-overhead" if graphs else None
    for module in modules:
        # Not of a copy: where a module is copied, what it was compiled to stays behind.
        module.compile(backend=BACKEND, dynamic=False, mode=mode)


@contextmanager
def compiling() -> Iterator[None]:
    """How modules are compiled that are called within it."""
    with (
        _fastest_convolutions(),
        torch._dynamo.config.patch(suppress_errors=True),
        # The adaptive weight of the VQ-GAN runs a backward pass twice, which must not write over what it reads.
        torch._functorch.config.patch(donated_buffer=False),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # diffusers
        # The compiler looks for it at inputs that are computed, such as a decoder's.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        yield


def begin_step(runtime: RuntimeConfig) -> None:
    """Say that a step begins: what captured kernels wrote in the step before may be written over from here on."""
    if runtime.fast == "graphs" and torch.cuda.is_available():
        torch.compiler.cudagraph_mark_step_begin()
