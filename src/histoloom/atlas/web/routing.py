"""What the routes share: bounded parameters, the open run, and responses that a browser keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from fastapi.responses import Response

from histoloom.atlas.web.generator_view import GeneratorView
from histoloom.atlas.web.run_view import RunView
from histoloom.names.corrections import NO_TISSUE

OptionalK = Annotated[int | None, Query(ge=1, le=10_000, description="Number of clusters; the chosen one if absent.")]
PageNumber = Annotated[int, Query(ge=0, le=1_000_000, description="Which page, from 0.")]
PatchId = Annotated[str, Path(min_length=1, max_length=300, description="A patch's id.")]
SampleId = Annotated[str, Path(min_length=1, max_length=300, description="A sample's id.")]
SlideId = Annotated[str, Path(min_length=1, max_length=300, description="A slide's id.")]
Version = Annotated[str, Query(max_length=64, description="What the picture is made from; optional.")]


async def view_of(request: Request) -> RunView:
    """The open run."""
    view: RunView = request.app.state.view
    return view


async def generator_view_of(request: Request) -> GeneratorView:
    """The open run, or the open generator."""
    view: GeneratorView = request.app.state.view
    return view


View = Annotated[RunView, Depends(view_of)]
AnyView = Annotated[GeneratorView, Depends(generator_view_of)]
"""A run's or an exported generator's: for routes that both have."""


def k_or_chosen(view: AnyView, k: OptionalK = None) -> int:
    """The k of the query, or the chosen one; ``NotFound`` where it is not in the sweep."""
    return view.k_or_chosen(k)


def k_of_path(
    view: AnyView, k: Annotated[int, Path(ge=1, le=10_000, description="Number of clusters; one of the run's sweep.")]
) -> int:
    """The k in the address; ``NotFound`` where it is not in the sweep."""
    return view.k_or_chosen(k)


QueryK = Annotated[int, Depends(k_or_chosen)]
PathK = Annotated[int, Depends(k_of_path)]


def cluster_of_path(
    view: View, k: PathK, cluster: Annotated[int, Path(ge=0, le=9_999, description="The cluster's number.")]
) -> int:
    """The cluster in the address; ``NotFound`` where there is none."""
    view.check_cluster(k, cluster)
    return cluster


ClusterNumber = Annotated[int, Depends(cluster_of_path)]


def group_of_query(
    view: View,
    k: PathK,
    name: Annotated[str, Query(max_length=200, description="A group's name; empty: patches that show no tissue.")],
) -> int:
    """The number of the group of a name (``Grouping``); ``NotFound`` where there is none."""
    return view.group_number(k, name or NO_TISSUE)


NamedGroup = Annotated[int, Depends(group_of_query)]


def cached_response(
    request: Request, *, made_from: Iterable[object], immutable: bool, media_type: str, make: Callable[[], bytes]
) -> Response:
    """``make()``, or 304 where the browser has it. ``made_from`` identifies the content.

    ``immutable``: the address names the content as well, so that the browser keeps it without asking again.
    """
    key = "\0".join(map(str, made_from)).encode("utf-8", "replace")
    etag = f'"{hashlib.sha256(key).hexdigest()[:24]}"'
    lifetime = "private, max-age=31536000, immutable" if immutable else "private, no-cache"
    headers = {"ETag": etag, "Cache-Control": lifetime}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(make(), media_type=media_type, headers=headers)


def colour_stylesheet(colours: Iterable[str], *, prefix: str) -> Response:
    """Colours as ``--c`` of the classes ``{prefix}0``, ``{prefix}1``, ...: the page itself may carry no styles."""
    lines = [f".{prefix}{number} {{ --c: {colour}; }}\n" for number, colour in enumerate(colours)]
    return Response("".join(lines), media_type="text/css", headers={"Cache-Control": "private, no-cache"})
