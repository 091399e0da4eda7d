"""Pictures that generating may start from: real patches, samples of the run, pictures of jobs, and the user's own."""

from __future__ import annotations

from pydantic import BaseModel

from histoloom.atlas.jobs.own_pictures import OWN, OwnPicture
from histoloom.atlas.web.errors import NotFound
from histoloom.atlas.web.generator_view import GeneratorView
from histoloom.atlas.web.pictures import patch_address, sample_address
from histoloom.atlas.web.run_view import RunView


class InitImage(BaseModel):
    """A picture that generating may start from; ``k`` and ``cluster`` are None for a patch."""

    name: str
    title: str
    src: str
    real: bool
    k: int | None = None
    cluster: int | None = None
    tissue: str = ""


def init_image(view: GeneratorView, *, name: str) -> InitImage:
    """The picture called ``name``: a patch's id, ``samples/ID``, ``drawn/JOB/NUMBER`` or ``own/ID``. ``NotFound``."""
    kind, _, rest = name.partition("/")
    if kind == "samples" and rest and isinstance(view, RunView):
        sample = view.sample(rest)
        return InitImage(
            name=name,
            title=f"sample {sample.index + 1} of group {sample.cluster}",
            src=sample_address(view, rest),
            real=False,
            k=sample.k,
            cluster=sample.cluster,
            tissue=view.names(sample.k)[sample.cluster] if sample.k in view.ks else "",
        )
    if kind == "drawn" and rest:
        job_id, _, number = rest.partition("/")
        try:
            row = next(made.row for made in view.queue.pictures(job_id) if str(made.number) == number)
        except (KeyError, StopIteration) as error:
            raise NotFound("there is no such picture; it may have been deleted") from error
        return InitImage(
            name=name,
            title=f"picture {int(number) + 1} of a job",
            src=job_picture_address(job_id, int(number)),
            real=False,
            k=int(str(row["k"])),
            cluster=int(str(row["cluster"])),
            tissue=str(row["tissue"]),
        )
    if kind == OWN and rest:
        try:
            own, _ = view.own_pictures.find(rest)
        except KeyError as error:
            raise NotFound("there is no such picture; it may have been removed") from error
        return own_image(own)
    if not isinstance(view, RunView):
        raise NotFound("there is no such picture; an exported generator has no patches")
    view.row_of(name)
    return InitImage(name=name, title=f"patch {name}", src=patch_address(view, name), real=True)


def own_image(own: OwnPicture) -> InitImage:
    """A picture of the user's own. It is taken for real: whoever treats it with care errs on the safe side."""
    return InitImage(
        name=f"{OWN}/{own.picture_id}",
        title=f"{own.title}, {own.note}",
        src=f"/api/draw/own/{own.picture_id}.png",
        real=True,
        k=own.k,
        cluster=own.cluster,
    )


def job_picture_address(job_id: str, number: int) -> str:
    """The address of a picture of a job."""
    return f"/api/jobs/{job_id}/pictures/{number}.png"
