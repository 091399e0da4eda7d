"""Encoders of others: a Hugging Face or timm network from this machine's disk. Nothing is ever downloaded here.

A network is named ``hf:NAME`` or ``timm:NAME``, NAME an absolute folder, or a repository whose files are in Hugging
Face's cache on this machine. Legend of shapes: B pictures, S x S px of the network's input, L tokens, D features.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.errors import UserError
from histoloom.run.directory import file_digest, fingerprint, read_json

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of the colours (0..1) where a folder says nothing of them."""

CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")


@dataclass(frozen=True)
class PretrainedEncoder:
    """A network with the way in and out of it. ``read``: its answer to pictures as (B, D). ``digest``: of its files."""

    network: nn.Module
    read: Callable[[nn.Module, Tensor], Tensor]
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str

    def features(self, x_BHW3: Tensor) -> Tensor:
        """Features of whole pictures, uint8 (B, H, W, 3), brought to the network's size and colours; (B, D)."""
        x_B3HW = x_BHW3.permute(0, 3, 1, 2).float().div(255)
        if x_B3HW.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            x_B3HW = F.interpolate(x_B3HW, size=size, mode="bilinear", antialias=True, align_corners=False)
        mean_311, std_311 = (x_B3HW.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self.read(self.network, (x_B3HW - mean_311) / std_311)


def load_encoder(name: str, *, device: torch.device) -> PretrainedEncoder:
    """The network called ``hf:NAME`` or ``timm:NAME``; ``UserError`` where it is not on this machine."""
    library, _, place = name.partition(":")
    folder = _folder(place, library=library)
    found = {"hf": _from_transformers, "timm": _from_timm}[library](folder)
    found.network.to(device).eval().requires_grad_(False)
    return found


def _folder(place: str, *, library: str) -> Path:
    """Where the network's files lie."""
    if Path(place).is_absolute():
        if not (Path(place) / "config.json").is_file():
            raise UserError(f"clusters.encoder: {place} is no folder with a config.json; give the folder of a model")
        return Path(place)
    from huggingface_hub import snapshot_download

    repository = place if "/" in place else f"timm/{place}" if library == "timm" else place
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"clusters.encoder: {repository} is not on this machine, and nothing is downloaded by itself; "
            f"fetch it once: hf download {repository}, or give an absolute folder: {library}:/FOLDER"
        ) from error


def _digest(folder: Path) -> str:
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    if not files:
        raise UserError(f"clusters.encoder: no weights ({', '.join(WEIGHTS)}) in {folder}; fetch the model again")
    config = fingerprint(read_json(folder / "config.json"))
    return fingerprint({"config": config, **{path.name: file_digest(path) for path in files}})


def _from_transformers(folder: Path) -> PretrainedEncoder:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            'an hf: encoder needs the extra: pip install "histoloom[encoders]", or set clusters.features=selfsup'
        ) from error
    try:
        network, about = transformers.AutoModel.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"clusters.encoder: {folder} cannot be loaded by transformers: {reason}") from error
    absent = [key for key in about["missing_keys"] if "pooler" not in key]  # poolers are not used
    if absent:
        raise UserError(f"clusters.encoder: {folder} lacks weights ({sorted(absent)[0]}, ...); fetch the model again")
    has_token = any(key.rsplit(".", 1)[-1] in CLASS_TOKENS for key, _ in network.named_parameters())
    mean, std, side = _preprocessing(folder, network=network)
    return PretrainedEncoder(network, _class_token if has_token else _mean_token, side, mean, std, _digest(folder))


def _preprocessing(folder: Path, *, network: Any) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean and deviation of the colours, and the input's side in px, as the model's folder has them."""
    path = folder / "preprocessor_config.json"
    said = read_json(path) if path.is_file() else {}
    size = getattr(network.config, "image_size", None) or said.get("crop_size") or said.get("size") or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    side = int(size[0] if isinstance(size, list | tuple) else size or 224)
    return tuple(said.get("image_mean", IMAGENET[0])), tuple(said.get("image_std", IMAGENET[1])), side


def _class_token(network: nn.Module, x_B3SS: Tensor) -> Tensor:
    """The class token, which sums a picture up; the pooler behind it is often not trained."""
    return _states(network, x_B3SS)[:, 0]


def _mean_token(network: nn.Module, x_B3SS: Tensor) -> Tensor:
    """The mean over tokens (B, L, D) or over places (B, D, h, w)."""
    states = _states(network, x_B3SS)
    return states.mean(dim=(2, 3)) if states.ndim == 4 else states.mean(dim=1)


def _states(network: nn.Module, x_B3SS: Tensor) -> Tensor:
    try:
        states = network(pixel_values=x_B3SS).last_hidden_state
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"clusters.encoder: {type(network).__name__} does not turn pictures into features; give an image encoder"
        ) from error
    assert isinstance(states, Tensor), "transformers' contract"
    return states


def _from_timm(folder: Path) -> PretrainedEncoder:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            f"a timm: encoder needs timm and the torchvision that fits your torch ({str(error).splitlines()[0]}); "
            "install both, or use an hf: encoder, which needs no torchvision"
        ) from error
    try:
        network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"clusters.encoder: {folder} cannot be loaded by timm: {reason}") from error
    cfg = network.pretrained_cfg
    side = int(cfg["input_size"][-1])
    return PretrainedEncoder(network, _pooled, side, tuple(cfg["mean"]), tuple(cfg["std"]), _digest(folder))


def _pooled(network: nn.Module, x_B3SS: Tensor) -> Tensor:
    """timm's own pooled features, (B, D)."""
    return network(x_B3SS)
