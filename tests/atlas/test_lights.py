"""The four lights of a run: each level, from the records that the stages write."""

from __future__ import annotations

from typing import Any

import pytest

from histoloom.atlas.report.lights import (
    Light,
    confounding_light,
    copies_light,
    groups_light,
    lights,
    passing,
    samples_light,
)
from histoloom.clustering.results import Confounding, Decision, NullComparison
from histoloom.evaluation.results import Originality, TwoSample, Verdict, Verdicts
from histoloom.run.directory import Run

NULLS = (NullComparison(k=9, indices={}, stability={}, smallest=0.1, largest=0.2),)


def decision(**values: Any) -> Decision:
    return Decision(**{"k": 9, "rule": "r", "has_clusters": True, "nulls": NULLS} | values)


@pytest.mark.parametrize(
    ("values", "k", "level", "words"),
    [
        ({"standing": (8, 9)}, 9, "good", "9 passes: the groups are clearer than in data without groups"),
        ({"partly": (7, 9)}, 9, "caution", "None passes; 9 is the best that passes in part: other patches give most"),
        ({"partly": (7, 9)}, 7, "caution", "None passes; 7 is one of those that pass in part"),
        ({"standing": (8,), "partly": (9,)}, 9, "caution", "9 passes in part; 8 passes"),
        (
            {"standing": (6, 7, 8)},
            9,
            "caution",
            "9 does not pass; 6, 7 and 8 pass: the data have groups",
        ),
        ({"partly": (7,)}, 9, "caution", "None passes; 7 in part, 9 not even that"),
        ({"has_clusters": False}, 9, "bad", "None passes: there is no evidence of groups, and 9 stands only because"),
        ({"has_clusters": False, "nulls": ()}, 9, "unknown", "too few patches"),
        ({"has_clusters": None, "nulls": ()}, 9, "unknown", "did not compare"),
    ],
)
def test_groups_are_as_real_as_the_rule_says(values: dict[str, Any], k: int, level: str, words: str) -> None:
    light = groups_light(decision(**values), k=k)
    assert light.level == level
    assert words in light.sentence
    assert passing(decision(nulls=()), k=9) == ""


@pytest.mark.parametrize(
    ("word", "level"),
    [("like real", "good"), ("different", "bad"), ("too few", "unknown"), ("not measured", "unknown")],
)
def test_samples_have_the_level_and_the_sentence_of_their_verdict(word: Any, level: str) -> None:
    verdicts = Verdicts(k=9, overall=Verdict(word=word, sentence="What was measured."))
    light = samples_light(verdicts, k=9)
    assert (light.level, light.sentence) == (level, f"{word.capitalize()}: what was measured.")
    assert samples_light(verdicts, k=8) == Light(
        "samples", light.question, "unknown", "Not measured at k = 8; samples were judged at k = 9."
    )


def test_the_light_of_samples_says_how_well_they_are_told_and_how_many_groups_differ() -> None:
    told = {"auc": 0.9, "interval": [0.9, 1.0], "accuracy_interval": [0.8, 1.0], "n": [500, 72]}
    texture = {"samples": told | {"accuracy": 0.987}, "floor": told | {"accuracy": 0.544}}
    two_sample = TwoSample.model_validate({"k": 9, "texture": texture})
    clusters = {0: Verdict(word="different", sentence=""), 1: Verdict(word="too few", sentence="")}
    verdicts = Verdicts(k=9, overall=Verdict(word="different", sentence="x"), clusters=clusters)
    assert samples_light(verdicts, k=9, two_sample=two_sample).sentence == (
        "Different from real patches: by texture, a classifier is right about 98.7 % of samples and real patches, and "
        "about 54.4 % with real patches of other slides for samples (50 % is chance); 1 of 2 groups differ."
    )
    assert samples_light(verdicts, k=9, two_sample=two_sample.model_copy(update={"k": 8})).sentence == "Different: x"


def originality(**values: Any) -> Originality:
    known = {"copies": 0, "copy_rate": 0.0, "interval": (0.0, 0.015), "false_alarm_rate": 0.005}
    known |= {"false_alarm_interval": (0.001, 0.02), "threshold": 0.6, "n": 240, "n_test": 400, "notes": ()}
    return Originality(**known | {"membership": None, "samples": ()} | values)


@pytest.mark.parametrize(
    ("values", "level", "words"),
    [
        ({}, "good", "None of 240 samples looks like a copy of a training patch; at most 1.5 % of all"),
        ({"too_plain": 121}, "caution", "None found, but 121 of 240 samples are too plain"),
        ({"copies": 1, "interval": (0.0001, 0.02)}, "caution", "1 of 240 samples looks like a copy"),
        (
            {"copies": 12, "interval": (0.026, 0.09)},
            "bad",
            "12 of 240 samples look like a copy of a training patch",
        ),
        ({"copies": None, "copy_rate": None, "interval": None}, "unknown", "too few patches of held-out slides"),
    ],
)
def test_copies_are_counted_against_chance(values: dict[str, Any], level: str, words: str) -> None:
    light = copies_light(originality(**values))
    assert light.level == level
    assert words in light.sentence


def confounding(**values: Any) -> Confounding:
    slide: dict[str, Any] = {"k": 9, "factor": "slide", "null": "patches", "n": 72, "levels": 3, "mi": 0.1, "nmi": 0.2}
    slide |= {"share": 0.1, "excess": 0.04, "null_mean": 0, "null_high": 0, "z": 1, "p": 0.2, "warns": False, "ami": 0}
    colour = {"k": 9, "n": 72, "colour": 0.5, "stain": 0.62}
    return Confounding.model_validate({"associations": [slide], "colour": [colour]} | values)


@pytest.mark.parametrize(
    ("values", "level", "words"),
    [
        ({}, "good", "No sign of it: slides explain 4.0 % of the groups beyond chance and grouping by colour alone"),
        ({"warnings": {9: ["x"]}}, "caution", "They may follow slides rather than tissue: slides explain 4.0 %"),
        (
            {"warnings": {9: ["x"]}, "colour": [{"k": 9, "n": 72, "colour": 0.8, "stain": 0.5, "warning": "y"}]},
            "caution",
            "They may follow slides and colour rather than tissue",
        ),
        ({"warnings": {8: ["x"]}}, "good", "agrees with them by 0.62 of 1."),
        ({"associations": []}, "unknown", "cannot be seen with one slide; grouping by colour"),
        ({"colour": []}, "unknown", "Colour was not compared in this run; slides explain"),
    ],
)
def test_groups_that_may_follow_slides_or_colour_are_a_caution(values: dict[str, Any], level: str, words: str) -> None:
    light = confounding_light(confounding(**values), k=9)
    assert light.level == level
    assert words in light.sentence


def test_an_older_run_has_four_lights_that_say_what_to_do(finished: Run) -> None:
    found = lights(finished.path)
    assert [light.name for light in found] == ["groups", "samples", "copies", "confounding"]
    assert {light.level for light in found} == {"unknown"}
    assert all(light.symbol == "?" and light.word == "Not known" for light in found)
    assert found[1].sentence == "Not measured; run the stage evaluation again (histoloom run)."
    Verdicts(k=4, overall=Verdict(word="different", sentence="S.")).save(finished.folder("evaluation"))
    changed = lights(finished.path)[1]
    assert (changed.level, changed.word, changed.symbol) == ("bad", "Bad", "✕")
    assert lights(finished.path, k=2)[1].level == "unknown"
