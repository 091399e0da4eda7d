"""The user's own pictures over HTTP: added as a file, listed, shown and removed. They stay with the atlas."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from histoloom.atlas.web.errors import NotFound
from histoloom.atlas.web.init_images import InitImage, own_image
from histoloom.atlas.web.jobs import LIFETIME
from histoloom.atlas.web.routing import AnyView
from histoloom.atlas.web.security import UPLOADS
from histoloom.errors import UserError

router = APIRouter(prefix=UPLOADS, tags=["draw"])

PictureId = Annotated[str, Path(min_length=1, max_length=60, description="A picture's id.")]
Title = Annotated[str, Query(min_length=1, max_length=300, description="The file's name.")]
Mpp = Annotated[float, Query(gt=0, le=1000, allow_inf_nan=False, description="um/px of the file.")]
Cluster = Annotated[int | None, Query(ge=0, le=9_999, description="What it shows at ``k``, where that is known.")]


class Removed(BaseModel):
    """The picture is removed."""

    state: Literal["removed"] = "removed"


async def content_of(request: Request) -> bytes:
    """The file: the whole body."""
    return await request.body()


@router.get("")
def own_pictures(view: AnyView) -> list[InitImage]:
    """The user's own pictures, the newest first."""
    return [own_image(own) for own in view.own_pictures.all()]


@router.post("", status_code=201)
def add(
    view: AnyView,
    content: Annotated[bytes, Depends(content_of)],
    title: Title,
    mpp: Mpp,
    k: Annotated[int | None, Query(ge=1, le=10_000)] = None,
    cluster: Cluster = None,
) -> InitImage:
    """Add a PNG or JPEG file, which is the body of the request."""
    if not view.has_generator:
        raise UserError("this run has no generator yet")
    k = view.k_or_chosen(k)
    if cluster is not None and cluster not in view.drawn_labels(k):
        raise NotFound(f"there is no group {cluster} at k = {k}")
    tissue = None if cluster is None else (k, cluster)
    return own_image(
        view.own_pictures.add(content, title=title, mpp=mpp, size=view.size, target_mpp=view.mpp, tissue=tissue)
    )


@router.get("/{picture}.png", response_class=Response)
def own_picture(view: AnyView, picture: PictureId) -> Response:
    """A picture as the generator is given it."""
    try:
        content = view.own_pictures.find(picture)[1].read_bytes()
    except (KeyError, FileNotFoundError) as error:
        raise NotFound("there is no such picture; it may have been removed") from error
    return Response(content, media_type="image/png", headers={"Cache-Control": LIFETIME})


@router.delete("/{picture}")
def remove(view: AnyView, picture: PictureId) -> Removed:
    """Remove a picture from the disk; what was generated from it stays."""
    try:
        view.own_pictures.delete(picture)
    except KeyError as error:
        raise NotFound("there is no such picture; it may have been removed") from error
    return Removed()
