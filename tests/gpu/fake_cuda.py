"""A stand-in for a CUDA device, for tests of machines without one.

CPU tensors report that they are on ``cuda:0`` and refuse what CUDA refuses, with real values, so that whole stages run
on them. Recorded by line of the code under test: where the CPU waits for the device, and what is copied to it.

    with fake_cuda() as record: ...
    record.waits, record.copies, record.copied_bytes

Refused: two devices in one operation (0-dimensional CPU numbers in elementwise ones excepted), NumPy arrays of CUDA
tensors, CPU generators with CUDA results, CUDA indices into CPU tensors. A change of pinned memory while a copy of it
may still run is refused at the next wait. A copy to the CPU that does not wait holds NaN (or -1) until the next wait.

Autocast follows CUDA's lists of operations. Matrix products and convolutions take inputs rounded to half precision,
compute in single precision and round the result, as tensor cores do; so fp16 overflows where it does on a GPU.

What it does not show: kernels' speed and memory, other streams, and rounding that differs between devices. Modules
get new parameters when they are moved, where torch keeps their identity.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.optimizer import _foreach_supported_types as of_optimizers
from torch.utils import _foreach_utils as of_foreach
from torch.utils._device import _device_constructors

from histoloom.training import devices

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MEMORY = 16 * 2**30
HALF = (torch.float16, torch.bfloat16)

# torch keeps the functions that ``with torch.device(...)`` concerns; asked first within the stand-in, it would keep the
# stand-in's, also afterwards.
_device_constructors()

plainly = torch._C.DisableTorchFunctionSubclass
"""Within it, operations see the CPU tensors that CUDA tensors are here."""
_base_to = torch._C.TensorBase.to


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# -- what torch's CUDA backend does with which function ------------------------------------------------------------
FACTORIES = words(
    "empty zeros ones full rand randn randint randperm arange linspace logspace eye tensor as_tensor asarray "
    "empty_strided scalar_tensor tril_indices triu_indices zeros_like ones_like empty_like full_like rand_like "
    "randn_like randint_like"
)
FROM_VALUES = {"tensor", "as_tensor", "asarray", "new_tensor"}
ELEMENTWISE = words(
    "add sub mul div truediv true_divide floordiv floor_divide pow eq ne lt le gt ge maximum minimum where lerp "
    "remainder mod fmod clamp clamp_min clamp_max masked_fill fill addcmul addcdiv logical_and logical_or and or xor "
    "xlogy atan2 float_power subtract multiply divide"
)
ANY_DEVICE = {"_has_compatible_shallow_copy_type", "type_as", "set_", "is_same_size", "__set__", "backward"}
WAITING = words(
    "item tolist __bool__ __float__ __int__ __index__ __contains__ __format__ __repr__ is_nonzero equal allclose "
    "nonzero argwhere masked_select unique unique_consecutive bincount linalg_inv linalg_cholesky linalg_eigh "
    "linalg_svd linalg_solve linalg_lstsq linalg_qr inverse cholesky"
)
# https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float16", "to float32", "widest type"
LOWERED = words(
    "matmul rmatmul addbmm addmm addmv addr baddbmm bmm chain_matmul multi_dot conv1d conv2d conv3d conv_transpose1d "
    "conv_transpose2d conv_transpose3d linear mm mv prelu einsum scaled_dot_product_attention "
    "multi_head_attention_forward"
)
RAISED = words(
    "pow rpow rdiv rtruediv acos asin binary_cross_entropy_with_logits cosh cosine_embedding_loss cdist "
    "cosine_similarity cross_entropy cumprod cumsum dist erfinv exp expm1 group_norm hinge_embedding_loss kl_div "
    "l1_loss layer_norm log log10 log_softmax log1p log2 mse_loss nll_loss norm normalize pdist prod reciprocal rsqrt "
    "sinh smooth_l1_loss softmax softmin softplus sum renorm tan vector_norm"
)
WIDEST = words("addcdiv addcmul atan2 bilinear cross dot grid_sample index_put scatter_add tensordot vdot")


class DeviceMismatch(RuntimeError):
    """What CUDA would refuse."""


@dataclass
class Record:
    """What happened by line of the code under test, ``FILE:LINE WHAT``; ``copied_bytes`` without what."""

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    copied_bytes: Counter[str] = field(default_factory=Counter)

    # What runs on: (pinned source, what was copied, where), and (CPU tensor, what it will hold).
    to_device: list[tuple[Tensor, Tensor, str]] = field(default_factory=list)
    to_cpu: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def wait(self, what: str) -> None:
        """The CPU waits for the device: all copies end."""
        self.waits[f"{place()} {what}"] += 1
        with self.lock, plainly():
            arrived, self.to_cpu = self.to_cpu, []
            sent, self.to_device = self.to_device, []
            for result, values in arrived:
                result.copy_(values)
            for source, copied, where in sent:
                if not torch.equal(source.nan_to_num(), copied.nan_to_num()):
                    raise DeviceMismatch(f"{where}: pinned memory was changed while it was copied to the device")

    def copy_to_device(self, source: Tensor, *, non_blocking: bool, what: str = "to cuda") -> None:
        """A copy to the device; it waits unless it is non-blocking and from pinned memory."""
        where = place()
        self.copies[f"{where} {what}"] += 1
        self.copied_bytes[where] += source.numel() * source.element_size()
        if not (non_blocking and is_pinned(source)):
            self.wait(what)
            return
        with self.lock:
            self.to_device.append((source.detach(), source.detach().clone(), where))

    def totals(self) -> tuple[int, int, int]:
        """Waits, copies and copied bytes."""
        return self.waits.total(), self.copies.total(), self.copied_bytes.total()


_record = Record()
_pinned: dict[int, Tensor] = {}  # by address of its memory, which lives as long as the stand-in
_state = threading.local()  # .autocast: the dtype of the autocast region that this thread is in, or None


def place() -> str:
    """The innermost line of the package, or of a test, that is being executed."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if "/histoloom/" in name:
            return f"{name.rsplit('/histoloom/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def is_pinned(x: Tensor) -> bool:
    """Whether it lies in pinned memory, as a whole or as a view."""
    with plainly():
        return x.untyped_storage().data_ptr() in _pinned


