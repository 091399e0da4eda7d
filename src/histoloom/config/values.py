"""Plain values and the configuration they make: presets, ``--set key=value``, YAML, and errors that say what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from histoloom.config.section import Section
from histoloom.config.sections import Config
from histoloom.errors import UserError


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = resources.files("histoloom.config") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset's values as plain data; ``UserError`` names the presets there are."""
    if name not in preset_names():
        raise UserError(f"no preset {name!r}; there are: {', '.join(preset_names())}")
    text = (resources.files("histoloom.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return {"preset": name, **yaml.safe_load(text)}


def with_settings(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """``values`` with each ``dotted.key=value`` of ``settings`` put in place; values are read as YAML."""
    result: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(values)))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set wants key=value, got {setting!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {key}: the value {text!r} is not YAML") from error
        _put(result, key.split("."), value, setting=setting)
    return result


def _put(values: Any, path: list[str], value: Any, *, setting: str) -> None:
    for part in path[:-1]:
        if isinstance(values, list) and part.isdigit() and int(part) < len(values):
            values = values[int(part)]
        elif isinstance(values, dict):
            if values.get(part) is None:  # absent, or a section that is off
                values[part] = {}
            values = values[part]
        else:
            raise UserError(f"--set {setting}: {part!r} is not a section")
    if isinstance(values, list) and path[-1].isdigit() and int(path[-1]) < len(values):
        values[int(path[-1])] = value
    elif isinstance(values, dict):
        values[path[-1]] = value
    else:
        raise UserError(f"--set {setting}: {path[-1]!r} is not a setting")


def make_config(values: Mapping[str, Any]) -> Config:
    """Validate plain values; ``UserError`` names the first wrong key and what is allowed there."""
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def load_config(path: Path) -> Config:
    """Read a run's ``config.yaml``."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is not a run (it has no config.yaml); make one: histoloom init") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML; restore it or make a new run with histoloom init") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; restore it or make a new run with histoloom init")
    return make_config(values)


UNAVERAGED: Mapping[str, Any] = {"ema_width": None}
LATER: Mapping[str, Any] = {
    "autoencoder": {
        "gradient": "straight-through",
        "norm_groups": 32,
        "adversarial": {"betas": [0.9, 0.999]},
        "training": UNAVERAGED,
    },
    "latents": {"copies": 1},
    "clusters": {"features": "latents", "encoder": None, "selfsup": {"training": UNAVERAGED}, "training": UNAVERAGED},
    "diffusion": {
        "shift": 1.0,
        "norm_groups": 32,
        "embedding": "add",
        "training": UNAVERAGED,
    },
    "evaluation": {"originality": "off"},
}
"""Settings that came after runs were made, with the value that means what these did; sections may have been off."""


RETIRED: Mapping[str, Mapping[str, Any]] = {"diffusion": {"min_snr": None}}
"""Removed settings that fingerprints of existing runs hold, with the value that they had in every such run."""


def identity(config: Config) -> dict[str, Any]:
    """What fingerprints are of: the configuration, less later settings that change nothing, so that runs stay whole.

    A gate stands before what is drawn from a run; its stages are those of a run that reports copies.
    """
    values = config.model_dump(mode="json")
    if values["evaluation"]["originality"] == "gate":
        values["evaluation"]["originality"] = "report"
    # Fingerprints of existing runs hold the earlier names of settings and the settings that were removed since.
    values["evaluation"]["judge"] = values["evaluation"].pop("cluster_classifier")
    for section, removed in RETIRED.items():
        values[section] |= removed
    values["diffusion"]["augment"] = "copies" if config.latents.copies == 8 else False
    return _without(values, LATER)


def _without(values: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` less those that are as in ``later``, at any depth, and less its sections that are off."""
    return {
        key: _without(value, later[key]) if isinstance(value, Mapping) and key in later else value
        for key, value in values.items()
        if key not in later or value != (None if isinstance(later[key], Mapping) else later[key])
    }


def dump_config(config: Config) -> str:
    """The configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "configuration"
    if first["type"] == "extra_forbidden":
        allowed = _allowed_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown setting {key!r}; {hint}allowed here: {', '.join(allowed)}"
    if first["type"] == "missing":
        return f"setting {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    return f"setting {key!r}: {message}{shown}"


def _allowed_keys(path: tuple[int | str, ...]) -> list[str]:
    section: Any = Config
    for part in path:
        if isinstance(part, int):
            continue
        section = section.model_fields[part].annotation
        arguments = [a for a in getattr(section, "__args__", ()) if isinstance(a, type) and issubclass(a, Section)]
        section = arguments[0] if arguments else section
    return list(section.model_fields)
