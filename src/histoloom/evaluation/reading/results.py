"""What a reading shows: numbers and sentences of each reader who came to its end, and ``results.json``.

Readers who did not answer every picture are counted, not judged: whoever may stop when the numbers please proves
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from histoloom.evaluation.reading.detection import MIDDLE, detection, detection_together
from histoloom.evaluation.reading.folder import Answer, Reading, readings
from histoloom.evaluation.reading.naming import naming
from histoloom.evaluation.reading.plan import Plan
from histoloom.run.directory import Artifact, read_json, write_json

QUESTIONS = {
    "real-or-synthetic": "real patches as they were scanned, or samples?",
    "reconstruction-or-synthetic": "real patches after the VQ-GAN, or samples?",
    "naming": "which of the named tissues is it?",
}


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
    readers: tuple[Mapping[str, Any], ...]
    together: Mapping[str, Any] | None
    unfinished: tuple[Mapping[str, Any], ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def result(reading: Reading, *, run: Path) -> Result:
    """The reading's result as its answers stand."""
    plan = reading.plan
    answers = reading.answers()
    finished = {reader: given for reader, given in answers.items() if len(given) == len(plan.trials)}
    if plan.kind == "naming":
        readers, together = [naming(plan, given, reader=reader) for reader, given in finished.items()], None
    else:
        readers = [detection(plan, given, reader=reader) for reader, given in finished.items()]
        together = detection_together(plan, finished) if len(finished) > 1 else None
    return Result(
        id=plan.id,
        kind=plan.kind,
        k=plan.k,
        seed=plan.seed,
        feedback=plan.feedback,
        trials=len(plan.trials),
        question=QUESTIONS[plan.kind],
        choices=plan.choices,
        notes=(*plan.notes, *_remarks(reading, run=run)),
        current=is_current(reading, run=run),
        readers=tuple(readers),
        together=together,
        unfinished=tuple(_progress(answers, finished, trials=len(plan.trials))),
    )


def results(run: Path) -> list[Result]:
    """Of all readings of a run, the oldest first."""
    return [result(reading, run=run) for reading in readings(run)]


def write_results(reading: Reading, *, run: Path) -> None:
    """Bring ``results.json`` up to date; without finished readers there is none.

    The model card reads it, and the report knows by it that there is something new to show.
    """
    with reading.locked():
        found = result(reading, run=run)
        if not found.readers:
            return
        value = {key: item for key, item in found.as_json().items() if key not in ("unfinished", "current", "notes")}
        value |= {"notes": list(reading.plan.notes), "fingerprints": dict(reading.plan.fingerprints)}
        path = reading.folder / "results.json"
        text = _plain(value)
        if not path.is_file() or read_json(path) != text:
            write_json(path, text)


def is_current(reading: Reading, *, run: Path) -> bool:
    """Whether the run's samples and clusters are still those that the reading was made from."""
    shown = reading.plan.fingerprints
    return all(_fingerprint(run, stage) == shown.get(stage) for stage in ("clusters", "samples"))


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


def _remarks(reading: Reading, *, run: Path) -> list[str]:
    remarks = []
    if not is_current(reading, run=run):
        remarks.append("This reading is of earlier samples, which the run has replaced since.")
    if reading.plan.feedback:
        remarks.append(
            "Readers were told after each answer whether it was right: this was training, and is no evidence."
        )
    return remarks


def _progress(
    answers: Mapping[str, Mapping[int, Answer]], finished: Mapping[str, object], *, trials: int
) -> list[dict[str, Any]]:
    return [
        {"reader": reader, "answered": len(given), "trials": trials}
        for reader, given in answers.items()
        if reader not in finished
    ]


def _fingerprint(run: Path, stage: str) -> str | None:
    artifact = Artifact.read(run / stage)
    return None if artifact is None else artifact.fingerprint


def _plain(value: Any) -> Any:
    """Lists for tuples, as JSON reads them back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
