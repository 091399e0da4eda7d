"""Features that were computed once are read back: by the content of the image and the digest of the extractor.

FOLDER/{extractor's digest}/{digest of its keys}.npz holds ``keys`` (n, 32) uint8, ``features`` (n, D) float32 and their
``digest``. A file appears whole or not at all and is never changed, so that any number of processes may write at once;
one that is torn or was tampered with is left out and its images are computed again. All of it may be deleted at any
time.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from histoloom.evaluation.extractors import Extractor
from histoloom.evaluation.images import ImageSource
from histoloom.progress import meter
from histoloom.run.directory import write_bytes
from histoloom.run.row_file import Rows, scratch_rows
from histoloom.run.user import expand_home, home_folder

logger = logging.getLogger("histoloom")

RUN_CACHE = ".features"
"""folder in a run directory; features are kept there when a stage is made again"""
ENVIRONMENT = "HISTOLOOM_CACHE"
CHUNK = 256
"""images that are read and computed at once, and written in one file"""
GROUP = 256 * CHUNK
"""images whose keys and features are in memory at once, while those of many are read into a file"""
MAX_BYTES = 4 << 30
"""of all features in a cache; beyond, the files that are longest unused are removed"""

_DAMAGES = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
# The keys of every file that this process has seen. They never change: a file's name is the digest of its keys.
_known_keys: dict[Path, np.ndarray] = {}


def user_cache() -> Path | None:
    """Where features of folders are kept: HISTOLOOM_CACHE, else histoloom in the user's cache folder.

    None, with a warning, where no home folder is known.
    """
    if named := os.environ.get(ENVIRONMENT):
        return expand_home(named, setting=ENVIRONMENT) / "features"
    base, home = os.environ.get("XDG_CACHE_HOME"), home_folder()
    if base:
        return Path(base) / "histoloom" / "features"
    if home is None:
        logger.warning("features are not kept: no home folder is known; set %s to a folder to keep them", ENVIRONMENT)
        return None
    return home / ".cache" / "histoloom" / "features"


def cached_features(images: ImageSource, *, extractor: Extractor, cache: Path | None, what: str) -> np.ndarray:
    """Features of all images, float32 (N, D), in their order; only those that the cache lacks are computed.

    They are the same to the bit whether they come from the cache or not. A cache that cannot be written is a warning;
    None is no cache.
    """
    return np.concatenate(
        list(_in_groups(images, extractor=extractor, cache=cache, what=what, size=max(1, len(images))))
    )


def feature_rows(
    images: ImageSource, *, extractor: Extractor, cache: Path | None, what: str, folder: Path | None
) -> Rows:
    """``cached_features`` of many images, in a temporary file in ``folder`` (``scratch_rows``)."""
    rows: Rows = np.empty((0, 0), np.float32)
    done = 0
    for features_nD in _in_groups(images, extractor=extractor, cache=cache, what=what, size=GROUP):
        if not done:
            rows = scratch_rows((len(images), features_nD.shape[1]), np.float32, folder=folder)
        rows[done : done + len(features_nD)] = features_nD
        done += len(features_nD)
    return rows


def _in_groups(
    images: ImageSource, *, extractor: Extractor, cache: Path | None, what: str, size: int
) -> Iterator[np.ndarray]:
    """The features of ``size`` images after the others, float32 (n, D)."""
    folder = None if cache is None else cache / extractor.digest
    computed = False
    with meter(f"{extractor.name}: {what}", total=len(images)) as counter:
        for begin in range(0, len(images), size):
            group = range(begin, min(begin + size, len(images)))
            keys = [images.key(index) for index in group]
            known = {} if folder is None else _read(folder, keys=set(keys))
            first = {key: index for key, index in zip(reversed(keys), reversed(group), strict=True) if key not in known}
            missing = np.array(sorted(first.values()), np.int64)
            counter.advance(len(keys) - len(missing))
            for start in range(0, len(missing), CHUNK):
                some = missing[start : start + CHUNK]
                features_nD = extractor.features(images.read(some))
                some_keys = [keys[index - begin] for index in some]
                known |= dict(zip(some_keys, features_nD, strict=True))
                if folder is not None:
                    _write(folder, keys=some_keys, features_nD=features_nD)
                counter.advance(len(some))
            computed = computed or len(missing) > 0
            yield np.stack([known[key] for key in keys])
    if cache is not None and computed:
        prune(cache)


def prune(cache: Path, *, most: int = MAX_BYTES) -> None:
    """Remove the files that are longest unused until the rest holds at most ``most`` bytes."""
    files = []
    for path in cache.glob("*/*.npz"):
        with suppress(FileNotFoundError):  # another process was quicker
            status = path.stat()
            files.append((status.st_mtime, path, status.st_size))
    total = sum(size for _, _, size in files)
    for _, path, size in sorted(files):
        if total <= most:
            return
        with suppress(OSError):  # another process was quicker, or it is another user's
            path.unlink()
        total -= size


def _read(folder: Path, *, keys: set[bytes]) -> dict[bytes, np.ndarray]:
    """The features of these keys; of each file only the keys are read, and once, unless it holds one of them."""
    features: dict[bytes, np.ndarray] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            if path not in _known_keys:
                with _archive(path) as archive:
                    _known_keys[path] = archive["keys"]
            keys_n32 = _known_keys[path]
            hits = [(row, key) for row, key in enumerate(map(np.ndarray.tobytes, keys_n32)) if key in keys]
            if not hits:
                continue
            with _archive(path) as archive:
                features_nD, digest = archive["features"], archive["digest"].tobytes()
            if digest != _digest(keys_n32, features_nD):
                raise ValueError(f"{path} has another digest")
        except FileNotFoundError:  # another process has removed it
            _known_keys.pop(path, None)
            continue
        except _DAMAGES:
            logger.warning("%s is damaged; its features are computed again", path)
            _known_keys.pop(path, None)
            path.unlink(missing_ok=True)
            continue
        features |= {key: features_nD[row] for row, key in hits}
        # The time says when it was last used; a cache that can only be read stays as it is.
        with suppress(OSError):
            path.touch()
    return features


@contextmanager
def _archive(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        yield archive


def _write(folder: Path, *, keys: Sequence[bytes], features_nD: np.ndarray) -> None:
    keys_n32 = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
    digest = np.frombuffer(_digest(keys_n32, features_nD), np.uint8)
    data = io.BytesIO()
    np.savez(data, keys=keys_n32, features=features_nD, digest=digest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / f"{hashlib.sha256(keys_n32.tobytes()).hexdigest()[:32]}.npz", data.getbuffer())
    except OSError as error:
        logger.warning("features are not kept: %s cannot be written (%s)", folder, error.strerror)


def _digest(keys: np.ndarray, features: np.ndarray) -> bytes:
    return hashlib.sha256(keys.tobytes() + features.tobytes()).digest()
