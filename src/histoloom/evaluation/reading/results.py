"""What a reading shows: numbers and sentences of each reader who came to its end, and ``results.json``.

Readers who did not answer every picture are counted but have no numbers: a reader who can stop at a favourable moment
biases them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from histoloom.config import Values
from histoloom.evaluation.reading.detection import (
    MIDDLE,
    DetectionResult,
    TogetherResult,
    detection,
    detection_together,
)
from histoloom.evaluation.reading.folder import Reading, readings
from histoloom.evaluation.reading.naming import NamingResult, naming
from histoloom.evaluation.reading.plan import Plan
from histoloom.run.directory import Artifact, read_json, write_json

QUESTIONS = {
    "real-or-synthetic": "real patches as they were scanned, or samples?",
    "reconstruction-or-synthetic": "real patches after the VQ-GAN, or samples?",
    "naming": "which of the named tissues is it?",
}


@dataclass(frozen=True)
class ReadingProgress:
    """How far a reader is who has not answered every picture."""

    reader: str
    answered: int
    trials: int


@dataclass(frozen=True)
class Result:
    """A reading's result. ``readers``: of each finished reader; ``together``: over them, None below two.

    ``unfinished``: how far the others are. ``current``: whether the samples that were shown are the run's present ones.
    """

    id: str
    kind: str
    k: int
    seed: int
    feedback: bool
    trials: int
    question: str
    choices: tuple[str, ...]
    notes: tuple[str, ...]
    current: bool
    readers: tuple[DetectionResult | NamingResult, ...]
    together: TogetherResult | None
    unfinished: tuple[ReadingProgress, ...]

    def as_json(self) -> Values:
        """Plain data."""
        return asdict(self)


def result(reading: Reading, *, run: Path) -> Result:
    """The reading's result as its answers stand."""
    plan = reading.plan
    answers = reading.answers()
    finished = {reader: of_reader for reader, of_reader in answers.items() if len(of_reader) == len(plan.trials)}
    readers: tuple[DetectionResult | NamingResult, ...]
    together = None
    if plan.kind == "naming":
        readers = tuple(naming(plan, of_reader, reader=reader) for reader, of_reader in finished.items())
    else:
        readers = tuple(detection(plan, of_reader, reader=reader) for reader, of_reader in finished.items())
        together = detection_together(plan, finished) if len(finished) > 1 else None

    current = is_current(reading, run=run)
    notes = list(plan.notes)
    if not current:
        notes.append("This reading is of earlier samples, which the run has replaced since.")
    if plan.feedback:
        notes.append("Readers were told after each answer whether it was right: this was training, and is no evidence.")
    return Result(
        id=plan.id,
        kind=plan.kind,
        k=plan.k,
        seed=plan.seed,
        feedback=plan.feedback,
        trials=len(plan.trials),
        question=QUESTIONS[plan.kind],
        choices=plan.choices,
        notes=tuple(notes),
        current=current,
        readers=readers,
        together=together,
        unfinished=tuple(
            ReadingProgress(reader, answered=len(of_reader), trials=len(plan.trials))
            for reader, of_reader in answers.items()
            if reader not in finished
        ),
    )


def results(run: Path) -> list[Result]:
    """Of all readings of a run, the oldest first."""
    return [result(reading, run=run) for reading in readings(run)]


def write_results(reading: Reading, *, run: Path) -> None:
    """Bring ``results.json`` up to date; without finished readers there is none.

    The model card reads it, and the report knows by it that there is something new to show.
    """
    with reading.locked():
        present = result(reading, run=run)
        if not present.readers:
            return
        value = {key: item for key, item in present.as_json().items() if key not in ("unfinished", "current", "notes")}
        value |= {"notes": list(reading.plan.notes), "fingerprints": dict(reading.plan.fingerprints)}
        path = reading.folder / "results.json"
        plain = json.loads(json.dumps(value))  # lists for tuples, as JSON reads them back
        if not path.is_file() or read_json(path) != plain:
            write_json(path, plain)


def is_current(reading: Reading, *, run: Path) -> bool:
    """Whether the run's samples and clusters are still those that the reading was made from."""
    artifacts = {stage: Artifact.read(run / stage) for stage in ("clusters", "samples")}
    present = {stage: artifact.fingerprint if artifact else None for stage, artifact in artifacts.items()}
    return all(reading.plan.fingerprints.get(stage) == fingerprint for stage, fingerprint in present.items())


def truth_in_words(plan: Plan, trial: int) -> str:
    """What a picture is; whoever calls this knows that the reader may know it."""
    shown = plan.trials[trial]
    real = "real patch after the VQ-GAN" if plan.kind == "reconstruction-or-synthetic" else "real patch"
    return f"{'sample' if shown.synthetic else real} of {plan.names[shown.tissue]}"


def is_right(plan: Plan, trial: int, *, answer: int) -> bool | None:
    """Whether an answer was right; None for ``cannot tell``."""
    shown = plan.trials[trial]
    if plan.kind == "naming":
        return None if answer == len(plan.names) else answer == shown.tissue
    return None if answer == MIDDLE else (answer > MIDDLE) == shown.synthetic
