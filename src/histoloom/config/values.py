"""Plain values and the configuration they make: presets, ``--set key=value``, YAML, fingerprints, error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from histoloom.config.section import Section, subsection
from histoloom.config.sections import Config
from histoloom.errors import UserError

Values = dict[str, Any]
"""Settings as YAML holds them: sections are dicts, lists are lists, all else is text, a number, a boolean or None."""


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = resources.files("histoloom.config") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name: str) -> Values:
    """A preset's values; ``UserError`` lists the presets where there is none of this name."""
    if name not in preset_names():
        raise UserError(f"no preset {name!r}; there are: {', '.join(preset_names())}")
    text = (resources.files("histoloom.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return {"preset": name, **yaml.safe_load(text)}


def with_settings(values: Values, settings: Iterable[str]) -> Values:
    """``values`` with each ``dotted.key=value`` of ``settings`` put in place; each value is read as YAML.

    A number in a key is a place in a list: ``diffusion.training.phases.0.lr=1e-4``.
    """
    result: Values = yaml.safe_load(yaml.safe_dump(dict(values)))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set wants key=value, got {setting!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {key}: the value {text!r} is not YAML") from error

        place: Any = result
        *sections, last = _present_key(key.split("."))
        for part in sections:
            if _is_place(place, part):
                place = place[int(part)]
            elif isinstance(place, dict):
                if place.get(part) is None:  # absent, or a section that is off
                    place[part] = {}
                place = place[part]
            else:
                raise UserError(f"--set {setting}: {part!r} is not a section")
        if _is_place(place, last):
            place[int(last)] = value
        elif isinstance(place, dict):
            place[last] = value
        else:
            raise UserError(f"--set {setting}: {last!r} is not a setting")
    return result


def _present_key(parts: Sequence[str]) -> list[str]:
    """The parts of a key, with the present names of settings that have been renamed."""
    names: list[str] = []
    section: type[Section] | None = Config
    for part in parts:
        names.append(part if section is None else section.renamed.get(part, part))
        if section is not None and not part.isdigit():  # a number is a place in a list of sections
            field = section.model_fields.get(names[-1])
            section = None if field is None else subsection(field)
    return names


def _is_place(values: Any, part: str) -> bool:
    return isinstance(values, list) and part.isdigit() and int(part) < len(values)


def make_config(values: Values) -> Config:
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


def dump_config(config: Config) -> str:
    """The configuration as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


BETAS: Mapping[str, Any] = {"betas": [0.9, 0.999]}
"""Of every section ``training``: a setting that was added after runs existed, with the value that changes nothing."""

LATER: Mapping[str, Any] = {
    "autoencoder": {
        "architecture": "diffusers",
        "pixel_range": "signed",
        "quantize_latents": False,
        "quantize_decoded": True,
        "pretrained": None,
        "kl_weight": 1e-6,
        "trained": "all",
        "latent_noise": 0.0,
        "head_blocks": 0,
        "loss_shift": 0,
        "gradient": "straight-through",
        "norm_groups": 32,
        "adversarial": {"loss": "hinge", "betas": [0.9, 0.999], "pixels": False},
        "training": BETAS,
    },
    "patches": {"min_region": 0.5},
    "latents": {"copies": 1},
    "clusters": {
        "features": "latents",
        "encoder": None,
        "files": None,
        "obsm": None,
        "surroundings": 0.0,
        "trunk": "efficientnet-lite0",
        "positives": "views",
        "joint": {},
        "training": BETAS,
    },
    "diffusion": {
        "shift": 1.0,
        "norm_groups": 32,
        "embedding": "add",
        "middle_norm": False,
        "scaling": "unit",
        "architecture": "diffusers",
        "corrections": False,
        "condition_maps": False,
        "alignment": 0.0,
        "alignment_block": "down-1",
        "training": BETAS,
    },
    "evaluation": {"originality": "off", "paper_definitions": False, "paper_pairs": 1000},
}
"""Settings that were added after runs existed, with the value that changes nothing; a section may have been off."""


RETIRED: Mapping[str, Mapping[str, object]] = {
    "clusters": {"consistency": "augment"},
    "diffusion": {"min_snr": None},
}
"""Removed settings that fingerprints of existing runs contain, with the value that they had in every such run."""


def identity(config: Config) -> Values:
    """What fingerprints are computed from: the configuration as the first version of the program would write it.

    Settings that were added later appear only where they change something, so that existing runs stay up to date.
    A gate withholds what is drawn from a run later: the stages of the run are those of one that reports copies.
    """
    values = config.model_dump(mode="json")
    if values["evaluation"]["originality"] == "gate":
        values["evaluation"]["originality"] = "report"
    # Fingerprints of existing runs contain the earlier names of settings and the settings that were removed since.
    classifier = values["evaluation"].pop("cluster_classifier")
    values["evaluation"]["judge"] = classifier
    if classifier is not None:
        classifier["training"] = _without(classifier["training"], BETAS) | {"ema_width": None}
    for section, removed in RETIRED.items():
        values[section] |= removed
    values["diffusion"]["augment"] = "copies" if config.latents.copies == 8 else False
    return _without(values, LATER)


def _without(values: Values, later: Mapping[str, Any]) -> Values:
    """``values`` without those that are as in ``later``, at any depth, and without its sections that are off."""
    return {
        key: _without(value, later[key]) if isinstance(value, dict) and key in later else value
        for key, value in values.items()
        if key not in later or value != (None if isinstance(later[key], Mapping) else later[key])
    }


def _explain(error: ValidationError) -> str:
    """The first of pydantic's errors in one line that says what is allowed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "configuration"
    if first["type"] == "missing":
        return f"setting {key!r} is missing"
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
        return f"setting {key!r}: {message}{shown}"

    section: Any = Config
    for part in first["loc"][:-1]:
        if isinstance(part, str):
            section = section.model_fields[part].annotation
            # Of a tuple of sections, or of a section that may be off.
            arguments = [a for a in getattr(section, "__args__", ()) if isinstance(a, type) and issubclass(a, Section)]
            section = arguments[0] if arguments else section
    allowed = list(section.model_fields)
    near = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown setting {key!r}; {hint}allowed here: {', '.join(allowed)}"
