"""Features of pretrained encoders: Hugging Face or timm networks on this machine's disk; nothing is downloaded.

A network is named ``hf:NAME`` or ``timm:NAME``, NAME an absolute folder, or a repository whose files are in Hugging
Face's cache on this machine.
Shapes: B images, H x W px, S x S px of the network's input, L tokens, D features.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.clustering.features.base import BLOCK, EncoderRecord, Features, Sources
from histoloom.clustering.features.images import ImageFeatures, PatchImages
from histoloom.errors import UserError
from histoloom.run.directory import file_digest, fingerprint, read_json
from histoloom.run.stage import StageContext
from histoloom.training.devices import accelerator

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the colours (0..1) where a folder has none."""

CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")


@dataclass(frozen=True)
class Recipe:
    """What a model's authors set beside its files.

    ``timm``: arguments of ``timm.create_model``, classes by their name; ``side``: px of the input; ``mean``, ``std``:
    of the colours, 0..1. None: as the files have it.
    """

    timm: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    side: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


H_OPTIMUS = Recipe(
    timm={"init_values": 1e-5, "dynamic_img_size": False},
    mean=(0.707223, 0.578729, 0.703617),
    std=(0.211883, 0.230117, 0.177517),
)
GATED = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}  # classes, which a config.json cannot hold

