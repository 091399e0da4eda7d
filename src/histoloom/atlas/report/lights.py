"""Four lights on a run: are the groups real, do samples look real, are there copies, do groups follow slides or colour?

The report's first screen and the atlas's opening page show the same lights. This module loads quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from histoloom.atlas.report.text import percent
from histoloom.clustering.results import Confounding, Decision
from histoloom.evaluation.results import Originality, TwoSample, Verdicts, VerdictWord

LightName = Literal["groups", "samples", "copies", "confounding"]
Level = Literal["good", "caution", "bad", "unknown"]

WORDS: dict[Level, str] = {"good": "Good", "caution": "Caution", "bad": "Bad", "unknown": "Not known"}
SYMBOLS: dict[Level, str] = {"good": "✓", "caution": "!", "bad": "✕", "unknown": "?"}
"""A level's word and symbol; both stand beside its colour, which says nothing that they do not."""

_RERUN = "run the stage evaluation again (histoloom run)"


_STARTS: dict[VerdictWord, str] = {
    "different": "Different from real patches",
    "too few": "Too few samples or patches to say",
    "like real": "Like real patches of other slides",
    "not measured": "Not measured",
}


@dataclass(frozen=True)
class Light:
    """The answer to one question about a run: a ``level``, and a plain ``sentence``."""

    name: LightName
    question: str
    level: Level
    sentence: str

    @property
    def word(self) -> str:
        """The level in words."""
        return WORDS[self.level]

    @property
    def symbol(self) -> str:
        """The level as one character."""
        return SYMBOLS[self.level]


def lights(run: Path, *, k: int | None = None) -> tuple[Light, ...]:
    """The four lights of a run directory at ``k``, None for the decision's.

    The stage ``clusters`` must be there. What no stage has measured yet is unknown, and the sentence says what to do.
    """
    clusters, evaluation = run / "clusters", run / "evaluation"
    decision = Decision.load(clusters)
    k = decision.k if k is None else k
    return (
        groups_light(decision, k=k),
        samples_light(Verdicts.load(evaluation), k=k, two_sample=TwoSample.load(evaluation)),
        copies_light(Originality.load(evaluation)),
        confounding_light(Confounding.load(clusters), k=k),
    )


def passing(decision: Decision, *, k: int) -> str:
    """Whether ``k`` passes the comparison with data without groups, in a few words; empty where it was not made."""
    if not decision.nulls:
        return ""
    if k in decision.standing:
        return f"{k} passes"
    passes = f"{listed(decision.standing)} {'pass' if len(decision.standing) > 1 else 'passes'}"
    if k in decision.partly:
        if decision.standing:
            return f"{k} passes in part; {passes}"
        best = "the best that passes in part" if k == decision.k else "one of those that pass in part"
        return f"none passes; {k} is {best}"
    if decision.standing:
        return f"{k} does not pass; {passes}"
    if decision.partly:
        return f"none passes; {listed(decision.partly)} in part, {k} not even that"
    return "none passes"


def groups_light(decision: Decision, *, k: int) -> Light:
    """Whether the groups of ``k`` are more than what any data would give."""
    level: Level
    state = passing(decision, k=k)
    if decision.has_clusters is None:
        level, sentence = "unknown", "Not measured: this run did not compare its groups with data without groups."
    elif not decision.nulls:
        level, sentence = "unknown", "Not known: there are too few patches to compare with data without groups."
    elif k in decision.standing:
        level = "good"
        sentence = f"{state}: the groups are clearer than in data without groups, and other patches give them again."
    elif k in decision.partly:
        level = "caution"
        sentence = f"{state}: other patches give most of the groups again, but not all, so their number is uncertain."
    elif decision.standing or decision.partly:
        level = "caution"
        sentence = f"{state}: the data have groups, but not clearly {k}."
    else:
        level = "bad"
        sentence = f"{state}: there is no evidence of groups, and {k} stands only because a number is needed."
    return Light("groups", "Are the groups real?", level, sentence[:1].upper() + sentence[1:])