def _pin(x: Tensor) -> Tensor:
    with plainly():
        _pinned[x.untyped_storage().data_ptr()] = x
    return x


class CudaTensor(Tensor):
    """A CPU tensor that says that it is on cuda:0."""

    device = property(lambda _: CUDA)
    is_cuda = property(lambda _: True)
    is_cpu = property(lambda _: False)

    def get_device(self) -> int:
        return 0

    def numpy(self, **_: object) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *_: object, **__: object) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            with plainly():
                copied = self.detach().clone().as_subclass(CudaTensor)
            parameter = isinstance(self, nn.Parameter)
            made = nn.Parameter(copied, self.requires_grad) if parameter else copied.requires_grad_(self.requires_grad)
            memo[id(self)] = made
        return memo[id(self)]

    def cpu(self, *_: object, **__: object) -> Tensor:
        return _moved(self, CPU, (), {})

    def cuda(self, *_: object, **__: object) -> Tensor:
        return self

    def pin_memory(self, *_: object) -> Tensor:
        raise DeviceMismatch("cannot pin 'torch.cuda.FloatTensor': only dense CPU tensors can be pinned")

    def is_pinned(self, *_: object) -> bool:
        return False

    @classmethod
    def __torch_function__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if name == "__get__":  # a property, the most frequent of all
            with plainly():
                result = func(*args)
            return _wrap(result) if isinstance(result, Tensor) else result
        if name == "to":
            return _to(*args, **kwargs)
        if name == "copy_":
            return _copy(*args, **kwargs)
        if name.endswith("_like") or name.startswith("new_"):
            return _new(func, name, args, kwargs)
        if name not in ANY_DEVICE:
            _check(name, args, kwargs)
            if name in WAITING or (name == "repeat_interleave" and any(isinstance(x, Tensor) for x in args[1:])):
                _record.wait(name)
            elif name == "where" and len(args) == 1:
                _record.wait("where")
            if kwargs.get("device") is not None and _is_cuda(kwargs["device"]):
                kwargs = kwargs | {"device": CPU}
            if (dtype := getattr(_state, "autocast", None)) is not None:
                return _autocast(func, name.strip("_"), args, kwargs, dtype=dtype)
        with plainly():
            result = func(*args, **kwargs)
        return result if name == "__set__" else _wrap(result)


