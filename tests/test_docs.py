"""The documentation: what is generated from the code is complete, and pages keep to one width."""

from __future__ import annotations

import re
from pathlib import Path

import generated_reference
import pytest
import typer

from histoloom.cli.app import app
from histoloom.config import Config

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 120
GENERATED = {ROOT / "docs/reference" / name for name in ("commands.md", "settings.md", "presets.md", "python-api.md")}
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md")} - GENERATED)


def test_every_setting_has_a_description() -> None:
    missing = [
        f"{title}.{name}".lstrip(".")
        for title, section in generated_reference.sections(Config)
        for name, field in section.model_fields.items()
        if not field.description and generated_reference.subsection(field) is None
    ]
    assert not missing, f"no description: {', '.join(missing)}"


def test_every_argument_and_option_has_a_help_text() -> None:
    missing = [
        f"{name} {parameter.name}"
        for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
        for parameter in command.params
        if parameter.name != "help" and not getattr(parameter, "help", None)
    ]
    assert not missing, f"no help: {', '.join(missing)}"


def test_the_reference_names_every_setting_command_and_public_name() -> None:
    settings, commands = generated_reference.settings(), generated_reference.commands()
    assert "| `diffusion.training.phases` |" in settings
    assert "| `evaluation.cluster_classifier.channels` |" in settings
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"\n## histoloom {name}\n" in commands
    assert ".. autoclass:: histoloom.diffusion.generation.generator.Generator" in generated_reference.python_api()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_is_wrapped_at_one_width(page: Path) -> None:
    in_code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        in_code ^= line.startswith("```")
        free = in_code or line.startswith(("|", "    ", "![", "`")) or re.search(r"\S{60,}", line)
        assert free or len(line) <= WIDTH, f"{page.name}:{number} has {len(line)} characters"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
