"""``histoloom patches``: the real patches of a finished run with their clusters and names, for other programs.

PNG and JPEG become a folder a tissue with ``metadata.csv``, which ``datasets.load_dataset("imagefolder")`` reads. Tar
shards follow WebDataset: the files of one patch stand together and share the name up to the first dot. Their order is
shuffled, so that every shard has patches of every slide. A job that was stopped continues.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from PIL import Image

from histoloom.names import clusters_of_tissue, folder_name
from histoloom.progress import meter
from histoloom.run.claimed_folder import claimed
from histoloom.run.directory import Run, disk_errors_explained, fingerprint, replacing, write_bytes, write_text
from histoloom.run.own_output import png_text
from histoloom.seeding import numpy_generator
from histoloom.sharing.patch_labels import LabelledPatches
from histoloom.slides.patch_set import PatchSet

logger = logging.getLogger("histoloom")

PatchFormat = Literal["png", "jpeg", "webdataset"]

SHARD_PATCHES = 4096
"""patches in a tar shard: about 500 MB of patches of 256 px"""
WRITERS = 4
"""threads that compress images"""
_BATCH = 256
_JPEG_QUALITY = 95


def write_patches(
    run: Run, out: Path, *, tissues: Sequence[str] = (), k: int | None = None, image_format: PatchFormat = "png"
) -> int:
    """Write the patches of a run, or of some tissues of it, to ``out``; returns their number.

    Patches that an expert has corrected are of the tissue that they were corrected to.

    Raises ``UserError`` for an unknown tissue or k, and where ``out`` holds something else.
    """
    labelled = LabelledPatches.open(run)
    k = labelled.k(k)
    names = {number: label.name for number, label in labelled.tissues(k).items()}
    numbers = {number for tissue in tissues for number in clusters_of_tissue(names, tissue, k=k)} or set(names)
    table = labelled.table(k)
    table = table[np.isin(labelled.numbers(k), sorted(numbers))]

    # A folder a tissue, or shards in which the patches are shuffled.
    if image_format == "webdataset":
        table = table.iloc[numpy_generator(run.config.seed, "shards").permutation(len(table))]
        files = [f"patches-{n // SHARD_PATCHES:06d}.tar/{row:09d}.png" for n, row in enumerate(table.index)]
    else:
        suffix = {"png": "png", "jpeg": "jpg"}[image_format]
        files = [
            f"{folder_name(tissue)}/{patch}.{suffix}"
            for tissue, patch in zip(table["tissue"], table["patch_id"], strict=True)
        ]
    table.insert(0, "file_name", files)

    artifact = run.artifact("clusters")
    assert artifact is not None, "the clusters are published"
    identity: dict[str, object] = {
        "clusters": artifact.fingerprint,
        "k": k,
        "names": {str(number): names[number] for number in sorted(numbers)},
        "format": image_format,
    }
    if "correction" in table:
        identity["corrections"] = fingerprint([table["patch_id"].tolist(), table["correction"].tolist()])
    with disk_errors_explained(out), claimed(out, identity=identity):
        if image_format == "webdataset":
            _write_shards(labelled.patches, table, out=out)
        else:
            _write_files(labelled.patches, table, out=out)
        write_text(out / "metadata.csv", table.to_csv(index=False, lineterminator="\n"))
    logger.info("%s patches of %s slides", f"{len(table):,}", table["slide_id"].nunique())
    return len(table)


def _write_files(patches: PatchSet, table: pd.DataFrame, *, out: Path) -> None:
    """Each patch as a file; those that are there stay."""
    for folder in sorted({Path(file).parent for file in table["file_name"]}):
        (out / folder).mkdir(exist_ok=True)
    missing = table[[not (out / file).is_file() for file in table["file_name"]]]
    with (
        ThreadPoolExecutor(WRITERS) as pool,
        meter("writing patches", total=len(table), done=len(table) - len(missing)) as progress,
    ):
        for start in range(0, len(missing), _BATCH):
            some = missing.iloc[start : start + _BATCH]
            paths = [out / file for file in some["file_name"]]
            images = patches.images(some.index.to_numpy())
            data = pool.map(_encoded, images, [path.suffix for path in paths])
            list(pool.map(write_bytes, paths, data))
            progress.advance(len(some))


def _write_shards(patches: PatchSet, table: pd.DataFrame, *, out: Path) -> None:
    """Tar shards, each of which appears whole; those that are there stay."""
    shards = table["file_name"].str.partition("/")[0]
    with ThreadPoolExecutor(WRITERS) as pool, meter("writing patches", total=len(table)) as progress:
        for shard in shards.unique():
            rows = table[shards == shard]
            if not (out / shard).is_file():
                with replacing(out / shard) as temporary, tarfile.open(temporary, "w") as tar:
                    for start in range(0, len(rows), _BATCH):
                        some = rows.iloc[start : start + _BATCH]
                        images = patches.images(some.index.to_numpy())
                        for data, record in zip(pool.map(_encoded, images), some.to_dict("records"), strict=True):
                            key = Path(str(record.pop("file_name"))).stem
                            _add(tar, f"{key}.png", data)
                            _add(tar, f"{key}.cls", str(record.get("number", record["cluster"])).encode())
                            _add(tar, f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
            progress.advance(len(rows))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file without time or owner: equal patches give equal shards."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _encoded(image_HW3: np.ndarray, suffix: str = ".png") -> bytes:
    buffer = io.BytesIO()
    if suffix == ".png":
        Image.fromarray(image_HW3).save(buffer, format="PNG", pnginfo=png_text())
    else:
        Image.fromarray(image_HW3).save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
