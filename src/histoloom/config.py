"""The configuration of a run: pydantic models, presets beside them, ``--set key=value``.

Every field says its unit and what it means. Unknown keys are errors, and so are settings that contradict each other.
The paper's values are those of Rumman et al., Bioengineering 2025, 12(7), 764, quoted in docs/design.md.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from histoloom.config_training import AutoencoderConfig, Section, TrainingConfig
from histoloom.config_training import Phase as Phase
from histoloom.errors import UserError


class SlidesConfig(Section):
    """Which slides."""

    paths: tuple[str, ...] = Field(min_length=1, description="files and folders, absolute")
    table: str | None = Field(None, description="CSV with a column file, and any of patient, slide, mpp")
    mpp: PositiveFloat | None = Field(None, description="um/px of slides that do not say it themselves")


class SplitConfig(Section):
    """What is held out of every training."""

    by: Literal["patient", "slide"] = "patient"
    holdout: float = Field(0.15, ge=0, lt=1, description="share of the patches, whole slides or patients")


AUTO_SHARPNESS, AUTO_PEN = 0.012, 0.05
"""What patches.filters' auto stands for with ``tissue: detect``; the numbers behind them: docs/slides.md."""


class FiltersConfig(Section):
    """Which patches are rejected, and replaced by others of the same slide."""

    blur: Literal["auto"] | PositiveFloat | None = Field(
        "auto", description="least sharpness (slides/focus.py); none: not filtered; auto: 0.012 with detect, else none"
    )
    pen: Literal["auto"] | Annotated[float, Field(ge=0, lt=1)] | None = Field(
        "auto", description="most share of pen; none: not filtered; auto: 0.05 with detect, else none"
    )

    @field_validator("blur", "pen", mode="before")
    @classmethod
    def _said_plainly(cls, value: Any, info: ValidationInfo) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and (0 < value < math.inf if info.field_name == "blur" else 0 <= value < 1)
        if value is not None and value != "auto" and not fits:
            allowed = "above 0" if info.field_name == "blur" else "from 0 up to below 1"
            raise ValueError(f"give auto, null (not filtered) or a number {allowed}")
        return value


class PatchesConfig(Section):
    """Patches of slides, at random places or on a grid."""

    size: PositiveInt = Field(256, multiple_of=8, description="side of a patch, px")
    mpp: PositiveFloat = Field(0.5, description="um/px of the patches")
    count: PositiveInt | None = Field(
        10_000, description="most patches in all, shared out by the slides' area (of tissue); none: no limit in all"
    )
    per_slide: PositiveInt | None = Field(None, description="most patches of a slide; none: no limit a slide")
    sampling: Literal["random", "grid"] = Field("random", description="where: at random, or on a centred grid")
    overlap: float = Field(0.0, ge=0, lt=1, description="with grid: share of a side that neighbours share")
    tissue: Literal["all", "detect"] = Field(
        "all", description="all: anywhere, as in the paper; detect: where tissue is found"
    )
    min_tissue: float = Field(0.5, gt=0, le=1, description="with detect: least tissue share of a patch")
    background_share: float = Field(
        0.1, ge=0, lt=1, description="with detect: share of patches drawn with less tissue than min_tissue"
    )
    filters: FiltersConfig = FiltersConfig()
    split: SplitConfig = SplitConfig()

    @property
    def least_sharpness(self) -> float | None:
        """``filters.blur`` with ``auto`` settled; None: blur is not filtered."""
        automatic = AUTO_SHARPNESS if self.tissue == "detect" else None
        return automatic if self.filters.blur == "auto" else self.filters.blur

    @property
    def most_pen(self) -> float | None:
        """``filters.pen`` with ``auto`` settled; None: pen is not filtered."""
        automatic = AUTO_PEN if self.tissue == "detect" else None
        return automatic if self.filters.pen == "auto" else self.filters.pen

    @model_validator(mode="after")
    def _numbers(self) -> PatchesConfig:
        if self.sampling == "random" and self.overlap > 0:
            raise ValueError("overlap is for sampling: grid; set patches.sampling=grid, or patches.overlap=0")
        if self.sampling == "random" and self.count is None and self.per_slide is None:
            raise ValueError("random patches need a number: set patches.count or patches.per_slide")
        return self


class LatentsConfig(Section):
    """How patches are encoded."""

    dtype: Literal["float32", "float16"] = Field("float32", description="of the stored latents")
    stain_views: int = Field(
        2, ge=0, description="copies of each patch in other stains, encoded too: what the clusters learn to ignore"
    )
    stain_jitter: PositiveFloat = Field(0.25, description="deviation of the logarithm of each stain's gain")


