"""A tiny finished run, written as docs/reference/run-directory.md says, that the report is made from.

Shape suffixes: H and W height and width, N patches, K clusters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file

from histoloom.config import Config, make_config, read_preset, with_settings
from histoloom.run.directory import Run, write_json
from histoloom.seeding import numpy_generator

SIZE = 32
PER_FIELD = 24
KS = (2, 4)
CHOSEN = 4
SEED = 5
TRAINED = {"autoencoder": ("loss", "psnr"), "clusters": ("marginal",), "diffusion": ("loss",)}
BAD_SLIDE = "<img src=x onerror=alert(1)>.svs"


def field(number: int) -> np.ndarray:
    """A picture with coarse patches of four colours, uint8 (128, 160, 3)."""
    generator = numpy_generator(SEED, "field", number)
    kinds_HW = np.kron(generator.integers(0, 4, (4, 5)), np.ones((32, 32), dtype=int))
    palette = np.array([[240, 238, 240], [200, 110, 160], [110, 60, 140], [230, 170, 190]])
    noise = generator.normal(0, 8, (128, 160, 3))
    return np.clip(palette[kinds_HW] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def fields() -> dict[str, np.ndarray]:
    """Three slides by name."""
    return {f"slide-{number}": field(number) for number in range(3)}


@pytest.fixture
def finished(tmp_path: Path, fields: dict[str, np.ndarray]) -> Run:
    """A run with every stage but the report, for a test to change."""
    return write_run(tmp_path, fields=fields)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, np.ndarray]) -> Run:
    """The same run, which tests only read."""
    return write_run(tmp_path_factory.mktemp("published"), fields=fields)


def write_run(
    folder: Path, *, fields: Mapping[str, np.ndarray], size: int = SIZE, settings: tuple[str, ...] = ()
) -> Run:
    """A run over ``fields``, with labels from the patches' brightness and evidence that is written down by hand."""
    slides = folder / "slides"
    slides.mkdir()
    for name, image in fields.items():
        Image.fromarray(image).save(slides / f"{name}.png")
    run = Run.create(folder / "run", _config(slides, size=size, settings=settings))
    write_json(run.path / "environment.json", {"python": "3.12", "packages": {"torch": "2.13.0"}, "git": None})
    index, images = _patches(run, fields=fields, size=size, slides=slides)
    _autoencoder(run, index=index, images=images)
    labels = _clusters(run, index=index, images=images)
    _samples(run, images=images, labels=labels)
    _evaluation(run)
    _latents(run, index=index, images=images)
    run.folder("diffusion").mkdir()
    for stage, metrics in TRAINED.items():
        _log(run.folder(stage) / "log.jsonl", metrics=metrics)
    for number, stage in enumerate(
        ("patches", "autoencoder", "latents", "clusters", "diffusion", "samples", "evaluation")
    ):
        write_json(run.folder(stage) / "artifact.json", _artifact(stage, seconds=10.5 + 60 * number))
    return run


def _config(slides: Path, *, size: int, settings: tuple[str, ...]) -> Config:
    values = with_settings(
        read_preset("cpu") | {"slides": {"paths": [str(slides)]}},
        (
            f"patches.size={size}",
            "patches.mpp=1.0",
            f"clusters.k={list(KS)}",
            "clusters.features=latents",
            "clusters.positives=views",
            "clusters.surroundings=0",
            "clusters.validity_features=pooled",
            f"seed={SEED}",
            *settings,
        ),
    )
    return make_config(values)


