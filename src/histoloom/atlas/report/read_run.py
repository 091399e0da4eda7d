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

from histoloom.atlas.browse.agreement import sentences
from histoloom.atlas.browse.cluster_table import ClusterTable, read_clusters
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.browse.run_slides import RunSlides, SlideInfo
from histoloom.atlas.maps.embedding import neighbours
from histoloom.atlas.maps.overlay import MapRecord, cluster_overlay
from histoloom.atlas.maps.palette import Rgb, cluster_colours, hexadecimal
from histoloom.atlas.maps.patch_map import FEATURE_TITLES, Embedding, PatchMap, patch_map, thumbnail
from histoloom.atlas.report import run_plots
from histoloom.atlas.report.clustering_tables import (
    definition_rows,
    paper_similarity,
    paper_validity,
    region_table,
    validity_rows,
)
from histoloom.atlas.report.figures import ScaleBar, curves, picture, read_image, scale_bar
from histoloom.atlas.report.lights import lights
from histoloom.atlas.report.page import Cluster, Header, Map, Page, Place
from histoloom.atlas.report.paper import INDEX_TITLES, METRIC_TITLES
from histoloom.atlas.report.run_plots import Colouring
from histoloom.atlas.report.sample_checks import originality_section, readings_of
from histoloom.atlas.report.sample_quality import (
    distribution_table,
    recognition_line,
    similarity_rows,
    usefulness_sentences,
)
from histoloom.autoencoder.quality import ReconstructionQuality, Reconstructions
from histoloom.clustering.results import Confounding, Decision, PatchAlone, ValidityTable
from histoloom.config import Config
from histoloom.evaluation.results import (
    Distribution,
    Faithfulness,
    Originality,
    PaperSimilarity,
    Similarity,
    Truth,
    Verdicts,
)
from histoloom.names import current_labels, default_name, read_label_state
from histoloom.run.directory import Artifact, read_json
from histoloom.run.stage import EventLog

STAGES = ("patches", "autoencoder", "latents", "clusters", "diffusion", "samples", "evaluation")
TRAINED = ("autoencoder", "clusters", "diffusion")

_RECONSTRUCTIONS = 8
_MAP_SIDE = 640
_PLACE_SIDE = 400
_MAIN_SLIDES = 3
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
    verdicts = Verdicts.load(evaluation)
    verdicts = verdicts if verdicts is not None and verdicts.k == k else None
    shown = Reconstructions.load(inputs["autoencoder"])
    map_records = [record for path in sorted(maps.glob("*.json")) if (record := MapRecord.load(path))]
    artifacts = [artifact for stage in STAGES if (artifact := Artifact.read(inputs[stage]))]

    # What the page needs in another form
    run_slides = RunSlides(inputs["patches"]).by_id
    cards = _clusters(
        run,
        config=config,
        inputs=inputs,
        maps=maps,
        map_records=map_records,
        slides=run_slides,
        table=table,
        clusters=clusters,
        similarity=similarity,
        distribution=distribution,
        faithfulness=faithfulness,
        originality=originality,
        verdicts=verdicts,
    )
    names = [f"{card.number} · {card.name}" if card.named else card.name for card in cards]
    colourings: tuple[Colouring, ...] = ()
    if embedding is not None:
        rows_N = table.rows_of(pa.array(embedding.patch_ids, pa.string()))
        slides_N = table.slides.iloc[table.slide_N[rows_N]]
        colourings = run_plots.colourings(
            label_N=clusters.label_N[rows_N].astype(np.int64),
            names=names,
            colours=[card.colour for card in cards],
            slides=slides_N["slide"].astype(str).tolist(),
            patients=slides_N["patient"].astype(str).tolist(),
            p_N=clusters.p_N[rows_N],
        )
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

    plots = [
        run_plots.why_this_k(decision, validity, k=k),
        run_plots.pair_similarity(similarity, names=names, k=k),
        run_plots.distances(distribution, names=names, k=k),
        run_plots.confusion(faithfulness, names=names, k=k),
        run_plots.copy_scores(originality),
        *(run_plots.patch_map_plot(embedding, colouring) for colouring in colourings if embedding is not None),
        *(run_plots.training(stage, metrics=curves(EventLog(inputs[stage] / "log.jsonl").read())) for stage in TRAINED),
    ]

    return Page(
        k=k,
        header=header,
        lights=lights(run, k=k),
        bar=scale_bar(config.patches.size * config.patches.mpp),
        confounding=Confounding.load(inputs["clusters"]) or Confounding(),
        reason=_reason(decision),
        verdict=None if verdicts is None else verdicts.overall,
        similarity=overall,
        distribution=distribution_table(distribution, k=k),
        usefulness=usefulness_sentences(faithfulness, k=k),
        patch_alone=PatchAlone.load(inputs["clusters"]),
        unavailable=_unavailable(similarity, distribution=distribution, clusters=cards),
        agreement=sentences(read_label_state(run, k=k), sizes=[len(rows) for rows in clusters.members]),
        clusters=cards,
        originality=None if originality is None else originality_section(originality, evaluation=evaluation),
        readings=readings_of(run),
        maps=[
            _map(record, thumbnails=inputs["patches"] / "thumbnails", maps=maps, slides=run_slides)
            for record in map_records
            if not record.missing
        ],
        maps_missing={record.title: record.missing for record in map_records if record.missing},
        patch_map=None
        if embedding is None
        else _patch_map(embedding, config=config, table=table, clusters=clusters, colourings=colourings),
        colourings=colourings,
        decision=decision,
        validity=validity_rows(validity, decision=decision),
        quality=ReconstructionQuality.load(inputs["autoencoder"]),
        reconstructions=reconstructions,
        stages=TRAINED,
        slides=list(run_slides.values()),
        regions=None if region_N is None else region_table(region_N, clusters.label_N, k=k),
        paper_validity=paper_validity(validity),
        paper_similarity=paper_similarity(similarity),
        paper_definitions=definition_rows(similarity, by_paper, k=k),
        paper_definitions_missing={} if by_paper is None else by_paper.missing,
        truth=() if truth is None else truth.agreements,
        costs=artifacts,
        environment=environment,
        config=yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        plots={plot.name: plot for plot in plots if plot is not None},
    )


