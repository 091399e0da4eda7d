"""What the page that generates shows: a run's generator, or an exported one that stands alone."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from histoloom.atlas.jobs.own_pictures import OwnPictures
from histoloom.atlas.jobs.queue import JobQueue
from histoloom.atlas.maps.palette import cluster_colours, hexadecimal
from histoloom.atlas.web.errors import Conflict, NotFound
from histoloom.config import SamplerConfig
from histoloom.errors import UserError
from histoloom.names import Label, current_labels

if TYPE_CHECKING:
    from histoloom.diffusion.generation.generator_spec import GeneratorSpec

T = TypeVar("T")


class GeneratorView(ABC):
    """A folder with a generator: ``path``, and ``drawn``, where the pictures of jobs are written.

    Threads may share it; it forgets what it has read of a file that is replaced.
    """

    def __init__(self, path: Path, *, title: str, drawn: Path) -> None:
        self.path = path
        self.title = title
        self.drawn = drawn
        self._cache: dict[Hashable, tuple[object, object]] = {}
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def cached(self, name: Hashable, *, depends_on: Sequence[str], make: Callable[[], T]) -> T:
        """``make()``, computed once for as long as the files ``depends_on`` (below ``path``) stay as they are."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        stamp = tuple(_stamp(self.path / file) for file in depends_on)
        entry = self._cache.get(name)
        if entry is None or entry[0] != stamp:
            with lock:  # another thread may have made it by now
                entry = self._cache.get(name)
                if entry is None or entry[0] != stamp:
                    try:
                        entry = (stamp, make())
                    except FileNotFoundError as error:
                        raise Conflict(f"{self.title} is being changed right now; try again in a moment") from error
                    self._cache[name] = entry
        return entry[1]  # type: ignore[return-value]

    @property
    def queue(self) -> JobQueue:
        """The queue of jobs, made when it is first needed."""
        return self.cached("jobs", depends_on=[], make=lambda: JobQueue(self.path, folder=self.drawn))

    @property
    def own_pictures(self) -> OwnPictures:
        """The user's own pictures, from which it may start."""
        return self.cached("own pictures", depends_on=[], make=lambda: OwnPictures(self.drawn))

    @property
    @abstractmethod
    def ks(self) -> tuple[int, ...]:
        """The sweep, rising."""

    @property
    @abstractmethod
    def chosen(self) -> int:
        """The k that is shown by default."""

    @property
    @abstractmethod
    def has_generator(self) -> bool:
        """Whether there is a trained generator."""

    @property
    @abstractmethod
    def sampler(self) -> SamplerConfig:
        """The default sampler."""

    @property
    @abstractmethod
    def most_steps(self) -> int:
        """Steps of the diffusion process."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Side of a picture, px."""

    @property
    @abstractmethod
    def mpp(self) -> float:
        """um/px of a picture."""

    @abstractmethod
    def shares(self, k: int) -> Mapping[int, float]:
        """For each cluster of ``k`` its share of all patches, 0..1."""

    @abstractmethod
    def corrected_groups(self, k: int) -> Mapping[str, float]:
        """The names of corrected patches that are conditions of the generator as clusters are, numbered on from k.

        Each with its share of the training patches, 0..1.
        """

    def drawn_labels(self, k: int) -> dict[int, Label]:
        """The labels of all that the generator draws at ``k``: its clusters and ``corrected_groups``."""
        return self.labels(k) | {n: Label(name) for n, name in enumerate(self.corrected_groups(k), start=k)}

    def k_or_chosen(self, k: int | None) -> int:
        """``k``, or the chosen one; ``NotFound`` where it is not in the sweep."""
        k = self.chosen if k is None else k
        if k not in self.ks:
            raise NotFound(f"k = {k} is not in this run's sweep; there are {', '.join(map(str, self.ks))}")
        return k

    def labels(self, k: int) -> dict[int, Label]:
        """Name, colour and flag that count for each cluster of ``k``; the last two may be empty."""
        return current_labels(self.path, k=k)

    def names(self, k: int) -> dict[int, str]:
        """The current name of each cluster of ``k``; ``cluster c`` where it has none."""
        return {cluster: label.name for cluster, label in self.labels(k).items()}

    def colours(self, k: int) -> list[str]:
        """The colour of each cluster of ``k`` as ``#rrggbb``: the expert's, else the palette's."""
        return [hexadecimal(colour) for colour in cluster_colours(self.labels(k), k=k)]


class ExportView(GeneratorView):
    """An exported generator, or the starter: there are no patches and no slides, only what it generates."""

    def check(self) -> None:
        """``UserError`` where there is no generator that can be read."""
        from histoloom.diffusion.generation.generator_spec import model_folders

        model_folders(self.path)  # refuses what is neither a run nor an export
        if not (self.path / "unet").is_dir() or not (self.path / "autoencoder").is_dir():
            raise UserError(f"{self.path} lacks unet/ or autoencoder/; copy the whole folder of the export")
        assert self.spec, "it can be read"

    @cached_property
    def spec(self) -> GeneratorSpec:
        """Its specification."""
        from histoloom.diffusion.generation.generator_spec import GeneratorSpec  # loads torch

        return GeneratorSpec.load(self.path)

    @property
    def ks(self) -> tuple[int, ...]:
        """The sweep, rising."""
        return self.spec.ks

    @property
    def chosen(self) -> int:
        """The k that is shown by default."""
        return self.spec.chosen_k

    @property
    def has_generator(self) -> bool:
        """It is one."""
        return True

    @property
    def sampler(self) -> SamplerConfig:
        """The default sampler."""
        return self.spec.sampler

    @property
    def most_steps(self) -> int:
        """Steps of the diffusion process."""
        return self.spec.diffusion.steps

    @property
    def size(self) -> int:
        """Side of a picture, px."""
        return self.spec.size

    @property
    def mpp(self) -> float:
        """um/px of a picture."""
        return self.spec.mpp

    def shares(self, k: int) -> Mapping[int, float]:
        """For each cluster of ``k`` its share of the training patches, 0..1."""
        return dict(enumerate(self.spec.frequencies[k][:k]))

    def corrected_groups(self, k: int) -> Mapping[str, float]:
        """The names of corrected patches that are conditions as clusters are, with their shares, 0..1."""
        return dict(zip(self.spec.groups.get(k, ()), self.spec.frequencies[k][k:], strict=True))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
