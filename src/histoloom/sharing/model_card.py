"""The card of an exported generator, as Hugging Face reads it: what it is, of what, for what, how good, its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from histoloom.diffusion.generation.generator import Generator
from histoloom.errors import UserError
from histoloom.names import default_name
from histoloom.run.directory import Run, read_json

USAGE = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(".", trust_remote_code=True)
images = pipeline("{tissue}", n=4)
"""
"""Run inside the folder; a test runs these lines."""

CARD = """---
{front}---

# Synthetic tissue generator

Made with Histoloom from unlabeled H&E slides: a VQ-GAN, information-maximisation clusters of its latents, and a
latent diffusion model conditioned on (k, cluster), after Rumman et al., Bioengineering 2025, 12(7), 764.

## Intended use
Research: augmentation, teaching, method development. **Not for diagnosis**, and not evidence about any patient.

## Use
With Histoloom: `histoloom sample THIS_FOLDER -n 16 --tissue "{tissue}" --out DIR`. With diffusers alone, inside this
folder (`trust_remote_code` runs `pipeline.py` and `autoencoder/tissue_decoder.py`, which lie here to be read first):

```python
{usage}```

## Images
{size} x {size} px at {mpp} um/px. Sampler: {method}, {steps} steps, guidance {guidance}.
Weights: {precision} precision.

## Tissues (k = {k})
{named}

| cluster | name | flag | colour | share of training patches |
|---|---|---|---|---|
{tissues}

## Training data
{patches} patches of {slides} slides; {trained} of them were trained on, the others are of held-out slides.
{start}
**Source and licence of the slides.** {data}

**Licence of this folder.** {licence}

## Evaluation
{evaluation}

## Limits
- It knows the tissue, the stain and the scanner of the slides above, and no others.
- Its clusters were found without labels: a name says what somebody saw in them, and rare tissue shares one with
  others.
- Nothing here proves that no image resembles a training patch: compare before you share, and where slides are
  private, do not share these weights either.
- Similarity numbers say little about single cells; the floor beside each is what real tissue reaches.
"""


STARTED = """
The training started from the weights of another generator (digest {digest}): its training data and licence count here
too.
"""

SHOWN_DISTANCES = ("frechet", "fid", "kid", "precision", "recall")


@dataclass(frozen=True)
class Terms:
    """What only the user knows: ``licence`` (an id of Hugging Face's list, such as cc-by-4.0), ``data`` in words."""

    licence: str | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        if self.licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.licence):
            raise UserError(f"--licence is an identifier such as cc-by-4.0 or apache-2.0, got {self.licence!r}")


def model_card(run: Run, *, generator: Generator, terms: Terms, precision: str) -> str:
    """The model card as Markdown; ``precision`` of the weights, in words."""
    spec, k = generator.spec, generator.spec.chosen_k
    labels, shares = generator.labels(k), spec.frequencies[k]
    named = [c for c, label in labels.items() if label.name != default_name(c)]
    # A tissue for the examples, as a shell and Python may quote it: a plain name, else a cluster's number.
    example = next((labels[c].name for c in named if re.fullmatch(r"[\w ,.()-]+", labels[c].name)), "0")
    rows = [
        f"| {c} | {_escaped(labels[c].name)} | {labels[c].flag} | {labels[c].colour} | {shares[c]:.1%} |"
        for c in range(k)
    ]
    index = pd.read_parquet(run.require("patches") / "index.parquet", columns=["slide", "split"])
    start = run.config.start
    front = {
        "license": terms.licence or "unknown",
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["histopathology", "pathology", "latent-diffusion", "synthetic-data", "histoloom"],
    }
    results = (_similarity(run, k=k), _distribution(run, k=k), _faithfulness(run, k=k), _readings(run, k=k))
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        tissue=example,
        usage=USAGE.format(tissue=example),
        size=spec.size,
        mpp=f"{spec.mpp:g}",
        method=spec.sampler.method,
        steps=spec.sampler.steps,
        guidance=spec.sampler.guidance,
        precision=precision,
        k=k,
        named=f"{len(named)} of {k} clusters have a name, given by looking; the generator knows other k too (`--k`).",
        tissues="\n".join(rows),
        patches=f"{len(index):,}",
        slides=index["slide"].nunique(),
        trained=f"{int((index['split'] == 'train').sum()):,}",
        start="" if start is None else STARTED.format(digest=start.digest),
        data=terms.data or "Not stated. Fill this in before you share this folder.",
        licence=terms.licence or "Not stated. Fill this in before you share this folder.",
        evaluation="\n".join(part for part in (*results, _originality(run)) if part),
    )


