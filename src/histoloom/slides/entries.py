"""What is known of a slide that was found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

OK = "ok"


class SlideError(ValueError):
    """A slide cannot be read or used.

    ``reason`` is in this project's words, one line; ``detail`` is what a decoder said, which may quote the file.
    """

    def __init__(self, reason: str, *, detail: str = "") -> None:
        self.reason, self.detail = one_line(reason, most=400), one_line(detail, most=200)
        super().__init__(f"{self.reason}: {self.detail}" if self.detail else self.reason)


def one_line(text: str, *, most: int = 200) -> str:
    """``text`` without line breaks, control characters and broken Unicode, and not longer than ``most``."""
    plain = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "replace").decode())
    words = " ".join(plain.split())
    return words if len(words) <= most else f"{words[: most - 1]}…"


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
    split: str = ""
    extra: tuple[tuple[str, str | None], ...] = ()
    alias: str = ""

    @property
    def usable(self) -> bool:
        """Whether patches can be taken from it."""
        return self.status == OK

    @property
    def shown(self) -> str:
        """What to call it in messages and logs: its file's name, or its id where that is private."""
        return self.slide_id if self.alias else one_line(self.file.name)

    @property
    def stored_file(self) -> str:
        """Its file as tables keep it; ``histoloom.slides.inventory.pseudonyms.real_file`` gives the path back."""
        return self.alias or str(self.file).encode("utf-8", "replace").decode()

    def why(self, error: SlideError) -> str:
        """What ``error`` says, without what a decoder may have quoted where the file's name is private."""
        return error.reason if self.alias else str(error)

    def left_out(self, reason: str) -> SlideEntry:
        """The same slide, left out for ``reason``."""
        return replace(self, status=reason)
