"""The tissue groups of the report: real patches beside samples, their place on a slide, and how good the samples are.

Shape suffixes: N patches or cells of a map, S slides, 4 the sides of a box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from histoloom.atlas.browse.cluster_table import ClusterTable, read_clusters
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.browse.run_slides import SlideInfo
from histoloom.atlas.maps.overlay import MapRecord, cluster_overlay
from histoloom.atlas.maps.palette import rgb
from histoloom.atlas.maps.tissue_groups import NO_GROUP, TissueGroup, TissueGroups, group_patches
from histoloom.atlas.report.figures import ScaleBar, picture, read_image, scale_bar
from histoloom.atlas.report.page import ClusterNumbers, Group, Place
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
from histoloom.names import Label, flags_of, without_artefacts

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


def tissue_groups(
    names: Mapping[str, str], *, clusters: ClusterTable, table: PatchTable, labels: Mapping[int, Label]
) -> tuple[TissueGroups, np.ndarray]:
    """The groups of the patches of ``table``, and the rows of the corrected ones; ``names``: of these, by patch id."""
    rows_M = table.rows_of(pa.array(list(names), pa.string()))
    corrections = {int(row): name for row, name in zip(rows_M, names.values(), strict=True) if row >= 0}
    groups = group_patches(clusters.label_N, labels=labels, corrections=corrections, further_names=names.values())
    return groups, np.fromiter(corrections, dtype=np.int64, count=len(corrections))


def table_of_groups(
    groups: TissueGroups, *, folder: Path, k: int, table: PatchTable, corrected_M: np.ndarray
) -> ClusterTable:
    """The table of the groups' patches: rows of ``groups`` in place of clusters, probabilities added up.

    ``folder`` is that of the stage ``clusters``. Patches that an expert moved here by hand, ``corrected_M``, have the
    probability 0, so that none is shown as typical before the others.
    """
    merged = [group.clusters for group in groups.groups if len(group.clusters) > 1]
    clusters = read_clusters(folder, table=table, k=k, tissues=merged)
    n, label_N, p_N = len(groups.groups), groups.group_N, clusters.p_N.copy()
    p_N[corrected_M] = 0
    place_K = np.full(k + 1, NO_GROUP, np.int16)  # the last one is for patches without a cluster, -1
    for place, group in enumerate(groups.groups):
        place_K[list(group.clusters)] = place
    members = tuple(np.flatnonzero(label_N == place) for place in range(n))
    slides_KS = [np.bincount(table.slide_N[rows], minlength=len(table.slides)) for rows in members]
    return replace(
        clusters,
        k=n,
        label_N=label_N,
        p_N=p_N,
        second_N=place_K[clusters.second_N],
        members=members,
        slides_KS=np.stack(slides_KS),
    )


def group_cards(
    groups: TissueGroups,
    *,
    labels: Mapping[int, Label],
    k: int,
    config: Config,
    inputs: Mapping[str, Path],
    maps: Path,
    map_records: Sequence[MapRecord],
    slides: Mapping[str, SlideInfo],
    table: PatchTable,
    grouped: ClusterTable,
    judged: EvaluationRecords,
) -> list[Group]:
    """Each group with its most typical patches, its first samples, its place, and how good the samples are.

    ``grouped`` is the table of the groups' patches, ``k`` the number of clusters.
    """
    n, samples = config.report.patches_per_cluster, inputs["samples"]
    metadata = pd.read_csv(samples / "metadata.csv", keep_default_na=False)
    metadata = metadata[metadata["k"] == k].sort_values("index", kind="stable")
    audited = () if judged.originality is None else judged.originality.samples
    copies = {sample.file for sample in audited if sample.is_copy}
    verdicts = {} if judged.verdicts is None else judged.verdicts.clusters
    artefacts = {*labels} - {*without_artefacts(labels)}
    cells = {}
    for record in map_records:
        path = maps / f"{record.slide_id}.npz"
        if record.k == k and not record.missing and path.is_file():
            with np.load(path) as arrays:
                cells[record.slide_id] = (arrays["boxes_N4"], arrays["labels_N"])
    result = []
    for place, group in enumerate(groups.groups):
        rows = grouped.most_typical(place, n=n, table=table)
        slide_names = table.slides["slide"].iloc[table.slide_N[rows]]
        files = [str(file) for file in metadata[metadata["cluster"].isin(group.clusters)]["file_name"]]
        on_S = grouped.slides_KS[place]
        main = [int(slide) for slide in np.argsort(-on_S, kind="stable")[:_MAIN_SLIDES] if on_S[slide]]
        result.append(
            Group(
                place=place,
                tissue=group,
                flags=flags_of(labels, clusters=group.clusters),
                left_out=tuple(one for one in group.clusters if one in artefacts),
                extent=grouped.extent(place, table=table),
                slides=tuple((str(table.slides["slide"].iloc[slide]), on_S[slide] / on_S.sum()) for slide in main),
                on_slide=_place_on_slide(
                    group,
                    cells=cells,
                    thumbnails=inputs["patches"] / "thumbnails",
                    slides=slides,
                    table=table,
                    rows_M=grouped.members[place],
                ),
                real=tuple(
                    picture(
                        image, text=f"Real patch of {group.short}, slide {slide}, probability {grouped.p_N[row]:.2f}"
                    )
                    for row, slide, image in zip(rows, slide_names, table.patches.images(rows), strict=True)
                ),
                samples=tuple(
                    picture(read_image(samples / file), text=f"Synthetic patch of {group.short}, number {position}")
                    for position, file in enumerate(files[:n], start=1)
                ),
                n_samples=len(files),
                copies=len(copies.intersection(files)),
                numbers=tuple(
                    ClusterNumbers(
                        number=cluster,
                        verdict=verdicts.get(cluster),
                        similarity=similarity_rows(judged.similarity, k=k, cluster=cluster),
                        distribution=distribution_table(judged.distribution, k=k, cluster=cluster),
                        recognition=recognition_details(judged.faithfulness, cluster=cluster, k=k),
                    )
                    for cluster in group.clusters
                ),
            )
        )
    return result


def _place_on_slide(
    group: TissueGroup,
    *,
    cells: Mapping[str, tuple[np.ndarray, np.ndarray]],
    thumbnails: Path,
    slides: Mapping[str, SlideInfo],
    table: PatchTable,
    rows_M: np.ndarray,
) -> Place | None:
    """The group on the mapped slide of which it covers most, else its patches on the slide with most of them."""
    inside = {slide_id: np.isin(labels_N, group.clusters) for slide_id, (_, labels_N) in cells.items()}
    slide_id = max(inside, key=lambda one: float(inside[one].mean()), default="")
    if slide_id and inside[slide_id].any():
        boxes_N4 = cells[slide_id][0][inside[slide_id]]
        what = f"{inside[slide_id].mean():.0%} of this slide"
    elif len(rows_M):
        row = int(np.bincount(table.slide_N[rows_M]).argmax())
        slide_id = str(table.slides["slide_id"].iloc[row])
        boxes_N4 = table.boxes(rows_M[table.slide_N[rows_M] == row])
        what = f"{len(boxes_N4)} patches on this slide"
    else:
        return None
    info, path = slides[slide_id], thumbnails / f"{slide_id}.jpg"
    if not path.is_file() or info.width <= 0:
        return None
    drawn_HW3 = cluster_overlay(
        read_image(path), boxes_N4=boxes_N4, dimensions=(info.width, info.height), colour=rgb(group.colour)
    )
    title = f"{info.slide}: {what}"
    shown = picture(drawn_HW3, text=f"Where {group.short} lies: {title}", at_most=_PLACE_SIDE)
    return Place(title, shown, slide_bar(info))


def slide_bar(info: SlideInfo) -> ScaleBar | None:
    """The scale bar of a whole slide; None where its scale is unknown."""
    return scale_bar(info.width * info.mpp) if info.mpp and info.width > 0 else None
