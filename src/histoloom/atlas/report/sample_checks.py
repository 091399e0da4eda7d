"""The report's sections on three checks of the samples: copies, what tells them, and blinded readings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from histoloom.atlas.report.figures import Picture, picture
from histoloom.evaluation.reading.folder import readings
from histoloom.evaluation.reading.results import result
from histoloom.evaluation.reading.tables import format_estimate, table
from histoloom.evaluation.results import Originality, TwoSample
from histoloom.evaluation.telling_windows import FILE as TELLING

_PICTURES = 8
_TITLES = {
    "real-or-synthetic": "Real or synthetic",
    "reconstruction-or-synthetic": "Reconstruction or synthetic",
    "naming": "Naming samples",
}


@dataclass(frozen=True)
class Pair:
    """A sample and its nearest training patch; ``is_copy`` where its score is above the threshold."""

    sample: Picture
    nearest: Picture
    score: float
    is_copy: bool


@dataclass(frozen=True)
class OriginalitySection:
    """The results in ``sentences``, their limits in ``notes``, and the ``pairs``, the most suspicious first."""

    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    pairs: tuple[Pair, ...]
    threshold: float | None


def originality_section(originality: Originality, *, evaluation: Path) -> OriginalitySection:
    """The section, with the pictures in the folder of the stage ``evaluation``."""
    if originality.copy_rate is None or originality.interval is None or originality.false_alarm_interval is None:
        sentences = [f"No threshold could be set, so that none of the {originality.n} samples is called a copy."]
    else:
        low, high = originality.interval
        alarm_low, alarm_high = originality.false_alarm_interval
        sentences = [
            f"{originality.copies} of {originality.n} samples look like copies of a training patch: "
            f"{originality.copy_rate:.1%} ({low:.1%} to {high:.1%}).",
            f"Of {originality.n_test} real patches of held-out slides, which cannot be copies, "
            f"{originality.false_alarm_rate:.1%} do ({alarm_low:.1%} to {alarm_high:.1%}).",
        ]
        if originality.membership is not None:
            auc, (low, high) = originality.membership.auc, originality.membership.interval
            sentences.append(
                f"Training patches are nearer to the samples than held-out ones are in {auc:.0%} of comparisons "
                f"({low:.0%} to {high:.0%}). Samples that reveal nothing about their training patches give 50 %; "
                "differences between the slides alone can give more."
            )
        sentences += [features.sentence for features in originality.by_features]

    pairs, path = [], evaluation / "suspicious.npz"
    if path.is_file():
        with np.load(path) as pictures:
            # The file holds pictures of the first samples alone
            for sample_HW3, nearest_HW3, sample in zip(
                pictures["sample"], pictures["nearest"], originality.samples, strict=False
            ):
                drawn = picture(sample_HW3, text=f"Synthetic patch {sample.file}", at_most=128)
                real = picture(nearest_HW3, text=f"Its nearest training patch, {sample.nearest}", at_most=128)
                pairs.append(Pair(drawn, real, sample.score, sample.is_copy))
    return OriginalitySection(tuple(sentences), originality.notes, tuple(pairs), originality.threshold)


@dataclass(frozen=True)
class TellingSection:
    """What tells samples from real patches: the statistics, in words, and pictures with the most telling window."""

    features: tuple[str, ...]
    pictures: tuple[Picture, ...]


def telling_section(two_sample: TwoSample | None, *, k: int, evaluation: Path) -> TellingSection | None:
    """The section; None where samples are not told from real patches by texture."""
    path = evaluation / TELLING
    if two_sample is None or two_sample.k != k or two_sample.texture is None or not path.is_file():
        return None
    features = [
        f"{one.name}: {abs(one.difference):.1f} standard deviations {'more' if one.difference > 0 else 'less'}"
        for one in two_sample.texture.telling
    ]
    pictures = []
    with np.load(path) as stored:
        for image_HW3, scores_33, file in zip(stored["sample"], stored["score"], stored["name"], strict=True):
            # The window is outlined in white and black, which show on every tissue
            side = len(image_HW3)
            larger = Image.fromarray(image_HW3).resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
            row, column = np.unravel_index(scores_33.argmax(), scores_33.shape)
            left, top = (round(int(number) * side / (len(scores_33) - 1)) for number in (column, row))
            draw = ImageDraw.Draw(larger)
            for inset, colour in ((0, "black"), (1, "white"), (2, "black")):
                draw.rectangle(
                    (left + inset, top + inset, left + side - 1 - inset, top + side - 1 - inset), None, colour
                )
            text = f"Synthetic patch {file}, its most telling quarter outlined"
            pictures.append(picture(np.asarray(larger), text=text, at_most=192))
    return TellingSection(tuple(features), tuple(pictures))


@dataclass(frozen=True)
class ReadingBlock:
    """A reading as the report shows it; ``rows`` has a line of texts for each reader, below ``titles``.

    ``mistaken`` are samples that were taken for real ones (by most readers, where there are several).
    """

    id: str
    title: str
    about: str
    notes: tuple[str, ...]
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...]
    mistaken: tuple[Picture, ...]


def readings_of(run: Path) -> tuple[ReadingBlock, ...]:
    """The readings that at least one reader finished, the newest first."""
    blocks = []
    for reading in reversed(readings(run)):
        outcome = result(reading, run=run)
        if not outcome.readers:
            continue
        titles, rows = table(outcome)
        sentences = [reader.sentence for reader in outcome.readers]
        if outcome.together is not None:
            accuracy = format_estimate(outcome.together.accuracy)
            sentences.append(f"These {outcome.together.readers} readers together: accuracy {accuracy}.")

        mistaken: list[Picture] = []
        if outcome.kind != "naming":
            plan, mistakes = reading.plan, (outcome.together or outcome.readers[0]).mistaken
            for trial in [mistake.trial for mistake in mistakes if mistake.synthetic][:_PICTURES]:
                name = plan.names[plan.trials[trial].tissue]
                mistaken.append(picture(reading.picture(trial), text=f"Sample of {name} that was taken for real"))
        half = outcome.trials // 2
        blocks.append(
            ReadingBlock(
                id=outcome.id,
                title=_TITLES[outcome.kind],
                about=f"{half} real pictures and {half} samples, as many of each tissue, at k = {outcome.k}: "
                f"{outcome.question}",
                notes=outcome.notes,
                titles=titles,
                rows=tuple(rows),
                sentences=tuple(sentences),
                mistaken=tuple(mistaken),
            )
        )
    return tuple(blocks)
