"""What an evaluation finds, as records: one class for each JSON file that the stage or a command writes.

``load(folder)`` reads a record from the folder of the stage ``evaluation`` and returns None where the file is absent;
``save(folder)`` writes it. Intervals are (low, high) at a level of 95 %. A *floor* is the same number of real images
against other real images: what a perfect generator would reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from histoloom.run.directory import read_json, write_json
from histoloom.run.record import Record

Interval = tuple[float, float]
ComparisonKind = Literal["synthetic_real", "real_real", "synthetic_other"]
Better = Literal["smaller", "larger"]


class ResultFile(Record):
    """A record that is one JSON file, ``FILE``."""

    FILE: ClassVar[str]

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read the file; None where there is none."""
        path = folder / cls.FILE
        return cls.model_validate(read_json(path)) if path.is_file() else None

    def save(self, folder: Path) -> None:
        """Write the file."""
        write_json(folder / self.FILE, self.as_json())

    def as_json(self) -> object:
        """The content of the file."""
        return self.model_dump(mode="json", by_alias=True)


# --- similarity of pairs: similarity.json, missing.json


class SimilarityEntry(Record):
    """The mean of a metric over pairs of images of one cluster, or of all clusters of ``k`` (``cluster`` None).

    ``comparison``: synthetic_real is a sample against a real patch of its cluster; real_real two real patches of the
    cluster (the floor); synthetic_other a sample against a real patch of another cluster. ``same_slide``: the two real
    patches had to be of one slide.
    """

    k: int
    cluster: int | None
    comparison: ComparisonKind
    metric: str
    value: float
    interval: Interval
    pairs: int
    extractor: str
    real_split: Literal["holdout", "train", "mixed"]
    same_slide: bool = False

    def as_json(self) -> dict[str, object]:
        """Its form in the file, where ``same_slide`` stands only if it is true."""
        return self.model_dump(mode="json", by_alias=True, exclude=None if self.same_slide else {"same_slide"})


class Similarity(Record):
    """``similarity.json`` (``entries``) and ``missing.json``: metrics that could not be computed, with the reason."""

    entries: tuple[SimilarityEntry, ...]
    missing: Mapping[str, str] = {}

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Read both files; None where there is no ``similarity.json``."""
        entries, missing = folder / "similarity.json", folder / "missing.json"
        if not entries.is_file():
            return None
        return cls(entries=read_json(entries), missing=read_json(missing) if missing.is_file() else {})

    def save(self, folder: Path) -> None:
        """Write both files."""
        write_json(folder / "similarity.json", [entry.as_json() for entry in self.entries])
        write_json(folder / "missing.json", dict(self.missing))

    def select(self, *, k: int, cluster: int | None = None) -> list[SimilarityEntry]:
        """The entries of one cluster of ``k``, or of all of them together."""
        return [entry for entry in self.entries if (entry.k, entry.cluster) == (k, cluster)]


class PaperSimilarity(ResultFile):
    """``paper_similarity.json``: pairs of training patches and samples, by the definitions of Rumman et al. 2025.

    ``missing``: metrics that could not be computed, with the reason. The file exists only where the configuration asks
    for it (``evaluation.paper_definitions``).
    """

    FILE = "paper_similarity.json"

    entries: tuple[SimilarityEntry, ...]
    missing: Mapping[str, str] = {}

    def of(self, *, k: int, cluster: int | None = None) -> list[SimilarityEntry]:
        """The entries of one cluster of ``k``, or of all of them together."""
        return [entry for entry in self.entries if (entry.k, entry.cluster) == (k, cluster)]


# --- distances of sets: distribution.json


class SetComparison(Record):
    """One number that compares two sets of features, with its floor.

    ``n_floor``: images on the two sides of the floor. ``notes``: limits of the number, in whole sentences.
    """

    metric: str
    extractor: str
    value: float
    interval: Interval
    floor: float
    floor_interval: Interval
    better: Better
    n_real: int
    n_synthetic: int
    n_floor: tuple[int, int]
    notes: tuple[str, ...]


class _ComparedSets(Record):
    k: int
    cluster: int | None
    real_split: Literal["holdout", "train"]
    floor_from: str
    draws: int


class DistributionEntry(SetComparison, _ComparedSets):
    """A ``SetComparison`` of one cluster of ``k``, or of all clusters (``cluster`` None).

    ``floor_from`` says in words which real images are the floor; ``draws``: the numbers are the mean over so many
    random draws of samples.
    """


class Distribution(ResultFile):
    """``distribution.json``; ``missing``: extractors that could not be used, with the reason."""

    FILE = "distribution.json"

    entries: tuple[DistributionEntry, ...]
    missing: Mapping[str, str] = {}

    def select(self, *, k: int, cluster: int | None = None) -> list[DistributionEntry]:
        """The entries of one cluster of ``k``, or of all of them together."""
        return [entry for entry in self.entries if (entry.k, entry.cluster) == (k, cluster)]


# --- are samples recognised as their cluster, are they useful for training: faithfulness.json


class Recognition(Record):
    """How a classifier labels images of known clusters.

    ``accuracy`` is balanced: the mean of the clusters' recalls; its ``interval`` is a bootstrap over the images of each
    cluster. ``recall`` and its Wilson ``intervals`` are None for a cluster without images. ``confusion`` counts images
    by true cluster (rows) and predicted cluster (columns).
    """

    n: int
    accuracy: float
    interval: Interval
    recall: tuple[float | None, ...]
    intervals: tuple[Interval | None, ...]
    confusion: tuple[tuple[int, ...], ...]


class ClassifierRecognition(Record):
    """What the cluster classifier recognises in samples and, as the reference, in held-out real patches."""

    samples: Recognition
    held_out: Recognition


class ClustererRecognition(Record):
    """What the run's clusterer recognises in samples and, as the reference, in held-out patches after the VQ-GAN."""

    samples: Recognition
    reconstructions: Recognition


