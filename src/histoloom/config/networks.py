"""How networks are trained, and the sections of the networks: autoencoder (and its latents), clusters, diffusion.

Every field says what it means, its unit and its range. Settings that contradict each other, or that a network cannot
take, are errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from histoloom.config.section import Section

Momentum = Annotated[float, Field(ge=0, lt=1)]

LPIPS_MIN_SIZE = 32
"""Shortest side of an image for LPIPS, px: below it a trunk has no position left at its last layer."""

PerceptualTrunk = Literal["efficientnet-lite0", "alex", "squeeze", "vgg"]
FeatureKind = Literal["latents", "pooled", "codes", "perceptual", "encoder", "files"]

ATTENTION_HEADS = 16
"""Heads of each self-attention of the paper's networks."""

DISCRIMINATOR_GROUPS = 16
"""Largest number of groups of the discriminator's normalisations."""


class Phase(Section):
    """A stretch of a training with one optimizer."""

    optimizer: Literal["adam", "adamw", "adadelta"] = Field(description="the optimizer")
    lr: PositiveFloat = Field(description="learning rate")
    epochs: PositiveInt | None = Field(None, description="length in passes over the training patches")
    images: PositiveInt | None = Field(None, description="length in images seen, instead of epochs")

    @model_validator(mode="after")
    def _has_one_length(self) -> Phase:
        if (self.epochs is None) == (self.images is None):
            raise ValueError("give exactly one of epochs and images")
        return self

    def length(self, *, n: int) -> int:
        """The phase's length in images seen, for a data set of ``n`` images."""
        return self.images if self.images is not None else (self.epochs or 0) * n


class TrainingConfig(Section):
    """How a network is trained."""

    retired: ClassVar[Mapping[str, Any]] = {"ema_width": None}

    batch_size: PositiveInt = Field(16, description="images per step, over all processes")
    phases: tuple[Phase, ...] = Field(min_length=1, description="the phases, in their order")
    lr_decay: Literal["none", "cosine"] = Field("none", description="learning-rate decay over the last phase")
    warmup_images: int = Field(0, ge=0, description="images over which the learning rate rises linearly at the start")
    grad_clip: PositiveFloat | None = Field(None, description="upper bound of the gradient's norm; null: none")
    ema: float = Field(0.0, ge=0, lt=1, description="decay per step of the weights' moving average; 0: no average")
    betas: tuple[Momentum, Momentum] = Field(
        (0.9, 0.999), description="momenta of the phases with adam or adamw, each from 0 to below 1"
    )

    @model_validator(mode="after")
    def _betas_have_an_effect(self) -> TrainingConfig:
        if self.betas != (0.9, 0.999) and all(phase.optimizer == "adadelta" for phase in self.phases):
            raise ValueError("betas has no effect without a phase of adam or adamw; leave it out")
        return self

    @property
    def averages(self) -> bool:
        """Whether a training returns averaged weights."""
        return self.ema > 0

    def images(self, *, n: int) -> int:
        """Images seen in the whole training, for a data set of ``n`` images."""
        return sum(phase.length(n=n) for phase in self.phases)


