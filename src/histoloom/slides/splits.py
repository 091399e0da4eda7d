"""Splits that a table fixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from histoloom.errors import UserError
from histoloom.slides.entries import SlideEntry


def table_splits(entries: Sequence[SlideEntry], *, by: Literal["patient", "slide"]) -> Mapping[str, str] | None:
    """Each slide's split where a table gives one to any; None where it gives none, so that one is drawn.

    A slide without one shares that of its patient (or of its slide, with ``by: slide``), else it is trained on.
    Those left out have an empty one. Raises ``UserError`` where a patient would be in both.
    """
    fixed: dict[str, str] = {}
    for entry in entries:
        if not entry.split:
            continue
        group = entry.patient if by == "patient" else entry.slide
        if fixed.setdefault(group, entry.split) != entry.split:
            raise UserError(
                f"the table puts {by} {group} in both train and holdout; correct its column split"
                + (", or use patches.split.by=slide" if by == "patient" else "")
            )
    if not fixed:
        return None
    groups = {entry.slide_id: entry.patient if by == "patient" else entry.slide for entry in entries}
    return {entry.slide_id: fixed.get(groups[entry.slide_id], "train") if entry.usable else "" for entry in entries}
