"""Reads the content of the report from the folders of a run's stages.

Shape suffixes: N patches.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from histoloom.atlas.browse.agreement import sentences
from histoloom.atlas.browse.cluster_table import read_clusters
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.browse.run_slides import RunSlides, SlideInfo
from histoloom.atlas.maps.embedding import neighbours
from histoloom.atlas.maps.overlay import MapRecord
from histoloom.atlas.maps.patch_map import FEATURE_TITLES, Embedding, PatchMap, patch_map, thumbnail
from histoloom.atlas.maps.tissue_groups import NO_GROUP, TissueGroups
from histoloom.atlas.report import run_plots
from histoloom.atlas.report.clustering_tables import (
    definition_rows,
    paper_similarity,
    paper_validity,
    reason_for_k,
    region_table,
    validity_rows,
)
from histoloom.atlas.report.figures import Picture, curves, picture, read_image, scale_bar
from histoloom.atlas.report.group_cards import (
    EvaluationRecords,
    group_cards,
    slide_bar,
    table_of_groups,
    tissue_groups,
)
from histoloom.atlas.report.lights import lights
from histoloom.atlas.report.page import Group, Header, Map, Page
from histoloom.atlas.report.paper import METRIC_TITLES
from histoloom.atlas.report.run_plots import Colouring
from histoloom.atlas.report.sample_checks import originality_section, readings_of, telling_section
from histoloom.atlas.report.sample_quality import (
    distribution_table,
    similarity_rows,
    usefulness_sentences,
)
from histoloom.atlas.report.text import environment_in_words
from histoloom.autoencoder.quality import ReconstructionQuality, Reconstructions
from histoloom.clustering.results import Confounding, Decision, PatchAlone, ValidityTable
from histoloom.config import Config
from histoloom.evaluation.results import Distribution, Similarity, TwoSample
from histoloom.names import current_labels, default_name, read_label_state
from histoloom.names.corrections import counts_by_name, current_corrections
from histoloom.run.directory import Artifact
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
    judged = EvaluationRecords.load(inputs["evaluation"], k=k)
    map_records = [record for path in sorted(maps.glob("*.json")) if (record := MapRecord.load(path))]
    run_slides = RunSlides(inputs["patches"]).by_id
    labels, corrections = current_labels(run, k=k), current_corrections(run, k=k)
    groups, corrected_M = tissue_groups(corrections, clusters=clusters, table=table, labels=labels)
    grouped = table_of_groups(groups, folder=inputs["clusters"], k=k, table=table, corrected_M=corrected_M)
    cards = group_cards(
        groups,
        labels=labels,
        k=k,
        config=config,
        inputs=inputs,
        maps=maps,
        map_records=map_records,
        slides=run_slides,
        table=table,
        grouped=grouped,
        judged=judged,
    )
    colourings = () if embedding is None else _colourings(embedding, table=table, groups=groups, p_N=clusters.p_N)
    # Numbers of a cluster keep its number, also where several clusters are one group
    names = [
        f"{cluster} · {label.name}" if label.name != default_name(cluster) else f"group {cluster}"
        for cluster, label in labels.items()
    ]
    plots = [
        run_plots.why_this_k(decision, validity, k=k),
        run_plots.pair_similarity(judged.similarity, names=names, k=k),
        run_plots.distances(judged.distribution, names=names, k=k),
        run_plots.confusion(judged.faithfulness, names=names, k=k),
        run_plots.copy_scores(judged.originality),
    ]
    if embedding is not None:
        plots += [run_plots.patch_map_plot(embedding, colouring) for colouring in colourings]
    logs = {stage: EventLog(inputs[stage] / "log.jsonl") for stage in TRAINED}
    plots += [run_plots.training(stage, metrics=curves(log.read())) for stage, log in logs.items()]
    region_N, originality = table.regions(), judged.originality

    return Page(
        k=k,
        header=_header(run, config=config, table=table),
        lights=lights(run, k=k),
        bar=scale_bar(config.patches.size * config.patches.mpp),
        confounding=Confounding.load(inputs["clusters"]) or Confounding(),
        reason=reason_for_k(decision),
        verdict=None if judged.verdicts is None else judged.verdicts.overall,
        similarity=similarity_rows(judged.similarity, k=k, cluster=None),
        distribution=distribution_table(judged.distribution, k=k),
        usefulness=usefulness_sentences(judged.faithfulness, k=k),
        patch_alone=PatchAlone.load(inputs["clusters"]),
        unavailable=_unavailable(judged.similarity, distribution=judged.distribution, groups=cards),
        agreement=sentences(read_label_state(run, k=k), sizes=[len(rows) for rows in clusters.members]),
        groups=cards,
        telling=telling_section(TwoSample.load(inputs["evaluation"]), k=k, evaluation=inputs["evaluation"]),
        originality=None if originality is None else originality_section(originality, evaluation=inputs["evaluation"]),
        readings=readings_of(run),
        maps=[
            _map(record, thumbnails=inputs["patches"] / "thumbnails", maps=maps, slides=run_slides)
            for record in map_records
            if not record.missing
        ],
        maps_missing={record.title: record.missing for record in map_records if record.missing},
        corrected=counts_by_name(corrections),
        patch_map=None
        if embedding is None
        else _patch_map(embedding, config=config, table=table, groups=groups, colourings=colourings),
        colourings=colourings,
        decision=decision,
        validity=validity_rows(validity, decision=decision),
        quality=ReconstructionQuality.load(inputs["autoencoder"]),
        reconstructions=_reconstructions(inputs["autoencoder"]),
        stages=TRAINED,
        slides=list(run_slides.values()),
        regions=None if region_N is None else region_table(region_N, groups.group_N, k=len(groups.groups)),
        paper_validity=paper_validity(validity),
        paper_similarity=paper_similarity(judged.similarity),
        paper_definitions=definition_rows(judged.similarity, judged.by_paper, k=k),
        paper_definitions_missing={} if judged.by_paper is None else judged.by_paper.missing,
        truth=() if judged.truth is None else judged.truth.agreements,
        costs=[artifact for stage in STAGES if (artifact := Artifact.read(inputs[stage]))],
        environment=environment_in_words(run / "environment.json"),
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        plots={plot.name: plot for plot in plots if plot is not None},
    )


def _header(run: Path, *, config: Config, table: PatchTable) -> Header:
    used = table.patches.slides[table.patches.slides["status"] == "ok"]
    return Header(
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


def _colourings(
    embedding: Embedding, *, table: PatchTable, groups: TissueGroups, p_N: np.ndarray
) -> tuple[Colouring, ...]:
    """What the patches of the 2-D maps are coloured by; ``p_N`` is the probability of each patch's cluster."""
    rows_N = table.rows_of(pa.array(embedding.patch_ids, pa.string()))
    slides_N = table.slides.iloc[table.slide_N[rows_N]]
    return run_plots.colourings(
        group_N=groups.group_N[rows_N].astype(np.int64),
        names=[group.title for group in groups.groups],
        colours=[group.colour for group in groups.groups],
        slides=slides_N["slide"].astype(str).tolist(),
        patients=slides_N["patient"].astype(str).tolist(),
        p_N=p_N[rows_N],
    )