def _reason(decision: Decision) -> str:
    """Why this k, in plain sentences."""
    if decision.has_clusters is not None:
        return decision.text
    best = [INDEX_TITLES.get(name, name) for name, best_k in decision.by_index.items() if best_k == decision.k]
    named = f" ({', '.join(best)})" if best else ""
    return (
        f"That number was chosen by this rule: {decision.rule.rstrip('.')}. {len(best)} of "
        f"{len(decision.by_index)} validity indices are best at k = {decision.k}{named}."
    )


def _unavailable(
    similarity: Similarity, *, distribution: Distribution | None, clusters: Sequence[Cluster]
) -> list[str]:
    """Each number that the run lacks, with the reason."""
    found = [
        f"{METRIC_TITLES.get(name, name)} was not measured: {reason}" for name, reason in similarity.missing.items()
    ]
    if not similarity.entries and not similarity.missing:
        found.append("The similarity of pairs was not measured in this run.")
    if distribution is not None:
        found += [f"Distances by {name} were not measured: {reason}" for name, reason in distribution.missing.items()]
        without = [str(cluster.number) for cluster in clusters if not cluster.distribution.rows]
        if distribution.entries and without:
            some = "none has as many" if len(without) == len(clusters) else f"not so many: {', '.join(without)}"
            found.append(
                f"A cluster is compared as a set where it has 20 samples, 20 held-out and 20 training patches; {some}."
            )
    return found


def _clusters(
    run: Path,
    *,
    config: Config,
    inputs: Mapping[str, Path],
    maps: Path,
    map_records: Sequence[MapRecord],
    slides: Mapping[str, SlideInfo],
    table: PatchTable,
    clusters: ClusterTable,
    similarity: Similarity,
    distribution: Distribution | None,
    faithfulness: Faithfulness | None,
    originality: Originality | None,
    verdicts: Verdicts | None,
) -> list[Cluster]:
    """Each cluster with its most typical patches, its first samples, its place, and how good the samples are."""
    k, n, samples = clusters.k, config.report.patches_per_cluster, inputs["samples"]
    labels = current_labels(run, k=k)
    colours = cluster_colours(labels, k=k)
    metadata = pd.read_csv(samples / "metadata.csv", keep_default_na=False)
    copies = set() if originality is None else {sample.file for sample in originality.samples if sample.is_copy}
    drawn = [(record, maps / f"{record.slide_id}.npz") for record in map_records if not record.missing]
    cells = {record.slide_id: _cells(path) for record, path in drawn if record.k == k and path.is_file()}
    result = []
    for cluster in range(k):
        name = labels[cluster].name
        rows = clusters.most_typical(cluster, n=n, table=table)
        slide_names = table.slides["slide"].iloc[table.slide_N[rows]]
        of_cluster = metadata[(metadata["k"] == k) & (metadata["cluster"] == cluster)].sort_values("index")
        files = [str(file) for file in of_cluster["file_name"]]
        on_S = clusters.slides_KS[cluster]
        main = [int(slide) for slide in np.argsort(-on_S, kind="stable")[:_MAIN_SLIDES] if on_S[slide]]
        result.append(
            Cluster(
                number=cluster,
                name=name,
                named=name != default_name(cluster),
                colour=hexadecimal(colours[cluster]),
                flag=labels[cluster].flag,
                extent=clusters.extent(cluster, table=table),
                slides=tuple((str(table.slides["slide"].iloc[slide]), on_S[slide] / on_S.sum()) for slide in main),
                place=_place(
                    cluster,
                    colour=colours[cluster],
                    cells=cells,
                    thumbnails=inputs["patches"] / "thumbnails",
                    slides=slides,
                    table=table,
                    clusters=clusters,
                ),
                real=tuple(
                    picture(image, text=f"Real patch of {name}, slide {slide}, probability {clusters.p_N[row]:.2f}")
                    for row, slide, image in zip(rows, slide_names, table.patches.images(rows), strict=True)
                ),
                samples=tuple(
                    picture(read_image(samples / file), text=f"Synthetic patch of {name}, number {position}")
                    for position, file in enumerate(files[:n], start=1)
                ),
                n_samples=len(files),
                copies=len(copies.intersection(files)),
                verdict=None if verdicts is None else verdicts.clusters.get(cluster),
                similarity=similarity_rows(similarity, k=k, cluster=cluster),
                distribution=distribution_table(distribution, k=k, cluster=cluster),
                recognition=recognition_line(faithfulness, cluster=cluster, k=k),
            )
        )
    return result