class Accuracy(Record):
    """A balanced accuracy on held-out real patches."""

    accuracy: float
    interval: Interval


class Usefulness(Record):
    """Accuracies of classifiers that were trained on real patches, on samples alone, and on both."""

    real: Accuracy
    synthetic: Accuracy
    both: Accuracy


class Faithfulness(ResultFile):
    """``faithfulness.json``, for the chosen ``k``.

    Where there are too few held-out patches, ``note`` says so and everything else is None. ``clusterer`` is None where
    the run's own clusterer was not at hand, or cannot judge images for the reason ``no_clusterer``.
    """

    FILE = "faithfulness.json"

    k: int
    note: str | None = None
    n_real: int | None = None
    n_synthetic: int | None = None
    # The key in the file is from before the classifier had this name.
    classifier: ClassifierRecognition | None = Field(default=None, alias="judge")
    usefulness: Usefulness | None = None
    clusterer: ClustererRecognition | None = None
    no_clusterer: str | None = None

    def as_json(self) -> object:
        """The content of the file, without the values that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# --- samples told apart from real patches, and what follows: two_sample.json, verdicts.json


class Separation(Record):
    """How well a classifier tells one set of images from real patches, both of which it has not seen.

    ``auc``: area under the ROC curve; 0.5 is chance, 1 tells every image. ``accuracy``: the mean of the shares of real
    and of other images that it gets right (balanced). ``n``: real patches, other images.
    """

    auc: float
    interval: Interval
    accuracy: float
    accuracy_interval: Interval
    n: tuple[int, int]


class TellingFeature(Record):
    """A feature by which samples are told: ``difference`` of the samples' mean from the real one, in SD of real."""

    name: str
    difference: float


class ToldSample(Record):
    """A sample with its score: the classifier's probability that it is synthetic."""

    file: str
    score: float


class ToldApart(Record):
    """The two-sample test by one kind of features: ``samples`` against real patches, and the ``floor``; by cluster too.

    A cluster with too few images is absent. The interval of a floor is the range of its halvings of the slides.
    """

    samples: Separation | None
    floor: Separation | None
    clusters: Mapping[int, Separation] = {}
    floor_clusters: Mapping[int, Separation] = {}
    telling: tuple[TellingFeature, ...] = ()


class TwoSample(ResultFile):
    """``two_sample.json``: a classifier two-sample test (Lopez-Paz & Oquab 2017) of samples against real patches.

    Samples are told from patches of slides that the classifier has not seen, by ``texture`` and shape, and by
    ``colour``. The floor is the same test with real patches of other slides in the place of the samples. ``telling``
    are the features that tell most, the strongest first. ``told``: every sample with its score by texture, the most
    clearly synthetic first. ``note``: the reason where nothing was measured, and then everything else is empty.
    """

    FILE = "two_sample.json"

    k: int | None = None
    note: str | None = None
    texture: ToldApart | None = None
    colour: ToldApart | None = None
    told: tuple[ToldSample, ...] = ()


