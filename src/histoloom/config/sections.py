"""The configuration of a run and its sections, less those of the networks: pydantic models.

Every field says what it means, its unit and its range. Settings that contradict each other are errors. The paper's
values are those of Rumman et al., Bioengineering 2025, 12(7), 764, quoted in docs/explanation/design.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from histoloom.config.autoencoder import AutoencoderConfig, LatentsConfig
from histoloom.config.networks import LPIPS_MIN_SIZE, ClusterClassifierConfig, ClustersConfig, DiffusionConfig
from histoloom.config.section import Section

MPP_LIMITS = (0.01, 100.0)
"""Smallest and largest um/px that a user may give for a slide."""

PRIVATE = "private:"
"""Prefix of a path whose name only the private folder holds."""


class SlidesConfig(Section):
    """The slides of the run."""

    paths: tuple[str, ...] = Field(min_length=1, description="slides and folders of slides, as absolute paths")
    table: str | None = Field(None, description="CSV with column file, any of patient, slide, mpp, split, and more")
    columns: tuple[str, ...] | None = Field(
        None, description="further columns of the table to keep; null: all, or none in a pseudonymised run"
    )
    regions: str | None = Field(
        None,
        description="regions to draw patches from, GeoJSON or masks: a folder with a file for each slide, or a file",
    )
    places: str | None = Field(
        None,
        description="folder with a file of places for each slide, HDF5 of TRIDENT or CLAM: patches are taken there and "
        "nowhere else, however many; null: they are drawn",
    )
    mpp: float | None = Field(
        None,
        ge=MPP_LIMITS[0],
        le=MPP_LIMITS[1],
        description="um/px of slides whose files do not state it; goes before a guess from the objective's power",
    )
    follow_links: bool = Field(False, description="follow links in folders that lead out of the given paths")
    pseudonyms: str | None = Field(
        None, description="key with which names of slides and patients are hashed; init --pseudonymise sets it"
    )

    @model_validator(mode="after")
    def _keeps_names_private(self) -> SlidesConfig:
        files = (*self.paths, self.table, self.regions, self.places)
        private = [text.startswith(PRIVATE) for text in files if text is not None]
        if not all(private) if self.pseudonyms else any(private):
            raise ValueError("a pseudonymised run takes no names of files; make a new one: histoloom init")
        return self


class SplitConfig(Section):
    """What is held out of every training."""

    by: Literal["patient", "slide"] = Field("patient", description="hold out whole patients or whole slides")
    holdout: float = Field(0.15, ge=0, lt=1, description="share of the patches that is held out; 0: none")


AUTO_SHARPNESS, AUTO_PEN = 0.012, 0.05
"""What ``auto`` means in patches.filters with ``tissue: detect`` (docs/explanation/patches.md)."""


class FiltersConfig(Section):
    """Which patches are rejected, and replaced by others of the same slide."""

    blur: Literal["auto"] | PositiveFloat | None = Field(
        "auto",
        description="smallest sharpness of a patch, above 0; null: blur is not filtered; auto: 0.012 with tissue: "
        "detect, else null",
    )
    pen: Literal["auto"] | Annotated[float, Field(ge=0, lt=1)] | None = Field(
        "auto",
        description="largest share of a patch that is pen, from 0 to below 1; null: pen is not filtered; auto: 0.05 "
        "with tissue: detect, else null",
    )

    @field_validator("blur", "pen", mode="before")
    @classmethod
    def _is_auto_null_or_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """One error message, instead of pydantic's one for each of the three kinds of value."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = number and (0 < value < math.inf if info.field_name == "blur" else 0 <= value < 1)
        if value is not None and value != "auto" and not fits:
            allowed = "above 0" if info.field_name == "blur" else "from 0 up to below 1"
            raise ValueError(f"give auto, null (not filtered) or a number {allowed}")
        return value