def _cells(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) in level-0 px and clusters (N,) of a drawn tissue map."""
    with np.load(path) as arrays:
        return arrays["boxes_N4"], arrays["labels_N"]


def _place(
    cluster: int,
    *,
    colour: Rgb,
    cells: Mapping[str, tuple[np.ndarray, np.ndarray]],
    thumbnails: Path,
    slides: Mapping[str, SlideInfo],
    table: PatchTable,
    clusters: ClusterTable,
) -> Place | None:
    """The cluster on the mapped slide of which it covers most, else its patches on the slide with most of them."""
    shares = {slide_id: float((labels_N == cluster).mean()) for slide_id, (_, labels_N) in cells.items()}
    slide_id = max(shares, key=lambda one: shares[one], default="")
    if slide_id and shares[slide_id] > 0:
        boxes_N4, labels_N = cells[slide_id]
        boxes_N4 = boxes_N4[labels_N == cluster]
        what = f"{shares[slide_id]:.0%} of this slide"
    elif clusters.slides_KS[cluster].any():
        row = int(clusters.slides_KS[cluster].argmax())
        slide_id = str(table.slides["slide_id"].iloc[row])
        members = clusters.members[cluster]
        boxes_N4 = table.boxes(members[table.slide_N[members] == row])
        what = f"{len(boxes_N4)} patches on this slide"
    else:
        return None
    info, path = slides[slide_id], thumbnails / f"{slide_id}.jpg"
    if not path.is_file() or info.width <= 0:
        return None
    drawn_HW3 = cluster_overlay(
        read_image(path), boxes_N4=boxes_N4, dimensions=(info.width, info.height), colour=colour
    )
    title = f"{info.slide}: {what}"
    return Place(
        title, picture(drawn_HW3, text=f"Where cluster {cluster} lies: {title}", at_most=_PLACE_SIDE), _bar(info)
    )


def _bar(info: SlideInfo) -> ScaleBar | None:
    """The scale bar of a whole slide; None where its scale is unknown."""
    return scale_bar(info.width * info.mpp) if info.mpp and info.width > 0 else None


def _map(record: MapRecord, *, thumbnails: Path, maps: Path, slides: Mapping[str, SlideInfo]) -> Map:
    slide, title = read_image(thumbnails / f"{record.slide_id}.jpg"), record.title
    overlay = read_image(maps / f"{record.slide_id}.png")
    return Map(
        title=title,
        thumbnail=picture(slide, text=f"Thumbnail of slide {title}", at_most=_MAP_SIDE),
        overlay=picture(overlay, text=f"Tissue map over slide {title}", at_most=_MAP_SIDE),
        patches=record.patches,
        bar=_bar(slides[record.slide_id]) if record.slide_id in slides else None,
    )


def _patch_map(
    embedding: Embedding,
    *,
    config: Config,
    table: PatchTable,
    clusters: ClusterTable,
    colourings: Sequence[Colouring],
) -> PatchMap:
    rows_N = table.rows_of(pa.array(embedding.patch_ids, pa.string()))
    starts = range(0, len(rows_N), _CHUNK)
    others = [colouring for colouring in colourings if colouring.name != "cluster"]
    return patch_map(
        embedding,
        labels_N=clusters.label_N[rows_N].astype(np.int64),
        map_neighbours={method: neighbours(xy_N2) for method, xy_N2 in embedding.maps.items()},
        thumbnails=[
            thumbnail(image) for start in starts for image in table.patches.images(rows_N[start : start + _CHUNK])
        ],
        texts=[f"slide {slide}" for slide in table.slides["slide"].iloc[table.slide_N[rows_N]]],
        features=FEATURE_TITLES[config.clusters.validity_features],
        classes=[
            " ".join(f"{colouring.name}-{colouring.group_N[place]}" for colouring in others)
            for place in range(len(rows_N))
        ],
    )
