"""``report/embedding.json``: which patches are on the 2-D maps, and where.

It does not depend on k or names, so that a report made anew for these takes it over. Shape suffixes: N patches, D
features, 2 the map's axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histoloom.atlas.maps.embedding import LEAST, embed, neighbours
from histoloom.atlas.maps.map_titles import FEATURES
from histoloom.atlas.maps.patch_map import PatchMap, patch_map, thumbnail
from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.features.validity import features_of
from histoloom.progress import meter
from histoloom.run.directory import Artifact, read_json, write_json
from histoloom.run.stage import StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet

_CHUNK, _DIGITS = 256, 4


def write_embedding(context: StageContext) -> Path | None:
    """Write ``embedding.json``, or take over the last report's; None where there are too few patches for a map."""
    path, identity = context.out / "embedding.json", _identity(context)
    for place in (path, context.run / "report" / path.name):
        found = read_json(place) if place.is_file() else {}
        if found.get("identity") == identity:
            write_json(path, found)
            return path
    latents = LatentSet.open(context.inputs["latents"])
    if len(latents) < LEAST:
        context.say(f"no 2-D map: {len(latents)} patches are too few")
        return None
    drawn = numpy_generator(context.config.seed, "report", "embedding", "patches").permutation(len(latents))
    rows_N = np.sort(drawn[: context.config.report.embedded_patches])
    kind, clusters = context.config.clusters.validity_features, context.inputs["clusters"]
    x_ND = features_of(latents, rows_N, kind=kind, clusters=clusters)
    maps = {}
    with meter("2-D maps", total=len(context.config.report.embeddings)) as progress:
        for method in context.config.report.embeddings:
            maps[method] = embed(x_ND, method=method, seed=context.config.seed).round(_DIGITS).tolist()
            progress.advance(1)
    ids = latents.table["patch_id"].to_numpy()[rows_N].tolist()
    write_json(path, {"identity": identity, "patch_ids": ids, "maps": maps, "neighbours": neighbours(x_ND).tolist()})
    return path


def _identity(context: StageContext) -> dict[str, Any]:
    """What the maps depend on."""
    artifact = Artifact.read(context.inputs["latents"])
    assert artifact is not None, "latents are published before the report is made"
    own = Artifact.read(context.inputs["clusters"])
    features = context.config.clusters.validity_features
    assert own is not None, "clusters are published before the report is made"
    return {
        "latents": artifact.fingerprint,
        **({"clusters": own.fingerprint} if features == "same" else {}),
        "features": features,
        "methods": list(context.config.report.embeddings),
        "patches": context.config.report.embedded_patches,
        "seed": context.config.seed,
    }


def patch_map_of(found: Mapping[str, Any], *, table: pd.DataFrame, patches: PatchSet, features: str) -> PatchMap:
    """The page's section of ``embedding.json``; ``table`` has ``patch_id``, ``label``, ``slide`` and ``row``."""
    shown = table.set_index("patch_id").loc[found["patch_ids"]]
    coordinates = {method: np.asarray(xy_N2) for method, xy_N2 in found["maps"].items()}
    near = {method: neighbours(xy_N2) for method, xy_N2 in coordinates.items()}
    rows_N = shown["row"].to_numpy()
    tiles = [
        thumbnail(image)
        for start in range(0, len(rows_N), _CHUNK)
        for image in patches.images(rows_N[start : start + _CHUNK])
    ]
    return patch_map(
        coordinates,
        labels_N=shown["label"].to_numpy(np.int64),
        near_Nn=near | {"features": np.asarray(found["neighbours"])},
        thumbnails=tiles,
        texts=[f"slide {slide}" for slide in shown["slide"]],
        features=FEATURES[features],
    )
