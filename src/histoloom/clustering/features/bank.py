"""Features of all patches of a run, as the clusters' network gets them: computed once, centred, on one scale.

Latents are read where they lie. All other kinds are vectors: each patch's own, and of the training split also its
views, are computed in chunks that a killed stage does not repeat. Their mean over the training split is subtracted, and
all are divided by one number, the root of their mean variance: distances keep their proportions.

Shapes: N patches, T of the training split, V views besides a patch itself, D features; ``*shape``: of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.features.base import BLOCK, EncoderRecord, Features, FeaturesRecord, Sources
from histoloom.clustering.features.from_files import FileFeatures
from histoloom.clustering.features.latents import Codes, LatentMaps, Pooled, UnscaledLatents, hellinger, pooled
from histoloom.clustering.features.perceptual import PerceptualFeatures
from histoloom.clustering.features.pretrained import PretrainedFeatures
from histoloom.clustering.features.selfsup import Selfsup
from histoloom.processes import is_main_process
from histoloom.progress import meter
from histoloom.run.directory import read_json, replacing, write_json
from histoloom.run.stage import StageContext
from histoloom.training.devices import accelerator
from histoloom.training.distributed import shared_path

CHUNK = 4 * BLOCK
ROWS = 1024  # that are in memory at once
FEATURES = "features.npy"
UNSCALED = "unscaled"  # kind of the clusters that are trained with the diffusion model

KINDS: Mapping[str, type[Features]] = {
    "latents": LatentMaps,
    "pooled": Pooled,
    "codes": Codes,
    "selfsup": Selfsup,
    "perceptual": PerceptualFeatures,
    "encoder": PretrainedFeatures,
    "files": FileFeatures,
}
"""Every kind of features that patches can be clustered by."""


class Bank(Protocol):
    """What the clusters are trained on and predicted from."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one patch."""

    def own(self, rows_N: np.ndarray) -> Tensor:
        """Patches as they are, float32 (N, *shape)."""

    def versions(self, rows_N: np.ndarray) -> Tensor:
        """Patches of the training split as they are, then their views, float32 (N, 1 + V, *shape)."""


class LatentBank:
    """The latents of the stage ``latents``."""

    def __init__(self, latents: LatentSet, *, scaled: bool) -> None:
        self.latents = latents
        self.scaled = scaled

    @property
    def shape(self) -> tuple[int, ...]:
        return self.latents.shape

    def own(self, rows_N: np.ndarray) -> Tensor:
        return self.latents.normalised(rows_N) if self.scaled else self.latents.raw(rows_N)

    def versions(self, rows_N: np.ndarray) -> Tensor:
        return self.latents.with_stain_views(rows_N)


@dataclass(frozen=True)
class Scale:
    """The mean that is subtracted, (D,), and the number that the rest is divided by."""

    mean_D: Tensor
    deviation: float

    def __call__(self, x_ND: Tensor) -> Tensor:
        return (x_ND - self.mean_D.to(x_ND)) / self.deviation

    @staticmethod
    def fit(x_ND: np.ndarray, *, rows_T: np.ndarray) -> Scale:
        """Of some rows, in double precision and bounded memory."""
        total, squares = np.zeros(x_ND.shape[1]), np.zeros(x_ND.shape[1])
        for start in range(0, len(rows_T), ROWS):
            part = np.asarray(x_ND[rows_T[start : start + ROWS]], np.float64)
            total += part.sum(0)
            squares += np.square(part).sum(0)
        mean_D = total / len(rows_T)
        variance = float((squares / len(rows_T) - mean_D**2).mean())
        return Scale(torch.from_numpy(mean_D.astype(np.float32)), float(np.sqrt(max(variance, 1e-12))))


class VectorBank:
    """Vectors of all patches in ``folder``, raw; ``rows_T`` are the training split's, in rising order."""

    def __init__(self, folder: Path, *, rows_T: np.ndarray) -> None:
        self.own_ND = np.load(folder / "own.npy", mmap_mode="r")
        self.views_TVD = np.load(folder / "views.npy", mmap_mode="r")
        self.rows_T = rows_T
        self.scale = Scale.fit(self.own_ND, rows_T=rows_T)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.own_ND.shape[1:]

    def own(self, rows_N: np.ndarray) -> Tensor:
        return self.scale(torch.from_numpy(np.asarray(self.own_ND[rows_N])))

    def versions(self, rows_N: np.ndarray) -> Tensor:
        views_NVD = torch.from_numpy(np.asarray(self.views_TVD[np.searchsorted(self.rows_T, rows_N)]))
        return torch.cat([self.own(rows_N)[:, None], self.scale(views_NVD)], dim=1)