def samples_light(verdicts: Verdicts | None, *, k: int, two_sample: TwoSample | None = None) -> Light:
    """The verdict on all samples: how well a classifier tells them, and how many groups differ."""
    level: Level = "unknown"
    texture = None if two_sample is None or two_sample.k != k else two_sample.texture
    if verdicts is None:
        sentence = f"Not measured; {_RERUN}."
    elif verdicts.k != k:
        sentence = f"Not measured at k = {k}; samples were judged at k = {verdicts.k}."
    elif texture is None or texture.samples is None or texture.floor is None:
        level, sentence = verdict_level(verdicts.overall.word), verdicts.overall.text
    else:
        level = verdict_level(verdicts.overall.word)
        different = sum(verdict.word == "different" for verdict in verdicts.clusters.values())
        sentence = (
            f"{_STARTS[verdicts.overall.word]}: by texture, a classifier is right about "
            f"{percent(texture.samples.accuracy)} of samples and real patches, and about "
            f"{percent(texture.floor.accuracy)} with real patches of other slides for samples (50 % is chance)"
            + (f"; {different} of {len(verdicts.clusters)} groups differ." if different else ".")
        )
    return Light("samples", "Do samples look real?", level, sentence)


def verdict_level(word: VerdictWord) -> Level:
    """The level of a verdict on samples."""
    return "good" if word == "like real" else "bad" if word == "different" else "unknown"


def copies_light(originality: Originality | None) -> Light:
    """Whether samples are copies of training patches: as many as chance gives, or more."""
    level: Level = "unknown"
    if originality is None:
        sentence = f"Not measured; set evaluation.originality to report and {_RERUN}."
    elif originality.copy_rate is None or originality.interval is None or originality.false_alarm_interval is None:
        sentence = "Not known: too few patches of held-out slides to tell a copy from similar tissue."
    else:
        n, copies = originality.n, originality.copies or 0
        look = f"{copies} of {n:,} samples {'looks' if copies == 1 else 'look'} like a copy of a training patch"
        by_chance = f"{percent(originality.false_alarm_rate or 0)} of real patches of other slides do by chance"
        if copies and originality.interval[0] > originality.false_alarm_interval[1]:
            level, sentence = "bad", f"{look}, more than chance gives: {by_chance}."
        elif copies:
            level, sentence = "caution", f"{look}, about as chance gives ({by_chance}); look at the pairs."
        elif originality.too_plain > n / 2:
            level = "caution"
            sentence = f"None found, but {originality.too_plain:,} of {n:,} samples are too plain for this check."
        else:
            level = "good"
            most = percent(originality.interval[1])
            sentence = (
                f"None of {n:,} samples looks like a copy of a training patch; at most {most} of all samples would, "
                "at 95 % confidence."
            )
    return Light("copies", "Are there copies?", level, sentence)


def confounding_light(confounding: Confounding | None, *, k: int) -> Light:
    """Whether the groups of ``k`` may be slides or shades of colour in place of tissue."""
    level: Level
    question = "Do groups follow slides or colour?"
    if confounding is None:
        return Light("confounding", question, "unknown", "Not measured in this run; run the stage clusters again.")
    by_slides = bool(confounding.warnings.get(k))
    colour = confounding.colour_of(k)
    slides = next((row for row in confounding.associations if (row.k, row.factor) == (k, "slide")), None)
    measured = []
    if slides is not None:
        measured.append(f"slides explain {percent(slides.excess)} of the groups beyond chance")
    if colour is not None:
        measured.append(f"grouping by colour alone agrees with them by {max(colour.colour, colour.stain):.2f} of 1")
    numbers = " and ".join(measured)

    if by_slides or (colour is not None and colour.warning):
        followed = [name for name, warned in (("slides", by_slides), ("colour", colour and colour.warning)) if warned]
        level = "caution"
        sentence = f"They may follow {' and '.join(followed)} rather than tissue" + (
            f": {numbers}." if numbers else "."
        )
    elif slides is None:
        level = "unknown"
        sentence = f"Whether they follow slides cannot be seen with one slide{numbers and '; ' + numbers}."
    elif colour is None:
        level, sentence = "unknown", f"Colour was not compared in this run; {numbers}."
    else:
        level, sentence = "good", f"No sign of it: {numbers}."
    return Light("confounding", question, level, sentence[:1].upper() + sentence[1:])


def listed(numbers: Sequence[int]) -> str:
    """``8``, ``8 and 9``, ``7, 8 and 9``."""
    first, last = ", ".join(map(str, numbers[:-1])), "".join(map(str, numbers[-1:]))
    return f"{first} and {last}" if first else last