class ClustersConfig(Section):
    """Information-maximisation clusters (RIM: Krause et al. 2010; IMSAT: Hu et al. 2017) for a sweep of k."""

    k: tuple[int, ...] = Field(tuple(range(10, 17)), min_length=1, description="the sweep")
    channels: PositiveInt = Field(64, description="width of the convolutional features")
    marginal_weight: PositiveFloat = Field(2.0, description="of the marginal entropy against the conditional")
    consistency: Literal["augment", "vat", "both"] = "augment"
    consistency_weight: PositiveFloat = 1.0
    restarts: PositiveInt = Field(1, description="trainings; the best by the objective is kept")
    validity_features: Literal["pooled", "codes", "flat"] = Field(
        "pooled", description="where the five indices and k-means are computed"
    )
    validity_points: PositiveInt = Field(10_000, description="at most so many patches, drawn at random")
    training: TrainingConfig

    @model_validator(mode="after")
    def _sweep(self) -> ClustersConfig:
        if any(k < 2 for k in self.k) or list(self.k) != sorted(set(self.k)):
            raise ValueError(f"k must be a rising list of whole numbers from 2 up, got {list(self.k)}")
        return self


class DiffusionConfig(Section):
    """Latent diffusion conditioned on (k, cluster) (Ho et al. 2020; Rombach et al. 2022)."""

    steps: PositiveInt = 1000
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_start: PositiveFloat = 1e-4
    beta_end: PositiveFloat = 0.02
    prediction: Literal["epsilon", "v"] = "epsilon"
    min_snr: PositiveFloat | None = Field(None, description="gamma of the min-SNR weighting; none: plain")
    channels: tuple[PositiveInt, ...] = Field((128, 256, 512), min_length=1, description="U-Net widths a level")
    blocks: PositiveInt = 2
    attention: tuple[bool, ...] = Field((False, True, True), description="self-attention a level")
    dropout: float = Field(0.0, ge=0, lt=1)
    condition_dropout: float = Field(0.1, ge=0, lt=1, description="share trained without condition")
    augment: bool = Field(False, description="train on the eight dihedral copies of the patches")
    training: TrainingConfig

    @model_validator(mode="after")
    def _levels(self) -> DiffusionConfig:
        if len(self.attention) != len(self.channels):
            raise ValueError("attention needs one entry for each of channels")
        if self.beta_start >= self.beta_end:
            raise ValueError("beta_start must be below beta_end")
        return self


class SamplerConfig(Section):
    """How a generator draws."""

    method: Literal["ddpm", "dpm-solver++"] = "dpm-solver++"
    steps: PositiveInt = Field(20, description="network evaluations (pairs of them with guidance)")
    guidance: float = Field(1.5, ge=0, description="1: plain conditional sampling; 0: without condition")


class SamplesConfig(Section):
    """Synthetic patches, drawn for each cluster of each k."""

    per_cluster: PositiveInt = 64
    k: Literal["all", "chosen"] = Field("all", description="for every k of the sweep, or for the chosen alone")
    sampler: SamplerConfig = SamplerConfig()


class EvaluationConfig(Section):
    """Evidence."""

    pairs: PositiveInt = Field(64, description="image pairs a cluster and comparison")
    lpips_trunk: Literal["alex", "squeeze", "vgg"] = "alex"
    bootstrap: PositiveInt = Field(1000, description="resamples for the intervals")


class ReportConfig(Section):
    """What the report shows."""

    k: int | None = Field(None, description="the k shown in detail; none: the chosen one")
    patches_per_cluster: PositiveInt = 8
    map_slides: int = Field(6, ge=0, description="slides shown with their tissue map")
    map_patches: PositiveInt = Field(4000, description="most patches classified a slide for its map")


class RuntimeConfig(Section):
    """Where and how to run: recorded, but not part of any result's fingerprint."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: PositiveInt | None = Field(None, description="of the CPU; none: all cores")
    workers: PositiveInt | None = Field(None, description="processes that read slides; none: one a core")
    accumulate: PositiveInt = Field(1, description="micro-batches a step")
    checkpoint_seconds: float = Field(60, ge=0, description="least time between checkpoints; 0: every step")
    tensorboard: bool = False


class Config(Section):
    """A whole run."""

    seed: int = Field(0, ge=0)
    preset: str = Field("custom", description="where the defaults came from; for the record")
    slides: SlidesConfig
    patches: PatchesConfig
    autoencoder: AutoencoderConfig
    latents: LatentsConfig = LatentsConfig()
    clusters: ClustersConfig
    diffusion: DiffusionConfig
    samples: SamplesConfig = SamplesConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Config:
        deepest = self.autoencoder.factor * 2 ** (len(self.diffusion.channels) - 1)
        if self.patches.size % deepest:
            raise ValueError(
                f"patches.size must be a multiple of {deepest} for these autoencoder.multipliers and "
                f"diffusion.channels, got {self.patches.size}"
            )
        if self.report.k is not None and self.report.k not in self.clusters.k:
            raise ValueError(f"report.k must be one of clusters.k = {list(self.clusters.k)}, got {self.report.k}")
        return self


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = resources.files("histoloom") / "presets"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset's values as plain data; ``UserError`` names the presets there are."""
    if name not in preset_names():
        raise UserError(f"no preset {name!r}; there are: {', '.join(preset_names())}")
    text = (resources.files("histoloom") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
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
            values = values.setdefault(part, {})
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
