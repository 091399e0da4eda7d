"""Pictures that drawings begin from: a patch of the run by its id, or any picture of the patches' size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.errors import UserError
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import full_precision

LONGEST = 200
"""characters of a name that are kept in records"""
NEEDED = ("autoencoder", "latents", "clusters")


@dataclass(frozen=True, eq=False)
class Source:
    """A picture as latents before quantisation, (C, h, w) float32 on the CPU, and its cluster at each k.

    ``clusters`` is empty where nobody can tell.
    """

    name: str
    z_Chw: Tensor
    clusters: Mapping[int, int]

    def cluster(self, k: int) -> int:
        """Its cluster at ``k``; ``UserError`` where nobody can tell."""
        if k not in self.clusters:
            raise UserError(f"which tissue {self.name} is cannot be told here; name one (--tissue)")
        return self.clusters[k]


@dataclass(frozen=True, eq=False)
class Picture:
    """uint8 (size, size, 3), with its cluster at each k for which it is known."""

    name: str
    image_HW3: np.ndarray
    clusters: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def of(image_HW3: np.ndarray, *, name: str = "picture") -> Picture:
        """A picture from anywhere: its name ends with a digest of what it shows, since names may come twice."""
        digest = hashlib.sha256(np.ascontiguousarray(image_HW3).tobytes()).hexdigest()
        return Picture(f"{name[:LONGEST]}#{digest[:8]}", image_HW3)


def find_picture(home: Path, *, what: str, size: int) -> Picture:
    """The patch of the run ``home`` whose id is ``what``, or the picture in the file ``what``.

    ``UserError`` where it is neither, or not of ``size`` px.
    """
    if (home / "config.yaml").is_file():
        found = patch_of(Run.open(home), patch_id=what)
        if found is not None:
            return found
    if Path(what).is_file():
        return read_picture(Path(what), size=size)
    raise UserError(f"{what!r} is neither a patch of {home} nor a file; give a patch_id or a picture of {size} px")


def patch_of(run: Run, *, patch_id: str) -> Picture | None:
    """A patch of the run, with its clusters where there are any; None where the run has no such patch."""
    if run.artifact("patches") is None:
        return None
    patches = PatchSet.open(run.folder("patches"))
    try:
        rows = patches.rows_of([patch_id])
    except ValueError:
        return None
    return Picture(patch_id, patches.images(rows)[0], known_clusters(run, patch_id=patch_id))


def known_clusters(run: Run, *, patch_id: str) -> dict[int, int]:
    """What the run found a patch to be, by k; empty where it has no clusters of it."""
    if run.artifact("clusters") is None:
        return {}
    clustering = Clustering.open(run.folder("clusters"))
    rows = pd.read_parquet(clustering.folder / "index.parquet", filters=[("patch_id", "==", patch_id)])
    if rows.empty:
        return {}
    return {int(name[1:]): int(rows[name].iloc[0]) for name in rows.columns if name != "patch_id"}


def read_picture(path: Path, *, size: int) -> Picture:
    """A picture from a file; ``UserError`` where it cannot be read or is not ``size`` px a side."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if (width, height) != (size, size):
                raise UserError(f"{path.name} is {width} x {height} px; this generator draws {size} x {size} px")
            return Picture.of(np.array(image.convert("RGB")), name=path.name)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} cannot be read as a picture; give a PNG or JPEG file") from error


@torch.no_grad()
def as_source(picture: Picture, *, size: int, ks: Sequence[int], home: Path, autoencoder: Autoencoder) -> Source:
    """The picture encoded, by itself and in single precision: the same beside whatever else is drawn.

    Clusters of ``ks`` that are not known are what the networks of the run ``home`` say. ``UserError`` where it is not
    uint8 (``size``, ``size``, 3).
    """
    shape, kind = picture.image_HW3.shape, picture.image_HW3.dtype
    if shape != (size, size, 3) or kind != np.uint8:
        raise UserError(f"{picture.name} is {kind} of {shape}; this generator wants uint8 of ({size}, {size}, 3)")
    device = next(autoencoder.parameters()).device
    images_1HW3 = torch.from_numpy(np.ascontiguousarray(picture.image_HW3[None]))
    with full_precision():
        z_1Chw = autoencoder.encode(to_float(images_1HW3).to(device)).float().cpu()
    clusters = picture.clusters
    if set(ks) - set(clusters):
        clusters = {**predicted_clusters(picture.image_HW3, home=home, device=device), **clusters}
    return Source(picture.name, z_1Chw[0], clusters)


def predicted_clusters(image_HW3: np.ndarray, *, home: Path, device: torch.device) -> dict[int, int]:
    """What the networks of the run ``home`` take a picture for, by k; empty for an exported generator."""
    if not (home / "config.yaml").is_file():
        return {}
    run = Run.open(home)
    if any(run.artifact(stage) is None for stage in NEEDED):
        return {}
    folders = {stage: run.folder(stage) for stage in NEEDED}
    labels = Classifier.load(**folders, device=device).labels(image_HW3[None])
    return {k: int(labels_1[0]) for k, labels_1 in labels.items()}
