"""What ``histoloom sample`` and the page can ask for. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass

LIKE_ONE, BETWEEN_TWO = 0.7, 0.5
"""the strengths where none is given: at 0.5 a picture is still so like its source that it may pass for a copy"""


@dataclass(frozen=True)
class Request:
    """``n`` images a tissue (in all, where none is named); None means the generator's own default.

    ``like``: the picture that all begin from; ``between``: two that they lead from and to. Each is a patch's id or a
    file. ``strength``: how much of them is undone, 0..1.
    """

    n: int
    tissues: tuple[str, ...] = ()
    k: int | None = None
    method: str | None = None
    steps: int | None = None
    spacing: float | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    seed: int = 0
    like: str | None = None
    between: tuple[str, str] | None = None
    strength: float | None = None

    @property
    def begun_from(self) -> tuple[str, ...]:
        """The names of the pictures that images begin from."""
        return self.between or (() if self.like is None else (self.like,))


def strength_of(request: Request) -> float:
    """How much of the pictures to begin from is undone, 0..1."""
    if request.strength is not None:
        return request.strength
    return LIKE_ONE if request.between is None else BETWEEN_TWO
