"""The sections of the networks after the autoencoder: clusters, joint training, diffusion, cluster classifier.

Every field says what it means, its unit and its range. Settings that contradict each other, or that a network cannot
take, are errors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from histoloom.config.autoencoder import ATTENTION_HEADS
from histoloom.config.section import Section
from histoloom.config.training import Phase, TrainingConfig

LPIPS_MIN_SIZE = 32
"""Shortest side of an image for LPIPS, px: below it a trunk has no position left at its last layer."""

PerceptualTrunk = Literal["efficientnet-lite0", "alex", "squeeze", "vgg"]
FeatureKind = Literal["latents", "pooled", "codes", "perceptual", "encoder", "files"]


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
    middle_norm: bool = Field(
        False,
        description="normalise what enters the self-attention of the middle block; embedding: add always does, and "
        "scale-shift without it diverged in a long training",
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
    corrections: bool = Field(
        False,
        description="train corrected patches with the condition of the tissue that an expert has corrected them to, at "
        "the k of the correction; a name that no cluster has becomes a condition",
    )
    condition_maps: bool = Field(
        False,
        description="train on maps of conditions too: which cluster the run's own clusterer gives to each of 4 x 4 "
        "places of a patch, read on the slides; then painting gives the network a map, in place of one tissue at a "
        "time",
    )
    alignment: float = Field(
        0.0,
        ge=0,
        description="weight of the cosine similarity of the U-Net's features and those of EfficientNet-Lite0 in the "
        "training (REPA: Yu et al. 2025); 0: off",
    )
    alignment_block: str = Field(
        "down-1",
        pattern=r"^(middle|(down|up)-\d)$",
        description="with alignment, the block whose features they are: middle, down-LEVEL or up-LEVEL, level 0 being "
        "that of the largest map",
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
    def _alignment_fits(self) -> DiffusionConfig:
        levels = len(self.channels)
        if self.alignment and self.alignment_block != "middle" and int(self.alignment_block[-1]) >= levels:
            raise ValueError(
                f"alignment_block names level {self.alignment_block[-1]}, and the U-Net has {levels} levels, counted "
                "from 0; set a lower one"
            )
        if self.alignment and self.architecture == "paper":
            raise ValueError("alignment needs architecture: diffusers; set alignment=0")
        return self

    @model_validator(mode="after")
    def _architecture_fits(self) -> DiffusionConfig:
        if self.architecture != "paper":
            return self
        if self.condition_maps:
            raise ValueError("the U-Net of architecture: paper takes no maps of conditions; set condition_maps=false")
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