def _similarity(run: Run, *, k: int) -> str:
    """Similarity of sample pairs and real pairs of the same cluster."""
    path = run.path / "evaluation" / "similarity.json"
    if not path.is_file():
        return "Not evaluated yet."
    entries: list[dict[str, Any]] = [entry for entry in read_json(path) if entry["k"] == k and entry["cluster"] is None]
    lines = [
        "`synthetic against real` of the same cluster; `real against real` of other slides is its floor.\n",
        "| metric | comparison | value | 95 % interval | pairs | extractor |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries:
        low, high = entry["interval"]
        lines.append(
            f"| {entry['metric']} | {entry['comparison'].replace('_', ' against ')} | {entry['value']:.4f} "
            f"| {low:.4f} to {high:.4f} | {entry['pairs']} | {entry['extractor']} |"
        )
    return "\n".join(lines)


def _distribution(run: Run, *, k: int) -> str:
    """All samples against all real patches: distances, precision and recall, each beside its floor."""
    entries = [e for e in _read(run, "distribution").get("entries", []) if (e["k"], e["cluster"]) == (k, None)]
    if not entries:
        return ""
    first = entries[0]
    lines = [
        f"\nAll together: {first['n_synthetic']} samples against {first['n_real']} real patches; the floor is "
        f"{first['floor_from']}.\n",
        "| number | by | samples | floor |",
        "|---|---|---|---|",
    ]
    shown = [e for e in entries if e["metric"] in SHOWN_DISTANCES]
    lines += [f"| {e['metric']} | {e['extractor']} | {e['value']:.4g} | {e['floor']:.4g} |" for e in shown]
    return "\n".join(lines)


def _faithfulness(run: Run, *, k: int) -> str:
    """Whether samples show what they should, and what they are good for."""
    found = _read(run, "faithfulness")
    if found.get("k") != k or "judge" not in found:
        return ""
    judge, useful = found["judge"], {name: score["accuracy"] for name, score in found["usefulness"].items()}
    return (
        f"\nAn independent classifier of the clusters recognises {judge['samples']['accuracy']:.0%} of the samples and "
        f"{judge['held_out']['accuracy']:.0%} of real patches of held-out slides. Tested on these, it reaches "
        f"{useful['real']:.0%} trained on real patches, {useful['synthetic']:.0%} trained on samples alone, and "
        f"{useful['both']:.0%} trained on both (balanced over clusters)."
    )


def _readings(run: Run, *, k: int) -> str:
    """What people saw who did not know which pictures were samples; trainings and readings of others left out.

    Readers' names stay in the run.
    """
    lines = []
    for path in sorted((run.path / "readings").glob("*/results.json")):
        found = read_json(path)
        shown = {stage: found["fingerprints"].get(stage) for stage in ("clusters", "samples")}
        present = {stage: artifact and artifact.fingerprint for stage in shown for artifact in [run.artifact(stage)]}
        if found["k"] == k and not found["feedback"] and shown == present:
            lines += [_reading_line(found, row) for row in found["readers"]]
    return "" if not lines else "\nBlinded readings by people:\n\n" + "\n".join(lines)


def _reading_line(found: dict[str, Any], row: dict[str, Any]) -> str:
    if found["kind"] == "naming":
        samples, real = (_spread(row[part]["accuracy"], style=".0%") for part in ("samples", "real"))
        return f"- a reader named {samples} of the samples as what they were drawn for, and {real} of the real patches."
    against = "real patches" if found["kind"] == "real-or-synthetic" else "real patches after the VQ-GAN"
    return (
        f"- {row['n']} pictures, half samples and half {against}: a reader was right in "
        f"{_spread(row['accuracy'], style='.0%')}, AUC {_spread(row['auc'], style='.2f')}; 50 % and 0.5 are chance."
    )


def _spread(value: dict[str, Any], *, style: str) -> str:
    low, high = value["interval"]
    return f"{value['value']:{style}} ({low:{style}} to {high:{style}})"


def _originality(run: Run) -> str:
    """What was found of copies."""
    found = _read(run, "originality")
    if found.get("copy_rate") is None:
        return "\nCopies of training patches: not judged." if found else ""
    low, high = found["interval"]
    member = found["membership"]
    given_away = "" if member is None else f" Membership test: AUC {member['auc']:.2f} (0.5: nothing is given away)."
    return (
        f"\nCopies: {found['copies']} of {found['n']} samples look like copies of a training patch ({low:.1%} to "
        f"{high:.1%}), and so do {found['false_alarm_rate']:.1%} of {found['n_test']} real patches of held-out slides, "
        f"which cannot be copies.{given_away}"
    )


def _read(run: Run, name: str) -> dict[str, Any]:
    path = run.path / "evaluation" / f"{name}.json"
    return read_json(path) if path.is_file() else {}


def _escaped(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
