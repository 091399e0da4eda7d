"""The application: commands by name, and the one place where an error becomes a line and exit status 2."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable

import typer
from typer.main import get_command

from histoloom.cli import analyse, expert, generate, runs
from histoloom.errors import UserError
from histoloom.names.table import TableError
from histoloom.processes import process_count
from histoloom.run.directory import disk_errors_explained
from histoloom.run.user import start_folder

# Without it, threads that wait for each other use a core each: beside other work, a step took up to 7 times longer.
# OpenMP reads it when torch is imported, which no module here does at import.
SPIN_COUNT = "3000"

app = typer.Typer(
    name="histoloom",
    help="From unlabeled H&E slides to a named tissue atlas with a generator for each tissue.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("demo", runs.demo),
    ("init", runs.init),
    ("run", runs.run),
    ("report", runs.report),
    ("status", runs.status),
    ("sample", generate.sample),
    ("paint", generate.paint),
    ("name", expert.name),
    ("names", expert.names),
    ("map", generate.map_slide),
    ("atlas", expert.atlas),
    ("validity", analyse.validity),
    ("evaluate", analyse.evaluate),
    ("audit", analyse.audit),
    ("distil", generate.distil),
    ("patches", generate.patches),
    ("export", generate.export),
    ("readings", expert.readings),
    ("doctor", analyse.doctor),
)
for _name, _command in COMMANDS:
    app.command(name=_name)(_command)
COMMAND_LINE = get_command(app)


def main() -> None:
    """Run the command line; exits with 0, 2 for a user's error, 1 for anything else."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("histoloom").setLevel(logging.INFO)
    # A name may hold characters that the terminal's encoding lacks: Python refuses them on standard output.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with disk_errors_explained(start_folder()):
            COMMAND_LINE()
        status = 0
    except UserError as error:
        for line in error.lines if isinstance(error, TableError) else [str(error)]:
            typer.echo(f"histoloom: {' '.join(line.split())}", err=True)
        status = 2
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    if process_count() > 1:
        from histoloom.training.distributed import end_process

        end_process(status)
    raise SystemExit(status)
