"""What an expert has corrected on a tissue map in QuPath: names of clusters, and other names for single patches.

``histoloom map`` keeps a copy of each map of a slide of the run in ``RUN/maps``. Comparing it with what comes back
tells what was changed, whatever the map itself got wrong. Where all areas of a class have another name now, its
clusters are renamed. A patch is corrected where the area at its middle has another name than before, beyond that; it
has no name where that area was deleted. Where areas overlap, the smallest one counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import shapely

from histoloom.errors import UserError
from histoloom.names import Label, append, clustering_of, current_labels, locked, normalised
from histoloom.names.corrections import Target, append_corrections, correction_event, read_correction_state
from histoloom.names.edits import label_events
from histoloom.names.text import NUMBER
from histoloom.run.directory import fingerprint
from histoloom.slides.entries import SlideError
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.regions import Area, read_areas


@dataclass(frozen=True)
class MapSource:
    """What an area of a map says of where it comes from, as QuPath keeps it in the area's metadata.

    ``slide``: a slide id of the run; ``clusters``: those that the area's class had, none where it was a name of
    corrected patches alone.
    """

    KEY = "histoloom"

    slide: str
    k: int
    clusters: tuple[int, ...]
    origin: tuple[int, int]
    clustering: str

    def __str__(self) -> str:
        clusters, origin = ("+".join(map(str, numbers)) for numbers in (self.clusters, self.origin))
        return f"{self.k} {clusters or '-'} {origin} {self.clustering} {self.slide}"

    @staticmethod
    def of(area: Area) -> MapSource | None:
        """The source of an area; None for one that someone has drawn."""
        parts = area.metadata.get(MapSource.KEY, "").split(" ", 4)
        if len(parts) != 5:
            return None
        try:
            k, *numbers = (() if part == "-" else tuple(map(int, part.split("+"))) for part in parts[:3])
        except ValueError:
            return None
        clusters, origin = numbers
        if len(k) != 1 or len(origin) != 2:
            return None
        return MapSource(parts[4], k[0], clusters, (origin[0], origin[1]), parts[3])


@dataclass(frozen=True)
class Corrections:
    """What an import did: the new names of clusters, and how many of the slide's patches have another name now."""

    slide: str
    k: int
    renamed: Mapping[int, str]
    corrected: int
    patches: int


def kept_map(run: Path, *, slide: str, k: int) -> Path:
    """Where the run keeps the last map of one of its slides."""
    return run / "maps" / f"{slide}-k{k}.geojson"


def import_map(run: Path, file: Path, *, patches: PatchSet, rater: str) -> Corrections:
    """Compare a map that comes back from QuPath with the one that the run keeps; name clusters and correct patches.

    Raises ``UserError`` where the file is no map of this run, and writes nothing then.
    """
    after = _read(file)
    source = _source(after, file=file)
    clustering = clustering_of(run)
    if source.clustering != clustering:
        raise UserError(f"{file.name} is a map of other clusters than the run has now; make it again: histoloom map")
    table = patches.columns("patch_id", "slide_id", "x", "y", "extent")
    table = table[table["slide_id"] == source.slide]
    original = kept_map(run, slide=source.slide, k=source.k)
    if table.empty or not original.is_file():  # only the id of a slide becomes a part of a path
        raise UserError(
            f"the run keeps no map of {source.slide} at k = {source.k}; make one: histoloom map {run} SLIDE"
        )
    before = _read(original)

    new_names = _renamed_classes(before, after)
    current = current_labels(run, k=source.k)
    renamed = {
        cluster: name
        for clusters, name in new_names.items()
        for cluster in clusters
        if normalised(current[cluster].name) != normalised(name)
    }
    # A second import that is compared with the same map takes the place of the first.
    compared_with = f"map-{fingerprint(original.read_text(encoding='utf-8'))[:12]}-"
    edit = compared_with + fingerprint([file.read_text(encoding="utf-8-sig"), datetime.now(UTC).isoformat()])[:12]
    events = [
        event
        for cluster, name in renamed.items()
        for event in label_events(cluster=cluster, k=source.k, rater=rater, label={"name": name}, edit=edit)
    ]

    middle_N2 = table[["x", "y"]].to_numpy(float) + table[["extent"]].to_numpy(float) / 2 - np.array(source.origin)
    of_class = {normalised(area.name): new_names.get(_clusters(area), area.name) for area in before}
    was, now = (names_at(areas, middle_N2) for areas in (before, after))
    ids = table["patch_id"].astype(str).tolist()
    labels = current | {cluster: replace(current[cluster], name=name) for cluster, name in renamed.items()}

    with locked(run):
        # A patch that was corrected to the name of a class does not follow when the class gets another name.
        state = read_correction_state(run, k=source.k)
        earlier = state.corrected_in(compared_with, rater=rater)
        without = state.without(compared_with)
        named = {patch for patch, target in without.items() if isinstance(target, str)}
        patches_of: dict[Target, list[str]] = {}
        moved: set[str] = set()
        for patch_id, old, name in zip(ids, was, now, strict=True):
            expected = old if patch_id in named else of_class.get(normalised(old), old)
            if normalised(expected) != normalised(name):
                patches_of.setdefault(_target(name, labels), []).append(patch_id)
                moved.add(patch_id)
        for patch_id in sorted(earlier.keys() & set(ids) - moved):
            if earlier[patch_id] != without.get(patch_id):  # as on the map again
                patches_of.setdefault(without.get(patch_id), []).append(patch_id)
        corrections = [
            correction_event(patches=patches, target=target, k=source.k, rater=rater, edit=edit)
            for target, patches in patches_of.items()
        ]
        if corrections:
            append_corrections(run, corrections)
        if events:
            append(run, events)
    return Corrections(source.slide, source.k, renamed, len(moved), len(table))


