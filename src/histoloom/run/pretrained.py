"""A run that begins with another generator's weights (``histoloom init --from``): its own copy, in ``RUN/start``.

The copy is an exported generator without its pipeline: ``unet/``, ``autoencoder/``, ``generator.json`` and, where there
is one, its card. What describes the networks and the diffusion process comes from it and cannot be set otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from histoloom.config import AutoencoderConfig, Config, DiffusionConfig, Section, Values
from histoloom.errors import UserError
from histoloom.run.directory import read_json

FOLDER = "start"
FILES = (
    "generator.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "autoencoder/autoencoder.json",
    "autoencoder/autoencoder.safetensors",
)
FREE: Mapping[str, frozenset[str]] = {
    "autoencoder": frozenset(
        {"training", "perceptual", "perceptual_trunk", "perceptual_weight", "l1_weight", "mse_weight", "commitment"}
        | {"adversarial", "augment", "codebook_decay", "restart_below", "trained", "latent_noise"}
        | {"loss_shift"}
    ),
    "diffusion": frozenset(
        {"training", "dropout", "condition_dropout", "condition_rate", "corrections", "condition_maps"}
        | {"alignment", "alignment_block"}
    ),
}
"""How to train, which the run decides for itself; every other setting of these sections is the generator's."""

CHANGEABLE = ("quantize_decoded",)
"""The generator's settings that a run takes over and may change: they concern neither weights nor latents."""

OF_THE_DECODER = ("head_blocks",)
"""Those that a run which trains the decoder alone may change: encoder, codebook and latents are the same with any."""


def generator_digest(folder: Path) -> str:
    """16 hexadecimal digits of all that the run takes from the generator."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def is_start(folder: Path) -> bool:
    """Whether ``folder`` has all that a run takes from a generator."""
    return all((folder / name).is_file() for name in FILES)


def fixed_settings(folder: Path) -> dict[str, Values]:
    """The generator's settings that the run shares with it, by section; those of earlier versions as they are now."""
    sections: dict[str, Section] = {
        "autoencoder": AutoencoderConfig.model_validate(read_json(folder / "autoencoder" / "autoencoder.json")),
        "diffusion": DiffusionConfig.model_validate(read_json(folder / "generator.json")["diffusion"]),
    }
    return {
        name: {key: value for key, value in section.model_dump(mode="json").items() if key not in FREE[name]}
        for name, section in sections.items()
    }


def with_start(values: Values, folder: Path) -> Values:
    """A preset's values with the networks, the size and the um/px of the generator in ``folder``."""
    spec = read_json(folder / "generator.json")
    result = dict(values) | {"start": {"digest": generator_digest(folder)}}
    result["patches"] = {**values["patches"], "size": spec["size"], "mpp": spec["mpp"]}
    for section, fixed in fixed_settings(folder).items():
        result[section] = {**values[section], **fixed}
    return result


def require_fit(config: Config, folder: Path) -> None:
    """``UserError`` where the run's networks or process are not those of the generator in ``folder``."""
    mine = config.model_dump(mode="json")
    changeable = CHANGEABLE + (OF_THE_DECODER if config.autoencoder.trained == "decoder" else ())
    for section, fixed in fixed_settings(folder).items():
        for key, value in fixed.items():
            if mine[section][key] != value and key not in changeable:
                raise UserError(
                    f"{section}.{key} is {mine[section][key]} here and {value} in the generator that this run begins "
                    f"with; leave it out, or start without --from"
                )


def start_folder(run: Path, config: Config) -> Path | None:
    """The run's copy of the generator that it begins with, unchanged since ``init``; None where it begins with none."""
    if config.start is None:
        return None
    folder = run / FOLDER
    if not is_start(folder) or generator_digest(folder) != config.start.digest:
        raise UserError(
            f"{folder} is not the generator that this run begins with (digest {config.start.digest}); "
            "bring it back with the same histoloom init ... --from GENERATOR"
        )
    require_fit(config, folder)
    return folder
