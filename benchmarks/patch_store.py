"""Ways to keep patches on disk: how fast they are written and read at random, and what a patch takes.

Real patches of real slides, written once and read at random from the page cache (so: the way's own cost, not the
disk's), in one process and in eight. Every way gives back RGB arrays; whether they are the same pixels is checked and
printed. LMDB, HDF5 and Zarr join where they are installed; the product needs none of them.

    python benchmarks/patch_store.py SLIDE... --out FOLDER [--count 1500] [--seconds 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import pyarrow as pa

from histoloom import seeding
from histoloom.slides.patch_set import PatchFile
from histoloom.slides.patches.sampling import patch_extent
from histoloom.slides.readers.open import open_slide
from histoloom.slides.tissue.mask import tissue_mask, tissue_share

SIZE, MPP = 256, 0.688
WORKERS = 8


class Way(ABC):
    """A way to store patches in a folder: ``write`` them all, or ``open`` a reader of patch number i."""

    @abstractmethod
    def write(self, patches: np.ndarray, folder: Path) -> None: ...

    @abstractmethod
    def open(self, folder: Path) -> Callable[[int], np.ndarray]: ...


class Npy(Way):
    """One .npy, whose patches are read by plain reads: the product's way."""

    def write(self, patches: np.ndarray, folder: Path) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": patches.shape}
        with (folder / "a.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for patch in patches:
                file.write(patch.tobytes())
            synced(file)

    def open(self, folder: Path) -> Callable[[int], np.ndarray]:
        file = PatchFile(folder / "a.npy", size=SIZE)

        def read(i: int) -> np.ndarray:
            patch = np.empty((SIZE, SIZE, 3), np.uint8)
            file.read_into(patch, place=i)
            return patch

        return read


class MappedNpy(Npy):
    """The same file through a memory map."""

    def open(self, folder: Path) -> Callable[[int], np.ndarray]:
        array = np.load(folder / "a.npy", mmap_mode="r")
        return lambda i: np.array(array[i])


class Blobs(Way):
    """Encoded patches one after the other in one file, and an index of where each starts."""

    def __init__(
        self, encode: Callable[[np.ndarray], bytes | bytearray], decode: Callable[[bytes], np.ndarray]
    ) -> None:
        self.encode, self.decode = encode, decode

    def write(self, patches: np.ndarray, folder: Path) -> None:
        starts = [0]
        with (folder / "blobs").open("wb") as file:
            for patch in patches:
                starts.append(starts[-1] + file.write(self.encode(patch)))
            synced(file)
        np.save(folder / "starts.npy", np.array(starts))

    def open(self, folder: Path) -> Callable[[int], np.ndarray]:
        starts = np.load(folder / "starts.npy")
        file = os.open(folder / "blobs", os.O_RDONLY)
        return lambda i: self.decode(os.pread(file, int(starts[i + 1] - starts[i]), int(starts[i])))


class Arrow(Way):
    """An Arrow file of raw bytes, memory-mapped (Parquet reads whole pages: it is not meant for single rows)."""

    def write(self, patches: np.ndarray, folder: Path) -> None:
        schema = pa.schema([("pixels", pa.binary(SIZE * SIZE * 3))])
        with (folder / "a.arrow").open("wb") as file, pa.ipc.new_file(file, schema) as writer:
            for patch in patches:
                pixels = pa.array([patch.tobytes()], schema.field(0).type)
                writer.write_batch(pa.record_batch([pixels], schema=schema))
        with (folder / "a.arrow").open("rb+") as raw:
            synced(raw)

    def open(self, folder: Path) -> Callable[[int], np.ndarray]:
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "a.arrow")))

        def read(i: int) -> np.ndarray:
            pixels = reader.get_batch(i).column(0)[0].as_buffer()
            return np.array(np.frombuffer(pixels, np.uint8)).reshape(SIZE, SIZE, 3)

        return read


class Lmdb(Way):
    def write(self, patches: np.ndarray, folder: Path) -> None:
        import lmdb

        with lmdb.open(str(folder), map_size=2 * patches.nbytes + 2**24) as base:
            for start in range(0, len(patches), 100):
                with base.begin(write=True) as change:
                    for i in range(start, min(start + 100, len(patches))):
                        change.put(i.to_bytes(8, "big"), patches[i].tobytes())

    def open(self, folder: Path) -> Callable[[int], np.ndarray]:
        import lmdb

        base = lmdb.open(str(folder), readonly=True, lock=False)

        def read(i: int) -> np.ndarray:
            with base.begin(buffers=True) as view:
                return np.array(np.frombuffer(view.get(i.to_bytes(8, "big")), np.uint8)).reshape(SIZE, SIZE, 3)

        return read


class Hdf5(Way):
    def write(self, patches: np.ndarray, folder: Path) -> None:
        import h5py

        with h5py.File(folder / "a.h5", "w") as file:
            data = file.create_dataset("pixels", patches.shape, np.uint8, chunks=(1, *patches.shape[1:]))
            for i, patch in enumerate(patches):
                data[i] = patch
        with (folder / "a.h5").open("rb+") as raw:
            synced(raw)

    def open(self, folder: Path) -> Callable[[int], np.ndarray]:
        import h5py

        data = h5py.File(folder / "a.h5", "r")["pixels"]
        return lambda i: data[i]