RECIPES: Mapping[str, Recipe] = {
    # github.com/bioptimus/releases; TRIDENT has the same values for H-optimus-1
    "H-optimus-0": H_OPTIMUS,
    "H-optimus-1": H_OPTIMUS,
    # huggingface.co/kaiko-ai/midnight; the DINOv2 that it began with has 518 px in its configuration
    "midnight": Recipe(side=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    # github.com/mahmoodlab/UNI
    "UNI2-h": Recipe(
        timm={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **GATED,
        }
    ),
    "Virchow2": Recipe(timm=GATED),  # huggingface.co/paige-ai/Virchow2
}
"""By the name of a model's repository, which is the name of its folder too."""


@dataclass(frozen=True)
class PretrainedEncoder:
    """A network and its preprocessing. ``read`` gets its features of images as (B, D). ``digest``: of its files."""

    network: nn.Module
    read: Callable[[nn.Module, Tensor], Tensor]
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str

    def features(self, x_BHW3: Tensor) -> Tensor:
        """Features of whole images, uint8 (B, H, W, 3), brought to the network's size and colours; (B, D)."""
        x_B3HW = x_BHW3.permute(0, 3, 1, 2).float().div(255)
        if x_B3HW.shape[-2:] != (self.side, self.side):
            size = (self.side, self.side)
            x_B3HW = F.interpolate(x_B3HW, size=size, mode="bilinear", antialias=True, align_corners=False)
        mean_311, std_311 = (x_B3HW.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self.read(self.network, (x_B3HW - mean_311) / std_311)


class PretrainedFeatures(ImageFeatures):
    """Features of whole patches by the encoder called ``name``, which is not copied into the run."""

    def __init__(self, name: str, *, images: PatchImages | None, device: torch.device) -> None:
        super().__init__(images=images, device=device)
        self.name = name
        self.encoder = load_encoder(name, device=device)
        blank_BHW3 = torch.zeros(BLOCK, self.encoder.side, self.encoder.side, 3, dtype=torch.uint8, device=device)
        with torch.no_grad():
            self._shape = tuple(self.of_block(blank_BHW3).shape[1:])

    @classmethod
    def make(cls, context: StageContext) -> Features:
        name = context.config.clusters.encoder
        assert name is not None, "the configuration has a name with this kind"
        return cls(name, images=PatchImages.of(context), device=accelerator(context.config.runtime).device)

    @classmethod
    def load(cls, sources: Sources) -> Features:
        """``UserError`` where the encoder is gone, or another one by now."""
        name = sources.encoder.encoder
        assert name is not None, "save returns the encoder's name"
        features = cls(name, images=None, device=sources.device)
        if features.encoder.digest != sources.encoder.digest:
            raise UserError(f"{name} is not the encoder that the clusters were made with; put that one back")
        return features

    def save(self, folder: Path) -> EncoderRecord:  # noqa: ARG002 - an encoder of gigabytes is named, not copied
        return EncoderRecord(encoder=self.name, digest=self.encoder.digest)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def of_block(self, x_BHW3: Tensor) -> Tensor:
        return self.encoder.features(x_BHW3)


def load_encoder(name: str, *, device: torch.device) -> PretrainedEncoder:
    """The network called ``hf:NAME`` or ``timm:NAME``; ``UserError`` where it is not on this machine."""
    library, _, place = name.partition(":")
    folder = _folder(place, library=library)
    recipe = RECIPES.get(Path(place).name, Recipe())
    encoder = (_from_transformers if library == "hf" else _from_timm)(folder, recipe=recipe)
    encoder.network.to(device).eval().requires_grad_(False)
    return encoder


def _folder(place: str, *, library: str) -> Path:
    """The folder of the network's files."""
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


def _from_transformers(folder: Path, *, recipe: Recipe) -> PretrainedEncoder:
    if "AutoModel" in read_json(folder / "config.json").get("auto_map", {}):
        raise UserError(
            f"clusters.encoder: {folder} brings code of its own, which is not run; compute its features with another "
            "program and set clusters.features=files"
        )
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(
            'an hf: encoder needs the extra: pip install "histoloom[encoders]", or set clusters.features=perceptual'
        ) from error
    try:
        network, loading = transformers.AutoModel.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"clusters.encoder: {folder} cannot be loaded by transformers: {reason}") from error
    absent = [key for key in loading["missing_keys"] if "pooler" not in key]  # poolers are not used
    if absent:
        raise UserError(f"clusters.encoder: {folder} lacks weights ({sorted(absent)[0]}, ...); fetch the model again")
    # Weights of a part that the network has, but not of a head: the network is not the one that was trained.
    parts = {key.partition(".")[0] for key in network.state_dict()}
    ignored = [key for key in loading["unexpected_keys"] if key.partition(".")[0] in parts - {"pooler"}]
    if ignored:
        raise UserError(
            f"clusters.encoder: transformers' {type(network).__name__} has no {sorted(ignored)[0]}, which {folder} "
            "holds; compute its features with another program and set clusters.features=files"
        )

    # The input's size and colours, as the model's folder has them
    path = folder / "preprocessor_config.json"
    processor = read_json(path) if path.is_file() else {}
    size = processor.get("crop_size") or processor.get("size") or getattr(network.config, "image_size", None)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    side = recipe.side or int(size[0] if isinstance(size, list | tuple) else size or 224)
    mean = recipe.mean or tuple(processor.get("image_mean", IMAGENET_MEAN))
    std = recipe.std or tuple(processor.get("image_std", IMAGENET_STD))

    has_token = any(key.rsplit(".", 1)[-1] in CLASS_TOKENS for key, _ in network.named_parameters())

    def read(network: nn.Module, x_B3SS: Tensor) -> Tensor:
        """The class token, or the mean over tokens or positions; the pooler behind them is often not trained."""
        try:
            states = network(pixel_values=x_B3SS).last_hidden_state  # (B, L, D) or (B, D, h, w)
        except (TypeError, ValueError, AttributeError) as error:
            kind = type(network).__name__
            raise UserError(
                f"clusters.encoder: {kind} does not turn pictures into features; give an image encoder"
            ) from error
        assert isinstance(states, Tensor), "transformers' contract"
        if has_token:
            return states[:, 0]
        return states.mean(dim=(2, 3) if states.ndim == 4 else 1)

    return PretrainedEncoder(network, read, side, mean, std, _digest(folder))


def _from_timm(folder: Path, *, recipe: Recipe) -> PretrainedEncoder:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise UserError(
            f"a timm: encoder needs timm and the torchvision that fits your torch ({str(error).splitlines()[0]}); "
            "install both, or use an hf: encoder, which needs no torchvision"
        ) from error
    try:
        network = timm.create_model(
            f"local-dir:{folder}", pretrained=True, num_classes=0, **timm_arguments(recipe, timm=timm)
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"clusters.encoder: {folder} cannot be loaded by timm: {reason}") from error
    cfg = network.pretrained_cfg
    side = recipe.side or int(cfg["input_size"][-1])
    mean, std = recipe.mean or tuple(cfg["mean"]), recipe.std or tuple(cfg["std"])
    has_token = getattr(network, "cls_token", None) is not None

    def read(network: nn.Module, x_B3SS: Tensor) -> Tensor:
        """timm's own pooled features; where it pools none, the class token, or the mean over tokens."""
        features: Tensor = network(x_B3SS)
        if features.ndim != 3:
            return features
        return features[:, 0] if has_token else features.mean(dim=1)

    return PretrainedEncoder(network, read, side, mean, std, _digest(folder))


def timm_arguments(recipe: Recipe, *, timm: ModuleType) -> dict[str, object]:
    """The recipe's arguments of ``timm.create_model``, with the classes behind the names."""
    classes = {"mlp_layer": timm.layers, "act_layer": nn}
    return {
        name: getattr(classes[name], str(value)) if name in classes else value for name, value in recipe.timm.items()
    }
