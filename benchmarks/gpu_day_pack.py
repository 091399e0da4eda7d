"""Phase 0 of a GPU day, on a machine with internet: wheels, fields and earlier weights in one folder of a bounded size.

Used by gpu_day.py. The wheels are what Histoloom needs to train and to draw and a bare machine with PyTorch lacks: the
packages below and what they require, in the versions that are installed here. With pandas, pyarrow and the other
packages of ``gpu_day_checks.PIPELINE_NEEDS`` on the machine, the whole small pipeline runs too; of these the two that
are small and seldom there, OpenSlide and Shapely, travel where there is space for them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from histoloom.autoencoder.lpips import find_weights

LPIPS_WEIGHTS = "lpips"
"""folder of the pack with the weights of the perceptual loss"""
NEEDED = ("diffusers", "accelerate", "safetensors", "pydantic", "PyYAML", "rich", "filelock", "psutil", "pillow")
"""what trainings and sampling import, besides PyTorch and NumPy"""
OPTIONAL = ("openslide-bin", "openslide-python", "shapely")
WITH_TORCH = "filelock fsspec jinja2 markupsafe mpmath networkx numpy setuptools sympy torch triton typing-extensions"
"""packages that every machine with PyTorch has"""
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64")
PLATFORMS_TOO = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")


def pack(folder: Path, *, fields: Path, weights: Path | None, present: Path | None, limit: float) -> None:
    """Fill ``folder`` and print its sizes; ends with a line where all is larger than ``limit`` MiB.

    ``present``: a file of packages that the machine has. ``weights``: the parts of an earlier day.
    """
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty; give a new folder")
    pictures = sorted(path for path in fields.glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not pictures:
        sys.exit(f"{fields} has no JPEG or PNG files; give the folder of fields to train on")
    has = {canonicalize_name(name) for name in WITH_TORCH.split()}
    if present is not None:
        lines = present.read_text(encoding="utf-8").split("\n")
        has |= {canonicalize_name(line.split()[0].split("==")[0]) for line in lines if line.strip()}

    (folder / "fields").mkdir(parents=True)
    for path in pictures:
        shutil.copy2(path, folder / "fields")
    if (fields / "slides.csv").is_file():
        shutil.copy2(fields / "slides.csv", folder / "fields")
    if weights is not None:
        parts = sorted(weights.glob("generator.zip.[0-9][0-9][0-9]"))
        if not parts:
            sys.exit(f"{weights} has no generator.zip.000; give the folder that was carried back")
        (folder / "weights").mkdir()
        for part in parts:
            shutil.copy2(part, folder / "weights")
    lpips = find_weights("squeeze", download=False)
    if lpips is None:
        print("no LPIPS weights here: the starter's autoencoder trains without; histoloom doctor --fetch brings them")
    else:
        (folder / LPIPS_WEIGHTS).mkdir()
        shutil.copy2(lpips.path, folder / LPIPS_WEIGHTS)
    checkout = tracked_bytes()
    download(sorted(required(NEEDED) - has), folder / "wheels")
    optional = folder / "wheels-optional"
    download(sorted(set(OPTIONAL) - has), optional)
    if checkout + bytes_of(folder) <= limit * 2**20:
        for wheel in optional.glob("*.whl"):
            wheel.replace(folder / "wheels" / wheel.name)
    for wheel in optional.glob("*.whl"):
        print(f"left out, for want of space: {wheel.name} (phase 2 then runs no whole pipeline)")
    shutil.rmtree(optional)

    rows = [("checkout, tracked files", checkout), *((path.name, bytes_of(path)) for path in sorted(folder.iterdir()))]
    rows += [(f"  {wheel.name}", wheel.stat().st_size) for wheel in sorted((folder / "wheels").glob("*.whl"))]
    for name, size in rows:
        print(f"{size / 2**20:8.2f} MiB  {name}")
    total = (checkout + bytes_of(folder)) / 2**20
    print(f"{total:8.2f} MiB  in all, of {limit:.0f}")
    if total > limit:
        sys.exit(
            f"{total:.1f} MiB are more than {limit:.0f}: name what the machine has (--present), leave out fields, or "
            "take the folder starter/ out of the checkout"
        )


def tracked_bytes() -> int:
    """Bytes of the checkout's tracked files that are there."""
    root = Path(__file__).resolve().parent.parent
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    return sum((root / name).stat().st_size for name in listed.split("\0") if name and (root / name).is_file())


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def required(names: tuple[str, ...]) -> set[str]:
    """These packages and all that they require on the machine, as far as they are installed here."""
    environment: dict[str, str] = {name: str(value) for name, value in default_environment().items()}
    environment |= {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
    found: set[str] = set()
    open_names = [canonicalize_name(name) for name in names]
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate(environment):
                open_names.append(canonicalize_name(requirement.name))
        # What only PyTorch brings in comes with it.
        open_names = [one for one in open_names if one not in WITH_TORCH.split()]
    return found


def download(names: list[str], folder: Path) -> None:
    """Wheels of the versions that are installed here, for Python 3.12 on Linux."""
    folder.mkdir(parents=True, exist_ok=True)
    if not names:
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder)]
    for platform in (*PLATFORMS, *PLATFORMS_TOO):
        command += ["--platform", platform]
    done = subprocess.run([*command, *(f"{name}=={metadata.version(name)}" for name in names)], check=False)
    if done.returncode:
        sys.exit(f"pip cannot download the wheels of {', '.join(names)}; is there a network?")
