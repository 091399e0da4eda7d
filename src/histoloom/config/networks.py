"""The sections of the three networks: autoencoder (and its latents), clusters, diffusion.

As in ``sections``: every field says its unit and what it means, and settings that contradict each other are errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from histoloom.config.section import Section
from histoloom.config.trainings import SelfsupConfig, TrainingConfig

Momentum = Annotated[float, Field(ge=0, lt=1)]


class AdversarialConfig(Section):
    """The patch discriminator (Esser et al. 2021)."""

    weight: float = Field(0.8, ge=0, description="0: no discriminator")
    start: float = Field(0.5, ge=0, lt=1, description="share of the training after which it joins")
    warmup: float = Field(0.1, gt=0, le=1, description="share of the training over which its weight rises")
    max_adaptive: PositiveFloat = Field(1.0, description="bounds the adaptive weight; at 10 images suffer; try 0.1")
    channels: PositiveInt = 64
    layers: PositiveInt = 3
    lr: PositiveFloat = 1e-4
    betas: tuple[Momentum, Momentum] = Field(
        (0.9, 0.999), description="of its Adam; with so much momentum it loses to the autoencoder: 0.5, 0.9 in presets"
    )


class AutoencoderConfig(Section):
    """VQ-GAN; the factor between pixels and latents is stem * 2 ** (len(multipliers) - 1)."""

    stem: Literal[1, 2, 4] = Field(1, description="pixels folded into channels along each side first; saves work")
    channels: PositiveInt = 128
    multipliers: tuple[PositiveInt, ...] = Field((1, 1, 2, 4), min_length=1)
    blocks: PositiveInt = Field(2, description="residual blocks a level")
    attention: bool = Field(True, description="self-attention at the lowest level")
    norm_groups: PositiveInt = Field(
        32, description="groups of a normalisation, at most; a group of one channel forgets that channel's mean"
    )
    codes: int = Field(128, ge=2)
    code_dim: PositiveInt = 16
    code_space: Literal["plane", "sphere"] = Field("plane", description="sphere: codes and latents have length 1")
    gradient: Literal["straight-through", "rotation"] = Field(
        "straight-through", description="how it passes the quantizer; rotation: turned as the latent was onto its code"
    )
    equivariance: float = Field(
        0.0, ge=0, le=1, description="share of steps in which latents are turned and shrunk with their images"
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
    copies: Literal[1, 8] = Field(
        1,
        description="8: also encode the seven other rotations and flips of each patch, for the diffusion model",
    )


class ClustersConfig(Section):
    """Information-maximisation clusters (RIM: Krause et al. 2010; IMSAT: Hu et al. 2017) for a sweep of k."""

    features: Literal["latents", "pooled", "codes", "selfsup", "encoder"] = Field(
        "latents",
        description="what is clustered: latents place by place, their moments, histograms of codes, what an encoder "
        "trained on the run's patches sees, or a Hugging Face or timm encoder (docs/explanation/features.md)",
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

    @model_validator(mode="after")
    def _weights_are_not_averaged(self) -> ClustersConfig:
        if self.training.averages:
            raise ValueError("training: ema and ema_width have no effect on clusters; set ema=0 and ema_width=null")
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

    retired: ClassVar[Mapping[str, object]] = {
        "zero_terminal_snr": False,
        "fold": 1,
        "weighting": "plain",
        "weighting_centre": None,
        "min_snr": None,
        "stain_augment": False,
    }

    steps: PositiveInt = 1000
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_start: PositiveFloat = 1e-4
    beta_end: PositiveFloat = 0.02
    shift: float = Field(
        1.0,
        ge=0.1,
        le=10,
        description="factor of sigma, noise over signal, at each step of the schedule; above 1: more steps where only "
        "the large of a patch is left to tell (Hoogeboom et al. 2023)",
    )
    prediction: Literal["epsilon", "v", "data"] = Field("epsilon", description="what the network predicts")
    whiten: float | None = Field(
        None,
        gt=0,
        le=1,
        description="work in the principal components of the latents that keep this share of their variance, each "
        "scaled to deviation 1; none: in the channels, each scaled by itself",
    )
    channels: tuple[PositiveInt, ...] = Field((128, 256, 512), min_length=1, description="U-Net widths a level")
    blocks: PositiveInt = 2
    attention: tuple[bool, ...] = Field((False, True, True), description="self-attention a level")
    norm_groups: PositiveInt = Field(
        32, description="groups of a normalisation, at most; a group of one channel forgets what embedding: add told it"
    )
    embedding: Literal["add", "scale-shift"] = Field(
        "add",
        description="how a layer is told step and condition: added before it is normalised (Ho et al. 2020), or as "
        "scale and shift after it (Dhariwal and Nichol 2021)",
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    condition_dropout: float = Field(0.1, ge=0, lt=1, description="share trained without condition")
    condition_rate: PositiveFloat = Field(
        1.0,
        description="learning rate of the conditions' vectors, in learning rates of the network; each is seen seldom",
    )
    training: TrainingConfig

    @model_validator(mode="before")
    @classmethod
    def _augment_was_removed(cls, values: Any) -> Any:
        """``latents.copies`` alone says now what ``augment: false`` and ``augment: copies`` said."""
        if not isinstance(values, dict) or "augment" not in values:
            return values
        if values["augment"] not in (False, "copies"):
            raise ValueError(
                f"augment was removed, got {str(values['augment']).lower()}; leave it out, and set latents.copies=8 "
                "to train on the eight rotations and flips of the patches"
            )
        return {key: value for key, value in values.items() if key != "augment"}

    @model_validator(mode="after")
    def _levels(self) -> DiffusionConfig:
        if len(self.attention) != len(self.channels):
            raise ValueError("attention needs one entry for each of channels")
        if self.beta_start >= self.beta_end:
            raise ValueError("beta_start must be below beta_end")
        return self
