"""Any three folders of images: ``histoloom audit SYNTHETIC --train DIR --holdout DIR``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from histoloom.errors import UserError
from histoloom.evaluation.extractors import Sources as ExtractorSources
from histoloom.evaluation.extractors import make_extractors
from histoloom.evaluation.feature_cache import user_cache
from histoloom.evaluation.folder_report import write_audit
from histoloom.evaluation.image_folder import ImageFolder, check_same_size
from histoloom.evaluation.originality.audit import LEAST_A_PART, Audit, Sets, audit, can_calibrate, summary
from histoloom.evaluation.originality.by_features import ByFeatures, Sources, features_summary, look, sample_entries
from histoloom.evaluation.originality.sheet import sheet_png

SHOWN = 12
"""pairs on the sheet"""


EXTRACTORS = ("lpips-alex",)


def audit_folders(
    synthetic: Path,
    *,
    train: Path,
    holdout: Path,
    seed: int = 0,
    extractors: tuple[str, ...] = EXTRACTORS,
    cache: Path | None = None,
    device: str = "cpu",
    download: bool = True,
    out: Path | None = None,
) -> dict[str, Any]:
    """Look for copies of the images in ``train`` among those in ``synthetic``, calibrated on those in ``holdout``.

    Folders are searched with their subfolders for square 8-bit RGB images, all of one size. Where ``holdout`` has
    subfolders, each counts as a slide; else the first half of its images, by path, sets the threshold and the other
    half tests it. The features of each of ``extractors`` give a second opinion (``by_features``); they are kept in
    ``cache`` (by default the user's cache folder), and an extractor that is not at hand is named under ``missing``.
    With ``out``, ``audit.json``, ``audit.csv``, ``audit.html`` and ``suspicious.png`` (each sample beside its nearest
    training image) are written there.

    Returns {n, copies, copy_rate, interval, false_alarm_rate, false_alarm_interval, threshold, ..., notes, by_features:
    [...], missing, samples: [{file, nearest, score, copy, too_plain, by}]}, the most suspicious first. Raises
    ``UserError`` for folders and images that cannot be compared, and for too few held-out images.
    """
    samples, trained, held = _open(synthetic, train, holdout)
    sets = Sets(samples, trained, held, _slides(held.paths, folder=holdout))
    if not can_calibrate(sets.slide_H):
        raise UserError(
            f"{holdout} holds {len(held)} images in {len(set(sets.slide_H))} slide(s); a threshold, and its test on "
            f"other slides, need {LEAST_A_PART} images each ({2 * LEAST_A_PART} in all): add some"
        )
    found = audit(sets, seed=seed, device=torch.device(device))
    made, missing = make_extractors(
        extractors, sources=ExtractorSources(torch.device(device), download=download), size=min(samples.size)
    )
    sources = Sources(samples, trained, held, sets.slide_H)
    others = [look(sources, extractor=extractor, cache=cache or user_cache(), seed=seed) for extractor in made]
    order = suspicious_first(found)
    result = summary(found) | {
        "by_features": [features_summary(other) for other in others],
        "missing": missing,
        "samples": [_entry(found, row, others=others, samples=samples, train=trained) for row in order],
    }
    if out is not None:
        shown = order[:SHOWN]
        pairs = samples.read(shown), trained.read([int(found.nearest.number_N[row]) for row in shown])
        write_audit(result, out, sheet=sheet_png(*pairs))
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


def _entry(
    found: Audit, row: int, *, others: Sequence[ByFeatures], samples: ImageFolder, train: ImageFolder
) -> dict[str, Any]:
    names = train.names
    return {
        "file": samples.names[row],
        "nearest": names[int(found.nearest.number_N[row])],
        "score": float(found.nearest.score_N[row]),
        "copy": bool(found.alarm_N[row]),
        "too_plain": bool(found.plain_N[row]),
        "by": sample_entries(others, row, ids=names),
    }
