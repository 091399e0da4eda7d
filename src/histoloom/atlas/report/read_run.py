"""Reads the content of the report from the folders of a run's stages.

Shape suffixes: N patches.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from markupsafe import Markup

from histoloom.atlas.browse.agreement import sentences
from histoloom.atlas.browse.cluster_table import ClusterTable, read_clusters
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.browse.run_slides import RunSlides
from histoloom.atlas.maps.embedding import neighbours
from histoloom.atlas.maps.overlay import MapRecord
from histoloom.atlas.maps.palette import cluster_colours, hexadecimal
from histoloom.atlas.maps.patch_map import FEATURE_TITLES, Embedding, PatchMap, patch_map, thumbnail
from histoloom.atlas.report.clustering_tables import (
    definition_rows,
    paper_similarity,
    paper_validity,
    region_table,
    validity_rows,
)
from histoloom.atlas.report.figures import curves, curves_svg, picture, read_image
from histoloom.atlas.report.page import (
    Cluster,
    Header,
    Map,
    Page,
    Training,
)
from histoloom.atlas.report.paper import INDEX_TITLES
from histoloom.atlas.report.sample_checks import originality_section, readings_of
from histoloom.atlas.report.sample_quality import (
    SimilarityRow,
    cluster_verdict,
    distribution_table,
    recognition_line,
    similarity_rows,
    usefulness_sentences,
)
from histoloom.atlas.report.text import count, number
from histoloom.autoencoder.quality import ReconstructionQuality, Reconstructions
from histoloom.clustering.results import Confounding, Decision, PatchAlone, ValidityTable
from histoloom.config import Config
from histoloom.evaluation.results import Distribution, Faithfulness, Originality, PaperSimilarity, Similarity, Truth
from histoloom.names import current_labels, default_name, read_label_state
from histoloom.run.directory import Artifact, read_json
from histoloom.run.stage import EventLog

STAGES = ("patches", "autoencoder", "latents", "clusters", "diffusion", "samples", "evaluation")
TRAINED = ("autoencoder", "clusters", "diffusion")

_RECONSTRUCTIONS = 8
_MAP_SIDE = 640
_CHUNK = 256


def read_page(
    run: Path, *, config: Config, inputs: Mapping[str, Path], maps: Path, embedding: Embedding | None = None
) -> Page:
    """The report of a run. ``inputs`` are the folders of ``STAGES``, ``maps`` the folder with the drawn tissue maps.

    ``embedding`` holds the 2-D maps of patches, where they were made.
    """
    # The records of the stages
    table = PatchTable(inputs["patches"])
    decision, validity = Decision.load(inputs["clusters"]), ValidityTable.load(inputs["clusters"])
    k = config.report.k or decision.k
    clusters = read_clusters(inputs["clusters"], table=table, k=k)
    evaluation = inputs["evaluation"]
    similarity = Similarity.load(evaluation) or Similarity(entries=())
    by_paper = PaperSimilarity.load(evaluation)
    distribution = Distribution.load(evaluation)
    faithfulness = Faithfulness.load(evaluation)
    originality, truth = Originality.load(evaluation), Truth.load(evaluation)
    shown = Reconstructions.load(inputs["autoencoder"])
    map_records = [record for path in sorted(maps.glob("*.json")) if (record := MapRecord.load(path))]
    artifacts = [artifact for stage in STAGES if (artifact := Artifact.read(inputs[stage]))]

    # What the page needs in another form
    overall = similarity_rows(similarity, k=k, cluster=None)
    used = table.patches.slides[table.patches.slides["status"] == "ok"]
    header = Header(
        run=run.resolve().name,
        written=time.strftime("%Y-%m-%d %H:%M"),
        seed=config.seed,
        preset=config.preset,
        slides=len(used),
        patients=used["patient"].nunique(),
        patches=len(table),
        size=config.patches.size,
        mpp=config.patches.mpp,
        split_by=config.patches.split.by,
    )
    reconstructions = [
        (
            picture(original, text=f"Original patch {patch_id}"),
            picture(reconstruction, text=f"Reconstruction of patch {patch_id}"),
        )
        for patch_id, original, reconstruction in zip(
            shown.patch_id[:_RECONSTRUCTIONS], shown.original, shown.reconstruction, strict=False
        )
    ]
    region_N = table.regions()
    environment = read_json(run / "environment.json") if (run / "environment.json").is_file() else {}
    for key, value in environment.items():
        if isinstance(value, dict):
            environment[key] = ", ".join(f"{name} {version}" for name, version in value.items())
        elif not isinstance(value, str):
            environment[key] = json.dumps(value)

    return Page(
        k=k,
        header=header,
        confounding=Confounding.load(inputs["clusters"]) or Confounding(),
        summary=_summary(decision, similarity=overall, header=header),
        similarity=overall,
        distribution=distribution_table(distribution, k=k),
        usefulness=usefulness_sentences(faithfulness, k=k),
        patch_alone=PatchAlone.load(inputs["clusters"]),
        missing=similarity.missing,
        agreement=sentences(read_label_state(run, k=k), sizes=[len(rows) for rows in clusters.members]),
        clusters=_clusters(
            run,
            config=config,
            samples=inputs["samples"],
            table=table,
            clusters=clusters,
            similarity=similarity,
            distribution=distribution,
            faithfulness=faithfulness,
            originality=originality,
        ),
        originality=None if originality is None else originality_section(originality, evaluation=evaluation),
        readings=readings_of(run),
        maps=[
            _map(record, thumbnails=inputs["patches"] / "thumbnails", maps=maps)
            for record in map_records
            if not record.missing
        ],
        maps_missing={record.title: record.missing for record in map_records if record.missing},
        patch_map=None if embedding is None else _patch_map(embedding, config=config, table=table, clusters=clusters),
        decision=decision,
        validity=validity_rows(validity, decision=decision),
        quality=ReconstructionQuality.load(inputs["autoencoder"]),
        reconstructions=reconstructions,
        training=[_training(stage, log=EventLog(inputs[stage] / "log.jsonl")) for stage in TRAINED],
        slides=list(RunSlides(inputs["patches"]).by_id.values()),
        regions=None if region_N is None else region_table(region_N, clusters.label_N, k=k),
        paper_validity=paper_validity(validity),
        paper_similarity=paper_similarity(similarity),
        paper_definitions=definition_rows(similarity, by_paper, k=k),
        paper_definitions_missing={} if by_paper is None else by_paper.missing,
        truth=() if truth is None else truth.agreements,
        costs=artifacts,
        environment=environment,
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )


def _summary(decision: Decision, *, similarity: Sequence[SimilarityRow], header: Header) -> list[str]:
    """The run in a few plain sentences."""
    k = decision.k
    reason = decision.text
    if decision.has_clusters is None:
        best = [INDEX_TITLES.get(name, name) for name, best_k in decision.by_index.items() if best_k == k]
        names = f" ({', '.join(best)})" if best else ""
        reason = (
            f"That number was chosen by this rule: {decision.rule.rstrip('.')}. {len(best)} of "
            f"{len(decision.by_index)} validity indices are best at k = {k}{names}."
        )
    metrics_by_reading: dict[str, list[str]] = {}
    for row in similarity:
        if row.reading:
            metrics_by_reading.setdefault(row.reading, []).append(row.title)
    parts = [f"by {' and '.join(titles)} they are {reading}" for reading, titles in metrics_by_reading.items()]
    return [
        f"The {header.patches:,} patches of {count(header.slides, 'slide')} were sorted, without labels, into {k} "
        "clusters.",
        reason,
        "Synthetic patches against real ones of the same cluster: " + "; ".join(parts) + "."
        if parts
        else "The similarity of synthetic and real patches was not measured against a floor in this run.",
    ]


def _clusters(
    run: Path,
    *,
    config: Config,
    samples: Path,
    table: PatchTable,
    clusters: ClusterTable,
    similarity: Similarity,
    distribution: Distribution | None,
    faithfulness: Faithfulness | None,
    originality: Originality | None,
) -> list[Cluster]:
    """Each cluster with its most typical patches, its first samples, and how good the samples are."""
    k, n = clusters.k, config.report.patches_per_cluster
    labels = current_labels(run, k=k)
    colours = cluster_colours(labels, k=k)
    metadata = pd.read_csv(samples / "metadata.csv", keep_default_na=False)
    result = []
    for cluster in range(k):
        name = labels[cluster].name
        rows = clusters.most_typical(cluster, n=n, table=table)
        slides = table.slides["slide"].iloc[table.slide_N[rows]]
        of_cluster = metadata[(metadata["k"] == k) & (metadata["cluster"] == cluster)].sort_values("index")
        files = [str(file) for file in of_cluster["file_name"]]
        distributions = distribution_table(distribution, k=k, cluster=cluster)
        recognition = recognition_line(faithfulness, cluster=cluster, k=k)
        result.append(
            Cluster(
                number=cluster,
                name=name,
                named=name != default_name(cluster),
                colour=hexadecimal(colours[cluster]),
                flag=labels[cluster].flag,
                extent=clusters.extent(cluster, table=table),
                real=tuple(
                    picture(image, text=f"Real patch of {name}, slide {slide}, probability {clusters.p_N[row]:.2f}")
                    for row, slide, image in zip(rows, slides, table.patches.images(rows), strict=True)
                ),
                samples=tuple(
                    picture(read_image(samples / file), text=f"Synthetic patch of {name}, number {position}")
                    for position, file in enumerate(files[:n], start=1)
                ),
                verdict=cluster_verdict(
                    recognition=recognition, distribution=distributions.rows, originality=originality, files=files
                ),
                similarity=similarity_rows(similarity, k=k, cluster=cluster),
                distribution=distributions,
                recognition=recognition,
            )
        )
    return result


def _map(record: MapRecord, *, thumbnails: Path, maps: Path) -> Map:
    slide, title = read_image(thumbnails / f"{record.slide_id}.jpg"), record.title
    overlay = read_image(maps / f"{record.slide_id}.png")
    return Map(
        title=title,
        thumbnail=picture(slide, text=f"Thumbnail of slide {title}", at_most=_MAP_SIDE),
        overlay=picture(overlay, text=f"Tissue map over slide {title}", at_most=_MAP_SIDE),
        patches=record.patches,
    )


def _patch_map(embedding: Embedding, *, config: Config, table: PatchTable, clusters: ClusterTable) -> PatchMap:
    rows_N = table.rows_of(pa.array(embedding.patch_ids, pa.string()))
    starts = range(0, len(rows_N), _CHUNK)
    return patch_map(
        embedding,
        labels_N=clusters.label_N[rows_N].astype(np.int64),
        map_neighbours={method: neighbours(xy_N2) for method, xy_N2 in embedding.maps.items()},
        thumbnails=[
            thumbnail(image) for start in starts for image in table.patches.images(rows_N[start : start + _CHUNK])
        ],
        texts=[f"slide {slide}" for slide in table.slides["slide"].iloc[table.slide_N[rows_N]]],
        features=FEATURE_TITLES[config.clusters.validity_features],
    )


def _training(stage: str, *, log: EventLog) -> Training:
    metrics = curves(log.read())
    text = ", ".join(f"{curve.name} ends at {number(curve.last)}" for curve in metrics)
    return Training(stage, Markup(curves_svg(metrics, salt=stage)), text)  # safe: matplotlib escapes the text in it
