"""Histoloom: from unlabeled H&E slides to a named tissue atlas with a generator for each tissue.

The commands as functions. Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histoloom.autoencoder.latents import LatentSet
    from histoloom.autoencoder.vqgan import Autoencoder
    from histoloom.clustering.clusterer import Clusterer
    from histoloom.clustering.clustering_set import Clustering
    from histoloom.clustering.validity.indices import validity_indices
    from histoloom.config import Config
    from histoloom.diffusion.generation.generator import Generator
    from histoloom.errors import UserError
    from histoloom.evaluation.folders import evaluate_folders
    from histoloom.evaluation.originality.report import audit_folders
    from histoloom.pipeline import execute, status
    from histoloom.run.directory import Run
    from histoloom.setup import init_run
    from histoloom.slides.patch_set import PatchSet

_HOMES = {
    "Autoencoder": "histoloom.autoencoder.vqgan",
    "Clusterer": "histoloom.clustering.clusterer",
    "Clustering": "histoloom.clustering.clustering_set",
    "Config": "histoloom.config",
    "Generator": "histoloom.diffusion.generation.generator",
    "LatentSet": "histoloom.autoencoder.latents",
    "PatchSet": "histoloom.slides.patch_set",
    "Run": "histoloom.run.directory",
    "UserError": "histoloom.errors",
    "audit_folders": "histoloom.evaluation.originality.report",
    "evaluate_folders": "histoloom.evaluation.folders",
    "execute": "histoloom.pipeline",
    "init_run": "histoloom.setup",
    "status": "histoloom.pipeline",
    "validity_indices": "histoloom.clustering.validity.indices",
}

__all__ = [
    "Autoencoder",
    "Clusterer",
    "Clustering",
    "Config",
    "Generator",
    "LatentSet",
    "PatchSet",
    "Run",
    "UserError",
    "audit_folders",
    "evaluate_folders",
    "execute",
    "init_run",
    "status",
    "validity_indices",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'histoloom' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
