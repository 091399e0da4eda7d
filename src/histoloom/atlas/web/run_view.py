"""What of a run is open: loaded when it is first asked for, and anew when a stage was published again."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from histoloom.atlas.browse.cluster_table import ClusterTable, overlap, read_clusters
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.maps.palette import cluster_colours, hexadecimal
from histoloom.atlas.web.http_errors import Conflict, NotFound
from histoloom.clustering.results import Decision
from histoloom.config import Config, load_config
from histoloom.names import Label, current_labels
from histoloom.run.directory import Run, fingerprint

if TYPE_CHECKING:
    from histoloom.autoencoder.latents import LatentSet

T = TypeVar("T")

_CONFIG = "config.yaml"
_PATCHES = "patches/artifact.json"
_CLUSTERS = "clusters/artifact.json"
_SAMPLES = ("samples/artifact.json", "samples/metadata.csv")
_NAMES = "names.jsonl"


@dataclass(frozen=True)
class Sample:
    """A synthetic patch of the stage ``samples``; ``file`` is relative to the stage's folder."""

    sample_id: str
    k: int
    cluster: int
    index: int
    file: str


class RunView:
    """A run directory, read only. Threads may share it; nothing is kept of a stage that was replaced."""

    def __init__(self, path: Path) -> None:
        self.run = Run.open(path)
        self.path = self.run.path
        self.title = path.resolve().name
        self._kept: dict[Hashable, tuple[object, object]] = {}
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def kept(self, name: Hashable, *, of: Sequence[str], make: Callable[[], T]) -> T:
        """``make()``, computed once for as long as the files ``of`` (relative to the run) stay as they are."""
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        stamp = tuple(_stamp(self.path / file) for file in of)
        found = self._kept.get(name)
        if found is not None and found[0] == stamp:
            return found[1]  # type: ignore[return-value]
        with lock:
            found = self._kept.get(name)
            if found is None or found[0] != stamp:
                found = (stamp, self._made(make))
                self._kept[name] = found
            return found[1]  # type: ignore[return-value]

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.kept("config", of=[_CONFIG], make=lambda: load_config(self.path / _CONFIG))

    @property
    def version(self) -> str:
        """Digits that change when patches or clusters do; part of pictures' addresses, so that these never change."""
        return self.kept("version", of=[_PATCHES, _CLUSTERS], make=self._version)

    @property
    def table(self) -> PatchTable:
        """All patches."""
        return self.kept("table", of=[_PATCHES], make=lambda: PatchTable(self.run.require("patches")))

    @property
    def random_N(self) -> np.ndarray:
        """A permutation of all patches, int32 (N,); the same in every visit."""
        return self.kept("random", of=[_PATCHES], make=self._random)

    @property
    def ks(self) -> tuple[int, ...]:
        """The sweep, rising."""
        return self.kept("ks", of=[_CLUSTERS], make=self._ks)

    @property
    def chosen(self) -> int:
        """The k that is shown where none is asked for: the report's, or the chosen one."""
        return self.config.report.k or int(self.kept("choice", of=[_CLUSTERS], make=self._choice))

    def k_or_chosen(self, k: int | None) -> int:
        """``k``, or the chosen one; ``NotFound`` where it is not in the sweep."""
        wanted = self.chosen if k is None else k
        if wanted not in self.ks:
            raise NotFound(f"k = {wanted} is not in this run's sweep; there are {', '.join(map(str, self.ks))}")
        return wanted

    def clusters(self, k: int) -> ClusterTable:
        """The clusters of ``k``; ``NotFound`` where it is not in the sweep."""
        self.k_or_chosen(k)
        return self.kept(
            ("clusters", k),
            of=[_PATCHES, _CLUSTERS],
            make=lambda: read_clusters(self.run.require("clusters"), table=self.table, k=k),
        )

    def check_cluster(self, k: int, cluster: int) -> None:
        """``NotFound`` where there is no such cluster."""
        if not 0 <= cluster < self.k_or_chosen(k):
            raise NotFound(f"there is no cluster {cluster} at k = {k}; there are 0 to {k - 1}")

    def names(self, k: int) -> dict[int, str]:
        """The current name of each cluster of ``k``; ``cluster c`` where it has none."""
        return {cluster: label.name for cluster, label in self.labels(k).items()}

    def labels(self, k: int) -> dict[int, Label]:
        """Name, colour and flag that count for each cluster of ``k``; the last two may be empty."""
        return self.kept(("names", k), of=[_CLUSTERS, _NAMES], make=lambda: current_labels(self.path, k=k))

    def colours(self, k: int) -> list[str]:
        """The colour of each cluster of ``k`` as ``#rrggbb``: the expert's, else the palette's."""
        return [hexadecimal(colour) for colour in cluster_colours(self.labels(k), k=k)]

    def row_of(self, patch_id: str) -> int:
        """The row of a patch; ``NotFound`` where there is none."""
        row = self.table.row(patch_id)
        if row is None:
            raise NotFound("there is no such patch in this run")
        return row

    def slide_of(self, slide_id: str) -> int:
        """The row of a slide in ``table.slides``; ``NotFound`` where there is none."""
        number = self.table.slide_number(slide_id)
        if number is None:
            raise NotFound("there is no such slide in this run")
        return number

    def overlap(self, k: int, other: int) -> np.ndarray:
        """How many patches each cluster of ``k`` shares with each of ``other``, int64 (k, other)."""
        return self.kept(
            ("overlap", k, other),
            of=[_PATCHES, _CLUSTERS],
            make=lambda: overlap(self.clusters(k), self.clusters(other)),
        )

    @property
    def samples(self) -> dict[str, Sample]:
        """The run's samples by id; empty where none were drawn."""
        return self.kept("samples", of=_SAMPLES, make=self._samples)

    def samples_of(self, k: int, cluster: int) -> list[Sample]:
        """The samples of a cluster, in the order in which they were drawn."""
        by_cluster = self.kept("samples by cluster", of=_SAMPLES, make=self._samples_by_cluster)
        return by_cluster.get((k, cluster), [])

    def sample_file(self, sample_id: str) -> Path:
        """Where a sample's picture lies; ``NotFound`` where there is no such sample."""
        sample = self.samples.get(sample_id)
        if sample is None:
            raise NotFound("there is no such sample in this run")
        return self.run.folder("samples") / sample.file

    @property
    def latents(self) -> LatentSet:
        """The latents of all patches, memory-mapped; loads torch."""
        return self.kept("latents", of=["latents/artifact.json"], make=self._latents)

    def _made(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except FileNotFoundError as error:
            raise Conflict(f"{self.title} is being changed right now; try again in a moment") from error

    def _version(self) -> str:
        found = [self.run.artifact(stage) for stage in ("patches", "clusters")]
        return fingerprint([None if artifact is None else artifact.fingerprint for artifact in found])

    def _random(self) -> np.ndarray:
        from histoloom.seeding import permutation

        return permutation(self.config.seed, "atlas", "random", n=len(self.table)).astype(np.int32)

    def _ks(self) -> tuple[int, ...]:
        import pyarrow.parquet as pq

        names = pq.read_schema(self.run.require("clusters") / "index.parquet").names
        return tuple(sorted(int(name[1:]) for name in names if name != "patch_id"))

    def _choice(self) -> int:
        return Decision.load(self.run.require("clusters")).k

    def _samples(self) -> dict[str, Sample]:
        path = self.run.folder("samples") / "metadata.csv"
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            row["sample_id"]: Sample(
                row["sample_id"], int(row["k"]), int(row["cluster"]), int(row["index"]), row["file_name"]
            )
            for row in rows
        }

    def _samples_by_cluster(self) -> dict[tuple[int, int], list[Sample]]:
        found: dict[tuple[int, int], list[Sample]] = {}
        for sample in sorted(self.samples.values(), key=lambda sample: sample.index):
            found.setdefault((sample.k, sample.cluster), []).append(sample)
        return found

    def _latents(self) -> LatentSet:
        from histoloom.autoencoder.latents import LatentSet

        return LatentSet.open(self.run.require("latents"))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