VerdictWord = Literal["like real", "too few", "different", "not measured"]
CheckWord = VerdictWord | Literal["no difference seen"]


class Check(Record):
    """One check of samples: its result as a ``word``, the reason in ``short``, and the numbers in a ``sentence``.

    "no difference seen": the check has no margin of equivalence, so that it can only find a difference.
    """

    name: str
    word: CheckWord
    short: str
    sentence: str


class Verdict(Record):
    """What the checks of samples show together.

    "like real": every check that was made is within its margin of equivalence. "different": at least one check shows a
    difference. "too few": the samples, the patches or the slides are too few to say either. "not measured": the
    two-sample test, on which a verdict rests, was not made. ``sentence``: why, from the checks that decide.
    """

    word: VerdictWord
    sentence: str
    checks: tuple[Check, ...] = ()

    @property
    def text(self) -> str:
        """The word and the sentence."""
        return f"{self.word[:1].upper()}{self.word[1:]}: {self.sentence[:1].lower()}{self.sentence[1:]}"


class Verdicts(ResultFile):
    """``verdicts.json``: the verdict on all samples of the chosen ``k``, and on those of each cluster, by number."""

    FILE = "verdicts.json"

    k: int
    overall: Verdict
    clusters: Mapping[int, Verdict] = {}

    @property
    def counts(self) -> str:
        """How many clusters have which verdict, in one sentence."""
        counts = Counter(verdict.word for verdict in self.clusters.values())
        return f"Clusters by their verdict: {', '.join(f'{word}: {n}' for word, n in counts.most_common())}."


# --- agreement with true tissue classes: truth.json


class Agreement(Record):
    """How well the clusters of ``k`` agree with the true classes of ``n`` patches; 1 is the same partition.

    ``nmi``: normalised mutual information, arithmetic mean (Vinh et al. 2010); 0 for independent partitions. ``ari``:
    adjusted Rand index (Hubert & Arabie 1985); 0 by chance. ``classes``: how many true classes there are (early
    versions wrote their names).
    """

    k: int
    method: str
    nmi: float
    ari: float
    n: int
    classes: Annotated[int, BeforeValidator(lambda classes: len(classes) if isinstance(classes, list) else classes)]


class Truth(ResultFile):
    """``truth.json``: an agreement for each k. The file exists only where slides have true maps."""

    FILE = "truth.json"

    agreements: tuple[Agreement, ...]

    @model_validator(mode="before")
    @classmethod
    def from_list(cls, content: object) -> object:
        """The file is the list of agreements alone."""
        return {"agreements": content} if isinstance(content, list) else content

    def as_json(self) -> object:
        """The content of the file."""
        return [agreement.model_dump(mode="json") for agreement in self.agreements]


# --- copies of training patches: originality.json of a run, audit.json of folders


class Membership(Record):
    """Are training patches nearer to the samples than held-out patches are? ``auc`` 0.5: no.

    ``n``: training patches, held-out patches.
    """

    auc: float
    interval: Interval
    n: tuple[int, int]


class AuthenticityResult(Record):
    """The share of samples that are not nearer to a training patch than training patches are to one another.

    ``floor``: the same of held-out patches (``n_floor`` of them).
    """

    value: float
    interval: Interval
    n: int
    floor: float
    floor_interval: Interval
    n_floor: int


class CopyRates(Record):
    """How many samples are above a threshold, and how many held-out patches are; None where nothing was calibrated."""

    copies: int | None = None
    copy_rate: float | None = None
    interval: Interval | None = None
    false_alarm_rate: float | None = None
    false_alarm_interval: Interval | None = None
    threshold: float | None = None