def _patches(run: Run, *, fields: Mapping[str, np.ndarray], size: int, slides: Path) -> tuple[pd.DataFrame, np.ndarray]:
    out = run.folder("patches")
    for part in ("images", "thumbnails"):
        (out / part).mkdir(parents=True)
    rows, slide_rows, images = [], [], []
    for number, (name, image) in enumerate(fields.items()):
        generator = numpy_generator(SEED, "patches", name)
        x = generator.integers(0, image.shape[1] - size, PER_FIELD)
        y = generator.integers(0, image.shape[0] - size, PER_FIELD)
        cut = np.stack([image[b : b + size, a : a + size] for a, b in zip(x, y, strict=True)])
        np.save(out / "images" / f"{name}.npy", cut)
        Image.fromarray(image).save(out / "thumbnails" / f"{name}.jpg", quality=90)
        images.append(cut)
        whose = {"slide_id": name, "slide": name, "patient": f"patient {number % 2}"}
        whose["split"] = "holdout" if number == 2 else "train"
        rows += [
            whose | {"patch_id": f"{name}_x{a}_y{b}_{i}", "x": a, "y": b, "extent": float(size), "tissue": 1.0}
            for i, (a, b) in enumerate(zip(x, y, strict=True))
        ]
        slide_rows.append(whose | _slide(slides / f"{name}.png", shape=image.shape, patches=PER_FIELD, status="ok"))
    slide_rows.append(
        {"slide_id": "bad", "slide": "<b>bad</b>", "patient": "patient 9", "split": None}
        | _slide(slides / BAD_SLIDE, shape=(0, 0), patches=0, status="cannot be read: torn file")
    )
    index = pd.DataFrame(rows)
    index.to_parquet(out / "index.parquet", index=False)
    pd.DataFrame(slide_rows).to_parquet(out / "slides.parquet", index=False)
    write_json(out / "meta.json", {"size": size, "mpp": 1.0, "n": len(index)})
    return index, np.concatenate(images)


def _slide(file: Path, *, shape: tuple[int, ...], patches: int, status: str) -> dict[str, Any]:
    known = {"width": shape[1], "height": shape[0], "source_mpp": 1.0 if patches else None, "mpp_source": "given"}
    return {"file": str(file), "patches": patches, "status": status} | known


