"""Slides, their tissue, and random patches of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histoloom.slides.inventory.find import find_slides
    from histoloom.slides.patch_set import PatchSet
    from histoloom.slides.readers.open import Slide, open_slide

__all__ = ["PatchSet", "Slide", "find_slides", "open_slide"]

_HOMES = {"PatchSet": "patch_set", "Slide": "readers", "find_slides": "inventory", "open_slide": "readers"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