def _wrap(x: Any) -> Any:
    """The result of an operation, with CUDA tensors in it."""
    if isinstance(x, Tensor):
        if isinstance(x, CudaTensor):
            return x
        with plainly():
            return x.as_subclass(CudaTensor)
    if type(x) in (list, tuple):
        return type(x)(_wrap(part) for part in x)
    if isinstance(x, tuple) and hasattr(x, "n_sequence_fields"):  # of torch.return_types
        return type(x)([_wrap(part) for part in x])
    return x


def _tensors(parts: Iterable[Any]) -> list[Tensor]:
    """The tensors in lists and tuples, at any depth."""
    found: list[Tensor] = []
    for part in parts:
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, (list, tuple)):
            found += _tensors(part)
    return found


def _is_cuda(device: Any) -> bool:
    return torch.device(device).type == "cuda"


# -- refusals ------------------------------------------------------------------------------------------------------
def _check(name: str, args: Any, kwargs: Any) -> None:
    """Raise ``DeviceMismatch`` where CUDA refuses; record the waits and copies of indexing."""
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator) and generator.device.type == "cpu":
        raise DeviceMismatch(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
    if name in ("__getitem__", "__setitem__", "index_put_", "index_put"):
        _check_index(name, args)
        return
    tensors = _tensors(args) + _tensors(kwargs.values())
    others = [x for x in tensors if not isinstance(x, CudaTensor)]
    if not others or len(others) == len(tensors):
        return
    core = name.strip("_").removeprefix("foreach_")
    elementwise = core in ELEMENTWISE or (core[:1] in ("r", "i") and core[1:] in ELEMENTWISE)
    if elementwise and all(x.dim() == 0 for x in others):
        return
    raise DeviceMismatch(
        f"{name}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
    )


def _check_index(name: str, args: Any) -> None:
    base, index = args[0], args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    indices = _tensors(parts)
    if not isinstance(base, CudaTensor):
        if any(isinstance(x, CudaTensor) and x.dim() > 0 for x in indices):
            raise DeviceMismatch("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        return
    for part in parts:
        if isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) and part.dim() > 0:
            _record.wait("mask")
        elif isinstance(part, Tensor) and part.dim() == 0 and isinstance(part, CudaTensor):
            _record.wait("number as index")
        elif isinstance(part, Tensor) and part.dim() > 0 and not isinstance(part, CudaTensor):
            _record.copy_to_device(part, non_blocking=False, what="cpu index")
        elif hasattr(part, "__len__") and not isinstance(part, Tensor):  # a list or an array
            _record.copy_to_device(torch.as_tensor(part), non_blocking=False, what="cpu index")
    values = args[2] if len(args) > 2 else None
    on_cpu = isinstance(values, Tensor) and not isinstance(values, CudaTensor) and values.dim() > 0
    if name == "__setitem__" and on_cpu and any(x.dim() for x in indices):
        raise DeviceMismatch("__setitem__: expected self and values to be on the same device")


# -- movements -----------------------------------------------------------------------------------------------------
def _to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``Tensor.to`` in all its forms."""
    target, rest = kwargs.pop("device", None), []
    other = kwargs.pop("other", None)
    for number, value in enumerate([other, *args] if other is not None else args):
        if isinstance(value, Tensor):
            target, rest = value.device, [value.dtype]
        elif number == 0 and (isinstance(value, str | torch.device) or type(value) is int):
            target = value
        elif isinstance(value, bool):
            kwargs["non_blocking" if "non_blocking" not in kwargs else "copy"] = value
        elif value is not None:
            rest.append(value)
    return _moved(self, target, tuple(rest), kwargs)


def _moved(self: Tensor, target: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    own = CUDA if isinstance(self, CudaTensor) else CPU
    target = own if target is None else torch.device(target)
    non_blocking = bool(kwargs.pop("non_blocking", False))
    if target.type not in ("cuda", "cpu"):
        return _base_to(self, target, *rest, **kwargs)
    if target.type == "cuda" and own is CPU:
        _record.copy_to_device(self, non_blocking=non_blocking)
    elif target.type == "cpu" and own is CUDA and not non_blocking:
        _record.wait("to cpu")
    with plainly():
        moved = _base_to(self, CPU, *rest, **kwargs)
        if target.type == own.type:
            return _wrap(moved) if own is CUDA else moved
        moved = moved.clone() if moved is self else moved
        moved = moved.as_subclass(CudaTensor if target.type == "cuda" else Tensor)
        return _late(moved) if target.type == "cpu" and non_blocking else moved


def _late(x: Tensor) -> Tensor:
    """A pinned tensor on the CPU that gets the values of ``x`` at the next wait."""
    values = x.detach().clone()
    x.detach().fill_(float("nan") if x.is_floating_point() else -1 if x.dtype != torch.bool else 0)
    with _record.lock:
        _record.to_cpu.append((x.detach(), values))
    return _pin(x)


def _copy(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    here, there = isinstance(self, CudaTensor), isinstance(source, CudaTensor)
    if here and not there:
        _record.copy_to_device(source, non_blocking=non_blocking)
    late = there and not here and non_blocking and is_pinned(self)
    if there and not here and not late:
        _record.wait("to cpu")
    with plainly():
        self.copy_(source)
        if late:
            _late(self)
    return self


def _new(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """A tensor made like another one: on its device unless another is given."""
    device = kwargs.get("device")
    with plainly():
        made = func(*args, **{key: value for key, value in kwargs.items() if key != "device"})
    if device is not None and not _is_cuda(device):
        return made.as_subclass(Tensor)
    if name in FROM_VALUES:
        _record.copy_to_device(made, non_blocking=False, what=name)
    return _wrap(made)


def _factory(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    name = original.__name__

    def make(*args: Any, **kwargs: Any) -> Tensor:
        device, pinned = kwargs.get("device"), kwargs.pop("pin_memory", False)
        if device is None or not _is_cuda(device):
            made = original(*args, **kwargs)
            return _pin(made) if pinned else made
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and generator.device.type == "cpu":
            raise DeviceMismatch(f"{name}: Expected a 'cuda' device type for generator but found 'cpu'")
        kwargs["device"] = CPU
        own = any(isinstance(x, CudaTensor) for x in _tensors(args))
        with plainly():
            made = original(*args, **kwargs)
            if name in FROM_VALUES and not own:
                _record.copy_to_device(made, non_blocking=False, what=name)
            return made.as_subclass(CudaTensor)

    make.__name__ = name
    return make


# -- autocast ------------------------------------------------------------------------------------------------------
def _autocast(func: Any, core: str, args: Any, kwargs: dict[str, Any], *, dtype: torch.dtype) -> Any:
    """An operation in an autocast region of CUDA: in half, single or the widest precision, by its list."""

    def cast(x: Any, to: torch.dtype) -> Any:
        if isinstance(x, CudaTensor):
            if x.dtype == to or not x.is_floating_point() or x.dtype == torch.float64:
                return x
            return _base_to(x, to).as_subclass(CudaTensor)
        return type(x)(cast(part, to) for part in x) if type(x) in (list, tuple) else x

    def all_cast(to: torch.dtype) -> tuple[Any, dict[str, Any]]:
        return tuple(cast(x, to) for x in args), {key: cast(x, to) for key, x in kwargs.items()}

    with plainly():
        lowered = core in LOWERED and not any(x.dtype == torch.float64 for x in _tensors(args))
        if lowered:
            args, kwargs = all_cast(dtype)
        if lowered or core in RAISED:
            args, kwargs = all_cast(torch.float32)
        elif core in WIDEST:
            floats = {x.dtype for x in _tensors(args) if x.is_floating_point()}
            if len(floats) > 1:
                args, kwargs = all_cast(torch.float32)
        result = _wrap(func(*args, **kwargs))
        return cast(result, dtype) if lowered else result


class _Autocast:
    """``torch.autocast("cuda")``."""

    def __init__(self, *, dtype: torch.dtype | None, enabled: bool) -> None:
        self.dtype = (dtype or torch.float16) if enabled else None

    def __enter__(self) -> None:
        self.before = getattr(_state, "autocast", None)
        _state.autocast = self.dtype

    def __exit__(self, *_: object) -> None:
        _state.autocast = self.before


# -- the device ----------------------------------------------------------------------------------------------------
@contextmanager
def fake_cuda(*, bf16: bool = True) -> Iterator[Record]:
    """Whatever asks for cuda gets the tensors above; ``bf16``: whether the device computes in it at speed."""
    global _record
    _record = Record()
    autocast, save, group = torch.autocast, torch.save, torch._C._group_tensors_by_device_and_dtype
    capability = (8, 0) if bf16 else (7, 5)
    properties = SimpleNamespace(
        name="a fake GPU", major=capability[0], minor=capability[1], total_memory=MEMORY, multi_processor_count=8
    )

    def autocast_of(device_type: str, dtype: Any = None, enabled: bool = True, **options: Any) -> Any:
        if device_type == "cuda":
            return _Autocast(dtype=dtype, enabled=enabled)
        return autocast(device_type, dtype=dtype, enabled=enabled, **options)

    def grouped(tensors: Any, with_indices: bool = False) -> Any:
        cuda = any(isinstance(x, CudaTensor) for x in tensors[0])
        return {
            (CUDA if cuda else device, dtype): value for (device, dtype), value in group(tensors, with_indices).items()
        }

    def plain(x: Any) -> Any:
        if isinstance(x, CudaTensor):
            with plainly():
                return x.detach().as_subclass(Tensor)
        if isinstance(x, dict):
            return type(x)((key, plain(part)) for key, part in x.items())
        return type(x)(plain(part) for part in x) if type(x) in (list, tuple) else x

    of_cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "is_bf16_supported": lambda *_, **__: True,  # also where it is emulated
        "get_device_name": lambda *_: properties.name,
        "get_device_capability": lambda *_: capability,
        "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None,
        "synchronize": lambda *_: _record.wait("synchronize"),
        "Event": lambda *_: SimpleNamespace(record=lambda: None, synchronize=lambda: _record.wait("event")),
    }
    of_tensors: dict[str, Any] = {
        "to": _to,
        "cuda": lambda self, *_, **__: _moved(self, CUDA, (), {}),
        "pin_memory": lambda self, *_: _pin(self.clone()),
        "is_pinned": lambda self, *_: is_pinned(self),
    }
    of_torch: dict[str, Any] = {
        "autocast": autocast_of,
        "save": lambda x, *args, **kwargs: save(plain(x), *args, **kwargs),
    } | {name: _factory(getattr(torch, name)) for name in FACTORIES}
    with ExitStack() as stack:
        for target, changes in ((torch.cuda, of_cuda), (Tensor, of_tensors), (torch, of_torch)):
            for name, value in changes.items():
                stack.enter_context(patch.object(target, name, value))
        stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped))
        for known in (of_foreach._foreach_supported_types, of_optimizers):
            known.append(CudaTensor)
            stack.callback(known.remove, CudaTensor)
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        stack.callback(_pinned.clear)

        # One accelerator lives in a process: let one be made for this device, and afterwards one for the other.
        for when in (lambda reset: reset(), stack.callback):
            when(devices._accelerator.cache_clear)
            when(lambda: AcceleratorState._reset_state(reset_partial_state=True))
        yield _record
        _record.wait("end")
