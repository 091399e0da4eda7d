"""Features of all patches of a run, as the clusters' network gets them: computed once, centred, each part on its scale.

Latents are read where they lie. All other kinds are vectors: each patch's own, and of the training split also its
views, are computed in chunks that a killed stage does not repeat. Several kinds stand side by side, and after them the
features of the surroundings. Their mean over the training split is subtracted, and each part is divided by one number,
so that its mean variance is the square of its weight: within a part, distances keep their proportions. The mean
variance of the whole is 1.

Shapes: N patches, T of the training split, V views besides a patch itself, D features; ``*shape``: of a patch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.features.base import (
    BLOCK,
    EncoderRecord,
    Features,
    FeaturesRecord,
    ImagesUnsupported,
    PartRecord,
    Sources,
)
from histoloom.clustering.features.from_files import FileFeatures
from histoloom.clustering.features.latents import Codes, LatentMaps, Pooled, UnscaledLatents, hellinger, pooled
from histoloom.clustering.features.perceptual import PerceptualFeatures
from histoloom.clustering.features.pretrained import PretrainedFeatures
from histoloom.clustering.features.surroundings import Surroundings
from histoloom.errors import UserError
from histoloom.processes import is_main_process
from histoloom.progress import meter
from histoloom.run.directory import read_json, replacing, write_json
from histoloom.run.row_file import RowFile, Rows
from histoloom.run.stage import StageContext
from histoloom.training.devices import accelerator
from histoloom.training.distributed import shared_path

CHUNK = 4 * BLOCK
ROWS = 1024  # that are in memory at once
SAVE_SECONDS = 10.0
"""Between two records of what is computed: to bring a large file to disk takes longer than to compute a chunk."""

FEATURES = "features.npy"
SURROUNDINGS = "surroundings"
UNSCALED = "unscaled"  # kind of the clusters that are trained with the diffusion model

KINDS: Mapping[str, type[Features]] = {
    "latents": LatentMaps,
    "pooled": Pooled,
    "codes": Codes,
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

    @property
    def of_patch(self) -> int:
        """How many of a vector's numbers, the first, are known of a patch alone, without its slide."""

    @property
    def unseen(self) -> int:
        """How many of these are for images without a slide alone, and have no part in the clusters."""

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

    @property
    def of_patch(self) -> int:
        return self.shape[0]

    @property
    def unseen(self) -> int:
        return 0

    def own(self, rows_N: np.ndarray) -> Tensor:
        return self.latents.normalised(rows_N) if self.scaled else self.latents.raw(rows_N)

    def versions(self, rows_N: np.ndarray) -> Tensor:
        return self.latents.with_stain_views(rows_N)


