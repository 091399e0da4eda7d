"""The sections of a run's configuration: pydantic models.

Every field says its unit and what it means. Settings that contradict each other are errors. The paper's values are
those of Rumman et al., Bioengineering 2025, 12(7), 764, quoted in docs/explanation/design.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from histoloom.config.networks import LPIPS_MIN_SIZE, AutoencoderConfig, ClustersConfig, DiffusionConfig, LatentsConfig
from histoloom.config.sampler import SamplerConfig
from histoloom.config.section import Section
from histoloom.config.trainings import ClusterClassifierConfig

MPP_LIMITS = (0.01, 100.0)  # um/px that a user may say a slide has
PRIVATE = "private:"  # stands before what has its name in the private folder alone


class SlidesConfig(Section):
    """Which slides."""

    paths: tuple[str, ...] = Field(min_length=1, description="files and folders, absolute")
    table: str | None = Field(None, description="CSV with column file, any of patient, slide, mpp, split, and more")
    columns: tuple[str, ...] | None = Field(None, description="further columns to keep; none: all (pseudonyms: no)")
    mpp: float | None = Field(
        None, ge=MPP_LIMITS[0], le=MPP_LIMITS[1], description="um/px of slides that do not say it themselves"
    )
    follow_links: bool = Field(False, description="read links in folders that lead out of the given paths")
    pseudonyms: str | None = Field(None, description="the key that names are hashed with; set by init --pseudonymise")

    @model_validator(mode="after")
    def _names_are_private(self) -> SlidesConfig:
        private = [text.startswith(PRIVATE) for text in (*self.paths, self.table) if text is not None]
        if not all(private) if self.pseudonyms else any(private):
            raise ValueError("a pseudonymised run takes no names of files; make a new one: histoloom init")
        return self


class SplitConfig(Section):
    """What is held out of every training."""

    by: Literal["patient", "slide"] = "patient"
    holdout: float = Field(0.15, ge=0, lt=1, description="share of the patches, whole slides or patients")


AUTO_SHARPNESS, AUTO_PEN = 0.012, 0.05
"""What patches.filters' auto stands for with ``tissue: detect`` (docs/explanation/patches.md)."""


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
    stain: Literal["none", "macenko", "reinhard"] = Field(
        "none", description="how each slide's colours are brought to those of a reference"
    )
    stain_reference: str | None = Field(
        None, description="the slide whose stain the others get; none: the package's own reference"
    )
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

    @model_validator(mode="after")
    def _reference_is_used(self) -> PatchesConfig:
        if self.stain == "none" and self.stain_reference is not None:
            raise ValueError("stain_reference needs stain: macenko or reinhard")
        return self


class SamplesConfig(Section):
    """Synthetic patches, drawn for each cluster of each k."""

    per_cluster: PositiveInt = 64
    k: Literal["all", "chosen"] = Field("all", description="for every k of the sweep, or for the chosen alone")
    sampler: SamplerConfig = SamplerConfig()

    @model_validator(mode="after")
    def _drawn_by_the_generator(self) -> SamplesConfig:
        if self.sampler.method == "student":
            raise ValueError(
                "the stage samples draws with the generator itself; with its student: histoloom sample --method student"
            )
        return self


ExtractorName = Annotated[str, Field(pattern=r"^(pixels|encoder|lpips-(alex|squeeze|vgg)|(inception|hf|timm):\S.*)$")]