class Zarr(Way):
    def write(self, patches: np.ndarray, folder: Path) -> None:
        import zarr

        shape, chunk = patches.shape, (1, *patches.shape[1:])
        data = zarr.create_array(str(folder / "a.zarr"), shape=shape, chunks=chunk, dtype="uint8")
        for i, patch in enumerate(patches):
            data[i] = patch

    def open(self, folder: Path) -> Callable[[int], np.ndarray]:
        import zarr

        data = zarr.open_array(str(folder / "a.zarr"), mode="r")
        return lambda i: np.asarray(data[i])


def ways() -> dict[str, Way]:
    codecs = imagecodecs
    found: dict[str, Way] = {
        "npy, plain reads": Npy(),
        "npy, memory map": MappedNpy(),
        "Arrow, raw": Arrow(),
        "blobs, QOI": Blobs(codecs.qoi_encode, codecs.qoi_decode),
        "blobs, PNG 1": Blobs(lambda a: codecs.png_encode(a, level=1), codecs.png_decode),
        "blobs, WebP lossless": Blobs(lambda a: codecs.webp_encode(a, level=0, lossless=True), codecs.webp_decode),
        "blobs, JPEG 90": Blobs(lambda a: codecs.jpeg8_encode(a, level=90), codecs.jpeg8_decode),
        "blobs, JPEG 95 4:4:4": Blobs(
            lambda a: codecs.jpeg8_encode(a, level=95, subsampling="444"), codecs.jpeg8_decode
        ),
    }
    others = {"lmdb": ("LMDB, raw", Lmdb), "h5py": ("HDF5, raw", Hdf5), "zarr": ("Zarr, zstd", Zarr)}
    return found | {name: way() for module, (name, way) in others.items() if find_spec(module)}


def synced(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def real_patches(files: list[Path], *, count: int) -> np.ndarray:
    """Random patches with at least half tissue, the same number of each slide."""
    parts = []
    for file in files:
        rng = seeding.numpy_generator(0, "benchmark", file.stem)
        with open_slide(file) as slide:
            assert slide.mpp is not None, f"{file} says no mpp"
            (width, height), extent = slide.dimensions, patch_extent(SIZE, mpp=MPP, source_mpp=slide.mpp)
            x, y = (rng.integers(0, int(side - extent), 100 * count) for side in (width, height))
            mask = tissue_mask(slide.thumbnail(1024))
            share = tissue_share(mask, x=x, y=y, extent=extent, width=width, height=height)
            rows = np.flatnonzero(share >= 0.5)[: -(-count // len(files))]
            parts += [slide.read(int(x[i]), int(y[i]), extent=extent, size=SIZE) for i in rows]
    return np.stack(parts[:count])


def reading(job: tuple[str, Path, int, float, int]) -> tuple[int, float, float]:
    """Random reads for some seconds: how many, wall and CPU seconds."""
    name, folder, count, seconds, seed = job
    read = ways()[name].open(folder)
    order = seeding.numpy_generator(seed, "benchmark", "order").integers(0, count, 100_000)
    read(int(order[0]))
    start, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        read(int(order[done % len(order)]))
        done += 1
    return done, time.perf_counter() - start, time.process_time() - cpu


def measured(name: str, *, patches: np.ndarray, folder: Path, seconds: float, pool: ProcessPoolExecutor) -> dict:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    ways()[name].write(patches, folder)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    read = ways()[name].open(folder)
    same = all(np.array_equal(read(i), patches[i]) for i in range(0, len(patches), 50))
    size = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    alone = next(pool.map(reading, [(name, folder, len(patches), seconds, 0)]))
    eight = list(pool.map(reading, [(name, folder, len(patches), seconds, seed) for seed in range(WORKERS)]))
    shutil.rmtree(folder)
    return {
        "way": name,
        "same pixels": same,
        "bytes a patch": size / len(patches),
        "written/s": len(patches) / wall,
        "write CPU ms": 1000 * cpu / len(patches),
        "read/s, 1": alone[0] / alone[1],
        "read/s, 8": sum(n / wall for n, wall, _ in eight),
        "read CPU ms": 1000 * sum(cpu for *_, cpu in eight) / sum(n for n, *_ in eight),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    patches = real_patches(arguments.slides, count=arguments.count)
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(time.sleep, [0.5] * WORKERS))
        rows = []
        for name in ways():
            options = {"patches": patches, "seconds": arguments.seconds, "pool": pool}
            rows.append(measured(name, folder=arguments.out / "store", **options))
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).set_index("way")
    ours = table.iloc[0]
    table["size ratio"] = table["bytes a patch"] / ours["bytes a patch"]
    table["read ratio"] = table["read/s, 8"] / ours["read/s, 8"]
    table["read a core"] = 1000 / table["read CPU ms"]
    print(table.to_string(float_format="{:.3g}".format))
    print(f"\n{len(patches)} patches of {SIZE} px; 2,000 patches/s are {2000 * SIZE**2 * 3 / 1e6:.0f} MB/s")


if __name__ == "__main__":
    main()