class FeatureOriginality(CopyRates):
    """Copies by the features of one extractor; ``threshold`` is a distance, below which a sample counts as a copy."""

    extractor: str
    n_calibration: int
    n_test: int
    authenticity: AuthenticityResult | None

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        parts = []
        if self.copy_rate is not None and self.interval is not None:
            low, high = self.interval
            parts.append(
                f"{self.copy_rate:.1%} of the samples ({low:.1%} to {high:.1%}) are nearer to a training patch than "
                f"the threshold allows, and so are {self.false_alarm_rate:.1%} of the held-out patches"
            )
        if self.authenticity is not None:
            low, high = self.authenticity.interval
            parts.append(
                f"{self.authenticity.value:.0%} of the samples are authentic, that is, not nearer to a training patch "
                f"than another training patch is ({low:.0%} to {high:.0%}; held-out patches: "
                f"{self.authenticity.floor:.0%})"
            )
        return f"By {self.extractor}: {'; '.join(parts) or 'too few held-out patches'}."


class FeatureMatch(Record):
    """A sample's nearest training patch by an extractor's features."""

    nearest: str
    distance: float
    is_copy: bool = Field(alias="copy")


class AuditedSample(Record):
    """A sample and its nearest training patch by pixels (``score`` 0..1, 1 for a copy), and by each extractor.

    ``too_plain``: the sample shows so little that a changed copy of it might not be recognised.
    """

    file: str
    nearest: str
    score: float
    is_copy: bool = Field(alias="copy")
    too_plain: bool
    by_extractor: Mapping[str, FeatureMatch] = Field(default={}, alias="by")


class Originality(CopyRates, ResultFile):
    """``originality.json`` of a run, ``audit.json`` of folders; ``samples``: the most suspicious first.

    ``threshold``: a score above it counts as a copy; ``target_false_alarm_rate`` is the rate for which it was set.
    ``n_slides``: held-out slides that set the threshold, and others that tested it. ``too_plain`` and
    ``half_too_plain`` count samples of which a changed copy, or a copy of one half, might not be recognised.
    ``held_out_scores``: of the held-out patches, which cannot be copies; the largest first, empty in earlier runs.
    ``missing``: extractors of an audit of folders that could not be used, with the reason. ``version``: of the scores;
    thresholds of another version do not apply.
    """

    FILE = "originality.json"

    version: int = 1
    n: int
    target_false_alarm_rate: float | None = Field(default=None, alias="threshold_set_for")
    n_train: int = 0
    n_calibration: int = 0
    n_test: int
    n_slides: tuple[int, int] = Field(default=(0, 0), alias="slides")
    too_plain: int = 0
    half_too_plain: int = Field(default=0, alias="plain_half")
    membership: Membership | None
    notes: tuple[str, ...]
    by_features: tuple[FeatureOriginality, ...] = ()
    missing: Mapping[str, str] | None = None
    held_out_scores: tuple[float, ...] = ()
    samples: tuple[AuditedSample, ...]

    def as_json(self) -> object:
        """The content of the file; ``missing`` only where folders were audited, scores where there are some."""
        absent = {"missing"} if self.missing is None else set()
        absent |= set() if self.held_out_scores else {"held_out_scores"}
        return self.model_dump(mode="json", by_alias=True, exclude=absent)


# --- two folders of images: evaluate.json


class PairComparison(Record):
    """The mean of a metric over pairs of a real and a synthetic image, and over pairs of real images (the floor)."""

    value: float
    interval: Interval
    floor: float
    floor_interval: Interval
    extractor: str


class FolderSetComparison(SetComparison):
    """A ``SetComparison`` of two folders; ``floor_from`` says in words which real images are the floor."""

    floor_from: str


class FolderEvaluation(ResultFile):
    """``evaluate.json``: ``metrics`` by name, those of sets as ``METRIC/EXTRACTOR``; ``missing``: with the reason.

    ``verdict`` takes the two-sample test and the distances of sets together. Both are None in earlier files.
    """

    FILE = "evaluate.json"

    n_real: int
    n_synthetic: int
    pairs: int
    floor_pairs: int
    metrics: Mapping[str, FolderSetComparison | PairComparison]
    missing: Mapping[str, str]
    notes: tuple[str, ...]
    two_sample: TwoSample | None = None
    verdict: Verdict | None = None

    @property
    def metric_notes(self) -> Sequence[str]:
        """The notes of all metrics, each once."""
        sets = [metric for metric in self.metrics.values() if isinstance(metric, FolderSetComparison)]
        return list(dict.fromkeys(note for metric in sets for note in metric.notes))
