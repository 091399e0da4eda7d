"""The card of an exported generator, as Hugging Face reads it: what it is, of what, for what, how good, its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from histoloom.diffusion.generation.generator import Generator
from histoloom.errors import UserError
from histoloom.evaluation.reading.naming import NamingResult
from histoloom.evaluation.reading.results import results
from histoloom.evaluation.results import Distribution, Faithfulness, Originality, Similarity, Verdicts
from histoloom.evaluation.statistics import Estimate
from histoloom.names import default_name
from histoloom.run.directory import Run

USAGE = """from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained(".", trust_remote_code=True)
images = pipeline("{tissue}", n=4)
"""
"""Run inside the folder; a test runs these lines."""

CARD = """---
{front}---

# Synthetic tissue generator

Made with Histoloom from unlabeled H&E slides: {autoencoder}, information-maximisation
clusters, and a latent diffusion model conditioned on (k, cluster), after Rumman et al., Bioengineering 2025,
12(7), 764.

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
        for c in labels
    ]
    index = pd.read_parquet(run.require("patches") / "index.parquet", columns=["slide", "split"])
    start = run.config.start
    front = {
        "license": terms.licence or "unknown",
        "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["histopathology", "pathology", "latent-diffusion", "synthetic-data", "histoloom"],
    }
    folder = run.path / "evaluation"
    verdicts = Verdicts.load(folder)
    verdict = "Whether samples look real was not measured.\n"
    if verdicts is not None and verdicts.k == k:
        verdict = f"**{verdicts.overall.text}** {verdicts.counts}\n"
    sections = (
        *(verdict, _similarity(folder, k=k), _distribution(folder, k=k), _faithfulness(folder, k=k)),
        *(_readings(run, k=k), _originality(folder)),
    )
    codes = generator.autoencoder.config.codes
    return CARD.format(
        autoencoder="a VQ-GAN" if codes else "an autoencoder with continuous latents",
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
        evaluation="\n".join(section for section in sections if section),
    )


def _similarity(folder: Path, *, k: int) -> str:
    """Similarity of sample pairs and real pairs of the same cluster."""
    similarity = Similarity.load(folder)
    if similarity is None:
        return "Not evaluated yet."
    lines = [
        "`synthetic against real` of the same cluster; `real against real` of other slides is its floor.\n",
        "| metric | comparison | value | 95 % interval | pairs | extractor |",
        "|---|---|---|---|---|---|",
    ]
    for entry in similarity.select(k=k):
        low, high = entry.interval
        lines.append(
            f"| {entry.metric} | {entry.comparison.replace('_', ' against ')} | {entry.value:.4f} "
            f"| {low:.4f} to {high:.4f} | {entry.pairs} | {entry.extractor} |"
        )
    return "\n".join(lines)


def _distribution(folder: Path, *, k: int) -> str:
    """All samples against all real patches: distances, precision and recall, each with its floor."""
    distribution = Distribution.load(folder)
    entries = [] if distribution is None else distribution.select(k=k)
    if not entries:
        return ""
    first = entries[0]
    lines = [
        f"\nAll together: {first.n_synthetic} samples against {first.n_real} real patches; the floor is "
        f"{first.floor_from}.\n",
        "| number | by | samples | floor |",
        "|---|---|---|---|",
    ]
    shown = [entry for entry in entries if entry.metric in SHOWN_DISTANCES]
    lines += [f"| {e.metric} | {e.extractor} | {e.value:.4g} | {e.floor:.4g} |" for e in shown]
    return "\n".join(lines)


def _faithfulness(folder: Path, *, k: int) -> str:
    """Whether samples are recognised as their cluster, and what they are useful for."""
    faithfulness = Faithfulness.load(folder)
    if faithfulness is None or faithfulness.k != k or not (faithfulness.classifier and faithfulness.usefulness):
        return ""
    recognised, useful = faithfulness.classifier, faithfulness.usefulness
    return (
        f"\nAn independent classifier of the clusters recognises {recognised.samples.accuracy:.0%} of the samples and "
        f"{recognised.held_out.accuracy:.0%} of real patches of held-out slides. Tested on these, it reaches "
        f"{useful.real.accuracy:.0%} trained on real patches, {useful.synthetic.accuracy:.0%} trained on samples "
        f"alone, and {useful.both.accuracy:.0%} trained on both (balanced over clusters)."
    )


def _readings(run: Run, *, k: int) -> str:
    """Results of blinded readings of the present samples; trainings with feedback are left out.

    Readers' names stay in the run.
    """

    def spread(estimate: Estimate, *, style: str) -> str:
        low, high = estimate.interval
        return f"{estimate.value:{style}} ({low:{style}} to {high:{style}})"

    lines = []
    for reading in results(run.path):
        if reading.k != k or reading.feedback or not reading.current:
            continue
        against = "real patches" if reading.kind == "real-or-synthetic" else "real patches after the VQ-GAN"
        for reader in reading.readers:
            if isinstance(reader, NamingResult):
                samples, real = (spread(kind.accuracy, style=".0%") for kind in (reader.samples, reader.real))
                lines.append(
                    f"- a reader named {samples} of the samples as what they were drawn for, and {real} of the real "
                    "patches."
                )
            else:
                accuracy, auc = spread(reader.accuracy, style=".0%"), spread(reader.auc, style=".2f")
                lines.append(
                    f"- {reader.n} pictures, half samples and half {against}: a reader was right in {accuracy}, AUC "
                    f"{auc}; 50 % and 0.5 are chance."
                )
    return "" if not lines else "\nBlinded readings by people:\n\n" + "\n".join(lines)


def _originality(folder: Path) -> str:
    """How many samples look like copies of training patches."""
    originality = Originality.load(folder)
    if originality is None:
        return ""
    if originality.copy_rate is None or originality.interval is None:
        return "\nCopies of training patches: not determined, because there are too few held-out patches."
    low, high = originality.interval
    membership = ""
    if originality.membership is not None:
        membership = (
            f" Membership test: AUC {originality.membership.auc:.2f} (0.5: training patches are no nearer to the "
            "samples than other real patches)."
        )
    return (
        f"\nCopies: {originality.copies} of {originality.n} samples look like copies of a training patch ({low:.1%} to "
        f"{high:.1%}), and so do {originality.false_alarm_rate:.1%} of {originality.n_test} real patches of held-out "
        f"slides, which cannot be copies.{membership}"
    )


def _escaped(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
