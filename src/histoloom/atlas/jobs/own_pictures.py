"""Pictures of the user's own that generating starts from: checked, scaled to the generator's um/px, and kept.

Each is a PNG of the generator's size in ``DRAWN/pictures``, with a line about it in ``pictures.jsonl``. What the file
held besides its pixels (places, names, cameras) is not kept.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained, replacing
from histoloom.run.json_lines import append_lines, read_lines
from histoloom.run.record import Record

OWN = "own"
"""the beginning of such a picture's name, as in ``own/ID``"""
FOLDER = "pictures"
MOST = 200
MOST_PIXELS = 80_000_000
COARSEST = 1.5
"""how much coarser than the generator's um/px a picture may be: more would show blur where tissue has detail"""
LONGEST_NAME = 120


class OwnPicture(Record):
    """A picture: its ``title`` is its file's name; ``mpp`` the um/px of the file; ``note`` what was cut out of it.

    ``k`` and ``cluster``: the tissue that the user chose for it; None where none was chosen.
    """

    picture_id: str
    title: str
    mpp: float
    note: str
    k: int | None = None
    cluster: int | None = None


class OwnPictures:
    """The pictures of one run or generator. Threads may share it."""

    def __init__(self, drawn: Path) -> None:
        self._folder = drawn / FOLDER
        self._lock = threading.Lock()

    def all(self) -> list[OwnPicture]:
        """The pictures, the newest first."""
        found: dict[str, OwnPicture] = {}
        for line in read_lines(self._folder / "pictures.jsonl"):
            match line:
                case {"deleted": str(picture_id)}:
                    found.pop(picture_id, None)
                case {"picture_id": str(picture_id)}:
                    found.pop(picture_id, None)  # it was added again, and is the newest
                    found[picture_id] = OwnPicture.model_validate(line)
        return [one for one in reversed(found.values()) if self._file(one).is_file()]

    def find(self, picture_id: str) -> tuple[OwnPicture, Path]:
        """A picture and its file; ``KeyError`` where there is none of this id."""
        picture = next((one for one in self.all() if one.picture_id == picture_id), None)
        if picture is None:
            raise KeyError(picture_id)
        return picture, self._file(picture)

    def add(
        self, content: bytes, *, title: str, mpp: float, size: int, target_mpp: float, tissue: tuple[int, int] | None
    ) -> OwnPicture:
        """Keep the middle square of a PNG or JPEG file, scaled to ``size`` px at ``target_mpp`` um/px.

        ``mpp``: um/px of the file; ``tissue``: the (k, cluster) that it shows. ``UserError`` for what cannot be used.
        """
        title = " ".join(title.split())[:LONGEST_NAME] or "picture"
        image = read_image(content, title=title)
        square, note = middle_square(image, title=title, mpp=mpp, size=size, target_mpp=target_mpp)
        # By its pixels, so that the same picture is there once.
        picture_id = hashlib.sha256(np.asarray(square).tobytes()).hexdigest()[:16]
        k, cluster = tissue or (None, None)
        picture = OwnPicture(picture_id=picture_id, title=title, mpp=mpp, note=note, k=k, cluster=cluster)
        with self._lock, disk_errors_explained(self._folder):
            if len(self.all()) >= MOST:
                raise UserError(f"there are {MOST} pictures of your own, which is the most; remove one")
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._file(picture)) as temporary:
                square.save(temporary, format="PNG")
            append_lines(self._folder / "pictures.jsonl", [picture.model_dump(mode="json")])
        return picture

    def delete(self, picture_id: str) -> None:
        """Delete a picture from the disk; ``KeyError`` where there is none of this id."""
        with self._lock:
            _, file = self.find(picture_id)
            append_lines(self._folder / "pictures.jsonl", [{"deleted": picture_id}])
            file.unlink(missing_ok=True)

    def _file(self, picture: OwnPicture) -> Path:
        return self._folder / f"{picture.picture_id}.png"


@contextmanager
def _readable(title: str) -> Iterator[None]:
    """``UserError`` for whatever Pillow raises on a file that is no picture, torn, or has too many pixels."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(title) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{title} cannot be read as a PNG or JPEG picture; save it again as one of these") from error


def _too_large(title: str) -> UserError:
    return UserError(f"{title} has more than {MOST_PIXELS // 10**6} million px; cut out the part that matters")


def read_image(content: bytes, *, title: str) -> Image.Image:
    """The pixels of a PNG or JPEG file in RGB, upright, over white where they are transparent. ``UserError``."""
    with _readable(title):
        image: Image.Image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
    if image.width * image.height > MOST_PIXELS:
        raise _too_large(title)
    if image.mode not in ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1"):
        raise UserError(f"{title} has more than 8 bits a channel ({image.mode}); save it with 8 bits")
    with _readable(title):
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA") or "transparency" in image.info:
            over = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
        return image.convert("RGB")


def middle_square(
    image: Image.Image, *, title: str, mpp: float, size: int, target_mpp: float
) -> tuple[Image.Image, str]:
    """The middle of a picture as ``size`` px at ``target_mpp``, and in words what it is. ``UserError``."""
    if mpp > COARSEST * target_mpp:
        raise UserError(
            f"{title} has {mpp:g} um/px, which is too coarse: the generator works at {target_mpp:g} um/px; "
            f"give a picture of {COARSEST * target_mpp:g} um/px or finer"
        )
    width, height = image.size
    side_um, side_px = size * target_mpp, size * target_mpp / mpp
    if min(width, height) < side_px - 0.5:
        raise UserError(
            f"{title} shows {width * mpp:.4g} x {height * mpp:.4g} um ({width} x {height} px at {mpp:g} um/px); "
            f"the generator needs a square of {side_um:.4g} um: give at least {int(np.ceil(side_px))} px a side"
        )
    side = min(side_px, width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return square, f"the middle {side_um:.4g} x {side_um:.4g} um of {width * mpp:.4g} x {height * mpp:.4g} um"
