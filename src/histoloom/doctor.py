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
    """One thing looked at; ``advice`` is what to type where it is not well, else empty."""

    subject: str
    ok: bool
    detail: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at packages, device, memory, disk, slide reading and metric weights; nothing is downloaded."""
    return [_packages(), _device(), _memory(), _disk(), _slides(), *_weights()]


def _packages() -> Finding:
    versions = {name: _version(name) for name in PACKAGES}
    missing = [name for name, version in versions.items() if version is None]
    detail = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return Finding("packages", not missing, detail, f"pip install {' '.join(missing)}" if missing else "")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device() -> Finding:
    import torch

    from histoloom.training.devices import resolve_device, resolve_precision

    device = resolve_device("auto")
    precision = resolve_precision("auto", device=device)
    if device.startswith("cuda"):
        return Finding("device", True, f"{torch.cuda.get_device_name()}, {precision}")
    advice = "use --preset cpu; the presets paper and modern are made for a GPU" if device == "cpu" else ""
    return Finding("device", True, f"{device}, {os.cpu_count()} cores, {precision}", advice)


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 2**30
    advice = "" if free >= 6 else "the demo wants 6 GiB, preset cpu 8 GiB: close other programs"
    return Finding("memory", free >= 6, f"{free:.1f} GiB free", advice)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    advice = "" if free >= 5 else "a run of the preset paper writes about 5 GiB: choose another disk"
    return Finding("disk", free >= 5, f"{free:.0f} GiB free here", advice)


def _slides() -> Finding:
    import openslide

    return Finding("slides", True, f"OpenSlide {openslide.__library_version__}")


def _weights() -> list[Finding]:
    from histoloom.autoencoder.lpips import find_weights

    findings = []
    for trunk in ("alex", "squeeze", "vgg"):
        found = find_weights(trunk, download=False)
        advice = "" if found else "set HISTOLOOM_WEIGHTS to a folder that has them; else fetched when needed"
        detail = str(found.path) if found else "not on this machine"
        findings.append(Finding(f"LPIPS weights, {trunk}", found is not None, detail, advice))
    return findings
