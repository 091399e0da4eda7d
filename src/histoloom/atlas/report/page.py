"""What the report shows, as plain data, and its rendering into one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from histoloom.atlas.browse.cluster_table import Extent
from histoloom.atlas.maps.patch_map import PatchMap
from histoloom.atlas.report import numbers
from histoloom.atlas.report.distribution_table import DistributionTable
from histoloom.atlas.report.figures import Picture
from histoloom.atlas.report.null_table import NullRow
from histoloom.atlas.report.numbers import PaperRows, SimilarityRow, ValidityRow
from histoloom.atlas.report.originality import Originality
from histoloom.atlas.report.paper import BETTER, CITATION, INDEX_TITLES, METRIC_TITLES
from histoloom.atlas.report.readings import ReadingBlock


@dataclass(frozen=True)
class Header:
    """Which run this is. ``size`` is a patch's side in px, ``mpp`` in um/px; ``split_by`` what is held out whole."""

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
class SlideRow:
    """A file that was found; ``status`` is ``ok`` or the reason why it was left out."""

    patient: str
    slide: str
    file: str
    width: int
    height: int
    mpp: float | None
    mpp_source: str
    patches: int
    split: str
    status: str


@dataclass(frozen=True)
class Reconstruction:
    """A patch above what the autoencoder makes of it."""

    original: Picture
    reconstruction: Picture


@dataclass(frozen=True)
class Training:
    """The curves of one stage: an SVG element of our own drawing, and what it shows in words."""

    stage: str
    drawing: Markup
    text: str


@dataclass(frozen=True)
class Quality:
    """How well the autoencoder renders patches (dB, codes); ``told_apart``: by its discriminator, where it has one."""

    psnr: float
    perplexity: float
    codes: int
    codes_used: int
    n: int
    split: str
    told_apart: float | None = None


@dataclass(frozen=True)
class Choice:
    """The chosen k and why; ``plain``: the k of the paper's plain rule, None where that is the rule."""

    k: int
    rule: str
    evidence: str
    plain: int | None = None


@dataclass(frozen=True)
class Cluster:
    """One cluster at the chosen k; ``named`` is False where ``name`` is only its number. ``flag`` may be empty."""

    number: int
    name: str
    named: bool
    colour: str
    extent: Extent
    real: tuple[Picture, ...]
    samples: tuple[Picture, ...]
    verdict: str
    similarity: tuple[SimilarityRow, ...]
    distribution: DistributionTable
    faithful: str
    flag: str = ""


@dataclass(frozen=True)
class Map:
    """A slide's thumbnail beside the same with the tissue map over it."""

    title: str
    thumbnail: Picture
    overlay: Picture
    patches: int


@dataclass(frozen=True)
class TruthRow:
    """Agreement of clusters with a true tissue map."""

    k: int
    method: str
    nmi: float
    ari: float
    n: int
    classes: int


@dataclass(frozen=True)
class AssociationRow:
    """What the clusters of one k know of one factor; shares are of their entropy, 0..1, information in nats."""

    k: int
    factor: str
    share: float
    excess: float
    nmi: float
    ami: float
    mi: float
    null_mean: float
    null_high: float
    p: float
    warns: bool


@dataclass(frozen=True)
class Confounding:
    """``warnings``: what is wrong at the shown k, in sentences; empty where nothing is."""

    warnings: tuple[str, ...]
    rows: tuple[AssociationRow, ...]


@dataclass(frozen=True)
class Cost:
    """What a stage took: seconds, and MB at its peak."""

    stage: str
    seconds: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Page:
    """The whole report."""

    header: Header
    verdict: tuple[str, ...]
    slides: tuple[SlideRow, ...]
    reconstructions: tuple[Reconstruction, ...]
    quality: Quality
    training: tuple[Training, ...]
    choice: Choice
    confounding: Confounding
    patch_map: PatchMap | None
    validity: tuple[ValidityRow, ...]
    nulls: tuple[NullRow, ...]
    similarity: tuple[SimilarityRow, ...]
    distribution: DistributionTable
    faithful: tuple[str, ...]
    clusters: tuple[Cluster, ...]
    agreement: tuple[str, ...]
    maps: tuple[Map, ...]
    maps_missing: Mapping[str, str]
    paper_validity: tuple[PaperRows, ...]
    paper_similarity: tuple[PaperRows, ...]
    originality: Originality | None
    readings: tuple[ReadingBlock, ...]
    truth: tuple[TruthRow, ...]
    missing: Mapping[str, str]
    config: str
    environment: Mapping[str, str]
    costs: tuple[Cost, ...]


FACTOR_TITLES = {
    "slide": "slide",
    "patient": "patient",
    "slide_stain": "stain of the slide",
    "haematoxylin": "haematoxylin of the patch",
    "eosin": "eosin of the patch",
}


def render(page: Page) -> str:
    """The page as one self-contained HTML document."""
    environment = Environment(
        loader=PackageLoader("histoloom.atlas", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": numbers.number, "duration": duration, "count": numbers.count}
    return environment.get_template("report.html").render(
        page=page,
        index_titles=INDEX_TITLES,
        metric_titles=METRIC_TITLES,
        better=BETTER,
        factor_titles=FACTOR_TITLES,
        citation=CITATION,
    )


def duration(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
