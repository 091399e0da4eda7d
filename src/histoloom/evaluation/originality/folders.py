"""Any three folders of images: ``histoloom audit SYNTHETIC --train DIR --holdout DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from histoloom.errors import UserError
from histoloom.evaluation.image_folder import ImageFolder, check_same_size
from histoloom.evaluation.originality.audit import LEAST_A_PART, Audit, Sets, audit, can_calibrate, summary
from histoloom.evaluation.originality.sheet import sheet_png
from histoloom.store import disk_errors_explained, write_bytes, write_json

SHOWN = 12
"""pairs on the sheet"""


def audit_folders(
    synthetic: Path, *, train: Path, holdout: Path, seed: int = 0, device: str = "cpu", out: Path | None = None
) -> dict[str, Any]:
    """Look for copies of the images in ``train`` among those in ``synthetic``, calibrated on those in ``holdout``.

    Folders are searched with their subfolders for square 8-bit RGB images, all of one size. Where ``holdout`` has
    subfolders, each counts as a slide; else the first half of its images, by path, sets the threshold and the other
    half tests it. With ``out``, ``audit.json`` and ``suspicious.png`` (each sample beside its nearest training image)
    are written there.

    Returns {n, copies, copy_rate, interval, false_alarm_rate, false_alarm_interval, threshold, ..., notes, samples:
    [{file, nearest, score, copy, too_plain}]}, the most suspicious first. Raises ``UserError`` for folders and images
    that cannot be compared, and for too few held-out images.
    """
    samples, trained, held = _open(synthetic, train, holdout)
    sets = Sets(samples, trained, held, _slides(held.paths, folder=holdout))
    if not can_calibrate(sets.slide_H):
        raise UserError(
            f"{holdout} holds {len(held)} images in {len(set(sets.slide_H))} slide(s); a threshold, and its test on "
            f"other slides, need {LEAST_A_PART} images each ({2 * LEAST_A_PART} in all): add some"
        )
    found = audit(sets, seed=seed, device=torch.device(device))
    order = suspicious_first(found)
    result = summary(found) | {"samples": [_entry(found, row, samples=samples, train=trained) for row in order]}
    if out is not None:
        with disk_errors_explained(out):
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "audit.json", result)
            shown = order[:SHOWN]
            write_bytes(
                out / "suspicious.png",
                sheet_png(samples.read(shown), trained.read([int(found.nearest.number_N[row]) for row in shown])),
            )
    return result


def suspicious_first(found: Audit) -> list[int]:
    """The samples' numbers by falling score; of equals the first."""
    return sorted(range(len(found.best_N)), key=lambda row: (-found.nearest.score_N[row], row))


def _open(synthetic: Path, train: Path, holdout: Path) -> tuple[ImageFolder, ImageFolder, ImageFolder]:
    places = [path.resolve() for path in (synthetic, train, holdout)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        if places[one] == places[other] or places[one] in places[other].parents or places[other] in places[one].parents:
            raise UserError(
                f"{places[one]} and {places[other]} are or hold the same images; name three folders apart: the "
                "synthetic, the training (--train) and the held-out images (--holdout)"
            )
    folders = ImageFolder(synthetic), ImageFolder(train), ImageFolder(holdout)
    first = folders[0]
    for folder in folders[1:]:
        check_same_size(folder.paths[0], size=folder.size, other=first.paths[0], other_size=first.size)
    return folders


def _slides(paths: Sequence[Path], *, folder: Path) -> list[str]:
    return [str(path.parent.relative_to(folder)) for path in paths]


def _entry(found: Audit, row: int, *, samples: ImageFolder, train: ImageFolder) -> dict[str, Any]:
    return {
        "file": str(samples.paths[row].relative_to(samples.folder)),
        "nearest": str(train.paths[int(found.nearest.number_N[row])].relative_to(train.folder)),
        "score": float(found.nearest.score_N[row]),
        "copy": bool(found.alarm_N[row]),
        "too_plain": bool(found.plain_N[row]),
    }
