"""The clusters of the report: real patches beside samples, their place on a slide, and how good the samples are.

Shape suffixes: N patches or cells of a map, S slides, 4 the sides of a box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from histoloom.atlas.browse.cluster_table import ClusterTable
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.browse.run_slides import SlideInfo
from histoloom.atlas.maps.overlay import MapRecord, cluster_overlay
from histoloom.atlas.maps.palette import Rgb, cluster_colours, hexadecimal
from histoloom.atlas.report.figures import ScaleBar, picture, read_image, scale_bar
from histoloom.atlas.report.page import Cluster, Place
from histoloom.atlas.report.sample_quality import distribution_table, recognition_details, similarity_rows
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
from histoloom.names import current_labels, default_name

_PLACE_SIDE = 400
_MAIN_SLIDES = 3


@dataclass(frozen=True)
class EvaluationRecords:
    """What the stage ``evaluation`` found; None for what it did not measure, also where it measured another k."""

    similarity: Similarity
    by_paper: PaperSimilarity | None
    distribution: Distribution | None
    faithfulness: Faithfulness | None
    originality: Originality | None
    verdicts: Verdicts | None
    truth: Truth | None

    @staticmethod
    def load(folder: Path, *, k: int) -> EvaluationRecords:
        """Read the records in the stage's folder."""
        verdicts = Verdicts.load(folder)
        return EvaluationRecords(
            similarity=Similarity.load(folder) or Similarity(entries=()),
            by_paper=PaperSimilarity.load(folder),
            distribution=Distribution.load(folder),
            faithfulness=Faithfulness.load(folder),
            originality=Originality.load(folder),
            verdicts=verdicts if verdicts is not None and verdicts.k == k else None,
            truth=Truth.load(folder),
        )


def cluster_cards(
    run: Path,
    *,
    config: Config,
    inputs: Mapping[str, Path],
    maps: Path,
    map_records: Sequence[MapRecord],
    slides: Mapping[str, SlideInfo],
    table: PatchTable,
    clusters: ClusterTable,
    judged: EvaluationRecords,
) -> list[Cluster]:
    """Each cluster with its most typical patches, its first samples, its place, and how good the samples are."""
    k, n, samples = clusters.k, config.report.patches_per_cluster, inputs["samples"]
    labels = current_labels(run, k=k)
    colours = cluster_colours(labels, k=k)
    metadata = pd.read_csv(samples / "metadata.csv", keep_default_na=False)
    audited = () if judged.originality is None else judged.originality.samples
    copies = {sample.file for sample in audited if sample.is_copy}
    cells = {}
    for record in map_records:
        path = maps / f"{record.slide_id}.npz"
        if record.k == k and not record.missing and path.is_file():
            with np.load(path) as arrays:
                cells[record.slide_id] = (arrays["boxes_N4"], arrays["labels_N"])
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
                verdict=None if judged.verdicts is None else judged.verdicts.clusters.get(cluster),
                similarity=similarity_rows(judged.similarity, k=k, cluster=cluster),
                distribution=distribution_table(judged.distribution, k=k, cluster=cluster),
                recognition=recognition_details(judged.faithfulness, cluster=cluster, k=k),
            )
        )
    return result


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
    shown = picture(drawn_HW3, text=f"Where cluster {cluster} lies: {title}", at_most=_PLACE_SIDE)
    return Place(title, shown, slide_bar(info))


def slide_bar(info: SlideInfo) -> ScaleBar | None:
    """The scale bar of a whole slide; None where its scale is unknown."""
    return scale_bar(info.width * info.mpp) if info.mpp and info.width > 0 else None
