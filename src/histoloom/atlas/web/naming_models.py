"""What the naming API takes and gives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=200)]
Rater = Annotated[str, Field(min_length=1, max_length=200, description="Who does it.")]
Number = Annotated[int, Field(ge=0, le=9_999)]
Flag = Literal["", "artefact", "mixed", "unsure"]


class Change(BaseModel):
    """What to say of a cluster; what is absent stays as it is, an empty text takes it back."""

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


class Step(BaseModel):
    """Whose last step to take back, or to bring back."""

    model_config = ConfigDict(extra="forbid")

    rater: Rater


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


class ImportOutcome(BaseModel):
    """What an import did; ``problems`` are the errors, a line a row, where it took nothing."""

    rows: int
    empty: int
    changes: int
    problems: list[str]


class Named(BaseModel):
    """What one rater says of a cluster; ``shown`` is the colour in which it is drawn, by whoever's word counts."""

    cluster: int
    name: str
    colour: str
    flag: Flag
    shown: str


class Names(BaseModel):
    """One rater's view of the clusters of one k. ``version`` changes with every change by anyone."""

    k: int
    version: str
    clustering: str
    reference: str
    raters: list[str]
    clusters: list[Named]
    undo: bool
    redo: bool
    suggestions: list[str]


class KappaModel(BaseModel):
    """Observed agreement (0..1), kappa and its 95 % interval, null where they are not defined."""

    observed: float
    value: float | None
    low: float | None
    high: float | None


class AgreementModel(BaseModel):
    """Two raters, or all of them where they are three or more, on the clusters that all of them named."""

    raters: list[str]
    kind: Literal["Cohen", "Fleiss"]
    clusters: int
    patches: int
    equal: KappaModel | None
    by_patches: KappaModel | None


class Side(BaseModel):
    """A cluster as the raters see it: what counts, and each one's name and flag."""

    cluster: int
    patches: int
    counts: str
    flag: Flag
    names: dict[str, str]
    flags: dict[str, Flag]
    differ: bool


class Comparison(BaseModel):
    """All raters side by side."""

    k: int
    reference: str
    raters: list[str]
    clusters: list[Side]
    agreement: list[AgreementModel]
