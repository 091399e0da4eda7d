"""What this machine can do, what is missing, and what to type; and the weights of LPIPS, fetched and checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from histoloom.errors import UserError

if TYPE_CHECKING:
    from histoloom.autoencoder.lpips import Trunk

TRUNKS: tuple[Trunk, ...] = ("squeeze", "alex", "vgg")
"""of LPIPS, the smallest file first: 5 MB, 240 MB and 530 MB"""
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

    for trunk in TRUNKS:
        weights = find_weights(trunk, download=False)
        advice = "" if weights else "histoloom doctor --fetch; else they are fetched when needed"
        detail = str(weights.path) if weights else "not on this machine"
        findings.append(Finding(f"LPIPS weights, {trunk}", weights is not None, detail, advice))
    return findings


def fetch_weights() -> Iterator[Finding]:
    """Download the LPIPS weights that this machine lacks, and check all of them; a finding for each trunk.

    They go to the folder that ``HISTOLOOM_WEIGHTS`` names, else to torch hub's cache. Brought to another machine, and
    named there by ``HISTOLOOM_WEIGHTS``, the folder serves without a network.
    """
    from histoloom.autoencoder.lpips import ENVIRONMENT, FILES, LPIPS, fetch, find_weights, hub_hash, search_folders

    folders = search_folders()
    for trunk in TRUNKS:
        subject, files = f"LPIPS weights, {trunk}", FILES[trunk]
        by_hand = f"put {files.url} into a folder, and set {ENVIRONMENT} to that folder"
        try:
            if find_weights(trunk, download=False) is None:
                if not folders:
                    yield Finding(subject, False, "no folder to keep them in is known", f"set {ENVIRONMENT} to one")
                    continue
                fetch(files.url, target=folders[0] / files.pth, sha256=hub_hash(files.pth))
            weights = find_weights(trunk, download=False)
            assert weights is not None, "found or fetched"
            LPIPS.load(trunk, download=False)
            yield Finding(subject, True, f"{weights.path}, checked")
        except UserError as error:
            yield Finding(subject, False, str(error))
        except (OSError, HTTPException) as error:
            yield Finding(subject, False, f"could not be downloaded: {error}", by_hand)
