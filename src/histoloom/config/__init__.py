"""The configuration of a run: its sections, and how they are read, changed and written.

Unknown keys are errors, and so are settings that contradict each other.
"""

from histoloom.config.autoencoder import DISCRIMINATOR_GROUPS, AdversarialConfig, AutoencoderConfig, LatentsConfig
from histoloom.config.networks import (
    LPIPS_MIN_SIZE,
    ClusterClassifierConfig,
    ClustersConfig,
    DiffusionConfig,
    FeatureKind,
    JointConfig,
    PerceptualTrunk,
)
from histoloom.config.section import Section
from histoloom.config.sections import (
    AUTO_PEN,
    AUTO_SHARPNESS,
    MPP_LIMITS,
    PRIVATE,
    Config,
    EvaluationConfig,
    FiltersConfig,
    PatchesConfig,
    ReportConfig,
    RuntimeConfig,
    SamplerConfig,
    SamplerMethod,
    SamplesConfig,
    SlidesConfig,
    SplitConfig,
    StartConfig,
)
from histoloom.config.training import Phase, TrainingConfig
from histoloom.config.values import (
    Values,
    dump_config,
    identity,
    load_config,
    make_config,
    preset_names,
    read_preset,
    with_settings,
)

__all__ = [
    "AUTO_PEN",
    "AUTO_SHARPNESS",
    "DISCRIMINATOR_GROUPS",
    "LPIPS_MIN_SIZE",
    "MPP_LIMITS",
    "PRIVATE",
    "AdversarialConfig",
    "AutoencoderConfig",
    "ClusterClassifierConfig",
    "ClustersConfig",
    "Config",
    "DiffusionConfig",
    "EvaluationConfig",
    "FeatureKind",
    "FiltersConfig",
    "JointConfig",
    "LatentsConfig",
    "PatchesConfig",
    "PerceptualTrunk",
    "Phase",
    "ReportConfig",
    "RuntimeConfig",
    "SamplerConfig",
    "SamplerMethod",
    "SamplesConfig",
    "Section",
    "SlidesConfig",
    "SplitConfig",
    "StartConfig",
    "TrainingConfig",
    "Values",
    "dump_config",
    "identity",
    "load_config",
    "make_config",
    "preset_names",
    "read_preset",
    "with_settings",
]
