"""The sections of a run's configuration: pydantic models.

Every field says its unit and what it means. Settings that contradict each other are errors. The paper's values are
those of Rumman et al., Bioengineering 2025, 12(7), 764, quoted in docs/design.md.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from histoloom.config.sampler import SamplerConfig
from histoloom.config.section import Section
from histoloom.config.trainings import SelfsupConfig, TrainingConfig

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


class AdversarialConfig(Section):
    """The patch discriminator (Esser et al. 2021)."""

    weight: float = Field(0.8, ge=0, description="0: no discriminator")
    start: float = Field(0.5, ge=0, lt=1, description="share of the training after which it joins")
    warmup: float = Field(0.1, gt=0, le=1, description="share of the training over which its weight rises")
    max_adaptive: PositiveFloat = Field(10.0, description="bound of the adaptive weight")
    channels: PositiveInt = 64
    layers: PositiveInt = 3
    lr: PositiveFloat = 1e-4


class AutoencoderConfig(Section):
    """VQ-GAN; the factor between pixels and latents is stem * 2 ** (len(multipliers) - 1)."""

    stem: Literal[1, 2, 4] = Field(1, description="pixels folded into channels along each side first; saves work")
    channels: PositiveInt = 128
    multipliers: tuple[PositiveInt, ...] = Field((1, 1, 2, 4), min_length=1)
    blocks: PositiveInt = Field(2, description="residual blocks a level")
    attention: bool = Field(True, description="self-attention at the lowest level")
    codes: int = Field(128, ge=2)
    code_dim: PositiveInt = 16
    code_space: Literal["plane", "sphere"] = Field("plane", description="sphere: codes and latents have length 1")
    gradient: Literal["straight-through", "rotation"] = Field(
        "straight-through", description="how it passes the quantizer; rotation: turned as the latent was onto its code"
    )
    commitment: PositiveFloat = 0.25
    codebook_decay: float = Field(0.99, gt=0, lt=1, description="of the codebook's moving averages")
    restart_below: float = Field(
        0.05, ge=0, description="codes used less than this share of the mean use are restarted"
    )
    perceptual: Literal["auto", "lpips", "pyramid", "none"] = Field(
        "lpips", description="auto: lpips where its weights are at hand, else pyramid; settled by init"
    )
    perceptual_trunk: Literal["alex", "squeeze", "vgg"] = "vgg"
    perceptual_weight: float = Field(1.0, ge=0)
    l1_weight: float = Field(0.0, ge=0)
    mse_weight: float = Field(1.0, ge=0)
    adversarial: AdversarialConfig = AdversarialConfig()
    augment: bool = Field(False, description="train on the eight dihedral copies of the patches")
    training: TrainingConfig

    @property
    def factor(self) -> int:
        """Pixels a latent position spans, along one side."""
        return int(self.stem * 2 ** (len(self.multipliers) - 1))

    @model_validator(mode="after")
    def _effective(self) -> AutoencoderConfig:
        if self.l1_weight == 0 and self.mse_weight == 0:
            raise ValueError("one of l1_weight and mse_weight must be above 0")
        if (self.perceptual == "none") != (self.perceptual_weight == 0):
            raise ValueError("perceptual: none and perceptual_weight: 0 go together")
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

    features: Literal["latents", "pooled", "codes", "selfsup", "encoder"] = Field(
        "latents",
        description="what is clustered: latents place by place, their moments, histograms of codes, what an encoder "
        "trained on the run's patches sees, or a Hugging Face or timm encoder (docs/features.md)",
    )
    encoder: str | None = Field(
        None,
        pattern=r"^(hf|timm):\S.*$",
        description="with features: encoder; hf:NAME or timm:NAME: an absolute folder, or a repository in the cache",
    )
    selfsup: SelfsupConfig | None = Field(None, description="with features: selfsup; none: off")
    k: tuple[int, ...] = Field(tuple(range(10, 17)), min_length=1, description="the sweep")
    channels: PositiveInt = Field(64, description="width of the convolutional features")
    marginal_weight: PositiveFloat = Field(2.0, description="of the marginal entropy against the conditional, at first")
    marginal_end: PositiveFloat = Field(1.0, description="the same at the end; at 1 the two are the mutual information")
    consistency: Literal["augment", "vat", "both"] = "augment"
    consistency_weight: PositiveFloat = 1.0
    independence: float = Field(
        0.0, ge=0, description="weight of the information that clusters share with the slide, as a cost; 0: none"
    )
    restarts: PositiveInt = Field(1, description="trainings; the best by the objective is kept")
    validity_features: Literal["pooled", "codes", "flat", "same"] = Field(
        "pooled", description="where the five indices and k-means are computed; same: on what is clustered"
    )
    validity_points: PositiveInt = Field(10_000, description="at most so many patches, drawn at random")
    chooser: Literal["nulls", "plain"] = Field(
        "nulls", description="which rule chooses k: against data without clusters, or the paper's vote of five indices"
    )
    null_draws: int = Field(16, ge=2, description="sets drawn of the data, and of each kind of data without clusters")
    null_points: PositiveInt = Field(1500, description="at most so many patches a set; half of them in each part")
    training: TrainingConfig

    @model_validator(mode="after")
    def _sweep(self) -> ClustersConfig:
        if any(k < 2 for k in self.k) or list(self.k) != sorted(set(self.k)):
            raise ValueError(f"k must be a rising list of whole numbers from 2 up, got {list(self.k)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _selfsup_is_written_out(cls, values: Any) -> Any:
        asked = isinstance(values, dict) and values.get("features") == "selfsup" and values.get("selfsup") is None
        return {**values, "selfsup": {}} if asked else values

    @model_validator(mode="after")
    def _features_are_used(self) -> ClustersConfig:
        if (self.features == "encoder") != (self.encoder is not None):
            raise ValueError(
                "features: encoder and a name in encoder (hf:NAME, timm:NAME) go together; give both or none"
            )
        if self.selfsup is not None and self.features != "selfsup":
            raise ValueError("selfsup needs features: selfsup; or set clusters.selfsup=null")
        if self.validity_features == "same" and self.features == "latents":
            raise ValueError("validity_features: same is for features that are vectors; of latents it would be flat")
        return self


class DiffusionConfig(Section):
    """Latent diffusion conditioned on (k, cluster) (Ho et al. 2020; Rombach et al. 2022)."""

    steps: PositiveInt = 1000
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_start: PositiveFloat = 1e-4
    beta_end: PositiveFloat = 0.02
    prediction: Literal["epsilon", "v"] = "epsilon"
    whiten: float | None = Field(
        None,
        gt=0,
        le=1,
        description="work in the principal components of the latents that keep this share of their variance, each "
        "scaled to deviation 1; none: in the channels, each scaled by itself",
    )
    zero_terminal_snr: bool = Field(
        False,
        description="let the last step be pure noise (Lin et al. 2024); needs prediction: v",
    )
    fold: Literal[1, 2, 4] = Field(1, description="side of the square of latent positions that become channels of one")
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

    @model_validator(mode="after")
    def _pure_noise_is_learnt(self) -> DiffusionConfig:
        if self.zero_terminal_snr and self.prediction != "v":
            raise ValueError("zero_terminal_snr needs prediction: v; pure noise says nothing about the data")
        if self.zero_terminal_snr and self.min_snr is not None:
            raise ValueError("zero_terminal_snr needs min_snr: null; its weight is 0 at the step that was added")
        return self


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
    def _sizes_fit(self) -> Config:
        deepest = self.autoencoder.factor * self.diffusion.fold * 2 ** (len(self.diffusion.channels) - 1)
        if self.patches.size % deepest:
            raise ValueError(
                f"patches.size must be a multiple of {deepest} for these autoencoder.multipliers, "
                f"diffusion.fold and diffusion.channels, got {self.patches.size}"
            )
        if self.report.k is not None and self.report.k not in self.clusters.k:
            raise ValueError(f"report.k must be one of clusters.k = {list(self.clusters.k)}, got {self.report.k}")
        return self
