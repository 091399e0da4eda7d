"""Reads what the report shows from the folders of a run's stages.

Shape suffixes: N patches, K clusters, H and W height and width in px.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from markupsafe import Markup

from histoloom.atlas.browse.agreement import sentences
from histoloom.atlas.browse.cluster_table import ClusterTable, read_clusters
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.maps.embedding import neighbours
from histoloom.atlas.maps.overlay import MapRecord
from histoloom.atlas.maps.palette import cluster_colours, hexadecimal
from histoloom.atlas.maps.patch_map import FEATURE_TITLES, Embedding, PatchMap, patch_map, thumbnail
from histoloom.atlas.report import numbers
from histoloom.atlas.report.cluster_verdict import cluster_verdict
from histoloom.atlas.report.distribution_table import distribution_table
from histoloom.atlas.report.faithfulness_lines import cluster_line, summary_lines
from histoloom.atlas.report.figures import Picture, curves, curves_svg, picture, read_image
from histoloom.atlas.report.null_table import null_rows
from histoloom.atlas.report.originality import originality_of
from histoloom.atlas.report.page import (
    AssociationRow,
    Choice,
    Cluster,
    Confounding,
    Cost,
    Header,
    Map,
    Page,
    Quality,
    Reconstruction,
    SlideRow,
    Training,
    TruthRow,
)
from histoloom.atlas.report.readings import readings_of
from histoloom.config import Config
from histoloom.names import Label, current_labels, default_name, read_book
from histoloom.run.directory import Artifact, read_json
from histoloom.run.stage import EventLog

STAGES = ("patches", "autoencoder", "latents", "clusters", "diffusion", "samples", "evaluation")
TRAINED = ("autoencoder", "clusters", "diffusion")

_RECONSTRUCTIONS = 8
_MAP_SIDE = 640
_CHUNK = 256


class RunReader:
    """A run's folders as the report's parts. ``maps`` is the folder with the tissue maps that were drawn.

    ``embedding`` holds the 2-D maps of patches, where they were made.
    """

    def __init__(
        self, run: Path, *, config: Config, inputs: Mapping[str, Path], maps: Path, embedding: Embedding | None = None
    ) -> None:
        self.run = run
        self.config = config
        self.inputs = inputs
        self.maps_folder = maps
        self.embedding = embedding

    def page(self) -> Page:
        """Everything that the report shows."""
        clusters, evaluation = self.inputs["clusters"], self.inputs["evaluation"]
        validity = read_json(clusters / "validity.json")
        similarity = read_json(evaluation / "similarity.json")
        overall = numbers.similarity_rows(similarity, missing=self.missing, k=self.k, cluster=None)
        header = self._header()
        return Page(
            header=header,
            verdict=tuple(
                numbers.verdict(choice=self.choice, similarity=overall, patches=header.patches, slides=header.slides)
            ),
            slides=self._slides(),
            reconstructions=self._reconstructions(),
            quality=self._quality(),
            training=tuple(self._training(stage) for stage in TRAINED),
            choice=Choice(
                self.k,
                str(self.choice["rule"]),
                str(self.choice.get("evidence", "")),
                self.choice["plain"]["k"] if "plain" in self.choice else None,
            ),
            nulls=tuple(null_rows(self.choice)),
            confounding=self._confounding(),
            patch_map=None if self.embedding is None else self._patch_map(self.embedding),
            validity=tuple(numbers.validity_rows(validity, choice=self.choice)),
            similarity=tuple(overall),
            distribution=distribution_table(self.distribution, k=self.k),
            faithful=summary_lines(self.faithfulness, k=self.k),
            clusters=self._clusters(similarity),
            agreement=self._agreement(),
            maps=self._maps(),
            maps_missing=self._maps_missing(),
            paper_validity=tuple(numbers.paper_validity(validity)),
            paper_similarity=tuple(numbers.paper_similarity(similarity)),
            originality=originality_of(evaluation),
            readings=readings_of(self.run),
            truth=self._truth(),
            missing=self.missing,
            config=yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            environment=self._environment(),
            costs=self._costs(),
        )

    @cached_property
    def choice(self) -> dict[str, Any]:
        """``clusters/choice.json``."""
        value: dict[str, Any] = read_json(self.inputs["clusters"] / "choice.json")
        return value

    @property
    def k(self) -> int:
        """The number of clusters that is shown in detail: the chosen one, unless the configuration names another."""
        return self.config.report.k or int(self.choice["k"])

    @cached_property
    def labels(self) -> dict[int, Label]:
        """Names, colours and flags that count at the chosen k."""
        return current_labels(self.run, k=self.k)

    @property
    def names(self) -> dict[int, str]:
        """The current names at the chosen k."""
        return {cluster: label.name for cluster, label in self.labels.items()}

    @cached_property
    def missing(self) -> dict[str, str]:
        """Metrics that could not be computed, with the reason."""
        path = self.inputs["evaluation"] / "missing.json"
        return {str(metric): str(reason) for metric, reason in read_json(path).items()} if path.is_file() else {}

    @cached_property
    def table(self) -> PatchTable:
        """The real patches."""
        return PatchTable(self.inputs["patches"])

    @cached_property
    def clusters(self) -> ClusterTable:
        """The clusters at the shown k."""
        return read_clusters(self.inputs["clusters"], table=self.table, k=self.k)

    def _header(self) -> Header:
        used = self.table.patches.slides[self.table.patches.slides["status"] == "ok"]
        return Header(
            run=self.run.resolve().name,
            written=time.strftime("%Y-%m-%d %H:%M"),
            seed=self.config.seed,
            preset=self.config.preset,
            slides=len(used),
            patients=used["patient"].nunique(),
            patches=len(self.table.patches.table),
            size=self.config.patches.size,
            mpp=self.config.patches.mpp,
            split_by=self.config.patches.split.by,
        )

    def _slides(self) -> tuple[SlideRow, ...]:
        return tuple(
            SlideRow(
                patient=str(row["patient"]),
                slide=str(row["slide"]),
                file=Path(str(row["file"])).name,
                width=_whole(row["width"]),
                height=_whole(row["height"]),
                mpp=None if pd.isna(row["source_mpp"]) else float(row["source_mpp"]),
                mpp_source="" if pd.isna(row["mpp_source"]) else str(row["mpp_source"]),
                patches=_whole(row["patches"]),
                split="" if pd.isna(row["split"]) else str(row["split"]),
                status=str(row["status"]),
            )
            for row in self.table.patches.slides.to_dict("records")
        )

    def _quality(self) -> Quality:
        values = read_json(self.inputs["autoencoder"] / "quality.json")
        return Quality(**{field.name: values[field.name] for field in fields(Quality) if field.name in values})

    def _reconstructions(self) -> tuple[Reconstruction, ...]:
        with np.load(self.inputs["autoencoder"] / "reconstructions.npz") as shown:
            pairs = list(zip(shown["patch_id"], shown["original"], shown["reconstruction"], strict=True))
        return tuple(
            Reconstruction(
                picture(original, text=f"Original patch {patch_id}"),
                picture(reconstruction, text=f"Reconstruction of patch {patch_id}"),
            )
            for patch_id, original, reconstruction in pairs[:_RECONSTRUCTIONS]
        )

    def _training(self, stage: str) -> Training:
        metrics = curves(EventLog(self.inputs[stage] / "log.jsonl").read())
        values = ", ".join(f"{curve.name} ends at {numbers.number(curve.last)}" for curve in metrics)
        # Safe: matplotlib wrote it, which escapes the text in it.
        return Training(stage, Markup(curves_svg(metrics, salt=stage)), values)

    @cached_property
    def distribution(self) -> dict[str, Any]:
        """``evaluation/distribution.json``."""
        return self._evaluated("distribution")

    @cached_property
    def faithfulness(self) -> dict[str, Any]:
        """``evaluation/faithfulness.json``; empty where samples were not judged."""
        return self._evaluated("faithfulness")

    @cached_property
    def originality(self) -> dict[str, Any]:
        """``evaluation/originality.json``; empty where nobody looked for copies."""
        return self._evaluated("originality")

    def _evaluated(self, name: str) -> dict[str, Any]:
        path = self.inputs["evaluation"] / f"{name}.json"
        return read_json(path) if path.is_file() else {}

    def _clusters(self, similarity: numbers.Entries) -> tuple[Cluster, ...]:
        hues = cluster_colours(self.labels, k=self.k)
        return tuple(
            self._cluster(cluster, similarity=similarity, colour=hexadecimal(hues[cluster]))
            for cluster in range(self.k)
        )

    def _cluster(self, cluster: int, *, similarity: numbers.Entries, colour: str) -> Cluster:
        distribution = distribution_table(self.distribution, k=self.k, cluster=cluster)
        faithful = cluster_line(self.faithfulness, cluster=cluster, k=self.k)
        files = self._files(cluster)
        return Cluster(
            number=cluster,
            name=self.names[cluster],
            named=self.names[cluster] != default_name(cluster),
            colour=colour,
            flag=self.labels[cluster].flag,
            extent=self.clusters.extent(cluster, table=self.table),
            real=self._typical(cluster),
            samples=self._samples(cluster),
            verdict=cluster_verdict(
                faithful=faithful, distribution=distribution.rows, originality=self.originality, files=files
            ),
            similarity=tuple(numbers.similarity_rows(similarity, missing=self.missing, k=self.k, cluster=cluster)),
            distribution=distribution,
            faithful=faithful,
        )

    def _agreement(self) -> tuple[str, ...]:
        """How far raters agree at the shown k; empty where fewer than two named."""
        return sentences(read_book(self.run, k=self.k), sizes=[len(rows) for rows in self.clusters.members])

    def _typical(self, cluster: int) -> tuple[Picture, ...]:
        rows = self.clusters.most_typical(cluster, n=self.config.report.patches_per_cluster, table=self.table)
        slides = self.table.slides["slide"].iloc[self.table.slide_N[rows]]
        return tuple(
            picture(
                image,
                text=f"Real patch of {self.names[cluster]}, slide {slide}, probability {self.clusters.p_N[row]:.2f}",
            )
            for row, slide, image in zip(rows, slides, self.table.patches.images(rows), strict=True)
        )

    def _samples(self, cluster: int) -> tuple[Picture, ...]:
        folder = self.inputs["samples"]
        files = self._files(cluster)[: self.config.report.patches_per_cluster]
        return tuple(
            picture(read_image(folder / name), text=f"Synthetic patch of {self.names[cluster]}, number {position + 1}")
            for position, name in enumerate(files)
        )

    def _files(self, cluster: int) -> list[str]:
        table = self._metadata
        chosen = table[(table["k"] == self.k) & (table["cluster"] == cluster)].sort_values("index")
        return [str(name) for name in chosen["file_name"]]

    @cached_property
    def _metadata(self) -> pd.DataFrame:
        return pd.read_csv(self.inputs["samples"] / "metadata.csv", keep_default_na=False)

    @cached_property
    def _map_records(self) -> dict[str, MapRecord]:
        records = {path.stem: MapRecord.load(path) for path in sorted(self.maps_folder.glob("*.json"))}
        return {slide_id: record for slide_id, record in records.items() if record is not None}

    def _maps(self) -> tuple[Map, ...]:
        maps = []
        for record in self._map_records.values():
            if record.missing:
                continue
            thumbnail = read_image(self.inputs["patches"] / "thumbnails" / f"{record.slide_id}.jpg")
            overlay = read_image(self.maps_folder / f"{record.slide_id}.png")
            maps.append(
                Map(
                    title=record.title,
                    thumbnail=picture(thumbnail, text=f"Thumbnail of slide {record.title}", at_most=_MAP_SIDE),
                    overlay=picture(overlay, text=f"Tissue map over slide {record.title}", at_most=_MAP_SIDE),
                    patches=record.patches,
                )
            )
        return tuple(maps)

    def _maps_missing(self) -> dict[str, str]:
        return {record.title: record.missing for record in self._map_records.values() if record.missing}

    def _truth(self) -> tuple[TruthRow, ...]:
        path = self.inputs["evaluation"] / "truth.json"
        entries = read_json(path) if path.is_file() else []
        return tuple(
            TruthRow(e["k"], e["method"], e["nmi"], e["ari"], e["n"], _number_of(e["classes"])) for e in entries
        )

    def _confounding(self) -> Confounding:
        path = self.inputs["clusters"] / "confounding.json"
        found = read_json(path) if path.is_file() else {"warnings": {}, "associations": []}
        names = [field.name for field in fields(AssociationRow)]
        rows = (AssociationRow(**{name: entry[name] for name in names}) for entry in found["associations"])
        return Confounding(tuple(found["warnings"].get(str(self.k), ())), tuple(rows))

    def _patch_map(self, embedding: Embedding) -> PatchMap:
        table, rows_N = self.table, self.table.rows_of(pa.array(embedding.patch_ids, pa.string()))
        starts = range(0, len(rows_N), _CHUNK)
        thumbnails = [
            thumbnail(image) for start in starts for image in table.patches.images(rows_N[start : start + _CHUNK])
        ]
        return patch_map(
            embedding,
            labels_N=self.clusters.label_N[rows_N].astype(np.int64),
            map_neighbours={method: neighbours(xy_N2) for method, xy_N2 in embedding.maps.items()},
            thumbnails=thumbnails,
            texts=[f"slide {slide}" for slide in table.slides["slide"].iloc[table.slide_N[rows_N]]],
            features=FEATURE_TITLES[self.config.clusters.validity_features],
        )

    def _environment(self) -> dict[str, str]:
        path = self.run / "environment.json"
        values = read_json(path) if path.is_file() else {}
        return {key: _plain(value) for key, value in values.items()}

    def _costs(self) -> tuple[Cost, ...]:
        found = [(stage, Artifact.read(self.inputs[stage])) for stage in STAGES]
        return tuple(Cost(stage, a.seconds, a.peak_memory_mb) for stage, a in found if a is not None)


def _whole(value: Any) -> int:
    return 0 if pd.isna(value) else int(value)


def _number_of(classes: Any) -> int:
    return len(classes) if isinstance(classes, list) else int(classes)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)
