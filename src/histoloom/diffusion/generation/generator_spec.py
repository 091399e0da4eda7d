"""The files of a trained generator: its specification, its student, and where a run or an export keeps them.

``generator.json`` is ``GeneratorSpec``; ``student/student.json`` is ``StudentRecord``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from diffusers import UNet2DModel
from pydantic import ValidationError

import histoloom
from histoloom.config import DiffusionConfig, SamplerConfig
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.unet import WEIGHTS, open_diffusers_unet
from histoloom.errors import UserError
from histoloom.names import Label, current_labels
from histoloom.run.directory import Run, read_json, write_json
from histoloom.run.record import Record

STARTER = "starter"
STUDENT = "student"
FORMAT: Final = 2
FORMAT_WITH_GROUPS: Final = 3
"""of a generator with conditions besides the clusters, which earlier versions would number otherwise"""


class GeneratorSpec(Record):
    """All of a generator but its weights (``generator.json``).

    ``diffusion``: the process and the network; ``sampler``: the default one; ``shape``: (D, h, w) of what the U-Net
    sees; ``ks``: the sweep; ``frequencies``: for each k the share of the training patches in each cluster, 0..1;
    ``size``: side of an image, px; ``mpp``: um/px. ``groups``: for each k the names of corrected patches that no
    cluster has, which are conditions as clusters are; their ``frequencies`` follow those of the clusters.
    """

    format: Literal[2, 3] = FORMAT
    diffusion: DiffusionConfig
    sampler: SamplerConfig
    space: LatentSpace
    shape: tuple[int, int, int]
    ks: tuple[int, ...]
    chosen_k: int
    frequencies: Mapping[int, tuple[float, ...]]
    size: int
    mpp: float
    groups: Mapping[int, tuple[str, ...]] = {}

    @property
    def conditions(self) -> Conditions:
        """The numbers of the clusters of the sweep, and of ``groups``."""
        return Conditions(self.ks, tuple(len(self.groups.get(k, ())) for k in self.ks) if self.groups else ())

    def labels(self, home: Path, *, k: int) -> dict[int, Label]:
        """The labels that count for the clusters of ``k`` in a run or an export, and those of ``groups``."""
        return current_labels(home, k=k) | self.group_labels(k)

    def group_labels(self, k: int) -> dict[int, Label]:
        """The labels of ``groups`` at ``k``, numbered on from its clusters."""
        return {number: Label(name) for number, name in enumerate(self.groups.get(k, ()), start=k)}

    def as_json(self) -> dict[str, object]:
        """The file's content; without corrections and maps of conditions it is that of earlier versions."""
        values: dict[str, object] = self.model_dump(mode="json", exclude={"groups"})
        if self.groups:
            values |= {
                "format": FORMAT_WITH_GROUPS,
                "groups": {str(k): list(names) for k, names in self.groups.items()},
            }
        later = {name for name in ("corrections", "condition_maps", "middle_norm") if not getattr(self.diffusion, name)}
        values["diffusion"] = self.diffusion.model_dump(mode="json", exclude=later)
        return values

    @staticmethod
    def load(folder: Path) -> GeneratorSpec:
        """Read ``folder/generator.json``; ``UserError`` where another version of Histoloom wrote it."""
        path = folder / "generator.json"
        values = read_json(path)
        if values.get("format") not in (FORMAT, FORMAT_WITH_GROUPS):
            raise UserError(
                f"generator.json has format {values.get('format')}, this version of Histoloom reads {FORMAT} and "
                f"{FORMAT_WITH_GROUPS}; "
                f"make it again with this version (histoloom run, or histoloom export from its run)"
            )
        try:
            return GeneratorSpec.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error

    def save(self, folder: Path) -> None:
        """Write ``folder/generator.json``."""
        write_json(folder / "generator.json", self.as_json())


def read_spec(home: Path) -> GeneratorSpec:
    """The specification of the generator in a run or an export; ``UserError`` where there is none.

    A run's default sampler is that of its configuration.
    """
    diffusion, _ = model_folders(home)
    spec = GeneratorSpec.load(diffusion)
    if diffusion == home:
        return spec
    return spec.model_copy(update={"sampler": Run.open(home).config.samples.sampler})


class StudentRecord(Record):
    """How a student was distilled (``student.json``).

    ``steps``: evaluations of the network in a sampling; ``guidance``: the strength that it was trained for;
    ``teacher``: the digest of its teacher's weights; ``images``: length of the training, in images seen;
    ``condition_maps``: whether it learned from maps of conditions.
    """

    steps: int
    guidance: float
    teacher: str
    images: int
    condition_maps: bool = False

    def as_json(self) -> dict[str, object]:
        """The file's content; without maps of conditions it is that of earlier versions."""
        return self.model_dump(mode="json", exclude=set() if self.condition_maps else {"condition_maps"})

    @staticmethod
    def load(folder: Path) -> StudentRecord | None:
        """Read ``folder/student.json``; None where there is none."""
        path = folder / "student.json"
        return StudentRecord.model_validate(read_json(path)) if path.is_file() else None

    def save(self, folder: Path) -> None:
        """Write ``folder/student.json``."""
        write_json(folder / "student.json", self.as_json())


@dataclass(frozen=True)
class Student:
    """A distilled network, how it was distilled, and the digest of its weights."""

    unet: UNet2DModel
    record: StudentRecord
    digest: str

    @staticmethod
    def load(home: Path, *, device: torch.device) -> Student:
        """The student in a run or an export; ``UserError`` where there is none, or one of other weights."""
        folder = home / STUDENT
        record = StudentRecord.load(folder)
        if record is None:
            raise UserError(f"{home} has no student that draws in a few steps; make it: histoloom distil RUN")
        if (home / "config.yaml").is_file() and record.teacher != weights_digest(model_folders(home)[0]):
            raise UserError(
                f"the student in {folder} was distilled from weights that were since replaced: histoloom distil {home}"
            )
        unet = open_diffusers_unet(folder).to(device).eval().requires_grad_(False)
        return Student(unet, record, weights_digest(folder))


def weights_digest(folder: Path) -> str:
    """16 hexadecimal digits of the weights in ``folder/unet``, or in all of ``folder/unet-kK``."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(f"unet*/{WEIGHTS}")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def generator_home(path: str | Path) -> Path:
    """``path``; or the folder of the starter generator if ``path`` is ``starter`` and no such folder is here."""
    home = Path(path)
    if str(path) != STARTER or home.exists():
        return home
    package = Path(histoloom.__file__).resolve().parent
    places = [package / STARTER, package.parent.parent / STARTER]  # installed; a clone
    return next((place for place in places if (place / "generator.json").is_file()), home)


def model_folders(home: Path) -> tuple[Path, Path]:
    """The folders of the diffusion model and of the autoencoder in a run or an export; ``UserError`` for neither."""
    if (home / "generator.json").is_file():
        return home, home / "autoencoder"
    if (home / "config.yaml").is_file():
        run = Run.open(home)
        return run.require("diffusion"), run.require("autoencoder")
    raise UserError(f"{home} is neither a run nor an exported generator (no config.yaml, no generator.json in it)")
