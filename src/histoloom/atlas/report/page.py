"""The content of the report as data, and its rendering into one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from histoloom.atlas.browse.cluster_table import Extent
from histoloom.atlas.browse.run_slides import SlideInfo
from histoloom.atlas.maps.patch_map import PatchMap
from histoloom.atlas.maps.tissue_groups import TissueGroup
from histoloom.atlas.report.clustering_tables import DefinitionRow, PaperComparison, RegionTable, ValidityRow
from histoloom.atlas.report.figures import Picture, ScaleBar
from histoloom.atlas.report.lights import SYMBOLS, Light, listed, verdict_level
from histoloom.atlas.report.paper import BETTER, CITATION, INDEX_TITLES, METRIC_TITLES
from histoloom.atlas.report.plots import Plot
from histoloom.atlas.report.run_plots import STAGE_TITLES, Colouring
from histoloom.atlas.report.sample_checks import OriginalitySection, ReadingBlock, TellingSection
from histoloom.atlas.report.sample_quality import DistributionTable, SimilarityRow
from histoloom.atlas.report.text import count, duration, number
from histoloom.autoencoder.quality import ReconstructionQuality
from histoloom.clustering.results import Confounding, Decision, PatchAlone
from histoloom.evaluation.results import Agreement, Verdict, VerdictWord
from histoloom.run.directory import Artifact

_WORST_FIRST: tuple[VerdictWord, ...] = ("different", "too few", "not measured", "like real")

FACTOR_TITLES = {
    "slide": "slide",
    "patient": "patient",
    "slide_stain": "stain of the slide",
    "haematoxylin": "haematoxylin of the patch",
    "eosin": "eosin of the patch",
}


@dataclass(frozen=True)
class Header:
    """The run. ``size`` is a patch's side in px, ``mpp`` in um/px; ``split_by`` names what is held out whole."""

    run: str
    written: str
    seed: int
    preset: str
    slides: int
    patients: int
    patches: int
    size: int
    mpp: float
    split_by: str


@dataclass(frozen=True)
class Place:
    """Where a group lies on the slide that shows most of it."""

    title: str
    picture: Picture
    bar: ScaleBar | None


@dataclass(frozen=True)
class ClusterNumbers:
    """How good the samples of one cluster are; ``verdict`` is None where they were not judged."""

    number: int
    verdict: Verdict | None
    similarity: Sequence[SimilarityRow]
    distribution: DistributionTable
    recognition: str


@dataclass(frozen=True)
class Group:
    """A tissue group at the shown k: a cluster, or the clusters that share a name.

    ``place``: its place among the groups. ``flags``: of its clusters; ``left_out``: those of them that scores leave out
    as artefact. ``slides``: the slides with most of its patches, and their shares of these (0..1). ``copies``: its
    samples that look like a copy of a training patch, of ``n_samples``.
    """

    place: int
    tissue: TissueGroup
    flags: tuple[str, ...]
    left_out: tuple[int, ...]
    extent: Extent
    slides: tuple[tuple[str, float], ...]
    on_slide: Place | None
    real: tuple[Picture, ...]
    samples: tuple[Picture, ...]
    n_samples: int
    copies: int
    numbers: tuple[ClusterNumbers, ...]

    @property
    def worst(self) -> ClusterNumbers | None:
        """Its cluster with the worst verdict, which is the group's; None where none was judged."""
        judged = [(_WORST_FIRST.index(one.verdict.word), one) for one in self.numbers if one.verdict is not None]
        return min(judged, key=lambda one: one[0], default=(0, None))[1]


@dataclass(frozen=True)
class Map:
    """A slide's thumbnail beside the same with the tissue map over it."""

    title: str
    thumbnail: Picture
    overlay: Picture
    patches: int
    bar: ScaleBar | None


@dataclass(frozen=True)
class Page:
    """The whole report, in the order of its sections; ``groups`` by their first clusters.

    ``k`` is the number of clusters that is shown: the decision's, or ``report.k``; ``reason`` says why. ``bar`` is the
    scale bar of a patch.
    ``unavailable``: the numbers that this run lacks, each with its reason, once for the whole page.
    ``corrected``: how many patches experts have corrected, by name.
    ``reconstructions`` are pairs of a patch and its reconstruction. ``plots``: by name; each is a pair of files too.
    """

    k: int
    header: Header
    lights: Sequence[Light]
    bar: ScaleBar
    confounding: Confounding
    reason: str
    verdict: Verdict | None
    similarity: Sequence[SimilarityRow]
    distribution: DistributionTable
    usefulness: Sequence[str]
    patch_alone: PatchAlone | None
    unavailable: Sequence[str]
    agreement: Sequence[str]
    groups: Sequence[Group]
    telling: TellingSection | None
    originality: OriginalitySection | None
    readings: Sequence[ReadingBlock]
    maps: Sequence[Map]
    maps_missing: Mapping[str, str]
    corrected: Mapping[str, int]
    patch_map: PatchMap | None
    colourings: Sequence[Colouring]
    decision: Decision
    validity: Sequence[ValidityRow]
    quality: ReconstructionQuality
    reconstructions: Sequence[tuple[Picture, Picture]]
    stages: Sequence[str]
    slides: Sequence[SlideInfo]
    regions: RegionTable | None
    paper_validity: Sequence[PaperComparison]
    paper_similarity: Sequence[PaperComparison]
    paper_definitions: Sequence[DefinitionRow]
    paper_definitions_missing: Mapping[str, str]
    truth: Sequence[Agreement]
    costs: Sequence[Artifact]
    environment: Mapping[str, str]
    config: str
    plots: Mapping[str, Plot]

    @property
    def merged(self) -> bool:
        """Whether clusters share a name, so that there are fewer groups than ``k``."""
        return any(len(group.tissue.clusters) > 1 for group in self.groups)


def render(page: Page) -> str:
    """The page as one self-contained HTML document."""
    environment = Environment(
        loader=PackageLoader("histoloom.atlas", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "duration": duration,
        "count": count,
        "level": verdict_level,
        "listed": listed,
    }
    environment.globals |= {"symbols": SYMBOLS, "plots": page.plots}
    return environment.get_template("report.html").render(
        page=page,
        index_titles=INDEX_TITLES,
        metric_titles=METRIC_TITLES,
        better=BETTER,
        factor_titles=FACTOR_TITLES,
        stage_titles=STAGE_TITLES,
        citation=CITATION,
    )
