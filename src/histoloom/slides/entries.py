"""What is known of a slide that was found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

OK = "ok"


class SlideError(ValueError):
    """A slide cannot be read or used; the message is the reason, in one line."""


@dataclass(frozen=True)
class SlideEntry:
    """A slide that was found, usable or not.

    ``width`` and ``height`` are level-0 pixels (0 where unknown); ``mpp`` is um/px at level 0; ``mpp_source`` says
    where it came from; ``status`` is ``"ok"`` or the reason why the slide is left out.
    """

    slide_id: str
    file: Path
    patient: str
    slide: str
    width: int = 0
    height: int = 0
    mpp: float | None = None
    mpp_source: str = ""
    status: str = OK

    @property
    def usable(self) -> bool:
        """Whether patches can be taken from it."""
        return self.status == OK

    def left_out(self, reason: str) -> SlideEntry:
        """The same slide, left out for ``reason``."""
        return replace(self, status=reason)
