"""The command that serves the atlas as a web page."""

from __future__ import annotations

from typing import Annotated

import typer

from histoloom.cli.runs import RunArgument


def atlas(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Where to listen; 0 for any that is free.")] = 8765,
    host: Annotated[
        str, typer.Option(help="Another address lets other computers in, which needs a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None, typer.Option(envvar="HISTOLOOM_TOKEN", help="What visitors must know; 16 characters or more.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in this computer's browser.")] = True,
) -> None:
    """Look at clusters, name them, draw and compare, in a web page on this computer."""
    from histoloom.atlas.web.security import Access
    from histoloom.atlas.web.serve import serve

    access = Access(host, token)
    try:
        serve(run, access=access, port=port, say=_say, open_browser=open_)
    except KeyboardInterrupt:
        typer.echo("the atlas is closed")


def _say(address: str) -> None:
    typer.echo(f"the atlas is at {address}")
    typer.echo("it stays open until you press Ctrl+C", err=True)
