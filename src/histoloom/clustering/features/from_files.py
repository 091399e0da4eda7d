"""Features that another program computed of tiles of the slides: each patch takes those of the tile over its middle.

There are none of an image that lies on no slide of the run: the clusters of a sample cannot be predicted.
Shapes: N patches, V views, H x W px, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histoloom.clustering.features.base import EncoderRecord, Features, ImagesUnsupported, Sources
from histoloom.clustering.features.tile_files import SlideTiles, TileFiles
from histoloom.errors import UserError
from histoloom.processes import is_main_process
from histoloom.run.stage import StageContext
from histoloom.slides.entries import SlideError
from histoloom.slides.inventory.pseudonyms import real_file
from histoloom.slides.patch_set import PatchSet, SlideRow

MOST_UNCOVERED = 0.05
"""Share of the patches that may lie on no tile, at edges where two programs see the tissue differently."""

ON_TILE = 0.5 + 1e-6  # tiles between its middle and a place on it
SIMILAR = 2.0  # ratio of the widths of tile and patch up to which one describes the other
_NAMES_IN_MESSAGE = 5


class FileFeatures(Features):
    """Features of the tiles that the patches lie on; ``tiles``: of each slide; N patches of the run in their order."""

    def __init__(self, tiles: Sequence[SlideTiles], *, slide_N: np.ndarray, tile_N: np.ndarray) -> None:
        """``slide_N``: the number in ``tiles`` of each patch's slide; ``tile_N``: the number of its tile there."""
        self.tiles = tiles
        self.slide_N = slide_N
        self.tile_N = tile_N

    @classmethod
    def make(cls, context: StageContext) -> Features:
        """Join the run's patches to tiles by slide and place. ``UserError`` where too many have none."""
        config = context.config.clusters
        assert config.files is not None, "the configuration has a place with this kind"
        files = TileFiles(Path(config.files), obsm=config.obsm)
        slides = [row for row in SlideRow.load(context.inputs["patches"]) if row.usable and row.patches]
        names = find_features({row.slide_id: (row.file, row.slide) for row in slides}, files=files)
        tiles = [files.tiles(name) for name in names.values()]
        if len({one.width for one in tiles}) > 1:
            few, many = min(tiles, key=lambda one: one.width), max(tiles, key=lambda one: one.width)
            raise UserError(
                f"{few.file} has {few.width} features a tile and {many.file} has {many.width}; "
                "give features of one encoder for all slides"
            )

        # The tile nearest to the middle of each patch
        table = PatchSet.open(context.inputs["patches"]).columns("slide_id", "x", "y", "extent")
        number_by_slide = {slide_id: number for number, slide_id in enumerate(names)}
        slide_N = table["slide_id"].map(number_by_slide).to_numpy(np.int64)
        extent_N = table["extent"].to_numpy(np.float64)
        middle_N2 = table[["x", "y"]].to_numpy(np.float64) + extent_N[:, None] / 2
        tile_N, distance_N = np.empty(len(table), np.int64), np.empty(len(table))
        rows_by_slide = table.groupby("slide_id", sort=False).indices
        for slide_id, one in zip(names, tiles, strict=True):
            rows = rows_by_slide[slide_id]
            tile_N[rows], distance_N[rows] = one.nearest(middle_N2[rows])

        covered_N = distance_N <= ON_TILE
        require_covered(covered_N, slides=table["slide_id"].to_numpy(), place=config.files)
        if is_main_process():
            side_N = np.array([one.side for one in tiles])[slide_N]
            _say(context, tiles[0], distance_N=distance_N, ratio=float(np.median(side_N / extent_N)))
        return cls(tiles, slide_N=slide_N, tile_N=tile_N)

    @classmethod
    def load(cls, sources: Sources) -> Features:  # noqa: ARG003
        """Raises ``ImagesUnsupported``: other stages ask for features of images."""
        raise ImagesUnsupported

    def save(self, folder: Path) -> EncoderRecord:  # noqa: ARG002 - the files stay where they are
        return EncoderRecord(encoder=self.tiles[0].encoder or None)

    @property
    def of_patch_alone(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.tiles[0].width,)

    @property
    def views(self) -> int:
        return 0

    def compute_rows(self, rows_N: np.ndarray) -> Tensor:
        values_ND = np.empty((len(rows_N), *self.shape), np.float32)
        for slide in np.unique(self.slide_N[rows_N]):
            here_N = self.slide_N[rows_N] == slide
            values_ND[here_N] = self.tiles[slide].read(self.tile_N[rows_N[here_N]])
        return torch.from_numpy(values_ND)

    def compute_views(self, rows_N: np.ndarray) -> Tensor:
        return torch.empty(len(rows_N), 0, *self.shape)

    def compute_images(self, images_NHW3: np.ndarray) -> Tensor:  # noqa: ARG002
        raise ImagesUnsupported


