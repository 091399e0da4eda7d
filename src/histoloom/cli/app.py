"""The application: commands by name, and what an error becomes (one line, exit status 2)."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import typer

from histoloom.cli import analyse, generate, naming, readings, runs, web
from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained

# Threads that wait for each other otherwise burn a core each: beside other work, a step once took 7 times longer.
# Read by OpenMP when torch is imported, which no module here does at import.
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
    ("status", runs.status),
    ("sample", generate.sample),
    ("name", naming.name),
    ("names", naming.names),
    ("map", generate.map_slide),
    ("atlas", web.atlas),
    ("validity", analyse.validity),
    ("evaluate", analyse.evaluate),
    ("audit", analyse.audit),
    ("distil", generate.distil),
    ("export", generate.export),
    ("readings", readings.readings),
    ("readings", readings.readings),
    ("doctor", analyse.doctor),
)
for _name, _command in COMMANDS:
    app.command(name=_name)(_command)


def main() -> None:
    """Run the command line; exits with 0, 2 for a user's error, 1 for anything else."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("histoloom").setLevel(logging.INFO)
    try:
        with disk_errors_explained(Path.cwd()):
            app()
    except UserError as error:
        typer.echo(f"histoloom: {' '.join(str(error).split())}", err=True)
        _exit(2)
    except SystemExit as asked:
        _exit(asked.code if isinstance(asked.code, int) else int(asked.code is not None))


def _exit(status: int) -> NoReturn:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from histoloom.training.devices import end_process

        end_process(status)
    raise SystemExit(status) from None
