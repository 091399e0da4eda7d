"""Path arguments that commands share. What cannot be a run or an output is refused before the work begins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from histoloom.errors import UserError
from histoloom.run.directory import file_in_the_way


def check_run(context: typer.Context, parameter: typer.CallbackParam, run: Path) -> Path:
    """Refuse a file in place of a run, as where two arguments are swapped."""
    if (file := file_in_the_way(run)) is not None:
        raise UserError(f"{file} is a file, not a run; type: {_usage(context, parameter)}")
    return run


def check_out_folder(context: typer.Context, parameter: typer.CallbackParam, out: Path | None) -> Path | None:
    """Refuse a folder that is a file, lies below one, or lies where nothing may be written."""
    if out is None:
        return None
    if (file := file_in_the_way(out)) is not None:
        raise UserError(f"{file} is a file, which stays; give another name: {_usage(context, parameter)}")
    there = next(part for part in (out, *out.absolute().parents) if part.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"nothing may be written to {there}; give another place: {_usage(context, parameter)}")
    return out


def check_out_file(context: typer.Context, parameter: typer.CallbackParam, out: Path | None) -> Path | None:
    """Refuse a file that is a folder, lies below a file, or would replace a file of another kind, as a slide."""
    if out is None:
        return None
    if out.is_dir():
        raise UserError(f"{out} is a folder, not a file; give a file: {_usage(context, parameter)}")
    check_out_folder(context, parameter, out.parent)
    suffix = Path(str(parameter.metavar)).suffix
    if out.exists() and out.suffix.lower() not in (suffix, ".json"):
        raise UserError(f"{out} exists and is no {suffix}; it stays, give another name: {_usage(context, parameter)}")
    return out


def _usage(context: typer.Context, wrong: typer.CallbackParam) -> str:
    """The command with what it requires and what was wrong: ``histoloom map RUN SLIDE --out FILE.geojson``."""
    words = ["histoloom", str(context.info_name)]
    for parameter in context.command.params:
        metavar = parameter.metavar or str(parameter.name).upper()
        if parameter.required or parameter.name == wrong.name:
            words += [metavar] if parameter.param_type_name == "argument" else [parameter.opts[0], metavar]
    return " ".join(words)


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.", callback=check_run)]