def find_features(slides: Mapping[str, tuple[str, str]], *, files: TileFiles) -> dict[str, str]:
    """The name in ``files`` of each slide by its id; ``slides``: its stored file and its name, by its id.

    A slide is found by its id, by the name of its file without the ending, or by its name in the run's table.
    Raises ``UserError`` where one has no features, or two have the same.
    """
    names: dict[str, str] = {}
    for slide_id, (file, slide) in slides.items():
        candidates = [slide_id]
        with suppress(SlideError):  # the slide of a private run whose names are not known here
            candidates.append(real_file(file).stem)
        found = files.name_of([*candidates, slide])
        if found is not None:
            names[slide_id] = found
    absent = [slide_id for slide_id in slides if slide_id not in names]
    if absent:
        raise UserError(
            f"{files.place} has no features of {len(absent)} of {len(slides)} slides: {_listed(absent)}; "
            "name each file after its slide, compute those that are missing, or leave these slides out of the run"
        )
    name, count = Counter(names.values()).most_common(1)[0]
    if count > 1:
        same = [slide_id for slide_id, found in names.items() if found == name]
        raise UserError(f"the features of {name} fit {count} slides: {_listed(same)}; give each slide its own file")
    return names


def require_covered(covered_N: np.ndarray, *, slides: np.ndarray, place: str) -> None:
    """Raise ``UserError`` where more than ``MOST_UNCOVERED`` of the patches lie on no tile; ``slides``: of each."""
    share = 1 - covered_N.mean()
    if share <= MOST_UNCOVERED:
        return
    total: Mapping[str, int] = Counter(slides)
    without = Counter(slides[~covered_N]).most_common()
    counts = _listed([f"{slide} ({count} of {total[slide]})" for slide, count in without])
    raise UserError(
        f"{int((~covered_N).sum())} of {len(covered_N)} patches ({share:.0%}) lie on no tile of {place}: {counts}; "
        "compute features of all the tissue, or draw patches where there are tiles (patches.tissue=detect)"
    )


def _say(context: StageContext, tiles: SlideTiles, *, distance_N: np.ndarray, ratio: float) -> None:
    """One line on the join, and another where tiles and patches differ much in width."""
    by = f" by {tiles.encoder}" if tiles.encoder else ""
    uncovered_N = distance_N > ON_TILE
    nearest = (
        f"; {uncovered_N.sum()} of {len(distance_N)} patches lie on no tile and take the nearest, "
        f"up to {distance_N.max():.1f} tiles away"
        if uncovered_N.any()
        else ""
    )
    context.say(
        f"features from files{by}, {tiles.width} numbers a tile; a tile is {ratio:.2g} times as wide as a patch, and "
        f"its middle {np.median(distance_N):.2g} tiles from the patch's (median){nearest}"
    )
    if not 1 / SIMILAR <= ratio <= SIMILAR:
        context.say(
            f"warning: tiles are {ratio:.2g} times as wide as patches, so that their features describe another field; "
            "set patches.size and patches.mpp to the tiles' width, or compute features of tiles as wide as the patches"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_IN_MESSAGE} more" if len(names) > _NAMES_IN_MESSAGE else ""
    return ", ".join(names[:_NAMES_IN_MESSAGE]) + more
