"""The plots of a run: why this k, samples against real patches, copies, maps of patches, and trainings.

Shape suffixes: N patches, K clusters, 2 the axes of a map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from histoloom.atlas.maps import palette
from histoloom.atlas.maps.palette import hexadecimal
from histoloom.atlas.maps.patch_map import METHOD_TITLES, Embedding
from histoloom.atlas.report.figures import Curve
from histoloom.atlas.report.lights import passing
from histoloom.atlas.report.paper import BETTER, INDEX_TITLES, METRIC_TITLES
from histoloom.atlas.report.plots import (
    INK,
    ONE_COLUMN,
    REAL,
    SOFT,
    SYNTHETIC,
    TWO_COLUMNS,
    Cell,
    Plot,
    finished,
    light_grid,
    style,
)
from histoloom.clustering.results import Decision, Method, ValidityTable, ValueAgainstNulls
from histoloom.evaluation.results import Distribution, Faithfulness, Originality, Recognition, Similarity

NULLS = {
    "gaussian": "without groups: Gaussian",
    "permuted": "without groups: features permuted",
    "components": "without groups: components permuted",
}
"""Data without groups, by the name of the null model."""
NULL_LINES: dict[str, Literal["-", ":", "--"]] = {"gaussian": "-", "permuted": ":", "components": "--"}
METHOD_LINES: dict[Method, tuple[str, str]] = {"infomax": (REAL, "o-"), "kmeans": (SOFT, "s--")}

DISTANCE_TITLES = {
    "frechet": "Frechet distance\n(no unit), smaller is closer",
    "fid": "FID (no unit)\nsmaller is closer",
    "kid": "kernel distance (no unit)\nsmaller is closer",
    "precision": "precision (share)\nlarger is closer",
    "recall": "recall (share)\nlarger is closer",
}

TRAINING_TITLES = {
    "autoencoder.loss": ("All losses together", "loss"),
    "autoencoder.mse": ("Error of pixels", "mean squared error"),
    "autoencoder.l1": ("Error of pixels, absolute", "mean absolute error"),
    "autoencoder.perceptual": ("Error of textures", "perceptual loss"),
    "autoencoder.commitment": ("Distance to the codes", "commitment loss"),
    "autoencoder.perplexity": ("Codes in use", "perplexity, codes"),
    "network.loss": ("Loss", "loss"),
    "network.information": ("What groups tell of patches", "share of log k"),
    "network.agreement": ("Pairs in the same group", "share of pairs"),
    "network.marginal_entropy": ("Evenness of the groups", "entropy, nats"),
    "network.conditional_entropy": ("Doubt about a patch", "entropy, nats"),
    "network.slide_information": ("What groups tell of slides", "share of log k"),
    "network.consistency": ("Change between two views", "KL divergence, nats"),
    "unet.loss": ("Loss", "loss"),
    "unet.mse": ("Error of the predicted noise", "mean squared error"),
}
"""A plain title and the title of the vertical axis of each logged number; others keep their name in the log."""

STAGE_TITLES = {"autoencoder": "Autoencoder", "clusters": "Groups", "diffusion": "Generator"}

CHOSEN = hexadecimal(palette.colours(1)[0])
OPEN = "open: no better than without groups"
_GREY = "#9a9a9a"
_MOST_SLIDES = 12  # slides, or patients, with a colour of their own
_MOST_POINTS = 400  # of a curve
_COLUMNS = 3
PROBABILITY_BINS = (0.5, 0.7, 0.9, 0.99)
PROBABILITY_COLOURS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#fde725")
"""viridis, from unsure to sure"""


# --- why this k


def why_this_k(decision: Decision, validity: ValidityTable, *, k: int) -> Plot:
    """The five indices and the stability against the number of clusters, beside data without groups."""
    compared = {one.k: one for one in decision.nulls}
    state = passing(decision, k=k)
    rows: list[tuple[Cell, ...]] = []
    with style("why-this-k"):
        figure = Figure(figsize=(TWO_COLUMNS, 4.5 if compared else 4.2), layout="constrained")
        panels = figure.subplots(2, 3).ravel()
        for axes, (name, title) in zip(panels, INDEX_TITLES.items(), strict=False):
            if compared:
                _against_nulls(axes, {one: found.indices[name] for one, found in compared.items()})
                rows += _null_rows(title, {one: found.indices[name] for one, found in compared.items()})
            else:
                for method, (colour, line) in METHOD_LINES.items():
                    values = {one: entry.index(name) for one, entry in validity.of(method).items()}
                    known = {one: value for one, value in sorted(values.items()) if value is not None}
                    axes.plot(list(known), list(known.values()), line, color=colour, markersize=3.5, linewidth=1)
                    rows += [(title, one, method, value) for one, value in known.items()]
            axes.set_title(title)
            axes.set_ylabel(f"index (no unit), {BETTER[name]} is better")
        if compared:
            _stability(panels[5], {one: found.stability for one, found in compared.items()})
            for name, title in (("agreement", "agreement"), ("weakest", "least reproducible group")):
                rows += _null_rows(title, {one: found.stability[name] for one, found in compared.items()})
        else:
            panels[5].set_axis_off()
        ks = sorted({entry.k for entry in validity.entries} | compared.keys())
        for axes in panels[: 6 if compared else 5]:
            axes.axvspan(k - 0.3, k + 0.3, color=CHOSEN, alpha=0.3, linewidth=0)
            axes.set_xlabel("number of groups k")
            axes.set_xlim(min(ks) - 0.6, max(ks) + 0.6)
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            light_grid(axes)
        band = Line2D([], [], color=CHOSEN, alpha=0.5, linewidth=6, label=f"k = {k}" + (f": {state}" if state else ""))
        if compared:
            handles = [
                band,
                Line2D([], [], color=REAL, marker="o", markersize=4, label="this run; agreement of all groups"),
                Line2D([], [], color=SYNTHETIC, marker="D", markersize=4, label="agreement of the weakest group"),
                Line2D([], [], color="none", marker="o", markersize=4, markeredgecolor=REAL, label=OPEN),
                *(Line2D([], [], color=SOFT, linestyle=NULL_LINES[null], label=label) for null, label in NULLS.items()),
            ]
        else:
            handles = [
                band,
                Line2D([], [], color=REAL, marker="o", markersize=4, label="the run's groups"),
                Line2D([], [], color=SOFT, marker="s", linestyle="--", markersize=4, label="k-means"),
            ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=7)
        words = "The five indices and the stability of the groups" if compared else "The five indices of the groups"
        return finished(
            figure,
            name="why-this-k",
            title=f"Why k = {k}",
            text=f"{words} against the number of groups, {min(ks)} to {max(ks)}; k = {k} is marked"
            + (f": {state}." if state else "."),
            header=("measure", "k", "data", "value", *(("deviation",) if compared else ())),
            rows=rows,
        )


def _against_nulls(axes: Axes, values: Mapping[int, ValueAgainstNulls]) -> None:
    """An index of the run against k, and of each null with its band of two deviations."""
    ks = sorted(values)
    for null, line in NULL_LINES.items():
        if all(null in values[k].null for k in ks):
            mean_K = np.array([values[k].null[null] for k in ks])
            spread_K = np.array([2 * values[k].null_deviation.get(null, 0.0) for k in ks])
            axes.plot(ks, mean_K, line, color=SOFT, linewidth=0.9)
            axes.fill_between(ks, mean_K - spread_K, mean_K + spread_K, color=SOFT, alpha=0.3, linewidth=0)
    _run_points(axes, values, colour=REAL, marker="o")


def _run_points(axes: Axes, values: Mapping[int, ValueAgainstNulls], *, colour: str, marker: str) -> None:
    """The run's values with their deviation among draws; a full point is better than every null."""
    ks = sorted(values)
    spread_K = [values[k].deviation for k in ks]
    axes.errorbar(ks, [values[k].real for k in ks], yerr=spread_K, color=colour, linewidth=1.1, elinewidth=0.8)
    for k in ks:
        face = colour if values[k].least.low > 0 else "none"
        axes.plot(k, values[k].real, marker, color=colour, markersize=4, markerfacecolor=face)


