"""The configuration of a run: its sections, and how they are read, changed and written.

Unknown keys are errors, and so are settings that contradict each other.
"""

from histoloom.config.networks import (
    DISCRIMINATOR_GROUPS,
    LPIPS_MIN_SIZE,
    AdversarialConfig,
    AutoencoderConfig,
    ClustersConfig,
    DiffusionConfig,
    LatentsConfig,
)
from histoloom.config.sampler import SamplerConfig, SamplerMethod
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
    SamplesConfig,
    SlidesConfig,
    SplitConfig,
    StartConfig,
)
from histoloom.config.trainings import ClusterClassifierConfig, Phase, SelfsupConfig, TrainingConfig
from histoloom.config.values import (
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
    "FiltersConfig",
    "LatentsConfig",
    "PatchesConfig",
    "Phase",
    "ReportConfig",
    "RuntimeConfig",
    "SamplerConfig",
    "SamplerMethod",
    "SamplesConfig",
    "Section",
    "SelfsupConfig",
    "SlidesConfig",
    "SplitConfig",
    "StartConfig",
    "TrainingConfig",
    "dump_config",
    "identity",
    "load_config",
    "make_config",
    "preset_names",
    "read_preset",
    "with_settings",
]