class PatchesConfig(Section):
    """Patches of slides, at random places or on a grid."""

    size: PositiveInt = Field(256, multiple_of=8, description="side of a patch, px, a multiple of 8")
    mpp: PositiveFloat = Field(0.5, description="um/px of the patches")
    count: PositiveInt | None = Field(
        10_000,
        description="largest number of patches in all, shared among slides by their area (of tissue); null: no limit",
    )
    per_slide: PositiveInt | None = Field(None, description="largest number of patches per slide; null: no limit")
    sampling: Literal["random", "grid"] = Field("random", description="at random places, or on a centred grid")
    overlap: float = Field(
        0.0, ge=0, lt=1, description="with sampling: grid, share of its side that a patch shares with its neighbour"
    )
    tissue: Literal["all", "detect"] = Field(
        "all", description="all: anywhere on the slide, as in the paper; detect: where tissue is detected"
    )
    min_tissue: float = Field(
        0.5, gt=0, le=1, description="with tissue: detect, smallest share of a patch that is tissue"
    )
    background_share: float = Field(
        0.1, ge=0, lt=1, description="with tissue: detect, share of the patches that have less tissue than min_tissue"
    )
    min_region: float = Field(
        0.5, gt=0, le=1, description="with slides.regions, smallest share of a patch that lies inside regions"
    )
    filters: FiltersConfig = Field(FiltersConfig(), description="which patches are rejected")
    stain: Literal["none", "macenko", "reinhard"] = Field(
        "none", description="method that brings each slide's colours to those of a reference; none: colours stay"
    )
    stain_reference: str | None = Field(
        None, description="slide whose colours are the reference; null: the reference of the package"
    )
    split: SplitConfig = Field(SplitConfig(), description="what is held out")

    @property
    def min_sharpness(self) -> float | None:
        """``filters.blur`` with ``auto`` resolved; None: blur is not filtered."""
        auto = AUTO_SHARPNESS if self.tissue == "detect" else None
        return auto if self.filters.blur == "auto" else self.filters.blur

    @property
    def max_pen(self) -> float | None:
        """``filters.pen`` with ``auto`` resolved; None: pen is not filtered."""
        auto = AUTO_PEN if self.tissue == "detect" else None
        return auto if self.filters.pen == "auto" else self.filters.pen

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> PatchesConfig:
        if self.sampling == "random" and self.overlap > 0:
            raise ValueError("overlap is for sampling: grid; set patches.sampling=grid, or patches.overlap=0")
        if self.sampling == "random" and self.count is None and self.per_slide is None:
            raise ValueError("random patches need a number: set patches.count or patches.per_slide")
        if self.stain == "none" and self.stain_reference is not None:
            raise ValueError("stain_reference needs stain: macenko or reinhard")
        return self


SamplerMethod = Literal["ddpm", "ddim", "dpm-solver++", "heun", "unipc", "student"]


class SamplerConfig(Section):
    """How a generator draws."""

    retired: ClassVar[Mapping[str, object]] = {"spacing": 1.0, "guidance_interval": None}

    method: SamplerMethod = Field("unipc", description="sampler; student: a distilled student, for single draws")
    steps: PositiveInt = Field(
        20, description="evaluations of the network, or pairs of evaluations with guidance; an odd number for heun"
    )
    guidance: float = Field(
        1.5, ge=0, description="strength of classifier-free guidance; 1: no guidance; 0: without condition"
    )

    @model_validator(mode="after")
    def _heun_has_odd_steps(self) -> SamplerConfig:
        if self.method == "heun" and self.steps % 2 == 0:
            raise ValueError(
                f"heun makes two evaluations a step and one for the last: set steps to {self.steps - 1} or "
                f"{self.steps + 1}, not {self.steps}"
            )
        return self


class SamplesConfig(Section):
    """Synthetic patches, drawn for each cluster of each k."""

    per_cluster: PositiveInt = Field(64, description="synthetic patches per cluster")
    k: Literal["all", "chosen"] = Field("all", description="draw for every k of the sweep, or for the chosen k alone")
    sampler: SamplerConfig = Field(SamplerConfig(), description="how they are drawn")

    @model_validator(mode="after")
    def _draws_with_the_generator(self) -> SamplesConfig:
        if self.sampler.method == "student":
            raise ValueError(
                "the stage samples draws with the generator itself; with its student: histoloom sample --method student"
            )
        return self


ExtractorName = Annotated[str, Field(pattern=r"^(pixels|encoder|lpips-(alex|squeeze|vgg)|(inception|hf|timm):\S.*)$")]


