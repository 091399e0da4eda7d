"""A slide of the inventory, and the error of a slide that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

OK = "ok"
"""The status of a slide that is used."""


class SlideError(ValueError):
    """A slide cannot be read or used.

    ``reason`` is this project's own text, one line; ``detail`` is a decoder's message, which may quote the file.
    """

    def __init__(self, reason: str, *, detail: str = "") -> None:
        self.reason, self.detail = one_line(reason, max_length=400), one_line(detail, max_length=200)
        super().__init__(f"{self.reason}: {self.detail}" if self.detail else self.reason)


def one_line(text: str, *, max_length: int = 200) -> str:
    """``text`` without line breaks, control characters and broken Unicode, cut to ``max_length`` characters."""
    plain = "".join(c if c.isprintable() else " " for c in text.encode("utf-8", "replace").decode())
    words = " ".join(plain.split())
    return words if len(words) <= max_length else f"{words[: max_length - 1]}…"


def is_unicode(name: str) -> bool:
    """Whether a file's name can be written as UTF-8; names in other encodings hold surrogates."""
    return name.encode("utf-8", "replace").decode() == name


@dataclass(frozen=True)
class SlideEntry:
    """A slide of the inventory, usable or not.

    ``width`` and ``height`` are level-0 pixels (0 where unknown); ``mpp`` is um/px at level 0; ``mpp_source`` says
    where it comes from; ``status`` is ``"ok"`` or the reason why the slide is left out. ``extra`` are the table's
    further columns. ``alias`` stands for the file in a pseudonymised run; slides of equal ``content`` are copies.
    ``regions`` and ``places`` are the files of its regions and of its patches' places, where the run has some.
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
    content: str = ""
    regions: Path | None = None
    places: Path | None = None

    @property
    def usable(self) -> bool:
        """Whether patches can be drawn from it."""
        return self.status == OK

    @property
    def source_mpp(self) -> float:
        """A usable slide's um/px at level 0."""
        assert self.mpp is not None, "a usable slide has a scale"
        return self.mpp

    @property
    def display_name(self) -> str:
        """Its name in messages and logs: the file's name, or the slide's id where the file's name is private."""
        return self.slide_id if self.alias else one_line(self.file.name)

    @property
    def stored_file(self) -> str:
        """Its file as tables keep it; ``histoloom.slides.inventory.pseudonyms.real_file`` gives the path back."""
        return self.alias or str(self.file).encode("utf-8", "replace").decode()

    def public_reason(self, error: SlideError) -> str:
        """The text of ``error``, without the decoder's detail where the file's name is private."""
        return error.reason if self.alias else str(error)

    def left_out(self, reason: str) -> SlideEntry:
        """The same slide, left out for ``reason``."""
        return replace(self, status=reason)
