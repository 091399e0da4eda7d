"""Finding, checking and reading the weights of LPIPS (Zhang et al., CVPR 2018, arXiv:1801.03924), version 0.1.

A trunk's weights are looked for in the folder that ``HISTOLOOM_WEIGHTS`` names, then in torch hub's cache, and are
downloaded to that cache from torchvision's official address where this is allowed. What carries a SHA-256, in this
file or (as torch hub has it) in its own name, is checked against it before it is used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import numpy as np
import torch

from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained, replacing

logger = logging.getLogger("histoloom")

Trunk = Literal["alex", "squeeze", "vgg"]
Tensors = dict[str, torch.Tensor]

ENVIRONMENT = "HISTOLOOM_WEIGHTS"
TIMEOUT_SECONDS = 10.0
_ADDRESS = "https://download.pytorch.org/models"
_CHUNK_BYTES = 1 << 20
_HUB_HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")


@dataclass(frozen=True)
class TrunkFiles:
    """The files that a trunk's weights come in."""

    npz: str
    """trunk and heads in one NumPy archive"""
    npz_sha256: str | None
    pth: str
    """the trunk alone, as torchvision publishes it"""

    @property
    def url(self) -> str:
        """torchvision's official address of the trunk."""
        return f"{_ADDRESS}/{self.pth}"


FILES: dict[Trunk, TrunkFiles] = {
    "alex": TrunkFiles(
        "lpips_alex_v0.1_fp32.npz",
        "a22abd613e652d1aaab35d66fd22ea034a6cd064039b450fca4669adeb8eb492",
        "alexnet-owt-7be5be79.pth",
    ),
    "squeeze": TrunkFiles(
        "lpips_squeeze_v0.1_fp32.npz",
        "80b594e4bb4a1a1a86466dacee67cca1f6f2e84390a1d4e828cbc2c6284b9a41",
        "squeezenet1_1-b8a52dc0.pth",
    ),
    "vgg": TrunkFiles("lpips_vgg_v0.1_fp32.npz", None, "vgg16-397923af.pth"),
}


@dataclass(frozen=True)
class WeightsFile:
    """A file that holds a trunk's weights, and the leading hex digits of its SHA-256 where they are known."""

    path: Path
    trunk: Trunk
    sha256: str | None

    def read(self) -> tuple[Tensors, Tensors]:
        """The trunk's tensors and the heads', under torchvision's and LPIPS's names.

        Raises ``UserError`` where the file is not what its name says.
        """
        _check(self.path, expected=self.sha256)
        try:
            tensors = _read_npz(self.path) if self.path.suffix == ".npz" else _read_pth(self.path)
        except (OSError, ValueError, RuntimeError, UnpicklingError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} cannot be read as weights; replace it by a whole copy") from error
        trunk = {name: value for name, value in tensors.items() if name.startswith("features.")}
        heads = {name: value for name, value in tensors.items() if name.startswith("lin")}
        return trunk, heads or read_heads(self.trunk)


def search_folders() -> list[Path]:
    """Where weights are looked for, first place first; ``UserError`` where the environment names no folder."""
    folders = []
    named = os.environ.get(ENVIRONMENT)
    if named:
        folders.append(Path(named).expanduser())
        if not folders[0].is_dir():
            raise UserError(f"{ENVIRONMENT} is {named!r}, which is no folder; name one that exists, or unset it")
    return [*folders, _cache()]


def find_weights(trunk: Trunk, *, download: bool) -> WeightsFile | None:
    """The file that holds ``trunk``'s weights, or None where there is none (the log says why a download failed)."""
    files = FILES[trunk]
    for folder in search_folders():
        if (folder / files.npz).is_file():
            return WeightsFile(folder / files.npz, trunk, files.npz_sha256)
        if (folder / files.pth).is_file():
            return WeightsFile(folder / files.pth, trunk, hub_hash(files.pth))
    if not download:
        return None
    target = _cache() / files.pth
    try:
        fetch(files.url, target=target, sha256=hub_hash(files.pth))
    except (OSError, HTTPException) as error:
        logger.warning("%s could not be downloaded: %s", files.url, error)
        return None
    return WeightsFile(target, trunk, hub_hash(files.pth))


def hub_hash(name: str) -> str | None:
    """The leading hex digits of the SHA-256 that a file of torch hub carries in its name."""
    found = _HUB_HASH.search(name)
    return found.group(1) if found else None


def fetch(url: str, *, target: Path, sha256: str | None) -> None:
    """Download ``url`` to ``target``, which appears whole and checked or not at all.

    Raises ``UserError`` where the content is not the wanted one, ``OSError`` where the network fails.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, disk_errors_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            with temporary.open("wb") as file:
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
            _check(temporary, expected=sha256, named=url)


def read_heads(trunk: Trunk) -> Tensors:
    """The linear heads of LPIPS v0.1, from the files that torchmetrics ships."""
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None, "torchmetrics is a dependency"
    assert spec.origin is not None, "torchmetrics is a regular package"
    return _read_pth(Path(spec.origin).parent / "functional" / "image" / "lpips_models" / f"{trunk}.pth")


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _check(path: Path, *, expected: str | None, named: str | None = None) -> None:
    if expected is None:
        return
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if not got.startswith(expected):
        raise UserError(
            f"{named or path} is not the published file: its SHA-256 is {got[:16]}..., "
            f"wanted {expected[:16]}{'...' if len(expected) > 16 else ''}; replace it by a fresh copy"
        )


def _read_npz(path: Path) -> Tensors:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def _read_pth(path: Path) -> Tensors:
    tensors: Tensors = torch.load(path, map_location="cpu", weights_only=True)
    return tensors
