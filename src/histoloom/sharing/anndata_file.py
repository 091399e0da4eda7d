"""``histoloom export --to h5ad``: the patches of a run as an AnnData, for squidpy and other tools of the scverse.

A row a patch. Places and slides stand where squidpy looks for them: ``obsm["spatial"]`` holds the middles of the
patches, and ``uns["spatial"][SLIDE_ID]`` a picture of each slide with its scale.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.features.bank import FEATURES, validity_features
from histoloom.errors import UserError
from histoloom.run.directory import Run, disk_errors_explained, replacing
from histoloom.sharing.patch_labels import LabelledPatches
from histoloom.slides.patch_set import SlideRow

logger = logging.getLogger("histoloom")

SUFFIX = ".h5ad"

_TEXTS = ("slide_id", "slide", "patient", "split")


@dataclass(frozen=True)
class SlidePicture:
    """A thumbnail, uint8 (h, w, 3), its px for one px of full resolution, and the patches' side in px of the latter."""

    image_hw3: np.ndarray
    scale: float
    patch_extent: float

    def as_library(self) -> dict[str, object]:
        """An entry of ``uns["spatial"]``."""
        factors = {"tissue_hires_scalef": self.scale, "spot_diameter_fullres": self.patch_extent}
        return {"images": {"hires": self.image_hw3}, "scalefactors": factors}


@dataclass(frozen=True)
class PatchAnnotations:
    """What becomes an AnnData: ``obs``, a row a patch, ``obsm`` by key, and a picture of each slide by its id."""

    obs: pd.DataFrame
    obsm: Mapping[str, np.ndarray]
    pictures: Mapping[str, SlidePicture]
    k: int


def export_anndata(run: Run, out: Path) -> None:
    """Write ``out``; ``UserError`` where it exists or AnnData is not installed."""
    if out.suffix != SUFFIX:
        raise UserError(f"--to h5ad writes a file: its name ends in {SUFFIX}, got {out.name}")
    if out.exists():
        raise UserError(f"{out} exists; give a new name")
    try:
        anndata = importlib.import_module("anndata")
    except ImportError as error:
        raise UserError('--to h5ad needs the extra: pip install "histoloom[scverse]"') from error

    annotations = annotate(run)
    no_variables = pd.DataFrame(index=pd.Index([], dtype=object))
    table = anndata.AnnData(obs=annotations.obs, var=no_variables, obsm=dict(annotations.obsm))
    table.uns["spatial"] = {slide: picture.as_library() for slide, picture in annotations.pictures.items()}
    table.uns["histoloom"] = {"k": annotations.k}
    with disk_errors_explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            table.write_h5ad(temporary, compression="gzip")
    logger.info("%s patches of %s slides", f"{table.n_obs:,}", len(annotations.pictures))


def annotate(run: Run) -> PatchAnnotations:
    """Clusters and tissues for every k, probabilities, features and places of a run's patches.

    Tissues are as experts have corrected them. ``UserError`` where its patches or clusters are missing.
    """
    labelled = LabelledPatches.open(run)
    k = labelled.k(None)
    obs = labelled.table(k).set_index("patch_id").drop(columns=["k", "cluster", "colour", "number"], errors="ignore")
    obs.index = obs.index.astype(object)
    obsm = {"spatial": (obs[["x", "y"]].to_numpy(np.float64) + obs[["extent"]].to_numpy(np.float64) / 2)}
    for sweep_k in labelled.clustering.ks:
        obs[f"k{sweep_k}"] = _categories(labelled.clusters(sweep_k), [str(cluster) for cluster in range(sweep_k)])
        tissues = labelled.tissues(sweep_k)
        names = [tissues[number].name for number in labelled.numbers(sweep_k)]
        obs[f"k{sweep_k}_tissue"] = np.array(names, dtype=object)
        obsm[f"k{sweep_k}_probabilities"] = labelled.probabilities(sweep_k)
    further = [column for column in ("region", "cluster_tissue", "correction") if column in obs]
    for column in (*_TEXTS, *further, "tissue", "flag", *(f"k{sweep_k}_tissue" for sweep_k in labelled.clustering.ks)):
        codes, texts = pd.factorize(obs[column].astype(object), sort=True)
        obs[column] = _categories(codes, list(texts))

    # What was clustered, where the clusters are made of vectors; else the mean of each channel of the latents.
    clusters = run.folder("clusters")
    if (clusters / FEATURES).is_file():
        obsm["features"] = np.load(clusters / FEATURES, mmap_mode="r")[labelled.row_N]
    else:
        latents = LatentSet.open(run.require("latents"))
        rows = pd.Index(latents.table["patch_id"]).get_indexer(pd.Index(obs.index))
        obsm["latents"] = validity_features(latents, rows, kind="pooled", clusters=clusters)
    return PatchAnnotations(obs, obsm, _pictures(labelled, obs), k)


def _categories(codes_N: np.ndarray, texts: list[str]) -> pd.Categorical:
    """Texts of type object: AnnData refuses the strings of pandas 3, which its earlier versions cannot read."""
    return pd.Categorical.from_codes(codes_N, pd.Index(texts, dtype=object))


def _pictures(labelled: LabelledPatches, obs: pd.DataFrame) -> dict[str, SlidePicture]:
    extents = obs.groupby("slide_id", observed=True)["extent"].median()
    pictures = {}
    for slide in SlideRow.load(labelled.patches.folder):
        if slide.slide_id in extents.index:
            with Image.open(labelled.patches.folder / "thumbnails" / f"{slide.slide_id}.jpg") as image:
                image_hw3 = np.asarray(image.convert("RGB"))
            scale = image_hw3.shape[1] / slide.width
            pictures[slide.slide_id] = SlidePicture(image_hw3, scale, float(extents[slide.slide_id]))
    return pictures