@dataclass(frozen=True)
class Scale:
    """The mean that is subtracted, and the numbers that the rest is divided by, both (D,)."""

    mean_D: Tensor
    deviation_D: Tensor

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Features, or the first of them alone, on this scale."""
        D = x_ND.shape[-1]
        return (x_ND - self.mean_D[:D].to(x_ND)) / self.deviation_D[:D].to(x_ND)

    @staticmethod
    def fit(
        x_ND: Rows, *, rows_T: np.ndarray, dimensions: Sequence[int], weights: Sequence[float], unseen: int = 0
    ) -> Scale:
        """Of some rows, in double precision and bounded memory; the parts have these ``dimensions`` and ``weights``.

        The first ``unseen`` parts do not count to the whole.
        """
        total, squares = np.zeros(x_ND.shape[1]), np.zeros(x_ND.shape[1])
        for start in range(0, len(rows_T), ROWS):
            part = np.asarray(x_ND[rows_T[start : start + ROWS]], np.float64)
            total += part.sum(0)
            squares += np.square(part).sum(0)
        mean_D = total / len(rows_T)
        variance_D = np.maximum(squares / len(rows_T) - mean_D**2, 0.0)

        # Each part gets a mean variance of the square of its weight, then the whole one of 1.
        edges = np.cumsum(dimensions)[:-1]
        deviations = [max(float(part.mean()), 1e-12) ** 0.5 for part in np.split(variance_D, edges)]
        whole = float(np.average(np.square(weights[unseen:]), weights=dimensions[unseen:])) ** 0.5
        scales = [deviation * whole / weight for deviation, weight in zip(deviations, weights, strict=True)]
        deviation_D = np.repeat(scales, dimensions).astype(np.float32)
        return Scale(torch.from_numpy(mean_D.astype(np.float32)), torch.from_numpy(deviation_D))


class VectorBank:
    """Vectors of all patches in ``folder``, raw; ``rows_T`` are the training split's, in rising order.

    ``parts`` stand side by side; the features of surroundings have the weight ``surroundings``, all others 1. The
    first ``unseen`` parts are for images without a slide alone.
    """

    def __init__(
        self, folder: Path, *, rows_T: np.ndarray, parts: Sequence[Features], surroundings: float, unseen: int
    ) -> None:
        self.own_ND = RowFile.open(folder / "own.npy")
        self.views_TVD = RowFile.open(folder / "views.npy")
        self.rows_T = rows_T
        dimensions = [part.shape[0] for part in parts]
        weights = [surroundings if part.of_surroundings else 1.0 for part in parts]
        self.scale = Scale.fit(self.own_ND, rows_T=rows_T, dimensions=dimensions, weights=weights, unseen=unseen)
        self._unseen = sum(dimensions[:unseen])
        self._of_patch = sum(part.shape[0] for part in parts if part.of_patch_alone)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.own_ND.shape[1:]

    @property
    def of_patch(self) -> int:
        return self._of_patch

    @property
    def unseen(self) -> int:
        return self._unseen

    def own(self, rows_N: np.ndarray) -> Tensor:
        return self.scale(torch.from_numpy(np.asarray(self.own_ND[rows_N])))

    def versions(self, rows_N: np.ndarray) -> Tensor:
        views_NVD = torch.from_numpy(np.asarray(self.views_TVD[np.searchsorted(self.rows_T, rows_N)]))
        return torch.cat([self.own(rows_N)[:, None], self.scale(views_NVD)], dim=1)


def make_bank(context: StageContext, *, latents: LatentSet) -> Bank:
    """The bank of the configured kind; what prediction needs of it is written into the stage's folder.

    The main process computes; the others wait, and read what it wrote.
    """
    config = context.config.clusters
    if config.joint is not None:
        if is_main_process():
            FeaturesRecord(kind=UNSCALED, shape=latents.shape, views=0).save(context.out)
        return LatentBank(latents, scaled=False)
    if "latents" in config.kinds:
        return LatentBank(latents, scaled=True)
    named: list[tuple[str, Features]] = [(kind, KINDS[kind].make(context)) for kind in config.kinds]
    if config.surroundings:
        named.append((SURROUNDINGS, Surroundings.make(context)))
    named.sort(key=lambda one: not one[1].of_patch_alone)  # what a patch alone has comes first
    # Where the clusters are made of what lies on slides alone, images are told by features that have no part in them.
    unseen = int(not named[0][1].of_patch_alone and config.positives == "neighbours")
    if unseen:
        named.insert(0, ("perceptual", PerceptualFeatures.make(context)))
    kinds, parts = [kind for kind, _ in named], [part for _, part in named]
    count = parts[0].views if config.positives == "views" else 0  # of one part: several have no views
    folder = shared_path(context.out / "checkpoints")  # not published
    rows_T = latents.rows(split="train")
    if is_main_process():
        folder.mkdir(exist_ok=True)
        _compute(folder, parts=parts, rows_N=np.arange(len(latents)), rows_T=rows_T, views=count)
    accelerator(context.config.runtime).wait_for_everyone()
    bank = VectorBank(folder, rows_T=rows_T, parts=parts, surroundings=config.surroundings, unseen=unseen)
    if is_main_process():
        _save(bank, parts=parts, kinds=kinds, views=count, out=context.out)
    return bank


def _compute(folder: Path, *, parts: Sequence[Features], rows_N: np.ndarray, rows_T: np.ndarray, views: int) -> None:
    """Fill ``own.npy`` and ``views.npy``."""

    def own(rows_n: np.ndarray) -> Tensor:
        return torch.cat([part.compute_rows(rows_n) for part in parts], dim=1)

    dimensions = sum(part.shape[0] for part in parts)
    _fill(folder / "own.npy", rows=rows_N, shape=(dimensions,), compute=own)
    compute = parts[0].compute_views if views else None
    _fill(folder / "views.npy", rows=rows_T, shape=(views, dimensions), compute=compute)


def _save(bank: VectorBank, *, parts: Sequence[Features], kinds: Sequence[str], views: int, out: Path) -> None:
    """Write ``features.npy`` and ``features.json``."""
    with replacing(out / FEATURES) as temporary, temporary.open("wb") as file:
        shape = (len(bank.own_ND), bank.shape[0] - bank.unseen)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(bank.own_ND), ROWS):
            rows_N = np.arange(start, min(start + ROWS, len(bank.own_ND)))
            file.write(bank.own(rows_N)[:, bank.unseen :].numpy().astype("<f4").tobytes())
    records, start = [], 0
    for number, part in enumerate(parts):
        record = PartRecord(
            kind=kinds[number],
            dimensions=part.shape[0],
            deviation=float(bank.scale.deviation_D[start]),
            surroundings=part.of_surroundings,
            encoder=part.save(out),
        )
        records.append(record)
        start += part.shape[0]
    FeaturesRecord(
        kind=kinds[0],
        shape=bank.shape,
        views=views,
        mean=tuple(bank.scale.mean_D.tolist()),
        parts=tuple(records),
    ).save(out)


def _fill(
    path: Path, *, rows: np.ndarray, shape: tuple[int, ...], compute: Callable[[np.ndarray], Tensor] | None
) -> None:
    """A .npy of ``compute`` of each row, (len(rows), *shape) float32, continued where an earlier call last saved."""
    marker = path.with_suffix(".json")
    done = read_json(marker)["rows"] if marker.is_file() else 0
    whole = (len(rows), *shape)
    target = RowFile.open(path, writable=True) if done else RowFile.create(path, shape=whole, dtype=np.float32)
    if compute is None or done == len(rows):
        return

    def save(computed: int) -> None:
        target.flush()
        write_json(marker, {"rows": computed})

    computed, saved_at = done, time.monotonic()
    with meter(f"features ({path.stem})", total=len(rows), done=done) as progress:
        try:
            for start in range(done, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                target[start : start + len(chunk)] = compute(chunk).numpy()
                computed = start + len(chunk)
                if time.monotonic() - saved_at >= SAVE_SECONDS:
                    save(computed)
                    saved_at = time.monotonic()
                progress.advance(len(chunk))
        finally:
            save(computed)


@dataclass(frozen=True)
class PredictedFeatures:
    """Features of any images, as the network of published clusters gets them."""

    parts: tuple[Features, ...]
    scale: Scale | None

    @property
    def with_surroundings(self) -> bool:
        """Whether the clusters were made with the surroundings of patches."""
        return any(part.of_surroundings for part in self.parts)

    def compute_images(self, images_NHW3: np.ndarray, fields_NSS3: np.ndarray | None = None) -> Tensor:
        """Of images, uint8 (N, H, W, 3), and of the fields about them; float32 (N, *shape) on the device.

        Without fields, only the features of the images themselves.
        """
        if fields_NSS3 is not None and not self.with_surroundings:
            raise ValueError("these clusters were made without surroundings; leave the fields out")
        computed = []
        for part in self.parts:
            images = fields_NSS3 if part.of_surroundings else images_NHW3
            if images is not None:
                computed.append(part.compute_images(images))
        x_N = computed[0] if len(computed) == 1 else torch.cat(computed, dim=1)
        return x_N if self.scale is None else self.scale(x_N)


def load_features(clusters: Path, *, inputs: Mapping[str, Path], device: torch.device) -> PredictedFeatures:
    """What the clusters in this folder are predicted from; ``inputs`` has the folders of the stages before.

    Raises ``UserError`` where a pretrained encoder is gone, or where the run was made with features of an earlier
    version that exist no more, and ``ImagesUnsupported`` for features from files.
    """
    record = FeaturesRecord.load(clusters)
    if record is None or record.kind == UNSCALED:
        kind = LatentMaps if record is None else UnscaledLatents
        return PredictedFeatures((kind.load(Sources(inputs, clusters, EncoderRecord(), device)),), None)
    parts: list[Features] = []
    at_hand = [part for part in record.parts if part.kind != "files"]
    if len(at_hand) < len(record.parts):  # without them no vector is whole, and the patch alone decides
        at_hand = [part for part in at_hand if not part.surroundings]
        if not at_hand:
            raise ImagesUnsupported
    for part in at_hand:
        if not part.surroundings and part.kind not in KINDS:
            raise UserError(
                f"clusters.features: {part.kind} was removed; cluster the run again with features=perceptual"
            )
        known = Surroundings if part.surroundings else KINDS[part.kind]
        parts.append(known.load(Sources(inputs, clusters, part.encoder, device)))
    assert record.mean is not None, "vectors have a mean"
    deviation_D = torch.tensor([part.deviation for part in record.parts for _ in range(part.dimensions)])
    return PredictedFeatures(tuple(parts), Scale(torch.tensor(record.mean), deviation_D))


def validity_features(latents: LatentSet, rows: np.ndarray, *, kind: str, clusters: Path) -> np.ndarray:
    """Vectors of ``rows`` for the indices, k-means and maps, float32 (len(rows), D).

    ``kind``: ``pooled``, ``codes``, ``flat``, ``softmax``, or ``same``: those in the folder ``clusters`` that were
    clustered.
    """
    if kind == "same":
        return RowFile.open(clusters / FEATURES)[rows]
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