class EvaluationConfig(Section):
    """How samples are evaluated."""

    renamed: ClassVar[Mapping[str, str]] = {"judge": "cluster_classifier"}

    pairs: PositiveInt = Field(64, description="pairs of images per cluster and comparison")
    paper_definitions: bool = Field(
        False,
        description="also measure SSIM, MS-SSIM and LPIPS by the definitions of Rumman et al. 2025, to compare with "
        "the paper's table",
    )
    paper_pairs: PositiveInt = Field(
        1000, description="training patches of each k that paper_definitions compares with samples, over all clusters"
    )
    lpips_trunk: Literal["alex", "squeeze", "vgg"] = Field("alex", description="ImageNet network behind LPIPS")
    bootstrap: PositiveInt = Field(1000, description="bootstrap resamples for the confidence intervals")
    extractors: tuple[ExtractorName, ...] = Field(
        ("pixels", "lpips-alex", "encoder"),
        description="feature extractors for the distribution metrics (docs/explanation/evaluation.md); []: none",
    )
    cluster_classifier: ClusterClassifierConfig | None = Field(
        ClusterClassifierConfig(),
        description="a network that learns to tell the clusters apart from pixels; it tests whether samples are "
        "faithful and useful; null: off",
    )
    distribution_patches: int = Field(
        2000, ge=20, description="largest number of real patches on each side of a distribution metric, from 20 up"
    )
    originality: Literal["report", "gate", "off"] = Field(
        "report",
        description="report: look for copies of training patches among the samples; gate: also withhold copies, and "
        "check for them during the training",
    )

    @field_validator("extractors")
    @classmethod
    def _names_each_once(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(values)) < len(values):
            raise ValueError("name each extractor once")
        return values

    @model_validator(mode="after")
    def _compares_patches(self) -> EvaluationConfig:
        default = type(self).model_fields["distribution_patches"].default
        if not self.extractors and self.distribution_patches != default:
            raise ValueError(
                f"distribution_patches has no effect without extractors, got {self.distribution_patches} and "
                f"extractors: []; set evaluation.distribution_patches={default}, its default, too"
            )
        return self


class ReportConfig(Section):
    """What the report shows."""

    k: int | None = Field(None, description="the k that is shown in detail, one of clusters.k; null: the chosen k")
    patches_per_cluster: PositiveInt = Field(8, description="patches shown per cluster")
    map_slides: int = Field(6, ge=0, description="slides shown with their tissue map")
    map_patches: PositiveInt = Field(4000, description="largest number of patches classified for a slide's tissue map")
    embeddings: tuple[Literal["pca", "tsne", "umap"], ...] = Field(
        ("pca", "tsne"), description="2-D embeddings of the patches; umap needs the extra umap; []: none"
    )
    embedded_patches: PositiveInt = Field(
        1500, le=3000, description="patches in these embeddings, drawn at random, at most 3000"
    )


class StartConfig(Section):
    """The generator whose weights the run starts from; ``histoloom init --from`` writes it."""

    digest: str = Field(pattern=r"^[0-9a-f]{16}$", description="digest of the weights in RUN/start, 16 hex digits")


class RuntimeConfig(Section):
    """Where and how to run: recorded, but not part of any result's fingerprint."""

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:NUMBER"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="number format of the trainings")
    threads: PositiveInt | None = Field(None, description="CPU threads; null: one per core")
    workers: PositiveInt | None = Field(None, description="processes that read slides; null: one per core")
    scheduler: str | None = Field(
        None,
        pattern=r"^(tcp|tls)://[^\s/]+:\d+$",
        description="address of a Dask cluster that reads the slides, tcp://HOST:PORT; null: this machine reads them",
    )
    fast: Literal["auto", "on", "off", "graphs"] = Field(
        "auto",
        description="train with the channels-last layout and compiled networks; auto: on CUDA devices; on: draw many "
        "images with compiled networks too; graphs: as on, and trainings launch their kernels as CUDA graphs",
    )
    accumulate: PositiveInt | Literal["auto"] = Field(
        1, description="micro-batches per step; more need less memory; auto: as many as fit (one process)"
    )
    checkpoint_seconds: float = Field(60, ge=0, description="shortest time between checkpoints, s; 0: every step")
    tensorboard: bool = Field(False, description="also write TensorBoard logs")


