"""What ``histoloom sample`` and the page can ask for. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass

VARIATION_STRENGTH, INTERPOLATION_STRENGTH = 0.7, 0.5
"""the default strengths; at 0.5 a variation is still so like its source that it may pass for a copy"""


@dataclass(frozen=True)
class Request:
    """``n`` images of each tissue (in all, where none is named); None means the generator's own default.

    ``like``: the picture that all images start from; ``between``: two pictures, between which they lie. Each is a
    patch's id or a file. ``strength``: the share, 0..1, of the process's steps that is noised and drawn again.
    """

    n: int
    tissues: tuple[str, ...] = ()
    k: int | None = None
    method: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    like: str | None = None
    between: tuple[str, str] | None = None
    strength: float | None = None

    @property
    def init_images(self) -> tuple[str, ...]:
        """The names of the pictures that images start from."""
        return self.between or (() if self.like is None else (self.like,))

    @property
    def init_strength(self) -> float:
        """The strength; the default where the request has none."""
        if self.strength is not None:
            return self.strength
        return VARIATION_STRENGTH if self.between is None else INTERPOLATION_STRENGTH
