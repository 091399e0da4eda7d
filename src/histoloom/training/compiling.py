"""The fast mode of a training on a GPU: channels-last weights and compiled networks.

It is no setting of a result: weights agree with those of the plain mode to rounding, and a checkpoint of either goes on
in the other. What is kept is laid out as ever.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from histoloom.config import RuntimeConfig
from histoloom.training.devices import resolve_device

BACKEND = "inductor"


def is_fast(runtime: RuntimeConfig) -> bool:
    """Whether the fast mode is asked for; ``auto``: on CUDA devices, where compiling pays."""
    if runtime.fast == "auto":
        return resolve_device(runtime.device).startswith("cuda")
    return runtime.fast == "on"


def lay_out(modules: Iterable[nn.Module], *, runtime: RuntimeConfig) -> None:
    """Lay the weights of convolutions out channels-last, in place, in the fast mode."""
    if is_fast(runtime):
        for module in modules:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def lay_out_as_usual(modules: Iterable[nn.Module]) -> None:
    """The other way round: what safetensors and other programs expect."""
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
def compiled(modules: Sequence[nn.Module], *, runtime: RuntimeConfig) -> Iterator[None]:
    """Run what ``modules`` compute compiled for the shapes they see, in the fast mode; afterwards as before.

    What cannot be compiled runs as it is, with a warning.
    """
    if not modules or not is_fast(runtime):
        yield
        return
    with torch._dynamo.config.patch(suppress_errors=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # of diffusers
        for module in modules:
            module.forward = torch.compile(module.forward, backend=BACKEND, dynamic=False)
        try:
            yield
        finally:
            for module in modules:
                del module.forward  # the instance's, which hides its class's
