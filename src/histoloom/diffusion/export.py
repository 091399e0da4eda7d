"""``histoloom export``: the generator as a folder of its own, with a model card.

``Generator.load`` reads the folder; diffusers reads its parts: ``UNet2DModel.from_pretrained(DIR, subfolder="unet")``
and ``DDPMScheduler.from_pretrained(DIR, subfolder="scheduler")``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from histoloom.diffusion.generator import Generator
from histoloom.diffusion.scheduler import make_scheduler
from histoloom.errors import UserError
from histoloom.names import current_names, read_names
from histoloom.store import Run, disk_errors_explained, read_json, write_json, write_text

CARD = """---
library_name: diffusers
tags: [histopathology, latent-diffusion, synthetic-data]
---

# Synthetic tissue generator

Made with Histoloom from unlabeled H&E slides: a VQ-GAN, information-maximisation clusters of its latents, and a
latent diffusion model conditioned on (k, cluster), after Rumman et al., Bioengineering 2025, 12(7), 764.

**Intended use.** Research: augmentation, teaching, method development. **Not for diagnosis**, and not evidence about
any patient. Nothing here proves that no image resembles a training patch: compare before you share.

## Images
{size} x {size} px at {mpp} um/px. Sampler: {method}, {steps} steps, guidance {guidance}.

## Tissues (k = {k})
| cluster | name | share of training patches |
|---|---|---|
{tissues}

## Training data
{patches} patches of {slides} slides. **Licence and attribution of the slides: fill in before you share this folder.**

## Evaluation
{evaluation}
"""


def export_generator(run: Run, out: Path) -> None:
    """Write the folder; ``UserError`` where ``out`` is not new or the run has no generator yet."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give a new folder")
    diffusion, autoencoder = run.require("diffusion"), run.require("autoencoder")
    generator = Generator.load(run.path)
    with disk_errors_explained(out):
        part = out.with_name(f".{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        shutil.copytree(diffusion / "unet", part / "unet")
        (part / "autoencoder").mkdir()
        for name in ("autoencoder.safetensors", "autoencoder.json"):
            shutil.copy2(autoencoder / name, part / "autoencoder" / name)
        make_scheduler(generator.facts.config).save_pretrained(part / "scheduler")
        write_json(part / "generator.json", generator.facts.as_json())
        _write_names(run, part)
        write_text(part / "README.md", model_card(run, generator=generator))
        if out.exists():
            out.rmdir()
        part.rename(out)


def model_card(run: Run, *, generator: Generator) -> str:
    """The model card as Markdown, with what the run knows of itself."""
    facts, k = generator.facts, generator.facts.chosen_k
    names, shares = generator.names(k), facts.frequencies[k]
    tissues = "\n".join(f"| {c} | {_cell(names[c])} | {shares[c]:.1%} |" for c in range(k))
    meta = read_json(run.require("patches") / "meta.json")
    slides = sum(share > 0 for share in _slide_counts(run))
    return CARD.format(
        size=facts.size,
        mpp=f"{facts.mpp:g}",
        method=facts.sampler.method,
        steps=facts.sampler.steps,
        guidance=facts.sampler.guidance,
        k=k,
        tissues=tissues,
        patches=meta["n"],
        slides=slides,
        evaluation=_evaluation(run, k=k),
    )


def _slide_counts(run: Run) -> list[int]:
    import pandas as pd

    return pd.read_parquet(run.require("patches") / "slides.parquet")["patches"].astype(int).tolist()


def _evaluation(run: Run, *, k: int) -> str:
    path = run.path / "evaluation" / "similarity.json"
    if not path.is_file():
        return "Not evaluated yet."
    entries: list[dict[str, Any]] = [entry for entry in read_json(path) if entry["k"] == k and entry["cluster"] is None]
    lines = ["| metric | comparison | value | 95 % interval | pairs | extractor |", "|---|---|---|---|---|---|"]
    for entry in entries:
        low, high = entry["interval"]
        lines.append(
            f"| {entry['metric']} | {entry['comparison'].replace('_', ' against ')} | {entry['value']:.4f} "
            f"| {low:.4f} to {high:.4f} | {entry['pairs']} | {entry['extractor']} |"
        )
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _write_names(run: Run, folder: Path) -> None:
    """The latest naming of each cluster; who gave it stays in the run."""
    shown = {k: current_names(run.path, k=k) for k in {naming.k for naming in read_names(run.path)}}
    latest = {(n.k, n.cluster): n for n in read_names(run.path) if shown[n.k].get(n.cluster) == n.name}
    anonymous = {"rater": "export", "clusters": ""}
    lines = [json.dumps(vars(naming) | anonymous, ensure_ascii=False) for naming in latest.values()]
    if lines:
        write_text(folder / "names.jsonl", "\n".join(lines) + "\n")
