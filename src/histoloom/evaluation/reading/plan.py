"""The design of a blinded reading: its kinds, its trials, and the file ``plan.json`` that keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from histoloom.config import Values
from histoloom.errors import UserError

Kind = Literal["real-or-synthetic", "reconstruction-or-synthetic", "naming"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LEVELS = ("surely real", "rather real", "cannot tell", "rather synthetic", "surely synthetic")
"""the answers of the first two kinds; a level's place is its score"""
CANNOT_TELL = "cannot tell"
"""the last answer of a naming"""
FORMAT = 1
LEAST, MOST = 4, 400
"""pictures in a reading"""


@dataclass(frozen=True)
class Request:
    """A reading to be made: ``trials`` pictures, half of them samples.

    ``k``: None for the chosen one; ``seed``: None for the reading's number. ``feedback``: the reader sees the
    truth after each answer, for training; such a reading is not part of the model card.
    """

    kind: Kind
    trials: int
    k: int | None = None
    seed: int | None = None
    feedback: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"no kind of reading {self.kind!r}; there are: {', '.join(KINDS)}")
        if not LEAST <= self.trials <= MOST or self.trials % 2:
            raise UserError(f"a reading has an even number of pictures from {LEAST} to {MOST}, got {self.trials}")


@dataclass(frozen=True)
class Trial:
    """One picture and the truth of it.

    ``name``: the sample's ``sample_id`` or the real patch's ``patch_id``; ``split``: the patch's, empty for a sample;
    ``tissue``: its place among the plan's tissues.
    """

    synthetic: bool
    name: str
    cluster: int
    tissue: int
    split: str


@dataclass(frozen=True)
class Plan:
    """A reading as it was designed; nothing in it changes later.

    ``names`` are the tissues at that time, ``choices`` the answers to choose from, ``fingerprints`` those of the stages
    whose pictures are shown, ``notes`` what a reader of the result has to know.
    """

    id: str
    created: str
    kind: Kind
    k: int
    seed: int
    feedback: bool
    names: tuple[str, ...]
    choices: tuple[str, ...]
    fingerprints: Mapping[str, str]
    notes: tuple[str, ...]
    trials: tuple[Trial, ...]

    def as_json(self) -> Values:
        """Plain data, as in ``plan.json``."""
        return {"format": FORMAT} | asdict(self) | {"fingerprints": dict(self.fingerprints)}

    @staticmethod
    def of_json(value: Values) -> Plan:
        """Read what ``as_json`` wrote; ``UserError`` where a later version wrote it."""
        if value.get("format") != FORMAT:
            raise UserError(
                f"the reading {value.get('id')} has format {value.get('format')}; this version reads {FORMAT}"
            )
        rest = {key: item for key, item in value.items() if key != "format"}
        rest["trials"] = tuple(Trial(**trial) for trial in value["trials"])
        return Plan(**rest | {key: tuple(value[key]) for key in ("names", "choices", "notes")})


def choices_of(kind: Kind, *, names: tuple[str, ...]) -> tuple[str, ...]:
    """The answers that a reader has."""
    return (*names, CANNOT_TELL) if kind == "naming" else LEVELS
