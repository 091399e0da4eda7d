"""Where a cluster's patches lie on a slide, as a picture.

Shape suffixes: N patches, 4 the sides of a patch (left, top, right, bottom) in level-0 px, H and W the picture's height
and width in px.
"""

from __future__ import annotations

import numpy as np

from histoloom.atlas.maps import geojson
from histoloom.atlas.maps.palette import Rgb

_VEIL = 0.35  # how much paler the slide is under the marks
_OPACITY = 0.5


def placed(thumbnail_HW3: np.ndarray, *, boxes_N4: np.ndarray, dimensions: tuple[int, int], colour: Rgb) -> np.ndarray:
    """A slide's thumbnail, paler, with the boxes of ``boxes_N4`` in ``colour``: uint8 (H, W, 3).

    ``dimensions`` are the slide's (width, height) in level-0 px.
    """
    pale_HW3 = np.rint(thumbnail_HW3 * (1 - _VEIL) + 255 * _VEIL).astype(np.uint8)
    layer_HW4 = geojson.overlay(
        boxes_N4,
        labels_N=np.zeros(len(boxes_N4), int),
        colours=[colour],
        dimensions=dimensions,
        shape=(thumbnail_HW3.shape[0], thumbnail_HW3.shape[1]),
        opacity=_OPACITY,
    )
    return geojson.blend(pale_HW3, layer_HW4=layer_HW4)
