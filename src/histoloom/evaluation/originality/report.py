"""The whole audit as a record: by pixels and by features, of the samples of a run or of folders of images."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from histoloom.errors import UserError
from histoloom.evaluation.extractors import Extractor, ExtractorSources, make_extractors
from histoloom.evaluation.feature_cache import RUN_CACHE, user_cache
from histoloom.evaluation.folder_report import write_audit
from histoloom.evaluation.images import ImageFolder, ImageRows, SampleFolder, require_apart
from histoloom.evaluation.originality.audit import VERSION, AuditSets, PixelAudit, audit_pixels, notes
from histoloom.evaluation.originality.by_features import audit_features
from histoloom.evaluation.originality.calibration import MIN_PER_HALF, can_calibrate, copy_rates
from histoloom.evaluation.results import AuditedSample, FeatureMatch, Originality
from histoloom.run.directory import write_bytes
from histoloom.run.stage import StageContext
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device

SHOWN_OF_RUN, SHOWN_OF_FOLDERS = 8, 12
"""suspicious pairs that are kept as pictures"""
PICTURES = "suspicious.npz"
_DIGITS = 4  # of the held-out patches' scores
EXTRACTORS = ("lpips-alex",)
"""of an audit of folders"""


def audit_originality(
    sets: AuditSets,
    *,
    sample_names: Sequence[str] | np.ndarray,
    train_names: Callable[[np.ndarray], Sequence[str]],
    extractors: Sequence[Extractor],
    cache: Path | None,
    seed: int,
    device: torch.device,
    folder: Path | None = None,
) -> tuple[Originality, PixelAudit]:
    """Audit samples by pixels and by the features of each extractor, which are kept in ``cache``.

    ``train_names`` gives the names of training patches by their numbers. Greys and features of many training patches
    lie in temporary files in ``folder``. Returns the record, whose samples are named and the most suspicious first, and
    what it was made from.
    """
    audit = audit_pixels(sets, seed=seed, device=device, folder=folder)
    by_features = [
        audit_features(sets, extractor=extractor, cache=cache, seed=seed, folder=folder) for extractor in extractors
    ]
    numbers = np.unique(np.concatenate([audit.nearest.number_N, *(one.number_N for one in by_features)]))
    name = dict(zip(numbers.tolist(), train_names(numbers), strict=True))
    samples = tuple(
        AuditedSample(
            file=str(sample_names[row]),
            nearest=name[int(audit.nearest.number_N[row])],
            score=float(audit.nearest.score_N[row]),
            is_copy=bool(audit.alarm_N[row]),
            too_plain=bool(audit.too_plain_N[row]),
            by_extractor={
                one.extractor: FeatureMatch(
                    nearest=name[int(one.number_N[row])],
                    distance=float(one.distance_N[row]),
                    is_copy=bool(one.alarm_N[row]),
                )
                for one in by_features
            },
        )
        for row in audit.order
    )
    calibration = audit.calibration
    record = Originality(
        **dict(copy_rates(audit.copies, calibration)),
        version=VERSION,
        n=audit.copies.n,
        target_false_alarm_rate=calibration.rate if calibration else None,
        n_train=audit.n_train,
        n_calibration=calibration.n if calibration else 0,
        n_test=calibration.tested.n if calibration else 0,
        n_slides=calibration.slides if calibration else (0, 0),
        too_plain=int(audit.too_plain_N.sum()),
        half_too_plain=int(audit.half_too_plain_N.sum()),
        membership=audit.membership,
        notes=tuple(notes(audit)),
        by_features=tuple(one.record for one in by_features),
        held_out_scores=tuple(np.sort(audit.held_out_H)[::-1].round(_DIGITS).tolist()),
        samples=samples,
    )
    return record, audit


def write_originality(context: StageContext, *, patches: PatchSet, samples: SampleFolder) -> None:
    """Write ``originality.json`` and ``suspicious.npz`` of a run, unless a killed call has; say the result.

    Patches of held-out slides set the threshold and test it; a run without enough of them gets scores alone. The
    features of every extractor but the pixels give a second opinion: pixels are compared better by correlation.
    """
    config = context.config
    record = Originality.load(context.out)
    if record is None:
        device = torch.device(resolve_device(config.runtime.device))
        sources = ExtractorSources(device, autoencoder=context.inputs.get("autoencoder"), download=True)
        names = [name for name in config.evaluation.extractors if name != "pixels"]
        train, holdout = patches.rows("train"), patches.rows("holdout")
        sets = AuditSets(
            ImageRows(samples.images, np.arange(len(samples))),
            ImageRows(patches.images, train),
            ImageRows(patches.images, holdout),
            patches.columns("slide", rows=holdout)["slide"].astype(str).tolist(),
        )
        record, audit = audit_originality(
            sets,
            sample_names=samples.table["file_name"].to_numpy(dtype=str),
            train_names=lambda numbers: patches.columns("patch_id", rows=train[numbers])["patch_id"].tolist(),
            extractors=make_extractors(names, sources=sources, size=patches.size)[0],
            cache=context.run / RUN_CACHE,
            seed=config.seed,
            device=device,
            folder=context.out,
        )
        shown = np.array(audit.order[:SHOWN_OF_RUN])
        buffer = io.BytesIO()
        np.savez(
            buffer,
            sample=samples.images(shown),
            nearest=patches.images(train[audit.nearest.number_N[shown]]),
        )
        write_bytes(context.out / PICTURES, buffer.getvalue())
        record.save(context.out)

    if record.interval is None:
        context.say(f"originality: {record.notes[0]}")
        return
    low, high = record.interval
    context.say(
        f"originality: {record.copies} of {record.n} samples look like copies of training patches ({low:.1%} to "
        f"{high:.1%}); false alarms on held-out patches: {record.false_alarm_rate:.1%}"
    )


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
) -> Originality:
    """Look for copies of the images in ``train`` among those in ``synthetic``, calibrated on those in ``holdout``.

    Folders are searched with their subfolders for square 8-bit RGB images, all of one size. Where ``holdout`` has
    subfolders, each counts as a slide; else the first half of its images, by path, sets the threshold and the other
    half tests it. The features of each of ``extractors`` give a second opinion (``by_features``); they are kept in
    ``cache`` (by default the user's cache folder), and an extractor that is not at hand is named under ``missing``.
    With ``out``, ``audit.json``, ``audit.csv``, ``audit.html`` and ``suspicious.png`` (each sample beside its nearest
    training image) are written there.

    In the result the most suspicious samples come first. Raises ``UserError`` for folders and images that cannot be
    compared, and for too few held-out images.
    """
    advice = "name three folders apart: the synthetic, the training (--train) and the held-out images (--holdout)"
    require_apart(synthetic, train, holdout, advice=advice)
    sample_images, train_images, held_out = ImageFolder(synthetic), ImageFolder(train), ImageFolder(holdout)
    for folder in (train_images, held_out):
        folder.require_size_of(sample_images)
    slides = [str(path.parent.relative_to(holdout)) for path in held_out.paths]
    if not can_calibrate(slides):
        raise UserError(
            f"{holdout} holds {len(held_out)} images in {len(set(slides))} slide(s); a threshold, and its test on "
            f"other slides, need {MIN_PER_HALF} images each ({2 * MIN_PER_HALF} in all): add some"
        )

    sources = ExtractorSources(torch.device(device), download=download)
    usable, missing = make_extractors(extractors, sources=sources, size=min(sample_images.size))
    record, audit = audit_originality(
        AuditSets(sample_images, train_images, held_out, slides),
        sample_names=sample_images.names,
        train_names=lambda numbers: [train_images.names[number] for number in numbers],
        extractors=usable,
        cache=cache or user_cache(),
        seed=seed,
        device=torch.device(device),
    )
    record = record.model_copy(update={"missing": missing})
    if out is not None:
        shown = np.array(audit.order[:SHOWN_OF_FOLDERS])
        pairs = sample_images.read(shown), train_images.read(audit.nearest.number_N[shown])
        write_audit(record, out, pairs=pairs)
    return record
