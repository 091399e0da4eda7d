"""What the stage ``clusters`` finds, as records: one class for each JSON file that other rooms read.

``load(folder)`` reads a record from the stage's folder, ``save(folder)`` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from histoloom.run.directory import read_json, write_json
from histoloom.run.record import Record

Method = Literal["infomax", "kmeans"]


# --- the indices of each clustering: validity.json


class ValidityEntry(Record):
    """The five internal indices of one clustering into ``k`` clusters, over ``n`` patches of the training split.

    The indices are None where all patches are in one cluster. ``sizes`` has the patches of each cluster.
    """

    k: int
    method: Method
    calinski_harabasz: float | None = None
    c_index: float | None = None
    dunn: float | None = None
    hartigan: float | None = None
    mcclain_rao: float | None = None
    n: int
    sizes: tuple[int, ...]

    def index(self, name: str) -> float | None:
        """The index of this name, one of ``validity.indices.INDICES``."""
        value: float | None = getattr(self, name)
        return value


class ValidityTable(Record):
    """``validity.json``: an entry for each k and method."""

    entries: tuple[ValidityEntry, ...]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``validity.json``."""
        return cls(entries=read_json(folder / "validity.json"))

    def save(self, folder: Path) -> None:
        """Write ``validity.json``."""
        write_json(folder / "validity.json", [entry.model_dump(mode="json") for entry in self.entries])

    def of(self, method: Method) -> dict[int, ValidityEntry]:
        """The entries of one method, by k."""
        return {entry.k: entry for entry in self.entries if entry.method == method}


# --- the decision about k: choice.json


class Excess(Record):
    """By how much the data are better than a null (larger is always better), with a 95 % interval."""

    value: float
    low: float
    high: float


class ValueAgainstNulls(Record):
    """One number of the data and of data without clusters (the nulls).

    ``real``: mean over the draws of the data, ``deviation``: standard deviation among these draws. ``null``: mean over
    the draws of each null, by its name; ``null_deviation``: standard deviation among them, empty in earlier runs.
    ``excess``: of the data over each null; its unit is the deviation among the null's draws for an index, and the
    number's own unit for stability.
    """

    real: float
    deviation: float
    null: Mapping[str, float]
    null_deviation: Mapping[str, float] = {}
    excess: Mapping[str, Excess]

    @property
    def least(self) -> Excess:
        """The excess over the null that comes closest to the data."""
        return min(self.excess.values(), key=lambda excess: excess.low)


class NullComparison(Record):
    """k-means with ``k`` clusters on the data, compared with k-means on data without clusters.

    ``indices`` holds the five indices. ``stability`` holds ``agreement`` (adjusted Rand index of the clusterings of two
    parts of the data) and ``weakest`` (Jaccard index of the cluster that they agree least about), 0..1. ``smallest``
    and ``largest``: shares of the points in these clusters, means over the draws. ``objections``: why the rule rejects
    this k, in plain words; empty where it accepts it.
    """

    k: int
    indices: Mapping[str, ValueAgainstNulls]
    stability: Mapping[str, ValueAgainstNulls]
    smallest: float
    largest: float
    objections: tuple[str, ...] = ()


class PlainVote(Record):
    """The k that is best in most of the five indices, by which rule, and what to think of it."""

    k: int
    rule: str
    text: str = Field(alias="evidence")


class Decision(Record):
    """``choice.json``: the chosen ``k`` and why.

    ``rule``: the rule that chose it. ``passed_over``: k that could not be chosen. ``votes``: indices that prefer each
    k. ``by_index``: the k that each index prefers. ``text``: the result in plain words. ``has_clusters``: whether any k
    is better than data without clusters (None in runs that did not compare). ``standing``: the k that the rule accepts,
    ``partly``: those that it accepts in part. ``plain``: the result of the vote alone. ``nulls``: the comparison for
    each k; empty where there were too few patches. ``restarts``: adjusted Rand index of every two restarts, by k.
    """

    k: int
    rule: str
    passed_over: tuple[int, ...] = ()
    votes: Mapping[int, int] = {}
    by_index: Mapping[str, int] = {}
    text: str = Field("", alias="evidence")
    has_clusters: bool | None = Field(None, alias="found")
    standing: tuple[int, ...] = ()
    partly: tuple[int, ...] = ()
    plain: PlainVote | None = None
    nulls: tuple[NullComparison, ...] = ()
    restarts: Mapping[int, tuple[float, ...]] = {}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``choice.json``."""
        return cls(**read_json(folder / "choice.json"))

    def save(self, folder: Path) -> None:
        """Write ``choice.json``."""
        write_json(folder / "choice.json", self.model_dump(mode="json", by_alias=True))


# --- how far a patch alone shows its cluster: patch_alone.json


class PatchAlone(Record):
    """``patch_alone.json``: how often a patch alone gets the cluster that it has with what is known on its slide.

    ``agreement``: share of ``n`` patches of ``split``, 0..1, by k.
    """

    n: int
    split: Literal["train", "holdout"]
    agreement: Mapping[int, float]

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read ``patch_alone.json``; None where clusters were made of patches alone."""
        path = folder / "patch_alone.json"
        return cls(**read_json(path)) if path.is_file() else None

    def save(self, folder: Path) -> None:
        """Write ``patch_alone.json``."""
        write_json(folder / "patch_alone.json", self.model_dump(mode="json"))


