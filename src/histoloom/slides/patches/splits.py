"""Each slide's split: what a table says, or else a draw of whole patients or slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from histoloom.config import SplitConfig
from histoloom.errors import UserError
from histoloom.run.stage import StageContext
from histoloom.slides.entries import SlideEntry
from histoloom.slides.patches.sampling import held_out


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


def splits_of(
    entries: Sequence[SlideEntry], *, counts: Mapping[str, int], config: SplitConfig, context: StageContext
) -> dict[str, str]:
    """Each slide's split; empty for those left out. A table's counts more than one that is drawn."""
    if (fixed := table_splits(entries, by=config.by)) is not None:
        context.say("held out: what the table says; patches.split.holdout is not used")
        return dict(fixed)
    group = {entry.slide_id: entry.patient if config.by == "patient" else entry.slide for entry in entries}
    sizes: dict[str, int] = {}
    for entry in entries:
        if entry.usable:
            sizes[group[entry.slide_id]] = sizes.get(group[entry.slide_id], 0) + counts[entry.slide_id]
    held = held_out(list(sizes), counts=sizes, config=config, seed=context.config.seed)
    if held:
        share = sum(sizes[name] for name in held) / sum(sizes.values())
        context.say(f"held out: {config.by} {', '.join(sorted(held))} ({share:.0%} of the patches)")
        _remark_shared_patients(entries, group=group, held=held, context=context)
    elif config.holdout > 0:
        context.say(f"nothing is held out: there is only one {config.by}; give more, or split.by: slide")
    return {
        entry.slide_id: ("holdout" if group[entry.slide_id] in held else "train") if entry.usable else ""
        for entry in entries
    }


def _remark_shared_patients(
    entries: Sequence[SlideEntry], *, group: Mapping[str, str], held: set[str], context: StageContext
) -> None:
    """Say where slides of one patient lie on both sides: serial sections there would leak."""
    held_patients = {entry.patient for entry in entries if entry.usable and group[entry.slide_id] in held}
    trained_patients = {entry.patient for entry in entries if entry.usable and group[entry.slide_id] not in held}
    both = held_patients & trained_patients
    if both:
        context.say(
            f"slides of {len(both)} patients are both held out and trained on; where a patient's slides are serial "
            "sections, use patches.split.by=patient"
        )