def _stability(axes: Axes, compared: Mapping[int, Mapping[str, ValueAgainstNulls]]) -> None:
    """How far two parts of the data give the same clusters: on the whole, and for the least reproducible one."""
    for name, colour, marker in (("agreement", REAL, "o"), ("weakest", SYNTHETIC, "D")):
        values = {k: found[name] for k, found in compared.items()}
        ks = sorted(values)
        low_K, high_K = ([pick(values[k].null.values()) for k in ks] for pick in (min, max))
        axes.fill_between(ks, low_K, high_K, color=colour, alpha=0.15, linewidth=0)
        _run_points(axes, values, colour=colour, marker=marker)
    axes.axhline(0.5, color=SYNTHETIC, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_ylim(-0.03, 1.05)
    axes.set_title("Found again in other patches")
    axes.set_ylabel("agreement, 0 to 1")


def _null_rows(title: str, values: Mapping[int, ValueAgainstNulls]) -> list[tuple[Cell, ...]]:
    """The numbers of one panel: measure, k, which data, value, deviation among draws."""
    rows: list[tuple[Cell, ...]] = []
    for k, value in sorted(values.items()):
        rows.append((title, k, "run", value.real, value.deviation))
        rows += [(title, k, null, mean, value.null_deviation.get(null)) for null, mean in value.null.items()]
    return rows


# --- samples against real patches


@dataclass(frozen=True)
class _Interval:
    """A value with its interval, of ``cluster`` (None: all of them) and of ``kind``: samples, real or other."""

    cluster: int | None
    kind: str
    value: float
    low: float
    high: float


_KINDS = {"samples": (SYNTHETIC, "o"), "real": (REAL, "s"), "other": (SOFT, "x")}


def pair_similarity(similarity: Similarity, *, names: Sequence[str], k: int) -> Plot | None:
    """SSIM, MS-SSIM and LPIPS of samples and real patches, by cluster; None where none was measured."""
    kinds = {"synthetic_real": "samples", "real_real": "real", "synthetic_other": "other"}
    panels: dict[str, list[_Interval]] = {}
    for entry in similarity.entries:
        if entry.k == k and not entry.same_slide and entry.metric in METRIC_TITLES:
            label = f"{METRIC_TITLES[entry.metric]} (no unit)\n{BETTER[entry.metric]} is more alike"
            panels.setdefault(label, []).append(
                _Interval(entry.cluster, kinds[entry.comparison], entry.value, *entry.interval)
            )
    labels = {
        "samples": "sample and real patch of its group",
        "real": "real and real of the group, other slides",
        "other": "sample and real patch of other groups",
    }
    return _interval_plot(
        panels,
        name="pair-similarity",
        title="Pairs of samples and real patches",
        text="How alike pairs of patches are, by group, with 95 % intervals.",
        names=names,
        labels=labels,
    )


def distances(distribution: Distribution | None, *, names: Sequence[str], k: int) -> Plot | None:
    """Distances between sets with intervals and floors, by extractor and cluster; None where none was measured."""
    if distribution is None:
        return None
    panels: dict[str, list[_Interval]] = {}
    for metric, label in DISTANCE_TITLES.items():
        for entry in distribution.entries:
            if (entry.k, entry.metric) == (k, metric):
                panel = panels.setdefault(f"{label}\nby {entry.extractor}", [])
                panel.append(_Interval(entry.cluster, "samples", entry.value, *entry.interval))
                panel.append(_Interval(entry.cluster, "real", entry.floor, *entry.floor_interval))
    return _interval_plot(
        panels,
        name="distances",
        title="Samples and real patches as sets",
        text="Distances between samples and real patches, and the floor: real against other real patches.",
        names=names,
        labels={"samples": "samples against real patches", "real": "floor: real against other real patches"},
    )


def _interval_plot(
    panels: Mapping[str, Sequence[_Interval]],
    *,
    name: str,
    title: str,
    text: str,
    names: Sequence[str],
    labels: Mapping[str, str],
) -> Plot | None:
    """A panel for each measure: clusters from top to bottom, values with intervals from left to right."""
    if not panels:
        return None
    clusters = [None, *sorted({one.cluster for found in panels.values() for one in found if one.cluster is not None})]
    rows: list[tuple[Cell, ...]] = []
    columns = min(len(panels), _COLUMNS)
    lines = math.ceil(len(panels) / columns)
    with style(name):
        figure = Figure(figsize=(TWO_COLUMNS, 0.5 + lines * (0.85 + 0.19 * len(clusters))), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        for axes, (label, found) in zip(grid, panels.items(), strict=False):
            for one in found:
                colour, marker = _KINDS[one.kind]
                kinds = list(labels)
                y = clusters.index(one.cluster) + (kinds.index(one.kind) - (len(kinds) - 1) / 2) * 0.24
                axes.plot([one.low, one.high], [y, y], color=colour, linewidth=1)
                axes.plot(one.value, y, marker, color=colour, markersize=3.6)
                cluster = "all" if one.cluster is None else one.cluster
                rows.append((label.replace("\n", ", "), cluster, labels[one.kind], one.value, one.low, one.high))
            axes.set_yticks(
                range(len(clusters)), ["all groups" if one is None else _short(names[one]) for one in clusters]
            )
            axes.set_ylim(len(clusters) - 0.5, -0.5)
            axes.set_xlabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            light_grid(axes)
        handles = [
            Line2D([], [], color=_KINDS[kind][0], marker=_KINDS[kind][1], markersize=4, linewidth=1, label=label)
            for kind, label in labels.items()
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(labels) if len(labels) < 3 else 2)
        header = ("measure", "cluster", "comparison", "value", "95 % low", "95 % high")
        return finished(figure, name=name, title=title, text=text, header=header, rows=rows)


def confusion(faithfulness: Faithfulness | None, *, names: Sequence[str], k: int) -> Plot | None:
    """What an independent classifier takes samples and held-out real patches for; None where it was not measured."""
    if faithfulness is None or faithfulness.k != k or faithfulness.classifier is None:
        return None
    parts: dict[str, Recognition] = {
        "samples": faithfulness.classifier.samples,
        "real patches of held-out slides": faithfulness.classifier.held_out,
    }
    rows: list[tuple[Cell, ...]] = []
    with style("confusion"):
        figure = Figure(figsize=(TWO_COLUMNS, 1.3 + min(2.6, 0.8 + 0.16 * k)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (title, found) in zip(panels, parts.items(), strict=True):
            counts_KK = np.array(found.confusion, dtype=float)
            total_K = counts_KK.sum(axis=1, keepdims=True)
            percent_KK = 100 * np.divide(counts_KK, total_K, out=np.zeros_like(counts_KK), where=total_K > 0)
            image = axes.imshow(percent_KK, cmap="Blues", vmin=0, vmax=100, aspect="auto")
            for true in range(k):
                for taken in range(k):
                    share = percent_KK[true, taken]
                    rows.append((title, true, taken, int(counts_KK[true, taken]), float(share)))
                    if k <= 14 and share >= 0.5:
                        colour = "#ffffff" if share > 55 else "#000000"
                        axes.text(taken, true, f"{share:.0f}", ha="center", va="center", fontsize=6, color=colour)
            axes.set_title(f"{title[:1].upper()}{title[1:]} (n = {found.n:,})")
            axes.set_xticks(range(k), [str(cluster) for cluster in range(k)], fontsize=6.5)
            axes.set_yticks(range(k), [_short(name) for name in names], fontsize=6.5)
            axes.set_xlabel("taken for group (number)")
            axes.spines[:].set_visible(False)
        panels[0].set_ylabel("group of the sample or patch")
        figure.colorbar(image, ax=panels, label="share of the group, %", fraction=0.04)
        return finished(
            figure,
            name="confusion",
            title="Which group samples are taken for",
            text="The share of each group's samples, and of its real patches of held-out slides, that an independent "
            "classifier takes for each group.",
            header=("images", "cluster", "taken for", "count", "share of the cluster, %"),
            rows=rows,
        )


def copy_scores(originality: Originality | None) -> Plot | None:
    """The samples' scores for being a copy against those of held-out patches; None where none were kept."""
    if originality is None or not originality.samples:
        return None
    parts = {
        "samples": (SYNTHETIC, [sample.score for sample in originality.samples]),
        "held-out real patches": (REAL, list(originality.held_out_scores)),
    }
    edges = np.linspace(0, 1, 41)
    rows: list[tuple[Cell, ...]] = []
    with style("copy-scores"):
        figure = Figure(figsize=(ONE_COLUMN, 2.6), layout="constrained")
        axes = figure.subplots()
        for label, (colour, scores) in parts.items():
            if scores:
                share = 100 * np.histogram(np.clip(scores, 0, 1), edges)[0] / len(scores)
                axes.stairs(share, edges, color=colour, linewidth=1.2, label=f"{label} (n = {len(scores):,})")
                bins = zip(edges[:-1].tolist(), edges[1:].tolist(), share.tolist(), strict=True)
                rows += [(label, *one) for one in bins]
        if originality.threshold is not None:
            axes.axvline(originality.threshold, color=INK, linewidth=0.8, linestyle="--")
            where = axes.get_xaxis_transform()
            axes.text(
                originality.threshold + 0.01, 0.98, "counts as a copy", transform=where, rotation=90, va="top", size=6.5
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("score of the nearest training patch (1 is a copy)")
        axes.set_ylabel("share of images, %")
        figure.legend(loc="outside upper left")
        light_grid(axes)
        return finished(
            figure,
            name="copy-scores",
            title="How near samples are to training patches",
            text="The scores of all samples, and of held-out real patches, which cannot be copies.",
            header=("images", "score from", "score to", "share of images, %"),
            rows=rows,
        )


# --- maps of patches


@dataclass(frozen=True)
class Colouring:
    """What the patches of a map are coloured by: a group (N,) of each, with the groups' names and colours."""

    name: str
    title: str
    group_N: np.ndarray
    names: tuple[str, ...]
    colours: tuple[str, ...]


def colourings(
    *,
    group_N: np.ndarray,
    names: Sequence[str],
    colours: Sequence[str],
    slides: Sequence[str],
    patients: Sequence[str],
    p_N: np.ndarray,
) -> tuple[Colouring, ...]:
    """The colourings by tissue group, slide, patient and probability of the own cluster.

    ``group_N``: places in ``names``; below 0 for patches that show no tissue.
    """
    names, colours = list(names), list(colours)
    if (group_N < 0).any():
        group_N = np.where(group_N < 0, len(names), group_N)
        names, colours = [*names, "no tissue"], [*colours, _GREY]
    limits = ("below 0.5", "0.5 to 0.7", "0.7 to 0.9", "0.9 to 0.99", "0.99 and above")
    return (
        Colouring("group", "group", group_N, tuple(names), tuple(colours)),
        _by_value("slide", slides),
        _by_value("patient", patients),
        Colouring("probability", "probability", np.digitize(p_N, PROBABILITY_BINS), limits, PROBABILITY_COLOURS),
    )


def _by_value(name: str, values: Sequence[str]) -> Colouring:
    """A colour for each of the commonest values; grey for all others."""
    found, code_N, count = np.unique(np.asarray(values, dtype=str), return_inverse=True, return_counts=True)
    commonest = np.sort(np.argsort(-count, kind="stable")[:_MOST_SLIDES])
    rank = np.full(len(found), _MOST_SLIDES)
    rank[commonest] = np.arange(len(commonest))
    shown = [str(found[place]) for place in commonest]
    colours = [hexadecimal(colour) for colour in palette.colours(len(shown))]
    if len(found) > _MOST_SLIDES:
        shown.append(f"{len(found) - _MOST_SLIDES} other {name}s")
        colours.append(_GREY)
    return Colouring(name, name, rank[code_N], tuple(shown), tuple(colours))


def patch_map_plot(embedding: Embedding, colouring: Colouring) -> Plot:
    """The maps side by side, their patches in the colours of one colouring."""
    methods = list(embedding.maps)
    name = f"patches-by-{colouring.name}"
    with style(name):
        figure = Figure(figsize=(TWO_COLUMNS if len(methods) > 1 else ONE_COLUMN * 1.4, 3.0), layout="constrained")
        panels = figure.subplots(1, len(methods), squeeze=False).ravel()
        colour_N = np.array(colouring.colours)[colouring.group_N]
        places_NM = np.concatenate([embedding.maps[method] for method in methods], axis=1)
        for axes, method in zip(panels, methods, strict=True):
            xy_N2 = embedding.maps[method]
            axes.scatter(xy_N2[:, 0], xy_N2[:, 1], s=4, c=colour_N, linewidths=0)
            axes.set_title(METHOD_TITLES[method])
            axes.set_xlabel("first axis (no unit)")
            axes.set_ylabel("second axis (no unit)")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_aspect("equal")
        handles = [
            Line2D([], [], color=colour, marker="o", markersize=4, linestyle="", label=_short(title))
            for title, colour in zip(colouring.names, colouring.colours, strict=True)
        ]
        figure.legend(handles=handles, loc="outside right upper", title=colouring.title.capitalize(), fontsize=6.5)
        return finished(
            figure,
            name=name,
            title=f"Patches by {colouring.title}",
            text=f"The patches on the maps, coloured by {colouring.title}.",
            header=("patch_id", colouring.name, *(f"{method}_{axis}" for method in methods for axis in ("x", "y"))),
            rows=[
                (patch_id, colouring.names[cluster], *map(float, places))
                for patch_id, cluster, places in zip(embedding.patch_ids, colouring.group_N, places_NM, strict=True)
            ],
        )


# --- trainings


def training(stage: str, *, metrics: Sequence[Curve]) -> Plot | None:
    """The curves of one stage against the training images seen; None where its log has none."""
    if not metrics:
        return None
    name = f"training-{stage}"

    def title(logged: str) -> str:
        return TRAINING_TITLES.get(logged, (logged,))[0]

    lines = math.ceil(len(metrics) / _COLUMNS)
    columns = min(_COLUMNS, len(metrics))
    with style(name):
        figure = Figure(figsize=(TWO_COLUMNS if columns > 1 else ONE_COLUMN, 0.2 + 1.5 * lines), layout="constrained")
        for place, curve in enumerate(metrics):
            n = len(curve.values)
            shown = np.unique(np.linspace(0, n - 1, min(n, _MOST_POINTS)).round().astype(int))
            unit = TRAINING_TITLES.get(curve.name, ("", "value"))[1]
            axes = figure.add_subplot(lines, columns, place + 1)
            axes.plot(np.asarray(curve.images)[shown], np.asarray(curve.values)[shown], color=REAL, linewidth=1.1)
            axes.set_title(title(curve.name))
            axes.set_ylabel(unit)
            axes.set_xlabel("training images seen")
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            light_grid(axes)
        return finished(
            figure,
            name=name,
            title=STAGE_TITLES.get(stage, stage),
            text="; ".join(f"{title(one.name)} ends at {one.last:.4g}" for one in metrics),
            header=("number", "name in the log", "training images seen", "value"),
            rows=[
                (title(one.name), one.name, images, value)
                for one in metrics
                for images, value in zip(one.images, one.values, strict=True)
                if not math.isnan(value)
            ],
        )


def _short(name: str, *, at_most: int = 24) -> str:
    return name if len(name) <= at_most else f"{name[: at_most - 1]}…"
