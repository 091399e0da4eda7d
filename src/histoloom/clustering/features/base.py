"""What every kind of features offers: one tensor a patch, for the run's patches and for any other image.

Shapes: N patches, V views of each besides the patch itself, H x W px; ``*shape`` is what one patch becomes:
(D,), or (C, h, w) for latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from histoloom.config import PerceptualTrunk
from histoloom.errors import UserError
from histoloom.run.directory import read_json, write_json
from histoloom.run.record import Record
from histoloom.run.stage import StageContext
from histoloom.training.devices import full_precision
from histoloom.training.memory import in_fitting_parts

BLOCK = 16
"""Patches that are computed at once: sums differ in the last bit between batch sizes."""


class ImagesUnsupported(UserError):
    """The clusters were made of features from files, which new images do not have."""

    def __init__(self) -> None:
        super().__init__(
            "the clusters are made of features from files (clusters.files), and the cluster of a new image is not "
            "known; where new images must be recognised, set clusters.positives=neighbours"
        )


class EncoderRecord(Record):
    """The pretrained network behind the features: ``encoder`` or ``trunk``, and the ``digest`` of its weights.

    Of features from files ``encoder`` is the name in the files.

    All are None where the features come from the VQ-GAN's latents.
    """

    encoder: str | None = None
    trunk: PerceptualTrunk | None = None
    digest: str | None = None


class PartRecord(Record):
    """One kind among the features: ``dimensions`` numbers a patch, whose differences are divided by ``deviation``.

    ``surroundings``: they describe the field about a patch, not the patch itself.
    """

    kind: str
    dimensions: int
    deviation: float
    surroundings: bool = False
    encoder: EncoderRecord = EncoderRecord()


class FeaturesRecord(Record):
    """``features.json``: what was clustered. Vectors have a ``mean`` and ``parts``, side by side, each on its scale.

    ``kind``: of the features, or of the first part.
    """

    kind: str
    shape: tuple[int, ...]
    views: int
    mean: tuple[float, ...] | None = None
    parts: tuple[PartRecord, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read ``features.json``; None where latents were clustered, which the stage ``latents`` holds."""
        path = folder / "features.json"
        if not path.is_file():
            return None
        values = read_json(path)
        if "parts" not in values and values.get("mean") is not None:  # of a version that knew one part only
            part = {"kind": values["kind"], "dimensions": values["shape"][0], "deviation": values["deviation"]}
            values["parts"] = [{**part, "encoder": values.get("said") or {}}]
        return cls(**values)

    def save(self, folder: Path) -> None:
        """Write ``features.json``."""
        write_json(folder / "features.json", self.model_dump(mode="json", exclude_none=True))


@dataclass(frozen=True)
class Sources:
    """What features are loaded from: the published ``inputs`` by name, the clusters' ``folder``, their network."""

    inputs: Mapping[str, Path]
    folder: Path
    encoder: EncoderRecord
    device: torch.device


class Features(ABC):
    """One kind of features. They depend on the patch alone: not on its row, the patches beside it, or the batch."""

    @classmethod
    @abstractmethod
    def make(cls, context: StageContext) -> Features:
        """The features of a run's patches; trains their network where there is one to train."""

    @classmethod
    @abstractmethod
    def load(cls, sources: Sources) -> Features:
        """The same features for ``compute_images``, from what ``save`` wrote."""

    @abstractmethod
    def save(self, folder: Path) -> EncoderRecord:
        """Write what other stages do not hold into ``folder``."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one patch, known before any is computed."""

    @property
    def of_surroundings(self) -> bool:
        """Whether they describe the field about a patch; then ``compute_images`` is of images of such fields."""
        return False

    @property
    def of_patch_alone(self) -> bool:
        """Whether they are known of an image of a patch, without its slide."""
        return not self.of_surroundings

    @property
    @abstractmethod
    def views(self) -> int:
        """How many other views of each patch the training of clusters gets."""

    @abstractmethod
    def compute_rows(self, rows_N: np.ndarray) -> Tensor:
        """The run's patches of these rows, float32 (N, *shape), on the CPU."""

    @abstractmethod
    def compute_views(self, rows_N: np.ndarray) -> Tensor:
        """Other views of these patches (restained, flipped, cropped), float32 (N, V, *shape), on the CPU."""

    @abstractmethod
    def compute_images(self, images_NHW3: np.ndarray) -> Tensor:
        """Any images, uint8 (N, H, W, 3) at the run's um/px; float32 (N, *shape), on the features' device."""


@torch.no_grad()
def blockwise(x_N: Tensor, *, function: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """``function`` of blocks (BLOCK, ...) of ``x_N`` (N, ...) on ``device``, the last filled up; float32 (N, ...).

    Single precision without TensorFloat-32, whatever the training uses.
    """
    assert len(x_N), "at least one patch"
    parts = []
    for part_n in x_N.split(BLOCK):
        filled = torch.cat([part_n, part_n[-1:].expand(BLOCK - len(part_n), *part_n.shape[1:])])
        with full_precision():
            blocks = in_fitting_parts(lambda x_B: function(x_B.to(device)).float(), filled, name="features of patches")
        parts.append(torch.cat(blocks)[: len(part_n)])
    return torch.cat(parts)
