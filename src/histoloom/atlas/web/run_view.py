"""An open run: each part is loaded when it is first needed, and again when its stage is published again."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from histoloom.atlas.browse.cluster_table import ClusterTable, overlap, read_clusters
from histoloom.atlas.browse.grouping import CorrectedPatch, Grouping, grouping_of
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.jobs.queue import FOLDER, has_generator
from histoloom.atlas.maps.tissue_groups import TissueGroups, group_patches
from histoloom.atlas.web.errors import NotFound
from histoloom.atlas.web.generator_view import GeneratorView
from histoloom.clustering.results import Decision
from histoloom.config import Config, SamplerConfig, load_config
from histoloom.diffusion.corrections import TrainedCorrections
from histoloom.names import Label, clustering_of, current_labels, read_events, reference_of, tissues_of
from histoloom.names.corrections import FILE as CORRECTIONS
from histoloom.names.corrections import CorrectionState, corrections_journal, target_names
from histoloom.run.directory import Run, fingerprint

_CONFIG = "config.yaml"
_PATCHES = "patches/artifact.json"
_CLUSTERS = "clusters/artifact.json"
_DIFFUSION = "diffusion/artifact.json"
_SAMPLES = ("samples/artifact.json", "samples/metadata.csv")
_NAMES = "names.jsonl"


_CORRECTIONS = (_CLUSTERS, _NAMES, CORRECTIONS)


@dataclass(frozen=True)
class Sample:
    """A synthetic patch of the stage ``samples``; ``file`` is relative to the stage's folder."""

    sample_id: str
    k: int
    cluster: int
    index: int
    file: str


