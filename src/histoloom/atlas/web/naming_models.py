"""The requests and responses of the naming API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from histoloom.atlas.browse.agreement import Agreement

Text = Annotated[str, Field(max_length=200)]
Rater = Annotated[str, Field(min_length=1, max_length=200, description="Who changes it.")]
Number = Annotated[int, Field(ge=0, le=9_999)]
Flag = Literal["", "artefact", "mixed", "unsure"]


class Change(BaseModel):
    """A change of a cluster's label; what is absent stays as it is, an empty text clears it."""

    model_config = ConfigDict(extra="forbid")

    rater: Rater
    name: Text | None = None
    colour: Annotated[str, Field(max_length=7)] | None = None
    flag: Flag | None = None
    edit: Annotated[str, Field(max_length=40)] = ""


class Merge(BaseModel):
    """Clusters that are one tissue, under a name, or the one that the first of them has."""

    model_config = ConfigDict(extra="forbid")

    rater: Rater
    clusters: Annotated[list[Number], Field(min_length=2, max_length=1_000)]
    name: Text | None = None


class Redo(BaseModel):
    """The rater whose last undone step is redone."""

    model_config = ConfigDict(extra="forbid")

    rater: Rater


class Undo(BaseModel):
    """The rater whose step is undone: the one that ``Names.step`` named, or the last one where ``step`` is empty."""

    model_config = ConfigDict(extra="forbid")

    rater: Rater
    step: Annotated[str, Field(max_length=40)] = ""


class Reference(BaseModel):
    """The rater whose names alone count; empty: the latest by anyone."""

    model_config = ConfigDict(extra="forbid")

    rater: Rater
    reference: Text


class Table(BaseModel):
    """A CSV file in base64; ``rater``: whose names they are, whatever its column says."""

    model_config = ConfigDict(extra="forbid")

    data: Annotated[str, Field(max_length=950_000)]
    rater: Rater | None = None
    force: bool = False


class Synonym(BaseModel):
    """``name`` means the same as ``means``."""

    model_config = ConfigDict(extra="forbid")

    name: Text
    means: Text


class Synonyms(BaseModel):
    """The table of synonyms."""

    model_config = ConfigDict(extra="forbid")

    rows: Annotated[list[Synonym], Field(max_length=500)]


class Carried(BaseModel):
    """A name that a cluster may take over from a cluster of another k, and the overlap of the two (0..1)."""

    cluster: int
    name: str
    source_k: int
    source: int
    overlap: float


class ImportOutcome(BaseModel):
    """The result of an import; where the table has errors, ``problems`` has a line for each and nothing is imported."""

    rows: int
    empty: int
    changes: int
    problems: list[str]


class Named(BaseModel):
    """One rater's label of a cluster; ``shown`` is the colour in which it is drawn, by the label that counts."""

    cluster: int
    name: str
    colour: str
    flag: Flag
    shown: str


class Names(BaseModel):
    """One rater's view of the clusters of one k. ``version`` changes with every change by anyone.

    ``undo`` and ``redo`` say in words what the next undo and redo are about; empty where there is none. ``step``: what
    this request did, for an undo of exactly that; empty where it did nothing.
    """

    k: int
    version: str
    clustering: str
    reference: str
    raters: list[str]
    clusters: list[Named]
    undo: str
    redo: str
    step: str
    suggestions: list[str]


class Side(BaseModel):
    """A cluster in the comparison: the name that counts, and each rater's name and flag."""

    cluster: int
    patches: int
    counts: str
    flag: Flag
    names: dict[str, str]
    flags: dict[str, Flag]
    differ: bool


class RaterComparison(BaseModel):
    """All raters side by side."""

    k: int
    reference: str
    raters: list[str]
    clusters: list[Side]
    agreement: list[Agreement]
    synonyms: list[Synonym]
