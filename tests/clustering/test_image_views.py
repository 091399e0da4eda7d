"""Views of images: turned, flipped and restained, each of its own row and seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from histoloom.clustering.features.images import views_of
from histoloom.seeding import numpy_generator


def pictures(n: int) -> np.ndarray:
    """Stripes and chequerboards in several tones."""
    rng = numpy_generator(0, "pictures")
    grid = np.indices((32, 32)) // 4 % 2
    patterns = np.stack([grid[0], grid[0] ^ grid[1]])[np.arange(n) % 2]
    tones = rng.integers(120, 160, (n, 1, 1, 3)) + 60 * patterns[..., None] + rng.integers(-9, 9, (n, 32, 32, 3))
    return tones.clip(0, 255).astype(np.uint8)


def test_views_of_a_row_do_not_depend_on_other_rows() -> None:
    images = pictures(5)
    settings: dict[str, Any] = {"views": 3, "strength": 0.3, "seed": 0}
    whole = views_of(images, rows_N=np.arange(5), **settings)
    assert whole.shape == (5, 3, 32, 32, 3)
    some = views_of(images[[4, 1]], rows_N=np.array([4, 1]), **settings)
    np.testing.assert_allclose(some.astype(int), whole[[4, 1]].astype(int), atol=1)