class AdversarialConfig(Section):
    """The patch discriminator of the VQ-GAN (Isola et al. 2017; Esser et al. 2021)."""

    loss: Literal["hinge", "least-squares"] = Field(
        "hinge", description="adversarial loss: hinge (Lim and Ye 2017) or least squares (Mao et al. 2017)"
    )
    weight: float = Field(0.8, ge=0, description="weight of the adversarial loss; 0: no discriminator")
    start: float = Field(0.5, ge=0, lt=1, description="share of the training after which the discriminator joins")
    warmup: float = Field(
        0.1, ge=0, le=1, description="share of the training over which its weight rises linearly; 0: at once"
    )
    max_adaptive: PositiveFloat | None = Field(
        1.0,
        description="upper bound of the adaptive weight (Esser et al. 2021); a bound of 10 harms the images, most "
        "presets take 0.1; null: no adaptive weight",
    )
    channels: PositiveInt = Field(64, description="width of its first layer: a multiple of 8, or 1, 2 or 4")
    layers: PositiveInt = Field(3, description="convolutions that halve the image; more layers see larger regions")
    lr: PositiveFloat = Field(1e-4, description="learning rate of its Adam optimizer")
    betas: tuple[Momentum, Momentum] = Field(
        (0.9, 0.999),
        description="momenta of its Adam optimizer, each from 0 to below 1; with the default the discriminator falls "
        "behind the autoencoder, so the presets that train one take 0.5 and 0.9",
    )

    @model_validator(mode="after")
    def _norm_groups_divide(self) -> AdversarialConfig:
        if self.weight > 0 and any(width % min(DISCRIMINATOR_GROUPS, width) for width in self.widths[1:]):
            raise ValueError(f"adversarial.channels must be a multiple of 8, or 1, 2 or 4, got {self.channels}")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each convolution: doubled by each layer, up to eight times the first."""
        return tuple(self.channels * min(2**layer, 8) for layer in range(self.layers + 1))

    @property
    def min_size(self) -> int:
        """Shortest side of an image that it can score, px: the last convolutions cover more than their padding."""
        return 3 * 2**self.layers


class AutoencoderConfig(Section):
    """The VQ-GAN, which encodes patches as latents and decodes latents to patches (Esser et al. 2021).

    A latent position spans stem * 2 ** (number of multipliers - 1) pixels along each side.
    """

    retired: ClassVar[Mapping[str, object]] = {"code_space": "plane", "equivariance": 0.0}

    pretrained: str | None = Field(
        None,
        description="folder of a ready autoencoder in diffusers' format (AutoencoderKL, AutoencoderTiny, VQModel), "
        "which is used as it is; stem, multipliers, codes and code_dim are then its own; null: train one",
    )
    architecture: Literal["diffusers", "paper"] = Field(
        "diffusers",
        description="networks: of diffusers' blocks, with a discriminator that normalises groups; or those of Rumman "
        "et al. 2025, whose discriminator normalises batches",
    )
    pixel_range: Literal["signed", "unit"] = Field(
        "signed", description="values of a pixel for networks and losses: -1..1 (signed) or 0..1 (unit)"
    )
    stem: Literal[1, 2, 4] = Field(
        1, description="side of the square of pixels that is folded into channels first, px; above 1 saves work"
    )
    channels: PositiveInt = Field(128, description="width of the first level, times its multiplier")
    multipliers: tuple[PositiveInt, ...] = Field(
        (1, 1, 2, 4), min_length=1, description="width of each level, in units of channels; each level halves the map"
    )
    blocks: PositiveInt = Field(2, description="residual blocks per level")
    attention: bool = Field(True, description="use self-attention at the lowest level")
    norm_groups: PositiveInt = Field(
        32,
        description="largest number of groups of a group normalisation; with one channel per group the network loses "
        "the mean of each channel, and with it the colour of a patch",
    )
    codes: int = Field(
        128,
        ge=0,
        description="number of vectors in the codebook; 0: no codebook but continuous latents, whose distribution is "
        "drawn to a standard normal one (Kingma and Welling 2014)",
    )
    code_dim: PositiveInt = Field(16, description="length of a codebook vector: the number of latent channels")
    kl_weight: float = Field(
        1e-6,
        ge=0,
        description="weight of the divergence of continuous latents from a standard normal distribution, in nats for "
        "each value of the image (Rombach et al. 2022)",
    )
    gradient: Literal["straight-through", "rotation"] = Field(
        "straight-through",
        description="how gradients pass the quantizer: unchanged (van den Oord et al. 2017), or by the rotation trick "
        "(Fifty et al. 2024)",
    )
    commitment: PositiveFloat = Field(0.25, description="weight of the commitment loss")
    codebook_decay: float | None = Field(
        0.99,
        gt=0,
        lt=1,
        description="decay per step of the codebook's moving averages; null: the codebook is trained by its own loss, "
        "of weight 1 (van den Oord et al. 2017, equation 3)",
    )
    restart_below: float = Field(
        0.05, ge=0, description="a code used less often than this share of the mean use is restarted; 0: never"
    )
    quantize_latents: bool = Field(
        False, description="give quantised latents to the clusters and to the diffusion model, not continuous ones"
    )
    quantize_decoded: bool = Field(
        True, description="replace each position of a drawn latent by the nearest code before it is decoded"
    )
    trained: Literal["all", "decoder"] = Field(
        "all",
        description="what is trained; decoder: encoder and codebook keep the weights of the generator that the run "
        "begins with (init --from), so that its diffusion model stays valid and only its images change",
    )
    latent_noise: float = Field(
        0.0,
        ge=0,
        description="with trained: decoder, noise on the latents that it learns from, in units of their deviation; the "
        "decoder then corrects small errors of the diffusion model",
    )
    perceptual: Literal["auto", "lpips", "pyramid", "none"] = Field(
        "lpips",
        description="perceptual loss; auto: lpips where its weights are on this machine and patches have at least 32 "
        "px, else pyramid; init replaces auto by its choice",
    )
    perceptual_trunk: Literal["alex", "squeeze", "vgg"] = Field("vgg", description="ImageNet network behind lpips")
    perceptual_weight: float = Field(1.0, ge=0, description="weight of the perceptual loss; 0 with perceptual: none")
    l1_weight: float = Field(0.0, ge=0, description="weight of the mean absolute error")
    mse_weight: float = Field(1.0, ge=0, description="weight of the mean squared error")
    adversarial: AdversarialConfig = Field(AdversarialConfig(), description="the discriminator")
    augment: bool = Field(False, description="train on random rotations and flips of the patches")
    training: TrainingConfig = Field(description="how the autoencoder is trained")

    @property
    def factor(self) -> int:
        """Pixels a latent position spans, along one side."""
        return int(self.stem * 2 ** (len(self.multipliers) - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def groups(self) -> int:
        """Groups of each normalisation: norm_groups or less, so that they divide the channels of every level."""
        return math.gcd(self.norm_groups, *self.widths)

    @model_validator(mode="after")
    def _architecture_fits(self) -> AutoencoderConfig:
        if self.architecture == "paper" and self.stem != 1:
            raise ValueError(f"stem has no effect with architecture: paper; leave it out, got {self.stem}")
        if self.architecture == "paper" and self.attention and self.widths[-1] % ATTENTION_HEADS:
            raise ValueError(
                f"the last level's width must be a multiple of {ATTENTION_HEADS} for the attention of architecture: "
                f"paper, got {self.widths[-1]}"
            )
        if self.pretrained and self.trained == "decoder":
            raise ValueError("a ready autoencoder (pretrained) is used as it is; leave out trained: decoder")
        if self.codes == 1:
            raise ValueError("a codebook of one code carries nothing; set codes=0 for none, or more")
        if self.codes == 0 and self.quantize_latents:
            raise ValueError("without a codebook (codes=0) there is nothing to quantise; set quantize_latents=false")
        if self.codes == 0 and self.architecture == "paper":
            raise ValueError("architecture: paper needs a codebook; set codes, or architecture=diffusers")
        if self.codebook_decay is None and self.restart_below > 0:
            raise ValueError("codes are restarted only with moving averages; set restart_below=0, or a codebook_decay")
        return self

    @model_validator(mode="after")
    def _noise_has_an_effect(self) -> AutoencoderConfig:
        if self.latent_noise > 0 and self.trained == "all":
            raise ValueError("latent_noise has an effect only with autoencoder.trained: decoder; leave it out")
        return self

    @model_validator(mode="after")
    def _losses_have_weights(self) -> AutoencoderConfig:
        if self.l1_weight == 0 and self.mse_weight == 0:
            raise ValueError("one of l1_weight and mse_weight must be above 0")
        if (self.perceptual == "none") != (self.perceptual_weight == 0):
            raise ValueError("perceptual: none and perceptual_weight: 0 go together")
        return self


class LatentsConfig(Section):
    """How patches are encoded, once, for all later stages."""

    dtype: Literal["float32", "float16"] = Field("float32", description="number format of the stored latents")
    stain_views: int = Field(
        2,
        ge=0,
        description="copies of each patch in other stains that are encoded too; the clusters learn to ignore "
        "the difference",
    )
    stain_jitter: PositiveFloat = Field(
        0.25, description="strength of these stains: standard deviation of the logarithm of each stain's gain"
    )
    copies: Literal[1, 8] = Field(
        1, description="8: also encode the seven other rotations and flips of each patch, for the diffusion model"
    )


class JointConfig(Section):
    """Clusters and diffusion model trained together, one pair of networks for each k (Rumman et al. 2025).

    The phases are those of diffusion.training. Each loss is that of the diffusion model, minus marginal_weight times
    the entropy of the mean probabilities, plus conditional_weight times the mean entropy, plus the phase's consistency
    weight times the divergence of a patch and its other view. Entropies are in nats, over a batch.
    """

    marginal_weight: PositiveFloat = Field(0.1, description="weight of the marginal entropy")
    conditional_weight: PositiveFloat = Field(0.06, description="weight of the conditional entropy")
    consistency_weights: tuple[PositiveFloat | None, ...] = Field(
        (0.04, None, 0.05),
        min_length=1,
        description="weight of the consistency in each phase of diffusion.training; null: the clusterer does not learn "
        "in this phase, and its batch normalisations still use the batch",
    )
    rotation: float = Field(5.0, ge=0, le=180, description="largest rotation of the other view, degrees")
    translation: float = Field(0.05, ge=0, lt=1, description="largest shift of the other view, as a share of its side")
    scaling: float = Field(0.05, ge=0, lt=1, description="largest change of the other view's size, as a share of it")


class ClustersConfig(Section):
    """Clusters by information maximisation, for a sweep of k (RIM: Krause et al. 2010; IMSAT: Hu et al. 2017)."""

    retired: ClassVar[Mapping[str, object]] = {"consistency": "augment", "selfsup": None}

    features: FeatureKind | tuple[FeatureKind, ...] = Field(
        "latents",
        description="what is clustered: latent maps; their means and deviations over positions (pooled); histograms "
        "of codes; activations of an ImageNet classifier (perceptual); features of a Hugging Face or timm "
        "encoder; features that another program computed "
        "(files); or a list of several, but for latents, side by side (docs/explanation/features.md)",
    )
    surroundings: float = Field(
        0.0,
        ge=0,
        description="weight of the features of what lies around a patch, a field four times as wide, beside those of "
        "the patch, which have weight 1; 0: without",
    )
    trunk: PerceptualTrunk = Field(
        "efficientnet-lite0", description="the classifier of features: perceptual; all but the first are LPIPS's trunks"
    )
    encoder: str | None = Field(
        None,
        pattern=r"^(hf|timm):\S.*$",
        description="with features: encoder, hf:NAME or timm:NAME; NAME is an absolute folder or a cached repository",
    )
    files: str | None = Field(
        None,
        min_length=1,
        description="with features: files, a folder with one .h5 or .h5ad a slide, or with .npy files and their "
        "tables; or one such file (docs/how-to/features-from-files.md)",
    )
    obsm: str | None = Field(
        None, min_length=1, description="with .h5ad files, the key of obsm that holds the features; null: they are X"
    )
    k: tuple[int, ...] = Field(
        tuple(range(10, 17)), min_length=1, description="numbers of clusters to try: rising, from 2 up"
    )
    channels: PositiveInt = Field(
        64, description="width of the clustering network; a multiple of 8 with features: latents"
    )
    marginal_weight: PositiveFloat = Field(
        2.0, description="weight of the marginal entropy against the conditional entropy at the start of the training"
    )
    marginal_end: PositiveFloat = Field(
        1.0, description="the same weight at the end of the training; at 1 the objective is the mutual information"
    )
    consistency_weight: PositiveFloat = Field(
        1.0, description="weight of the consistency loss: two views of a patch must get the same cluster"
    )
    joint: JointConfig | None = Field(
        None, description="train clusters and diffusion model together, for each k; null: one after the other"
    )
    independence: float = Field(
        0.0, ge=0, description="weight of the mutual information of cluster and slide, as a cost; 0: none"
    )
    positives: Literal["views", "neighbours"] = Field(
        "views",
        description="which pairs get the same cluster: two views of a patch; or a patch and one near it on its slide, "
        "from k-means on (features that are vectors)",
    )
    restarts: PositiveInt = Field(1, description="trainings, of which the one with the best objective is kept")
    validity_features: Literal["pooled", "codes", "flat", "same", "softmax"] = Field(
        "pooled",
        description="features for the validity indices and for k-means; same: those that are clustered; softmax: the "
        "softmax over the latents' channels, averaged over positions (Rumman et al. 2025)",
    )
    validity_points: PositiveInt = Field(
        10_000, description="largest number of patches for the validity indices, drawn at random"
    )
    chooser: Literal["nulls", "plain"] = Field(
        "nulls", description="rule that chooses k: comparison with data without clusters, or the vote of five indices"
    )
    null_draws: int = Field(
        16, ge=2, description="random subsets of the data, and of each kind of data without clusters"
    )
    null_points: PositiveInt = Field(
        1500, description="largest number of patches in such a subset, which is split in two halves"
    )
    training: TrainingConfig | None = Field(
        None, description="how the clustering network is trained; null with joint, which has diffusion.training"
    )

    @property
    def kinds(self) -> tuple[FeatureKind, ...]:
        """The kinds of features, one or several."""
        return self.features if isinstance(self.features, tuple) else (self.features,)

    @model_validator(mode="before")
    @classmethod
    def _selfsup_was_removed(cls, values: Any) -> Any:
        features = values.get("features") if isinstance(values, dict) else None
        if "selfsup" in (features if isinstance(features, list | tuple) else (features,)):
            raise ValueError(
                "features: selfsup was removed, since it agreed less with labelled tissue than colour does; "
                "take perceptual"
            )
        return values

    @model_validator(mode="after")
    def _sweep_rises(self) -> ClustersConfig:
        if any(k < 2 for k in self.k) or list(self.k) != sorted(set(self.k)):
            raise ValueError(f"k must be a rising list of whole numbers from 2 up, got {list(self.k)}")
        return self

    @model_validator(mode="after")
    def _network_can_train(self) -> ClustersConfig:
        weights = ("marginal_weight", "marginal_end", "consistency_weight")
        if "latents" in self.kinds and self.channels % 8:
            raise ValueError(f"channels must be a multiple of 8 with features: latents, got {self.channels}")
        if (self.training is None) == (self.joint is None):
            raise ValueError("training is needed without joint, and has no effect with it; give one of the two")
        for name in weights if self.positives == "neighbours" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with positives: neighbours; leave it out")
        if self.training is not None and self.training.averages:
            raise ValueError("training: ema has no effect on clusters; set ema=0")
        return self

    @model_validator(mode="after")
    def _joint_training_has_its_own_losses(self) -> ClustersConfig:
        weights = ("marginal_weight", "marginal_end", "consistency_weight", "independence")
        for name in ("features", "surroundings", *weights, "positives", "restarts") if self.joint is not None else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with joint; leave it out")
        return self

    @model_validator(mode="after")
    def _features_fit(self) -> ClustersConfig:
        kinds = self.kinds
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError("features must name one kind, or several that differ")
        if "latents" in kinds and len(kinds) > 1:
            raise ValueError("latents are maps and stand alone in features; take pooled or codes beside other kinds")
        needs_vectors = self.positives == "neighbours" or self.surroundings or self.validity_features == "same"
        if "latents" in kinds and needs_vectors:
            raise ValueError(
                "features: latents are maps, and other settings need vectors; set as well clusters.positives=views "
                "clusters.surroundings=0 clusters.validity_features=pooled"
            )
        if ("encoder" in kinds) != (self.encoder is not None):
            raise ValueError(
                "features: encoder and a name in encoder (hf:NAME, timm:NAME) go together; give both, or another kind "
                "of features and clusters.encoder=null"
            )
        if ("files" in kinds) != (self.files is not None):
            raise ValueError(
                "features: files and the place of the files in files go together; give both, or another kind of "
                "features and clusters.files=null"
            )
        if self.obsm is not None and self.files is None:
            raise ValueError("obsm has no effect without features: files; leave it out")
        uses_trunk = "perceptual" in kinds or (self.surroundings and "encoder" not in kinds) or kinds == ("files",)
        if not uses_trunk and self.trunk != type(self).model_fields["trunk"].default:
            raise ValueError("trunk has no effect without features: perceptual; leave it out")
        if self.positives == "views" and (self.surroundings or len(kinds) > 1):
            raise ValueError("surroundings and lists of features have no views; set clusters.positives=neighbours")
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

    steps: PositiveInt = Field(1000, description="steps of the diffusion process")
    schedule: Literal["linear", "scaled_linear", "cosine"] = Field(
        "linear",
        description="noise schedule: beta linear, its square root linear, or cosine (Nichol and Dhariwal 2021)",
    )
    beta_start: PositiveFloat = Field(1e-4, description="beta at the first step, below beta_end; not used by cosine")
    beta_end: PositiveFloat = Field(0.02, description="beta at the last step; not used by cosine")
    shift: float = Field(
        1.0,
        ge=0.1,
        le=10,
        description="factor on sigma, the ratio of noise to signal, at each step; above 1, more steps train the coarse "
        "structure of a patch (Hoogeboom et al. 2023)",
    )
    prediction: Literal["epsilon", "v", "data"] = Field(
        "epsilon", description="what the network predicts: the noise, the velocity v, or the data"
    )
    scaling: Literal["unit", "none"] = Field(
        "unit", description="scale of the diffused latents: standard deviation 1 (unit), or as they are (none)"
    )
    whiten: float | None = Field(
        None,
        gt=0,
        le=1,
        description="diffuse principal components of the latents, scaled to standard deviation 1: as many as keep this "
        "share of the variance; null: diffuse the latent channels, each scaled by itself",
    )
    architecture: Literal["diffusers", "paper"] = Field(
        "diffusers",
        description="U-Net: diffusers', or that of Rumman et al. 2025, whose channels are the width of the first "
        "convolution and of each down block, the last of which does not halve the map",
    )
    channels: tuple[PositiveInt, ...] = Field(
        (128, 256, 512), min_length=1, description="width of each level of the U-Net; each level halves the map"
    )
    blocks: PositiveInt = Field(2, description="residual blocks per level")
    attention: tuple[bool, ...] = Field(
        (False, True, True), description="whether each level uses self-attention: one entry for each of channels"
    )
    norm_groups: PositiveInt = Field(
        32,
        description="largest number of groups of a group normalisation; with one channel per group, embedding: add "
        "has little effect",
    )
    embedding: Literal["add", "scale-shift"] = Field(
        "add",
        description="how a layer gets step and condition: added before its normalisation (Ho et al. 2020), or as scale "
        "and shift after it (Dhariwal and Nichol 2021)",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout rate of the residual blocks")
    condition_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of the patches that are trained without condition, for guidance"
    )
    condition_rate: PositiveFloat = Field(
        1.0,
        description="learning rate of the condition embeddings, in units of the network's; above 1 helps where there "
        "are few patches per condition",
    )
    training: TrainingConfig = Field(description="how the U-Net is trained")

    @model_validator(mode="before")
    @classmethod
    def _augment_was_removed(cls, values: Any) -> Any:
        """``latents.copies`` replaced ``augment: false`` and ``augment: copies``."""
        if not isinstance(values, dict) or "augment" not in values:
            return values
        if values["augment"] not in (False, "copies"):
            raise ValueError(
                f"augment was removed, got {str(values['augment']).lower()}; leave it out, and set latents.copies=8 "
                "to train on the eight rotations and flips of the patches"
            )
        return {key: value for key, value in values.items() if key != "augment"}

    @property
    def groups(self) -> int:
        """Groups of each normalisation: norm_groups or less, so that they divide the channels of every level."""
        return math.gcd(self.norm_groups, *self.channels)

    @property
    def halvings(self) -> int:
        """How often the U-Net halves the map."""
        return len(self.channels) - (2 if self.architecture == "paper" else 1)

    @model_validator(mode="after")
    def _levels_and_betas_fit(self) -> DiffusionConfig:
        if len(self.attention) != len(self.channels):
            raise ValueError("attention needs one entry for each of channels")
        if self.beta_start >= self.beta_end:
            raise ValueError("beta_start must be below beta_end")
        if self.scaling == "none" and self.whiten is not None:
            raise ValueError("whiten scales the latents to deviation 1; set whiten=null, or scaling=unit")
        return self

    @model_validator(mode="after")
    def _architecture_fits(self) -> DiffusionConfig:
        if self.architecture != "paper":
            return self
        if len(self.channels) < 2 or any(width % ATTENTION_HEADS for width in self.channels):
            raise ValueError(
                f"channels must be two or more multiples of {ATTENTION_HEADS} with architecture: paper, "
                f"got {list(self.channels)}"
            )
        if not all(self.attention) or self.embedding != "add" or self.dropout:
            raise ValueError(
                "the U-Net of architecture: paper attends at every level, adds its embedding and has no dropout; set "
                f"attention={[True] * len(self.channels)}, embedding=add and dropout=0"
            )
        return self


class ClusterClassifierConfig(Section):
    """A network that learns to tell the clusters apart from pixels, to measure faithfulness and usefulness."""

    channels: PositiveInt = Field(32, multiple_of=8, description="width of the first level, a multiple of 8")
    training: TrainingConfig = Field(
        TrainingConfig(
            batch_size=32,
            warmup_images=640,
            lr_decay="cosine",
            phases=(Phase(optimizer="adamw", lr=2e-3, images=9_600),),
        ),
        description="how the classifier is trained",
    )
