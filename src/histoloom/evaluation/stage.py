"""The stage ``evaluation``: samples and patches in, similarities and agreement with the truth out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from histoloom.evaluation.comparisons import Patches, entries, measure_tasks, plan
from histoloom.evaluation.distribution_stage import CACHE, write_distribution
from histoloom.evaluation.extractors import Extractor, Sources, make_extractors
from histoloom.evaluation.faithfulness_stage import write_faithfulness
from histoloom.evaluation.metrics import MetricSettings, PairMetric, make_metrics
from histoloom.evaluation.originality.of_run import FILE, said, write_originality
from histoloom.evaluation.sample_folder import SampleFolder
from histoloom.evaluation.truth import true_classes, truth_entries
from histoloom.progress import meter
from histoloom.run.directory import read_json, write_json
from histoloom.run.stage import StageContext
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device

_PARTIAL = "partial"


@dataclass(frozen=True)
class Material:
    """What the stage compares: patches, their cluster labels (in the patches' row order), samples."""

    patches: PatchSet
    labels: pd.DataFrame
    samples: SampleFolder


def run(context: StageContext) -> None:
    """Write what is measured, a JSON file each; truth only of slides with a true map, originality where asked for."""
    material = _open(context)
    metrics, missing = make_metrics(_settings(context, size=material.patches.size))
    for name, reason in missing.items():
        context.say(f"{name} is left out: {reason}")
    found = _similarities(context, material=material, metrics=metrics)
    write_json(context.out / "similarity.json", found)
    write_json(context.out / "missing.json", missing)
    labels = {k: material.labels[f"k{k}"].to_numpy() for k in material.samples.ks}
    write_distribution(context, patches=material.patches, labels=labels, samples=material.samples)
    write_faithfulness(context, patches=material.patches, labels=labels, samples=material.samples)
    _truth(context, material=material)
    _originality(context, material=material)
    shutil.rmtree(context.out / _PARTIAL, ignore_errors=True)


def _open(context: StageContext) -> Material:
    patches = PatchSet.open(context.inputs["patches"])
    clusters = pd.read_parquet(context.inputs["clusters"] / "index.parquet").set_index("patch_id")
    names = [name for name in clusters.columns if name.startswith("k") and name[1:].isdigit()]
    labels = clusters[names].reindex(patches.table["patch_id"])
    assert not labels.isna().any(axis=None), "every patch has its clusters"
    return Material(patches, labels.astype("int64"), SampleFolder(context.inputs["samples"]))


def _settings(context: StageContext, *, size: int) -> MetricSettings:
    device = torch.device(resolve_device(context.config.runtime.device))
    return MetricSettings(size, context.config.evaluation.lpips_trunk, device, download=True)


def _similarities(context: StageContext, *, material: Material, metrics: Sequence[PairMetric]) -> list[dict[str, Any]]:
    """All entries; those of a k that a killed run left behind are taken over where they hold the same metrics."""
    extractors = {metric.name: metric.extractor for metric in metrics}
    found = []
    for k in material.samples.ks:
        path = context.out / _PARTIAL / f"k{k}.json"
        kept = read_json(path) if path.is_file() else {}
        if kept.get("extractors") != extractors:
            kept = {"extractors": extractors, "entries": _of_k(context, material=material, metrics=metrics, k=k)}
            path.parent.mkdir(exist_ok=True)
            write_json(path, kept)
            context.say(_summary(kept["entries"], k=k))
        found += kept["entries"]
    return found


def _of_k(context: StageContext, *, material: Material, metrics: Sequence[PairMetric], k: int) -> list[dict[str, Any]]:
    config = context.config
    table = material.patches.table
    patches = Patches(
        labels=material.labels[f"k{k}"].to_numpy(),
        splits=table["split"].to_numpy(),
        slides=table["slide"].astype(str).to_numpy(),
    )
    samples = material.samples.rows(k)
    tasks = plan(patches, samples=samples, k=k, count=config.evaluation.pairs, seed=config.seed)
    with meter(f"comparing, k = {k}", total=sum(len(task.pairs) for task in tasks)) as counter:
        results = measure_tasks(
            tasks,
            metrics=metrics,
            real=material.patches.images,
            synthetic=material.samples.images,
            advance=counter.advance,
        )
    return entries(results, metrics=metrics, k=k, seed=config.seed, resamples=config.evaluation.bootstrap)


def _truth(context: StageContext, *, material: Material) -> None:
    truth_N = true_classes(material.patches.table, slides=material.patches.slides)
    agreements = truth_entries(material.labels, truth_N=truth_N)
    if not agreements:
        return
    write_json(context.out / "truth.json", agreements)
    shown = ", ".join(f"k = {entry['k']}: {entry['nmi']:.2f}" for entry in agreements)
    context.say(f"NMI of clusters and true tissue over {agreements[0]['n']:,} patches: {shown}")


def _originality(context: StageContext, *, material: Material) -> None:
    if context.config.evaluation.originality == "off":
        return
    path = context.out / FILE
    if not path.is_file():
        write_originality(
            context.out,
            patches=material.patches,
            samples=material.samples,
            extractors=_copy_extractors(context, size=material.patches.size),
            cache=context.run / CACHE,
            seed=context.config.seed,
            device=torch.device(resolve_device(context.config.runtime.device)),
        )
    context.say(said(read_json(path)))


def _copy_extractors(context: StageContext, *, size: int) -> list[Extractor]:
    """Whose features give a second opinion on copies; pixels are compared better by correlation."""
    device = torch.device(resolve_device(context.config.runtime.device))
    sources = Sources(device, autoencoder=context.inputs.get("autoencoder"), download=True)
    names = [name for name in context.config.evaluation.extractors if name != "pixels"]
    return make_extractors(names, sources=sources, size=size)[0]


def _summary(found: Sequence[dict[str, Any]], *, k: int) -> str:
    """One line: each metric over all clusters, with its floor."""
    over_all = {(e["metric"], e["comparison"]): e["value"] for e in found if e["cluster"] is None}
    parts = []
    for (metric, comparison), value in over_all.items():
        if comparison == "synthetic_real":
            floor = over_all.get((metric, "real_real"))
            beside = f" (real against real {floor:.3f})" if floor is not None else ""
            parts.append(f"{metric} {value:.3f}{beside}")
    return f"k = {k}: " + (", ".join(parts) or "no pairs of samples and real patches to compare")