class EvaluationConfig(Section):
    """How samples are evaluated."""

    renamed: ClassVar[Mapping[str, str]] = {"judge": "cluster_classifier"}

    pairs: PositiveInt = Field(64, description="image pairs a cluster and comparison")
    lpips_trunk: Literal["alex", "squeeze", "vgg"] = "alex"
    bootstrap: PositiveInt = Field(1000, description="resamples for the intervals")
    extractors: tuple[ExtractorName, ...] = Field(
        ("pixels", "lpips-alex", "encoder"),
        description="whose features distributions are compared by (docs/explanation/evaluation.md); none of them: []",
    )
    cluster_classifier: ClusterClassifierConfig | None = Field(
        ClusterClassifierConfig(),
        description="a network trained on pixels to tell the clusters apart, which tests whether samples are faithful "
        "and useful; none: off",
    )
    distribution_patches: int = Field(2000, ge=20, description="most real patches on each side of a distribution")
    originality: Literal["report", "gate", "off"] = Field(
        "report", description="look for copies of training patches; gate: also withhold them, and watch the training"
    )

    @field_validator("extractors")
    @classmethod
    def _once_each(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise ValueError("name each extractor once")
        return values

    @model_validator(mode="after")
    def _patches_are_compared(self) -> EvaluationConfig:
        default = type(self).model_fields["distribution_patches"].default
        if not self.extractors and self.distribution_patches != default:
            raise ValueError(
                f"distribution_patches has no effect without extractors, got {self.distribution_patches} and "
                f"extractors: []; set evaluation.distribution_patches={default}, its default, too"
            )
        return self


class ReportConfig(Section):
    """What the report shows."""

    k: int | None = Field(None, description="the k shown in detail; none: the chosen one")
    patches_per_cluster: PositiveInt = 8
    map_slides: int = Field(6, ge=0, description="slides shown with their tissue map")
    map_patches: PositiveInt = Field(4000, description="most patches classified a slide for its map")
    embeddings: tuple[Literal["pca", "tsne", "umap"], ...] = Field(
        ("pca", "tsne"), description="2-D maps of the patches; umap needs its extra; none of them: []"
    )
    embedded_patches: PositiveInt = Field(1500, le=3000, description="patches on these maps, drawn at random")


class StartConfig(Section):
    """The generator that a run begins with; ``histoloom init --from`` writes it."""

    digest: str = Field(pattern=r"^[0-9a-f]{16}$", description="of the weights in RUN/start")


class RuntimeConfig(Section):
    """Where and how to run: recorded, but not part of any result's fingerprint."""

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: PositiveInt | None = Field(None, description="of the CPU; none: all cores")
    workers: PositiveInt | None = Field(None, description="processes that read slides; none: one a core")
    scheduler: str | None = Field(
        None,
        pattern=r"^(tcp|tls)://[^\s/]+:\d+$",
        description="of a Dask cluster that reads slides; none: this machine",
    )
    fast: Literal["auto", "on", "off"] = Field(
        "auto", description="training with channels-last, compiled networks; auto: on CUDA devices"
    )
    accumulate: PositiveInt = Field(1, description="micro-batches a step")
    checkpoint_seconds: float = Field(60, ge=0, description="least time between checkpoints; 0: every step")
    tensorboard: bool = False


class Config(Section):
    """A whole run."""

    seed: int = Field(0, ge=0)
    preset: str = Field("custom", description="where the defaults came from; for the record")
    slides: SlidesConfig
    start: StartConfig | None = Field(None, description="the generator whose weights are the start; none: from nothing")
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
    def _networks_fit_the_patches(self) -> Config:
        auto, diffusion, size = self.autoencoder, self.diffusion, self.patches.size
        step = auto.factor * 2 ** (len(diffusion.channels) - 1)
        if size % step:
            raise ValueError(
                f"patches.size must be a multiple of {step} for these autoencoder.multipliers and diffusion.channels, "
                f"got {size}"
            )
        if auto.perceptual == "lpips" and size < LPIPS_MIN_SIZE:
            raise ValueError(
                f"patches.size must be at least {LPIPS_MIN_SIZE} for autoencoder.perceptual: lpips, got {size}; "
                "pyramid takes smaller ones"
            )
        if auto.adversarial.weight > 0 and size < auto.adversarial.min_size:
            raise ValueError(
                f"patches.size must be at least {auto.adversarial.min_size} for a discriminator of "
                f"{auto.adversarial.layers} layers, got {size}; set fewer autoencoder.adversarial.layers"
            )
        # PyTorch refuses to normalise a single value: one channel at one position.
        for name, side, channels in (
            ("autoencoder", size // auto.factor, auto.widths[-1] // auto.groups),
            ("diffusion", size // step, diffusion.channels[-1] // diffusion.groups),
        ):
            if side == 1 and channels == 1:
                raise ValueError(
                    f"the lowest level of {name} has one position and normalises each channel alone; "
                    f"set fewer {name}.norm_groups, or larger patches"
                )
        return self

    @model_validator(mode="after")
    def _reported_k_is_tried(self) -> Config:
        if self.report.k is not None and self.report.k not in self.clusters.k:
            raise ValueError(f"report.k must be one of clusters.k = {list(self.clusters.k)}, got {self.report.k}")
        return self