def make_bank(context: StageContext, *, latents: LatentSet) -> Bank:
    """The bank of the configured kind; what prediction needs of it is written into the stage's folder.

    The main process computes; the others wait, and read what it wrote.
    """
    kind = context.config.clusters.features
    if context.config.clusters.joint is not None:
        if is_main_process():
            FeaturesRecord(kind=UNSCALED, shape=latents.shape, views=0).save(context.out)
        return LatentBank(latents, scaled=False)
    if kind == "latents":
        return LatentBank(latents, scaled=True)
    features = KINDS[kind].make(context)
    count = features.views if context.config.clusters.positives == "views" else 0
    folder = shared_path(context.out / "checkpoints")  # not published
    rows_T = latents.rows(split="train")
    if is_main_process():
        folder.mkdir(exist_ok=True)
        own, views = folder / "own.npy", folder / "views.npy"
        _fill(own, rows=np.arange(len(latents)), shape=features.shape, compute=features.compute_rows)
        compute = features.compute_views if count else None
        _fill(views, rows=rows_T, shape=(count, *features.shape), compute=compute)
    accelerator(context.config.runtime).wait_for_everyone()
    bank = VectorBank(folder, rows_T=rows_T)
    if is_main_process():
        encoder = features.save(context.out)
        with replacing(context.out / FEATURES) as temporary, temporary.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": bank.own_ND.shape}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(latents), ROWS):
                rows_N = np.arange(start, min(start + ROWS, len(latents)))
                file.write(bank.own(rows_N).numpy().astype("<f4").tobytes())
        FeaturesRecord(
            kind=kind,
            shape=features.shape,
            views=count,
            mean=tuple(bank.scale.mean_D.tolist()),
            deviation=bank.scale.deviation,
            encoder=encoder,
        ).save(context.out)
    return bank


def _fill(
    path: Path, *, rows: np.ndarray, shape: tuple[int, ...], compute: Callable[[np.ndarray], Tensor] | None
) -> None:
    """A .npy of ``compute`` of each row, (len(rows), *shape) float32, continued where an earlier call stopped."""
    marker = path.with_suffix(".json")
    done = read_json(marker)["rows"] if marker.is_file() else 0
    whole = (len(rows), *shape)
    target = np.lib.format.open_memmap(
        path, mode="r+" if done else "w+", dtype=np.float32, shape=None if done else whole
    )
    if compute is None or done == len(rows):
        return
    with meter(f"features ({path.stem})", total=len(rows), done=done) as progress:
        for start in range(done, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            target[start : start + len(chunk)] = compute(chunk).numpy()
            target.flush()
            write_json(marker, {"rows": start + len(chunk)})
            progress.advance(len(chunk))


@dataclass(frozen=True)
class PredictedFeatures:
    """Features of any images, as the network of published clusters gets them."""

    features: Features
    scale: Scale | None

    def compute_images(self, images_NHW3: np.ndarray) -> Tensor:
        """Images, uint8 (N, H, W, 3); float32 (N, *shape) on the device."""
        x_N = self.features.compute_images(images_NHW3)
        return x_N if self.scale is None else self.scale(x_N)


def load_features(clusters: Path, *, inputs: Mapping[str, Path], device: torch.device) -> PredictedFeatures:
    """What the clusters in this folder are predicted from; ``inputs`` has the folders of the stages before.

    Raises ``UserError`` where a pretrained encoder is gone, and ``ImagesUnsupported`` for features from files.
    """
    record = FeaturesRecord.load(clusters)
    if record is None:
        return PredictedFeatures(LatentMaps.load(Sources(inputs, clusters, EncoderRecord(), device)), None)
    kind = UnscaledLatents if record.kind == UNSCALED else KINDS[record.kind]
    features = kind.load(Sources(inputs, clusters, record.encoder, device))
    if record.mean is None or record.deviation is None:
        return PredictedFeatures(features, None)
    return PredictedFeatures(features, Scale(torch.tensor(record.mean), record.deviation))


def validity_features(latents: LatentSet, rows: np.ndarray, *, kind: str, clusters: Path) -> np.ndarray:
    """Vectors of ``rows`` for the indices, k-means and maps, float32 (len(rows), D).

    ``kind``: ``pooled``, ``codes``, ``flat``, ``softmax``, or ``same``: those in the folder ``clusters`` that were
    clustered.
    """
    if kind == "same":
        return np.asarray(np.load(clusters / FEATURES, mmap_mode="r")[rows])
    if kind == "codes":
        return hellinger(torch.from_numpy(np.asarray(latents.histograms[rows]))).numpy()
    parts = []
    for start in range(0, len(rows), ROWS):
        if kind == "softmax":  # of the latents as the autoencoder gives them (Rumman et al. 2025)
            parts.append(latents.raw(rows[start : start + ROWS]).softmax(dim=1).mean(dim=(2, 3)).numpy())
            continue
        z_NChw = latents.normalised(rows[start : start + ROWS])
        parts.append((pooled(z_NChw) if kind == "pooled" else z_NChw.flatten(1)).numpy())
    return np.concatenate(parts)
