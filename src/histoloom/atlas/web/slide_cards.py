"""What the list of slides shows of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from histoloom.atlas.browse.cluster_table import ClusterTable
from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.browse.run_slides import SlideInfo

PER_PAGE = 60


@dataclass(frozen=True)
class Part:
    """A cluster's part of a slide's patches: where its bar begins and how wide it is, in percent."""

    cluster: int
    start: float
    width: float


@dataclass(frozen=True)
class SlideCard:
    """A slide in the list; ``parts`` and ``most`` say which clusters its patches are in, the largest first."""

    about: SlideInfo
    pictured: bool
    title: str
    parts: tuple[Part, ...]
    most: str

    @property
    def size(self) -> str:
        """In millimetres where the um/px are known, else in pixels; empty where neither is."""
        about = self.about
        if about.zoom is None:
            return ""
        if about.mpp is None:
            return f"{about.width:,} × {about.height:,} px"
        return f"{about.width * about.mpp / 1000:.1f} × {about.height * about.mpp / 1000:.1f} mm"


def cards(
    slides: Sequence[SlideInfo],
    *,
    pictured: Callable[[SlideInfo], bool],
    clusters: ClusterTable,
    table: PatchTable,
    names: Mapping[int, str],
) -> list[SlideCard]:
    """A card for each of ``slides``; ``pictured`` says whether there is a thumbnail of one."""
    number = {str(slide_id): code for code, slide_id in enumerate(table.slides["slide_id"])}
    result = []
    for about in slides:
        parts: tuple[Part, ...] = ()
        if about.slide_id in number:
            parts = _parts(clusters.slides_KS[:, number[about.slide_id]].tolist())
        most = ", ".join(f"{names[part.cluster]} {part.width:.0f} %" for part in parts[:3])
        result.append(SlideCard(about, pictured(about), title_of(about), parts, most))
    return result


def title_of(about: SlideInfo) -> str:
    """A slide's name; with its file's where a slide has several."""
    return about.slide_id if about.slide_id.startswith(about.slide) else f"{about.slide}, {about.slide_id}"


def _parts(sizes_K: Sequence[int]) -> tuple[Part, ...]:
    total, start, parts = max(sum(sizes_K), 1), 0.0, []
    for cluster in sorted(range(len(sizes_K)), key=lambda c: -sizes_K[c]):
        if sizes_K[cluster]:
            width = 100 * sizes_K[cluster] / total
            parts.append(Part(cluster, start, width))
            start += width
    return tuple(parts)
