"""The pages of the reference that are made from the code: commands, settings, presets, Python API.

They exist beside the written pages while the site is built; git ignores them.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import histoloom
from histoloom.cli.app import app
from histoloom.config import Config, Section, preset_names
from histoloom.config.section import subsection


def write(folder: Path) -> None:
    """Writes the pages into ``folder``; a page that has not changed is left alone."""
    pages = {"commands": commands(), "settings": settings(), "presets": presets(), "python-api": python_api()}
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _cell(text: str) -> str:
    """Text that cannot end a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


# -- commands ---------------------------------------------------------------------------------------------------


def commands() -> str:
    """Every command with its help, its arguments and its options."""
    group: Any = typer.main.get_command(app)
    lines = [
        "# Commands\n",
        "Every command prints this text with `--help`. Exit status: 0 done; 2 the input is wrong (one line says what",
        "to do next); 1 anything else.\n",
    ]
    for name, command in group.commands.items():
        lines += [f"## histoloom {name}\n", command.help or "", ""]
        lines += ["```", f"histoloom {name} {' '.join(_usage(command))}".rstrip(), "```", ""]
        if rows := list(_parameters(command)):
            lines += ["| argument or option | meaning | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _usage(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            many = "..." if parameter.nargs == -1 else ""
            word = (parameter.metavar or parameter.name).upper() + many
            yield word if parameter.required else f"[{word}]"
    yield "[OPTIONS]"


def _parameters(command: Any) -> Iterator[str]:
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            names = (parameter.metavar or parameter.name).upper()
        else:
            names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if names == "--help":
            continue
        default = parameter.default
        is_shown = default is not None and default is not False and default not in ((), []) and not callable(default)
        shown = f"`{default}`" if is_shown else ""
        yield f"| `{names}` | {_cell(getattr(parameter, 'help', None) or '')} | {shown} |"


# -- settings ---------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every setting with its type, default and meaning."""
    lines = [
        "# Settings\n",
        "Every setting of `RUN/config.yaml`, with its type, its default and its meaning. Change one with",
        "`--set key=value` at `init` or `run`; the value is read as YAML. A preset gives other defaults:",
        "[presets](presets.md). A setting that has no effect, and settings that contradict each other, are errors.\n",
    ]
    for title, section in sections(Config):
        lines += [f"## {title or 'The whole run'}\n", " ".join((section.__doc__ or "").split()), ""]
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        for name, field in section.model_fields.items():
            key = f"{title}.{name}" if title else name
            if subsection(field) and not title:
                continue
            cells = (f"`{key}`", _type(field.annotation), _default(field), field.description or "")
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def sections(model: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """A section and all those below it, with their dotted names, in the order of the file."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if section := subsection(field):
            yield from sections(section, f"{prefix}.{name}" if prefix else name)


def _type(annotation: Any) -> str:
    """A type in words: choices as they are typed, no module names."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{str(choice).lower() if isinstance(choice, bool) else choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is tuple:
        return "list of " + _type(arguments[0])
    if annotation is type(None):
        return "none"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "section"
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Section):
        return "see below"
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True).strip()
    return f"`{text.removesuffix('...').strip()}`"


# -- presets ----------------------------------------------------------------------------------------------------


def presets() -> str:
    """The preset files."""
    lines = [
        "# Presets\n",
        "What each preset sets; everything else has the default that",
        "[settings](settings.md) names. The comments say why.\n",
    ]
    for name in preset_names():
        text = (resources.files("histoloom.config") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        lines += [f"## {name}\n", "```yaml", text.strip(), "```", ""]
    return "\n".join(lines)


# -- Python -----------------------------------------------------------------------------------------------------


def python_api() -> str:
    """What ``from histoloom import ...`` gives, by autodoc."""
    lines = [
        "# Python API\n",
        "`from histoloom import ...` gives these names. Importing one loads no more than it needs.\n",
    ]
    for name in sorted(histoloom.__all__):
        thing = getattr(histoloom, name)
        directive = "autoclass" if isinstance(thing, type) else "autofunction"
        lines += [f"## {name}\n", "```{eval-rst}", f".. {directive}:: {thing.__module__}.{name}", "```", ""]
    return "\n".join(lines)
