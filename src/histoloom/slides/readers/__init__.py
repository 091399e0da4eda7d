"""Reading of slides in every format: ``open_slide`` opens one."""

from histoloom.slides.readers.open import open_slide

__all__ = ["open_slide"]
