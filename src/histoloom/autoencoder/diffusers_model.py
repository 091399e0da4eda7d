"""Ready autoencoders in diffusers' format in the VQ-GAN's place: ``AutoencoderKL``, ``AutoencoderTiny``, ``VQModel``.

``autoencoder.pretrained`` names a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``. The stage
``autoencoder`` takes the weights as they are. Images are float -1..1, (N, 3, H, W), latents (N, C, h, w).
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path

from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from safetensors.torch import load_file
from torch import Tensor, nn

from histoloom.config import AutoencoderConfig, Values
from histoloom.errors import UserError

CLASSES: dict[str, type[AutoencoderKL] | type[AutoencoderTiny] | type[VQModel]] = {
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": AutoencoderTiny,
    "VQModel": VQModel,
}
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class DiffusersModel:
    """What ``config.json`` says of a model.

    ``architecture``: the class's name; ``latent_channels``: C; ``halvings``: how often the encoder halves the map;
    ``codes``: vectors of its codebook, 0 without one; ``text``: the content of the file.
    """

    architecture: str
    latent_channels: int
    halvings: int
    codes: int
    text: str

    @staticmethod
    def read(folder: Path) -> DiffusersModel:
        """Read ``folder/config.json``; ``UserError`` where it is not there, or not of a class that can be used."""
        try:
            values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(
                f"autoencoder.pretrained: {folder} has no {CONFIG} that can be read; give the folder of an "
                f"autoencoder in diffusers' format ({', '.join(CLASSES)})"
            ) from None
        return DiffusersModel.of(values, source=str(folder))

    @staticmethod
    def of(values: object, *, source: str) -> DiffusersModel:
        """The model of the content of ``config.json``; ``UserError`` as ``read``."""
        name = values.get("_class_name") if isinstance(values, dict) else None
        if not isinstance(values, dict) or name not in CLASSES:
            raise UserError(
                f"autoencoder.pretrained: {source} holds {name or 'no model of diffusers'}; give one of "
                f"{', '.join(CLASSES)}"
            )
        if (
            values.get("norm_type") == "spatial"
            or values.get("in_channels", 3) != 3
            or values.get("out_channels", 3) != 3
        ):
            raise UserError(f"autoencoder.pretrained: {source} does not encode plain RGB images; give one that does")
        known = inspect.signature(CLASSES[name].__init__).parameters  # diffusers writes further ones, and warns of them
        has_codes, tiny = name == "VQModel", name == "AutoencoderTiny"
        channels = int(values.get("latent_channels", 3 if has_codes else 4))
        widths = (
            values.get("encoder_block_out_channels", (64,) * 4) if tiny else values.get("block_out_channels", (64,))
        )
        return DiffusersModel(
            architecture=name,
            latent_channels=int(values.get("vq_embed_dim") or channels) if has_codes else channels,
            halvings=len(widths) - 1,
            codes=int(values.get("num_vq_embeddings", 256)) if has_codes else 0,
            text=json.dumps({"_class_name": name} | {key: value for key, value in values.items() if key in known}),
        )

    def build(self) -> nn.Module:
        """The model with random weights."""
        model = CLASSES[self.architecture].from_config(json.loads(self.text))
        assert isinstance(model, nn.Module), "made by diffusers"
        return model


def with_pretrained_autoencoder(values: Values) -> Values:
    """Settings with the latent space of ``autoencoder.pretrained``: its channels, its factor and its codes.

    What a run starts from (``start``) has its latent space among the settings already. ``UserError`` where the folder
    holds no autoencoder that can be used.
    """
    auto = values.get("autoencoder") or {}
    folder = auto.get("pretrained")
    if not folder or values.get("start"):
        return values
    path = Path(folder).expanduser().resolve()
    model = DiffusersModel.read(path)
    if not (path / WEIGHTS).is_file():
        raise UserError(f"autoencoder.pretrained: {path} has no {WEIGHTS}; save the model with safetensors")
    latent_space = {
        "pretrained": str(path),
        "stem": 1,
        "multipliers": [1] * (model.halvings + 1),
        "code_dim": model.latent_channels,
        "codes": model.codes,
        "pixel_range": "signed",
    }
    return {**values, "autoencoder": {**auto, **latent_space}}


def load_model(folder: Path) -> nn.Module:
    """The model of a folder, with its weights; ``UserError`` where these are not the model's."""
    model = DiffusersModel.read(folder).build()
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"autoencoder.pretrained: the weights in {folder} are not those of its {CONFIG}") from error
    return model


class PretrainedEncoder(nn.Module):
    """Images to latents; of AutoencoderKL to the means of their distributions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder: nn.Module = model.get_submodule("encoder")
        self.projection: nn.Module = getattr(model, "quant_conv", None) or nn.Identity()
        self.has_variances = isinstance(model, AutoencoderKL)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        z_NChw: Tensor = self.projection(self.encoder(x_NCHW))
        return z_NChw.chunk(2, dim=1)[0] if self.has_variances else z_NChw


class PretrainedDecoder(nn.Module):
    """Latents, or codes, to images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.projection: nn.Module = getattr(model, "post_quant_conv", None) or nn.Identity()
        self.decoder: nn.Module = model.get_submodule("decoder")

    def forward(self, z_NChw: Tensor) -> Tensor:
        y_NCHW: Tensor = self.decoder(self.projection(z_NChw))
        return y_NCHW


def codebook_of(model: nn.Module) -> Tensor | None:
    """The codebook (K, C) of a VQModel; None for models without one."""
    return model.quantize.embedding.weight.detach() if isinstance(model, VQModel) else None


def model_of(config: AutoencoderConfig) -> DiffusersModel:
    """The ready model that settings name."""
    assert config.pretrained is not None, "the settings name one"
    return DiffusersModel.read(Path(config.pretrained))