def _autoencoder(run: Run, *, index: pd.DataFrame, images: np.ndarray) -> None:
    out = run.folder("autoencoder")
    out.mkdir()
    ids = index["patch_id"].to_numpy(dtype=str)[:4]
    np.savez(out / "reconstructions.npz", patch_id=ids, original=images[:4], reconstruction=images[:4] // 2 + 64)
    quality = {"psnr": 24.56, "perplexity": 87.3, "codes": 128, "codes_used": 120, "n": 72, "split": "holdout"}
    write_json(out / "quality.json", quality | {"told_apart": 0.917})


def _latents(run: Run, *, index: pd.DataFrame, images: np.ndarray) -> None:
    """The patches' colours, over and over, in place of latents."""
    out = run.folder("latents")
    out.mkdir()
    channels = np.arange(run.config.autoencoder.code_dim) % 3
    z_NChw = np.ascontiguousarray(images[:, ::8, ::8, channels].transpose(0, 3, 1, 2).astype(np.float32))
    np.save(out / "latents.npy", z_NChw)
    moments = {"mean": z_NChw.mean((0, 2, 3)).tolist(), "std": z_NChw.std((0, 2, 3)).tolist()}
    write_json(out / "moments.json", moments)
    index[["patch_id", "split", "slide_id"]].to_parquet(out / "index.parquet", index=False)


def _clusters(run: Run, *, index: pd.DataFrame, images: np.ndarray) -> dict[int, np.ndarray]:
    out = run.folder("clusters")
    out.mkdir()
    brightness = images.mean(axis=(1, 2, 3))
    labels, p_by_k = {}, {}
    for k in KS:
        centres = np.quantile(brightness, (np.arange(k) + 0.5) / k)
        distance_NK = (brightness[:, None] - centres) ** 2
        p_NK = np.exp(-distance_NK / 200)
        p_by_k[f"k{k}"] = np.ascontiguousarray((p_NK / p_NK.sum(axis=1, keepdims=True)).astype(np.float32))
        labels[k] = p_by_k[f"k{k}"].argmax(axis=1)
    order = numpy_generator(SEED, "order").permutation(len(index))
    table = pd.DataFrame({"patch_id": index["patch_id"]} | {f"k{k}": labels[k] for k in KS})
    table.iloc[order].to_parquet(out / "index.parquet", index=False)
    save_file({name: p_NK[order] for name, p_NK in p_by_k.items()}, out / "probabilities.safetensors")
    validity = [_validity(k, method, labels[k]) for k in KS for method in ("infomax", "kmeans")]
    write_json(out / "validity.json", validity)
    by_index = {"calinski_harabasz": 4, "c_index": 4, "dunn": 2, "hartigan": 4, "mcclain_rao": 2}
    rule = "the k that most indices vote for"
    write_json(
        out / "choice.json",
        {
            "k": CHOSEN,
            "rule": rule,
            "passed_over": [],
            "votes": {"2": 2, "4": 3},
            "by_index": by_index,
            "evidence": "three of five",
        },
    )
    return labels


def _validity(k: int, method: str, labels: np.ndarray) -> dict[str, Any]:
    by = {("infomax", 2): 1.0, ("infomax", 4): 1.2, ("kmeans", 2): 0.9, ("kmeans", 4): 1.1}[method, k]
    return {
        "k": k,
        "method": method,
        "calinski_harabasz": 1234.5678 * by,
        "c_index": 0.123456 / by,
        "dunn": 0.00456789 / by,
        "hartigan": 0.7654321 * by,
        "mcclain_rao": 0.4567891 * by,
        "n": len(labels),
        "sizes": np.bincount(labels, minlength=k).tolist(),
    }


def _samples(run: Run, *, images: np.ndarray, labels: Mapping[int, np.ndarray]) -> None:
    out = run.folder("samples")
    rows = []
    for k in KS:
        for cluster in range(k):
            like = images[labels[k] == cluster]
            folder = out / f"k{k}" / f"cluster-{cluster:02d}"
            folder.mkdir(parents=True)
            for index in range(3):
                name = f"k{k}/cluster-{cluster:02d}/{index:06d}.png"
                Image.fromarray(like[-1 - index % len(like)][::-1]).save(out / name)
                made = {"sampler": "dpm-solver++", "steps": 20, "guidance": 1.8}
                rows.append(
                    {"file_name": name, "sample_id": f"k{k}-c{cluster}-{index}", "k": k, "cluster": cluster}
                    | {"tissue": f"cluster {cluster}", "seed": SEED, "index": index}
                    | made
                )
    pd.DataFrame(rows).to_csv(out / "metadata.csv", index=False)


def _evaluation(run: Run) -> None:
    out = run.folder("evaluation")
    out.mkdir()
    values = {"synthetic_real": 0.5123, "real_real": 0.4987, "synthetic_other": 0.6871}
    similarity = [
        {
            "k": k,
            "cluster": cluster,
            "comparison": comparison,
            "metric": metric,
            "value": value + 0.01 * (cluster or 0) + shift,
            "interval": [value + 0.01 * (cluster or 0) + shift - 0.02, value + 0.01 * (cluster or 0) + shift + 0.02],
            "pairs": 64,
            "extractor": extractor,
            "real_split": "holdout",
        }
        for k in KS
        for cluster in (*range(k), None)
        for comparison, value in values.items()
        for metric, shift, extractor in (("ssim", 0.0, "SSIM"), ("lpips", 0.1, "LPIPS-squeeze"))
    ]
    write_json(out / "similarity.json", similarity)
    write_json(out / "missing.json", {"ms_ssim": "patches of 32 px are smaller than its 161 px"})
    truth = [
        {"k": k, "method": method, "nmi": 0.61 + 0.01 * k, "ari": 0.5, "n": 72, "classes": ["a", "b", "c"]}
        for k in KS
        for method in ("infomax", "kmeans")
    ]
    write_json(out / "truth.json", truth)


def _log(path: Path, *, metrics: tuple[str, ...]) -> None:
    steps = [
        {"images": 100 * step} | {f"{path.parent.name}.{metric}": 1 / step + 0.1 for metric in metrics}
        for step in range(1, 60)
    ]
    events = [{"message": "it begins"}, *steps]
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def _artifact(stage: str, *, seconds: float) -> dict[str, Any]:
    common = {"stage": stage, "format": 1, "fingerprint": "0" * 16, "config": {}, "inputs": {}}
    return common | {"seconds": seconds, "peak_memory_mb": 512.0}


BrightnessLabel = Callable[[np.ndarray, np.ndarray | None], dict[int, np.ndarray]]


@pytest.fixture
def label() -> BrightnessLabel:
    """Labels patches by brightness: two classes at k = 2, four at k = 4."""

    def by_brightness(patches: np.ndarray, fields: np.ndarray | None = None) -> dict[int, np.ndarray]:
        assert fields is None
        brightness = patches.mean(axis=(1, 2, 3))
        return {k: np.minimum((brightness / 256 * k).astype(int), k - 1) for k in KS}

    return by_brightness