# --- what the clusters share with slide, patient and stain: confounding.json


class Association(Record):
    """Clusters of one k against one factor of ``levels`` levels, over ``n`` patches.

    ``null``: what the null permutes. ``mi`` in nats; ``nmi`` and ``ami`` with the arithmetic mean (Vinh et al. 2010);
    ``share`` of the clusters' entropy that the factor explains, 0..1; ``excess``: the same beyond the null's mean,
    (mi - mean) / (entropy - mean), not below 0. ``z`` is None where the null does not vary; ``p`` is at least
    1 / (permutations + 1). ``warns``: whether the user is warned.
    """

    k: int
    factor: str
    null: Literal["patches", "slides"]
    n: int
    levels: int
    mi: float
    nmi: float
    ami: float
    share: float
    excess: float
    null_mean: float
    null_high: float
    z: float | None
    p: float
    warns: bool


class OneSlide(Record):
    """A cluster whose ``patches`` come (almost) from one slide; ``share``: of that slide, 0..1."""

    k: int
    cluster: int
    slide: str
    share: float
    patches: int


class ColourAgreement(Record):
    """Clusters of one ``k`` beside k-means with the same k on colour alone, over ``n`` patches.

    ``colour`` and ``stain``: adjusted mutual information (AMI) with k-means on RGB, and on the densities of
    haematoxylin and eosin; 1 for the same partition, 0 by chance. ``warning``: a sentence, empty where none is due.
    """

    k: int
    n: int
    colour: float
    stain: float
    warning: str = ""


class WarningRule(Record):
    """When the user is warned: ``p`` at most, ``excess`` of each factor and ``one_slide`` share at least.

    ``null_high``: the quantile of the null that is reported as its upper bound. ``colour``: the least agreement with
    k-means on colour or stain; None in runs that did not compare them.
    """

    p: float
    excess: Mapping[str, float]
    one_slide: float
    null_high: float
    colour: float | None = None


class Confounding(Record):
    """``confounding.json``: ``associations`` and ``colour`` by rising k, and ``warnings`` in plain sentences, by k.

    ``patches`` were examined, the stain of ``stain_patches`` of them was measured. ``colour`` is empty in runs that did
    not compare the clusters with colour. ``warnings`` are those about slides.
    """

    patches: int = 0
    stain_patches: int = 0
    permutations: int = 0
    rule: WarningRule | None = None
    associations: tuple[Association, ...] = ()
    one_slide: tuple[OneSlide, ...] = ()
    colour: tuple[ColourAgreement, ...] = ()
    warnings: Mapping[int, tuple[str, ...]] = {}

    def colour_of(self, k: int) -> ColourAgreement | None:
        """The comparison of the clusters of ``k`` with colour; None where there is none."""
        return next((entry for entry in self.colour if entry.k == k), None)

    def ami_with_slides(self, k: int) -> float | None:
        """AMI of the clusters of ``k`` with slides; None where there is one slide."""
        return next((entry.ami for entry in self.associations if (entry.k, entry.factor) == (k, "slide")), None)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read ``confounding.json``; None in runs that did not write it."""
        path = folder / "confounding.json"
        return cls(**read_json(path)) if path.is_file() else None

    def save(self, folder: Path) -> None:
        """Write ``confounding.json``."""
        write_json(folder / "confounding.json", self.model_dump(mode="json"))
