"""Results say what readers did: perfect, inverted and unsure ones; and whether the samples are still there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histoloom.evaluation.reading.detection import DetectionResult, Levels, Seconds
from histoloom.evaluation.reading.folder import Reading
from histoloom.evaluation.reading.make import create_reading
from histoloom.evaluation.reading.naming import NamingResult
from histoloom.evaluation.reading.plan import Request, Trial
from histoloom.evaluation.reading.results import ReadingProgress, result, write_results
from histoloom.evaluation.reading.session import Session
from histoloom.run.directory import Run, read_json, write_json
from histoloom.seeding import numpy_generator

Read = Callable[..., Session]


@pytest.fixture
def reading(run: Run) -> Reading:
    return create_reading(run, Request("real-or-synthetic", 12))


def perfect(trial: Trial) -> int:
    return 4 if trial.synthetic else 0


def inverted(trial: Trial) -> int:
    return 1 if trial.synthetic else 3


def unsure(_trial: Trial) -> int:
    return 2


def detection_of_ann(reading: Reading, run: Run) -> DetectionResult:
    """The result of the first reader, who tells real pictures from synthetic ones."""
    first = result(reading, run=run.path).readers[0]
    assert isinstance(first, DetectionResult)
    return first


def test_who_is_always_right_is_better_than_chance(run: Run, reading: Reading, read: Read) -> None:
    read(reading, "Ann", perfect)
    found = detection_of_ann(reading, run)
    assert (found.right, found.accuracy.value, found.auc.value) == (12, 1.0, 1.0)
    assert found.accuracy.interval == pytest.approx((0.7575, 1.0), abs=1e-4)
    assert found.auc.interval[0] < 0.9
    assert found.verdict == "better"
    assert found.sentence.startswith("Ann was right in 12 of 12: 100% (76% to 100%), better than chance")
    assert found.levels == Levels(real=(6, 0, 0, 0, 0), synthetic=(0, 0, 0, 0, 6))
    assert found.seconds == Seconds(all=2.5, real=2.5, synthetic=2.5)


def test_who_takes_each_for_the_other_is_worse(run: Run, reading: Reading, read: Read) -> None:
    read(reading, "Ann", inverted)
    found = detection_of_ann(reading, run)
    assert (found.verdict, found.auc.value, found.sensitivity.value) == ("worse", 0.0, 0.0)


def test_who_cannot_tell_is_half_right(run: Run, reading: Reading, read: Read) -> None:
    read(reading, "Ann", unsure)
    found = detection_of_ann(reading, run)
    assert (found.right, found.unsure, found.accuracy.value) == (0, 12, 0.5)
    assert (found.auc.value, found.p, found.verdict) == (0.5, None, "open")
    assert "could not tell 12, which count half" in found.sentence
    assert "not shown to be better than chance by 12 pictures" in found.sentence


def test_numbers_are_those_of_the_answers(run: Run, reading: Reading, read: Read) -> None:
    rng = numpy_generator(0, "t")
    read(reading, "Ann", lambda _: int(rng.integers(0, 5)))
    given = reading.answers()["Ann"]
    truth = np.array([trial.synthetic for trial in reading.plan.trials])
    level = np.array([given[trial].answer for trial in range(12)])
    found = detection_of_ann(reading, run)
    assert found.auc.value == pytest.approx(roc_auc_score(truth, level))
    assert found.sensitivity.value == pytest.approx(np.mean(np.where(level == 2, 0.5, level > 2)[truth]))
    assert found.specificity.value == pytest.approx(np.mean(np.where(level == 2, 0.5, level < 2)[~truth]))
    both = (found.sensitivity.value + found.specificity.value) / 2
    assert found.accuracy.value == pytest.approx(both)
    correct = sum(getattr(row, kind).told for row in found.tissues for kind in ("real", "synthetic"))
    assert correct / 12 == pytest.approx(found.accuracy.value)


def test_readers_side_by_side(run: Run, reading: Reading, read: Read) -> None:
    read(reading, "Ann", perfect)
    assert result(reading, run=run.path).together is None
    read(reading, "Ben", inverted)
    read(reading, "Cleo", perfect, n=5)
    found = result(reading, run=run.path)
    assert [row.reader for row in found.readers] == ["Ann", "Ben"]
    assert found.together is not None
    assert found.together.accuracy.value == 0.5
    assert found.unfinished == (ReadingProgress("Cleo", answered=5, trials=12),)
    assert found.together.mistaken == ()
    read(reading, "Dan", inverted)
    again = result(reading, run=run.path).together
    assert again is not None
    assert len(again.mistaken) == 12


def test_naming_by_the_truth_and_by_guessing(run: Run, read: Read) -> None:
    reading = create_reading(run, Request("naming", 12))
    tissues = len(reading.plan.names)
    read(reading, "Ann", lambda trial: trial.tissue)
    read(reading, "Ben", lambda trial: tissues if trial.synthetic else trial.tissue)
    ann, ben = result(reading, run=run.path).readers
    assert isinstance(ann, NamingResult)
    assert isinstance(ben, NamingResult)
    assert ann.real.kappa is not None
    assert ann.samples.accuracy.value == ann.real.kappa.value == 1.0
    assert np.trace(np.array(ann.samples.confusion)) == 6
    assert (ann.verdict, ben.verdict) == ("open", "fewer")
    assert ben.samples.accuracy.value == 0.0
    assert np.array(ben.samples.confusion)[:, tissues].sum() == 6
    assert "0% (0% to 39%) of the samples as what they were drawn for" in ben.sentence
    assert ben.samples.kappa is not None
    assert ben.samples.kappa.value == 0.0


def test_a_reading_of_earlier_samples_is_marked(run: Run, reading: Reading, read: Read) -> None:
    read(reading, "Ann", perfect)
    assert result(reading, run=run.path).current
    path = run.folder("samples") / "artifact.json"
    write_json(path, read_json(path) | {"fingerprint": "another"})
    found = result(reading, run=run.path)
    assert not found.current
    assert "This reading is of earlier samples" in found.notes[-1]


def test_results_file_holds_finished_readers_and_is_quiet_when_nothing_changed(
    run: Run, reading: Reading, read: Read
) -> None:
    path = reading.folder / "results.json"
    read(reading, "Ann", perfect, n=11)
    write_results(reading, run=run.path)
    assert not path.exists()
    read(reading, "Ann", perfect)
    write_results(reading, run=run.path)
    value, written = read_json(path), path.stat().st_ino
    assert [row["reader"] for row in value["readers"]] == ["Ann"]
    assert value["fingerprints"]["samples"] == reading.plan.fingerprints["samples"]
    write_results(reading, run=run.path)
    assert path.stat().st_ino == written


def test_training_is_called_training(run: Run, read: Read) -> None:
    reading = create_reading(run, Request("real-or-synthetic", 4, feedback=True))
    read(reading, "Ann", perfect)
    assert "this was training, and is no evidence" in result(reading, run=run.path).notes[-1]
