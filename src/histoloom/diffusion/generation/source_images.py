"""Pictures that samples start from: a patch of the run by its id, or any picture of the patches' size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.base import ImagesUnsupported
from histoloom.errors import UserError
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import full_precision

LONGEST_NAME = 200
"""characters of a name that are kept in records"""
CLASSIFIER_STAGES = ("autoencoder", "latents", "clusters")
"""the stages of a run that tell the cluster of a new picture"""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, uint8 (size, size, 3), with its cluster at each k for which it is known."""

    name: str
    image_HW3: np.ndarray
    clusters: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def of(image_HW3: np.ndarray, *, name: str = "picture") -> Picture:
        """A picture from anywhere. Its name ends with a digest of its pixels, because names may come twice."""
        digest = hashlib.sha256(np.ascontiguousarray(image_HW3).tobytes()).hexdigest()
        return Picture(f"{name[:LONGEST_NAME]}#{digest[:8]}", image_HW3)


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """A picture as latents before quantisation, (C, h, w) float32 on the CPU, and its cluster at each k.

    ``clusters`` is empty where no clustering is at hand.
    """

    name: str
    z_Chw: Tensor
    clusters: Mapping[int, int]

    def cluster(self, k: int) -> int:
        """Its cluster at ``k``; ``UserError`` where it is not known."""
        if k not in self.clusters:
            raise UserError(f"the tissue of {self.name} is not known here; name one (--tissue)")
        return self.clusters[k]


def find_picture(home: Path, *, what: str, size: int) -> Picture:
    """The patch of the run ``home`` whose id is ``what``, or the picture in the file ``what``.

    ``UserError`` where it is neither, or not of ``size`` px.
    """
    if (home / "config.yaml").is_file():
        patch = patch_of(Run.open(home), patch_id=what)
        if patch is not None:
            return patch
    if Path(what).is_file():
        return read_picture(Path(what), size=size)
    raise UserError(f"{what!r} is neither a patch of {home} nor a file; give a patch_id or a picture of {size} px")


def patch_of(run: Run, *, patch_id: str) -> Picture | None:
    """A patch of the run, with its clusters where the run has clustered it; None where the run has no such patch."""
    if run.artifact("patches") is None:
        return None
    patches = PatchSet.open(run.folder("patches"))
    try:
        rows = patches.rows_of([patch_id])
    except ValueError:
        return None
    clusters = {}
    if run.artifact("clusters") is not None:
        import pandas as pd  # heavy, and only a run's own patches are looked up in tables

        index = Clustering.open(run.folder("clusters")).folder / "index.parquet"
        table = pd.read_parquet(index, filters=[("patch_id", "==", patch_id)])
        columns = [name for name in table.columns if name != "patch_id"]
        clusters = {int(name.removeprefix("k")): int(label) for name in columns for label in table[name].head(1)}
    return Picture(patch_id, patches.images(rows)[0], clusters)


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
def encode_picture(
    picture: Picture, *, size: int, ks: Sequence[int], home: Path, autoencoder: Autoencoder
) -> EncodedPicture:
    """The picture's latents, encoded by itself and in single precision: the same whatever else is drawn.

    Clusters of ``ks`` that are not known are predicted by the networks of the run ``home``; an exported generator has
    none. ``UserError`` where the picture is not uint8 (``size``, ``size``, 3).
    """
    shape, dtype = picture.image_HW3.shape, picture.image_HW3.dtype
    if shape != (size, size, 3) or dtype != np.uint8:
        raise UserError(f"{picture.name} is {dtype} of {shape}; this generator wants uint8 of ({size}, {size}, 3)")
    device = next(autoencoder.parameters()).device
    images_1HW3 = torch.from_numpy(np.ascontiguousarray(picture.image_HW3[None]))
    with full_precision():
        z_1Chw = autoencoder.latents(to_float(images_1HW3).to(device)).cpu()

    clusters = dict(picture.clusters)
    if set(ks) - set(clusters) and (home / "config.yaml").is_file():
        run = Run.open(home)
        if all(run.artifact(stage) is not None for stage in CLASSIFIER_STAGES):
            from histoloom.clustering.classifier import Classifier  # features of all kinds come with it

            folders = {stage: run.folder(stage) for stage in CLASSIFIER_STAGES}
            with suppress(ImagesUnsupported):  # the caller asks for a tissue where it needs one
                predicted = Classifier.load(**folders, device=device).labels(picture.image_HW3[None])
                clusters = {k: int(labels_1[0]) for k, labels_1 in predicted.items()} | clusters
    return EncodedPicture(picture.name, z_1Chw[0], clusters)