class Config(Section):
    """The configuration of a run."""

    seed: int = Field(0, ge=0, description="seed of every random stream")
    preset: str = Field("custom", description="preset that the defaults came from; a record, without effect")
    slides: SlidesConfig = Field(description="the slides")
    start: StartConfig | None = Field(None, description="generator whose weights are the start; null: random weights")
    patches: PatchesConfig = Field(description="how patches are chosen and cut")
    autoencoder: AutoencoderConfig = Field(description="the VQ-GAN")
    latents: LatentsConfig = Field(LatentsConfig(), description="how patches are encoded")
    clusters: ClustersConfig = Field(description="how patches are clustered")
    diffusion: DiffusionConfig = Field(description="the latent diffusion model")
    samples: SamplesConfig = Field(SamplesConfig(), description="what is drawn")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="how samples are evaluated")
    report: ReportConfig = Field(ReportConfig(), description="what the report shows")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="where and how to run")

    @model_validator(mode="after")
    def _networks_take_the_patches(self) -> Config:
        auto, diffusion, size = self.autoencoder, self.diffusion, self.patches.size
        step = auto.factor * 2**diffusion.halvings
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
        if auto.loss_shift >= size:
            raise ValueError(f"autoencoder.loss_shift must be below patches.size, got {auto.loss_shift} and {size}")
        trunk = self.clusters.trunk
        if trunk in ("alex", "squeeze", "vgg") and size < LPIPS_MIN_SIZE:
            raise ValueError(
                f"patches.size must be at least {LPIPS_MIN_SIZE} for clusters.trunk: {trunk}, got {size}; "
                "efficientnet-lite0 takes smaller ones"
            )
        if auto.adversarial.weight > 0 and size < (least := auto.adversarial.min_size):
            raise ValueError(
                f"patches.size must be at least {least} for a discriminator of "
                f"{auto.adversarial.layers} layers, got {size}; set fewer autoencoder.adversarial.layers"
            )
        # PyTorch refuses to normalise a single value, one channel at one position. The lowest level normalises its own
        # channels and those that it gets from the level above.
        for name, side, channels in (
            ("autoencoder", size // auto.factor, 2 if auto.pretrained else min(auto.widths[-2:]) // auto.groups),
            ("diffusion", size // step, min(diffusion.channels[-2:]) // diffusion.groups),
        ):
            if side == 1 and channels == 1:
                raise ValueError(
                    f"the lowest level of {name} has one position and normalises each channel alone; "
                    f"set fewer {name}.norm_groups, or larger patches"
                )
        return self

    @model_validator(mode="after")
    def _a_decoder_alone_needs_a_start(self) -> Config:
        if self.autoencoder.trained == "decoder" and self.start is None:
            raise ValueError(
                "autoencoder.trained: decoder needs a generator whose encoder is kept; "
                "make the run with histoloom init ... --from GENERATOR"
            )
        return self

    @model_validator(mode="after")
    def _codes_exist(self) -> Config:
        clusters = self.clusters
        if self.autoencoder.codes == 0 and "codes" in (*clusters.kinds, clusters.validity_features):
            raise ValueError(
                "the autoencoder has no codebook, so there are no histograms of codes; set clusters.features and "
                "clusters.validity_features to others than codes, or autoencoder.codes above 0"
            )
        return self

    @model_validator(mode="after")
    def _joint_training_fits(self) -> Config:
        joint, phases = self.clusters.joint, len(self.diffusion.training.phases)
        if joint is None:
            return self
        side = self.patches.size // self.autoencoder.factor
        for wrong, message in (
            (
                len(joint.consistency_weights) != phases,
                f"clusters.joint.consistency_weights needs {phases} entries, one for each of diffusion.training.phases",
            ),
            (side % 8 > 0, f"clusters.joint needs latents with a side that is a multiple of 8, got {side}"),
            (
                self.diffusion.condition_dropout > 0 or self.samples.sampler.guidance != 1,
                "with clusters.joint there is no null condition, and so no guidance; set diffusion.condition_dropout=0 "
                "and samples.sampler.guidance=1",
            ),
            (
                self.latents.stain_views > 0 or self.latents.copies > 1,
                "stain_views and copies of the latents have no effect with clusters.joint; set latents.stain_views=0 "
                "and latents.copies=1",
            ),
            (
                self.diffusion.alignment > 0,
                "diffusion.alignment has no effect with clusters.joint; set diffusion.alignment=0",
            ),
            (
                self.diffusion.corrections,
                "with clusters.joint the clusters change while the diffusion model is trained, so that corrections of "
                "patches cannot be used; set diffusion.corrections=false",
            ),
            (
                self.diffusion.condition_maps,
                "with clusters.joint the clusters change while the diffusion model is trained, so that there are no "
                "maps of conditions; set diffusion.condition_maps=false",
            ),
            (self.start is not None, "a run with clusters.joint starts from random weights; leave out start"),
        ):
            if wrong:
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _sampler_has_enough_steps(self) -> Config:
        if self.samples.sampler.steps > self.diffusion.steps:
            raise ValueError(
                f"samples.sampler.steps must be at most diffusion.steps = {self.diffusion.steps}, "
                f"got {self.samples.sampler.steps}"
            )
        return self

    @model_validator(mode="after")
    def _reported_k_is_in_the_sweep(self) -> Config:
        if self.report.k is not None and self.report.k not in self.clusters.k:
            raise ValueError(f"report.k must be one of clusters.k = {list(self.clusters.k)}, got {self.report.k}")
        return self
