"""The device, the precision and the processes that a run uses (accelerate)."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs

from histoloom.config import RuntimeConfig
from histoloom.errors import UserError


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
    """``auto`` becomes bf16 where the device computes in it at speed, else fp32."""
    if precision != "auto":
        if precision == "fp16" and not device.startswith("cuda"):
            raise UserError(f"runtime.precision fp16 needs a CUDA device, not {device}; use fp32 or bf16")
        return precision
    fast = torch.cuda.is_bf16_supported() if device.startswith("cuda") else device == "cpu" and _cpu_computes_in_bf16()
    return "bf16" if fast else "fp32"


def _cpu_computes_in_bf16() -> bool:
    """Whether the CPU has instructions for it (AVX512-BF16, AMX); elsewhere it would be emulated, and slow."""
    return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()


@lru_cache(maxsize=1)
def _cpu_flags() -> frozenset[str]:
    described = Path("/proc/cpuinfo")
    if not described.is_file():
        return frozenset()
    lines = described.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(word for line in lines if line.startswith("flags") for word in line.split())


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


def end_process(status: int) -> NoReturn:
    """End one of several processes at once, its work done and written.

    The usual way out takes down the interpreter while threads of the group's backend still run, which at times aborts
    a process that has succeeded, and torchrun then counts the whole run as failed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def autocast(runtime: RuntimeConfig) -> AbstractContextManager[Any]:
    """Mixed precision for inference on the run's device, where it uses one."""
    device = resolve_device(runtime.device)
    precision = resolve_precision(runtime.precision, device=device)
    if precision == "fp32":
        return nullcontext()
    kind = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.split(":")[0], dtype=kind)


def full_precision() -> AbstractContextManager[Any]:
    """Single precision that is single: for what has to come out the same elsewhere.

    By themselves GPUs take TensorFloat-32 for convolutions, which keeps three digits.
    """
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
