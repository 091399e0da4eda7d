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
from histoloom.atlas.report.lights import SYMBOLS, Light, verdict_level
from histoloom.atlas.report.paper import BETTER, CITATION, INDEX_TITLES, METRIC_TITLES
from histoloom.atlas.report.plots import Plot
from histoloom.atlas.report.run_plots import STAGE_TITLES, Colouring
from histoloom.atlas.report.sample_checks import OriginalitySection, ReadingBlock, TellingSection
from histoloom.atlas.report.sample_quality import DistributionTable, SimilarityRow
from histoloom.atlas.report.text import count, duration, number
from histoloom.autoencoder.quality import ReconstructionQuality
from histoloom.clustering.results import Confounding, Decision, PatchAlone
from histoloom.evaluation.results import Agreement, Verdict
from histoloom.run.directory import Artifact

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
    """Where a cluster lies on the slide that shows most of it."""

    title: str
    picture: Picture
    bar: ScaleBar | None


@dataclass(frozen=True)
class Cluster:
    """One cluster at the shown k; ``named`` is False where ``name`` is only its number. ``flag`` may be empty.

    ``slides``: the slides with most of its patches, and their shares of these (0..1). ``verdict`` is None where the
    samples were not judged. ``copies``: its samples that look like a copy of a training patch, of ``n_samples``.
    """

    number: int
    name: str
    named: bool
    colour: str
    flag: str
    extent: Extent
    slides: tuple[tuple[str, float], ...]
    place: Place | None
    real: tuple[Picture, ...]
    samples: tuple[Picture, ...]
    n_samples: int
    copies: int
    verdict: Verdict | None
    similarity: Sequence[SimilarityRow]
    distribution: DistributionTable
    recognition: str


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
    """The whole report, in the order of its sections.

    ``k`` is the number of clusters that is shown: the decision's, or ``report.k``; ``reason`` says why. ``bar`` is the
    scale bar of a patch.
    ``unavailable``: the numbers that this run lacks, each with its reason, once for the whole page.
    ``corrected``: how many patches experts have corrected, by name; ``new_groups``: those of them that no cluster has.
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
    clusters: Sequence[Cluster]
    telling: TellingSection | None
    originality: OriginalitySection | None
    readings: Sequence[ReadingBlock]
    maps: Sequence[Map]
    maps_missing: Mapping[str, str]
    corrected: Mapping[str, int]
    new_groups: Sequence[TissueGroup]
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