def _reconstructions(folder: Path) -> list[tuple[Picture, Picture]]:
    """Pairs of a held-out patch and its reconstruction."""
    shown = Reconstructions.load(folder)
    return [
        (
            picture(original, text=f"Original patch {patch_id}"),
            picture(reconstruction, text=f"Reconstruction of patch {patch_id}"),
        )
        for patch_id, original, reconstruction in zip(
            shown.patch_id[:_RECONSTRUCTIONS], shown.original, shown.reconstruction, strict=False
        )
    ]


def _unavailable(similarity: Similarity, *, distribution: Distribution | None, groups: Sequence[Group]) -> list[str]:
    """Each number that the run lacks, with the reason."""
    found = [
        f"{METRIC_TITLES.get(name, name)} was not measured: {reason}" for name, reason in similarity.missing.items()
    ]
    if not similarity.entries and not similarity.missing:
        found.append("The similarity of pairs was not measured in this run.")
    if distribution is not None:
        found += [f"Distances by {name} were not measured: {reason}" for name, reason in distribution.missing.items()]
        clusters = [numbers for group in groups for numbers in group.numbers]
        without = [str(numbers.number) for numbers in clusters if not numbers.distribution.rows]
        if not distribution.entries:
            found.append("Sets of patches were not compared: too few samples or real patches, or no extractor.")
        elif without:
            some = "none has as many" if len(without) == len(clusters) else f"not so many: {', '.join(without)}"
            found.append(
                f"A group is compared as a set where it has 20 samples, 20 held-out and 20 training patches; {some}."
            )
    return found


def _map(record: MapRecord, *, thumbnails: Path, maps: Path, slides: Mapping[str, SlideInfo]) -> Map:
    slide, title = read_image(thumbnails / f"{record.slide_id}.jpg"), record.title
    overlay = read_image(maps / f"{record.slide_id}.png")
    return Map(
        title=title,
        thumbnail=picture(slide, text=f"Thumbnail of slide {title}", at_most=_MAP_SIDE),
        overlay=picture(overlay, text=f"Tissue map over slide {title}", at_most=_MAP_SIDE),
        patches=record.patches,
        bar=slide_bar(slides[record.slide_id]) if record.slide_id in slides else None,
    )


def _patch_map(
    embedding: Embedding,
    *,
    config: Config,
    table: PatchTable,
    groups: TissueGroups,
    colourings: Sequence[Colouring],
) -> PatchMap:
    rows_N = table.rows_of(pa.array(embedding.patch_ids, pa.string()))
    starts = range(0, len(rows_N), _CHUNK)
    others = [colouring for colouring in colourings if colouring.name != "group"]
    return patch_map(
        embedding,
        labels_N=groups.group_N[rows_N].astype(np.int64),
        map_neighbours={method: neighbours(xy_N2) for method, xy_N2 in embedding.maps.items()},
        thumbnails=[
            thumbnail(image) for start in starts for image in table.patches.images(rows_N[start : start + _CHUNK])
        ],
        texts=[
            f"{'no tissue' if place == NO_GROUP else groups.groups[place].short}, slide {slide}"
            for place, slide in zip(
                groups.group_N[rows_N], table.slides["slide"].iloc[table.slide_N[rows_N]], strict=True
            )
        ],
        features=FEATURE_TITLES[config.clusters.validity_features],
        classes=[
            " ".join(f"{colouring.name}-{colouring.group_N[place]}" for colouring in others)
            for place in range(len(rows_N))
        ],
    )