class RunView(GeneratorView):
    """A run directory, read only. It forgets what it has read of a stage that is replaced."""

    def __init__(self, path: Path) -> None:
        self.run = Run.open(path)
        super().__init__(self.run.path, title=path.resolve().name, drawn=self.run.path / FOLDER)
        self._tissues: dict[int, tuple[object, ClusterTable]] = {}

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.cached("config", depends_on=[_CONFIG], make=lambda: load_config(self.path / _CONFIG))

    @property
    def has_generator(self) -> bool:
        """Whether the run has a trained generator."""
        return has_generator(self.path)

    @property
    def sampler(self) -> SamplerConfig:
        """The default sampler."""
        return self.config.samples.sampler

    @property
    def most_steps(self) -> int:
        """Steps of the diffusion process."""
        return self.config.diffusion.steps

    @property
    def size(self) -> int:
        """Side of a patch, px."""
        return self.table.size

    @property
    def mpp(self) -> float:
        """um/px of a patch."""
        return self.table.patches.mpp

    def shares(self, k: int) -> dict[int, float]:
        """For each cluster of ``k`` its share of all patches, 0..1."""
        clusters = self.clusters(k)
        return {cluster: clusters.extent(cluster, table=self.table).share for cluster in range(k)}

    def corrected_groups(self, k: int) -> dict[str, float]:
        """The names of corrected patches that are conditions as clusters are, with their shares of patches, 0..1."""

        def make() -> TrainedCorrections:
            return TrainedCorrections.load(self.run.folder("diffusion"))

        trained = self.cached("trained corrections", depends_on=[_DIFFUSION], make=make)
        numbers = list(trained.numbers.get(k, {}).values())
        names = enumerate(trained.names.get(k, ()), start=k)
        return {name: numbers.count(number) / len(self.table) for number, name in names}

    @property
    def version(self) -> str:
        """Digits that change when patches or clusters do; part of pictures' addresses, so that these never change."""
        return self.cached("version", depends_on=[_PATCHES, _CLUSTERS], make=self._version)

    @property
    def table(self) -> PatchTable:
        """All patches."""
        return self.cached("table", depends_on=[_PATCHES], make=lambda: PatchTable(self.run.require("patches")))

    @property
    def side_um(self) -> str:
        """The side of a patch in um, such as ``64``."""
        return f"{self.table.size * self.table.patches.mpp:.3g}"

    @property
    def random_N(self) -> np.ndarray:
        """A permutation of all patches, int32 (N,); the same in every visit."""
        return self.cached("random", depends_on=[_PATCHES], make=self._random)

    @property
    def ks(self) -> tuple[int, ...]:
        """The sweep, rising."""
        return self.cached("ks", depends_on=[_CLUSTERS], make=self._ks)

    @property
    def chosen(self) -> int:
        """The k that is shown by default: the report's, or the clustering's decision."""
        if self.config.report.k:
            return self.config.report.k
        return self.cached(
            "decision", depends_on=[_CLUSTERS], make=lambda: Decision.load(self.run.require("clusters"))
        ).k

    def clusters(self, k: int) -> ClusterTable:
        """The clusters of ``k``; ``NotFound`` where it is not in the sweep."""
        self.k_or_chosen(k)
        return self.cached(
            ("clusters", k),
            depends_on=[_PATCHES, _CLUSTERS],
            make=lambda: read_clusters(self.run.require("clusters"), table=self.table, k=k),
        )

    def tissues(self, k: int) -> ClusterTable:
        """The clusters of ``k`` with those of one tissue merged into the first of them; the others have no patches."""
        merged = tuple(clusters for clusters in self.tissue_clusters(k).values() if len(clusters) > 1)
        if not merged:
            return self.clusters(k)
        identity, tables = (self.version, merged), self._tissues
        if tables.get(k, (None,))[0] != identity:
            folder = self.run.require("clusters")
            tables[k] = (identity, read_clusters(folder, table=self.table, k=k, tissues=merged))
        return tables[k][1]

    def tissue_clusters(self, k: int) -> dict[int, tuple[int, ...]]:
        """The clusters of each tissue of ``k``, by the first of them."""
        return tissues_of(self.labels(k))

    def tissue_of(self, k: int, cluster: int) -> int:
        """The first cluster of the tissue of a cluster: the one under which the pages show it."""
        return next(first for first, clusters in self.tissue_clusters(k).items() if cluster in clusters)

    def group_version(self, k: int, group: int) -> str:
        """Digits that change when the patches of a group do; part of the addresses of its pictures."""
        members = self.grouping(k).members(group)
        if 0 <= group < k and np.array_equal(members, self.clusters(k).members[group]):
            return self.version
        return fingerprint([self.version, hashlib.sha256(members.tobytes()).hexdigest()])

    def check_cluster(self, k: int, cluster: int) -> None:
        """``NotFound`` where there is no such cluster."""
        if not 0 <= cluster < self.k_or_chosen(k):
            raise NotFound(f"there is no group {cluster} at k = {k}; there are 0 to {k - 1}")

    def labels(self, k: int) -> dict[int, Label]:
        """Name, colour and flag that count for each cluster of ``k``; the last two may be empty."""
        return self.cached(("names", k), depends_on=[_CLUSTERS, _NAMES], make=lambda: current_labels(self.path, k=k))

    def groups(self, k: int) -> TissueGroups:
        """The tissue groups of ``k``, and the group of each patch."""
        return self._tissue_groups(k)[0]

    def grouping(self, k: int) -> Grouping:
        """The groups of ``k`` and their patches: what cards, galleries and counts show."""

        def make() -> Grouping:
            tissue, corrected = self._tissue_groups(k)
            return grouping_of(tissue, merged=self.tissues(k), table=self.table, corrections=corrected)

        return self.cached(("grouping", k), depends_on=[_PATCHES, *_CORRECTIONS], make=make)

    def group_number(self, k: int, name: str) -> int:
        """The number of the group of this name in ``grouping``; ``NotFound`` where there is none."""
        number = self.grouping(k).number_of(name)
        if number is None:
            raise NotFound("there is no group of this name; its corrections may have been undone")
        return number

    def correction_state(self, k: int) -> CorrectionState:
        """All corrections at ``k``."""
        journal = self.cached("corrections' journal", depends_on=[], make=lambda: corrections_journal(self.path))

        def make() -> CorrectionState:
            reference = reference_of(read_events(self.path))
            return CorrectionState(journal.events(), k=k, clustering=clustering_of(self.path), reference=reference)

        return self.cached(("correction state", k), depends_on=_CORRECTIONS, make=make)

    def corrections(self, k: int) -> dict[str, str]:
        """The name of each corrected patch at ``k``, by patch id (``names/corrections.py``)."""
        targets = self.correction_state(k).effective()
        names = target_names(targets.values(), labels=self.labels(k))
        return {patch: names[target] for patch, target in targets.items()}

    def _tissue_groups(self, k: int) -> tuple[TissueGroups, dict[int, CorrectedPatch]]:
        """The groups of ``k``, and the corrections in them, by the row of the patch."""

        def make() -> tuple[TissueGroups, dict[int, CorrectedPatch]]:
            labels, events = self.labels(k), self.correction_state(k).effective_events()
            targets = {patch: event.target for patch, event in events.items() if event.target is not None}
            names = target_names(targets.values(), labels=labels)
            rows = self.table.rows_of(pa.array(list(targets), pa.string())).tolist()
            corrected = {
                row: CorrectedPatch(names[target], events[patch].rater)
                for row, (patch, target) in zip(rows, targets.items(), strict=True)
                if row >= 0
            }
            corrections = {row: one.name for row, one in corrected.items()}
            return group_patches(self.clusters(k).label_N, labels=labels, corrections=corrections), corrected

        return self.cached(("groups", k), depends_on=[_PATCHES, *_CORRECTIONS], make=make)

    def row_of(self, patch_id: str) -> int:
        """The row of a patch; ``NotFound`` where there is none."""
        row = self.table.row(patch_id)
        if row is None:
            raise NotFound("there is no such patch in this run")
        return row

    def slide_of(self, slide_id: str) -> int:
        """The row of a slide in ``table.slides``; ``NotFound`` where there is none."""
        row = self.table.slide_number(slide_id)
        if row is None:
            raise NotFound("there is no such slide in this run")
        return row

    def overlap(self, k: int, other: int) -> np.ndarray:
        """How many patches each cluster of ``k`` shares with each of ``other``, int64 (k, other)."""
        return self.cached(
            ("overlap", k, other),
            depends_on=[_PATCHES, _CLUSTERS],
            make=lambda: overlap(self.clusters(k), self.clusters(other)),
        )

    @property
    def samples(self) -> dict[str, Sample]:
        """The run's samples by id; empty where none were drawn."""
        return self.cached("samples", depends_on=_SAMPLES, make=self._samples)

    def samples_of(self, k: int, cluster: int) -> list[Sample]:
        """The samples of a cluster and of all of its tissue, in the order in which they were drawn."""
        by_cluster = self.cached("samples by cluster", depends_on=_SAMPLES, make=self._samples_by_cluster)
        clusters = self.tissue_clusters(k).get(cluster, (cluster,))
        samples = [sample for one in clusters for sample in by_cluster.get((k, one), [])]
        return sorted(samples, key=lambda sample: sample.index)

    def sample(self, sample_id: str) -> Sample:
        """A sample by its id; ``NotFound`` where there is none."""
        if sample_id not in self.samples:
            raise NotFound("there is no such sample in this run")
        return self.samples[sample_id]

    def _version(self) -> str:
        artifacts = [self.run.artifact(stage) for stage in ("patches", "clusters")]
        return fingerprint([artifact and artifact.fingerprint for artifact in artifacts])

    def _random(self) -> np.ndarray:
        from histoloom.seeding import permutation

        return permutation(self.config.seed, "atlas", "random", n=len(self.table)).astype(np.int32)

    def _ks(self) -> tuple[int, ...]:
        import pyarrow.parquet as pq

        names = pq.read_schema(self.run.require("clusters") / "index.parquet").names
        return tuple(sorted(int(name[1:]) for name in names if name != "patch_id"))

    def _samples(self) -> dict[str, Sample]:
        path = self.run.folder("samples") / "metadata.csv"
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            samples = [
                Sample(row["sample_id"], int(row["k"]), int(row["cluster"]), int(row["index"]), row["file_name"])
                for row in csv.DictReader(file)
            ]
        return {sample.sample_id: sample for sample in samples}

    def _samples_by_cluster(self) -> dict[tuple[int, int], list[Sample]]:
        by_cluster: dict[tuple[int, int], list[Sample]] = {}
        for sample in sorted(self.samples.values(), key=lambda sample: sample.index):
            by_cluster.setdefault((sample.k, sample.cluster), []).append(sample)
        return by_cluster
