"""The colour of each cluster wherever one is drawn: the expert's choice, else the palette's."""

from __future__ import annotations

from collections.abc import Mapping

from histoloom.atlas.maps.palette import Rgb, colours
from histoloom.names import Label


def cluster_colours(labels: Mapping[int, Label], *, k: int) -> list[Rgb]:
    """Colours of clusters 0..k-1; ``labels`` as ``names.current_labels`` gives them."""
    chosen = {cluster: label.colour for cluster, label in labels.items() if label.colour}
    return [from_hexadecimal(chosen[c]) if c in chosen else colour for c, colour in enumerate(colours(k))]


def from_hexadecimal(text: str) -> Rgb:
    """``#rrggbb`` as uint8 0..255."""
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
