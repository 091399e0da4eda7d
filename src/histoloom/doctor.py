"""What this machine can do, what is missing, and what to type."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = ("torch", "diffusers", "accelerate", "torchmetrics", "openslide-python", "tifffile", "scikit-learn")


@dataclass(frozen=True)
class Finding:
    """The state of one thing; ``advice`` is what to type where it is not ``ok``, else empty."""

    subject: str
    ok: bool
    detail: str
    advice: str = ""


def examine() -> list[Finding]:
    """Examine packages, device, memory, disk, slide reading and metric weights; nothing is downloaded."""
    import openslide
    import torch

    from histoloom.autoencoder.lpips import find_weights
    from histoloom.training.devices import resolve_device, resolve_precision

    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    advice = f"pip install {' '.join(missing)}" if missing else ""
    findings = [Finding("packages", not missing, ", ".join(versions), advice)]

    device = resolve_device("auto")
    precision = resolve_precision("auto", device=device)
    if device.startswith("cuda"):
        findings.append(Finding("device", True, f"{torch.cuda.get_device_name()}, {precision}"))
    else:
        advice = "use --preset cpu; the presets paper and modern are made for a GPU" if device == "cpu" else ""
        findings.append(Finding("device", True, f"{device}, {os.cpu_count()} cores, {precision}", advice))

    memory = psutil.virtual_memory().available / 2**30
    advice = "" if memory >= 6 else "the demo needs 6 GiB, the preset cpu 8 GiB: close other programs"
    findings.append(Finding("memory", memory >= 6, f"{memory:.1f} GiB free", advice))
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    advice = "" if disk >= 5 else "a run of the preset paper writes about 5 GiB: choose another disk"
    findings.append(Finding("disk", disk >= 5, f"{disk:.0f} GiB free here", advice))
    findings.append(Finding("slides", True, f"OpenSlide {openslide.__library_version__}"))

    for trunk in ("alex", "squeeze", "vgg"):
        weights = find_weights(trunk, download=False)
        advice = "" if weights else "set HISTOLOOM_WEIGHTS to a folder that has them; else they are fetched when needed"
        detail = str(weights.path) if weights else "not on this machine"
        findings.append(Finding(f"LPIPS weights, {trunk}", weights is not None, detail, advice))
    return findings