def _target(name: str, labels: Mapping[int, Label]) -> Target:
    """The target of a name of an area: the first cluster that has it, or whose number it is; else the name itself."""
    number = NUMBER.fullmatch(name.strip())
    if number and int(number[1]) in labels:
        return int(number[1])
    wanted = normalised(name)
    return next((cluster for cluster, label in labels.items() if normalised(label.name) == wanted), name.strip())


def names_at(areas: Sequence[Area], middle_N2: np.ndarray) -> list[str]:
    """The name of the smallest area at each point, (N, 2) px as QuPath counts; empty where there is none."""
    names = [""] * len(middle_N2)
    outlines = [area.outline for area in areas]
    smallest_N = np.full(len(middle_N2), np.inf)
    points, hits = shapely.STRtree(outlines).query(shapely.points(middle_N2), predicate="intersects")
    for point, hit in zip(points.tolist(), hits.tolist(), strict=True):
        size = outlines[hit].area
        if size < smallest_N[point]:
            smallest_N[point], names[point] = size, areas[hit].name
    return names


def _read(file: Path) -> list[Area]:
    try:
        return read_areas(file)
    except SlideError as error:
        raise UserError(f"{file.name} cannot be read; export it from QuPath as GeoJSON ({error.detail})") from error


def _source(areas: Sequence[Area], *, file: Path) -> MapSource:
    """The slide and the k of a map; the areas of one file have the same."""
    sources = [source for area in areas if (source := MapSource.of(area)) is not None]
    if not sources:
        raise UserError(
            f"{file.name} has no area that histoloom map has made; correct the areas of a map of a slide of this run, "
            "and export all objects from QuPath as GeoJSON"
        )
    if len({(source.slide, source.k, source.clustering) for source in sources}) > 1:
        raise UserError(f"{file.name} has areas of several maps; export the objects of one slide at a time")
    return sources[0]


def _clusters(area: Area) -> tuple[int, ...]:
    source = MapSource.of(area)
    return () if source is None else source.clusters


def _renamed_classes(before: Sequence[Area], after: Sequence[Area]) -> dict[tuple[int, ...], str]:
    """The new name of each class, by its clusters, all areas of which have the same other name now."""
    old = {_clusters(area): area.name for area in before}
    new: dict[tuple[int, ...], set[str]] = {}
    for area in after:
        new.setdefault(_clusters(area), set()).add(area.name)
    new.pop((), None)  # areas that someone has drawn
    names = {clusters: next(iter(some)) for clusters, some in new.items() if len(some) == 1 and clusters in old}
    return {
        clusters: name
        for clusters, name in names.items()
        if name.strip() and normalised(name) != normalised(old[clusters])
    }
