"""What a run can draw with, told from its files alone: nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path

STUDENT = "student"
"""as ``diffusion.generator`` calls it"""


def has_generator(run: Path) -> bool:
    """Whether the run has a trained generator."""
    return all((run / "diffusion" / name).is_file() for name in ("artifact.json", "generator.json"))


def has_student(run: Path) -> bool:
    """Whether a student was distilled from the run's generator."""
    return (run / STUDENT / "student.json").is_file()
