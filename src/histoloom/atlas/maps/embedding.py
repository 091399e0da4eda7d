"""The places of patches in two dimensions: principal components, t-SNE, UMAP.

Shape suffixes: N patches, D features, n neighbours, 2 the map's axes.
"""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from histoloom.atlas.maps.patch_map import Embedding
from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.features.bank import validity_features
from histoloom.errors import UserError
from histoloom.progress import meter
from histoloom.run.directory import Artifact
from histoloom.run.stage import StageContext
from histoloom.seeding import derive, numpy_generator

MIN_PATCHES = 10
"""With fewer patches there is no map: t-SNE needs some neighbours."""

NEIGHBOURS = 10
_PERPLEXITY = 30.0
_COMPONENTS = 50
"""Principal components that t-SNE and UMAP start from, as van der Maaten and Hinton (2008) do."""
_DIGITS = 4


def write_embedding(context: StageContext) -> Embedding | None:
    """Write ``embedding.json``, or copy the last report's where it has the same inputs; None with too few patches."""
    config, path = context.config, context.out / "embedding.json"
    latents_artifact, clusters_artifact = (Artifact.read(context.inputs[stage]) for stage in ("latents", "clusters"))
    assert latents_artifact is not None, "latents are published before the report is made"
    assert clusters_artifact is not None, "clusters are published before the report is made"
    kind = config.clusters.validity_features
    inputs: dict[str, object] = {
        "latents": latents_artifact.fingerprint,
        **({"clusters": clusters_artifact.fingerprint} if kind == "same" else {}),
        "features": kind,
        "methods": list(config.report.embeddings),
        "patches": config.report.embedded_patches,
        "seed": config.seed,
    }
    for existing in (path, context.run / "report" / path.name):
        embedding = Embedding.load(existing)
        if embedding is not None and embedding.inputs == inputs:
            embedding.save(path)
            return embedding

    latents = LatentSet.open(context.inputs["latents"])
    if len(latents) < MIN_PATCHES:
        context.say(f"no 2-D map: {len(latents)} patches are too few")
        return None
    order_N = numpy_generator(config.seed, "report", "embedding", "patches").permutation(len(latents))
    rows_N = np.sort(order_N[: config.report.embedded_patches])
    x_ND = validity_features(latents, rows_N, kind=kind, clusters=context.inputs["clusters"])
    maps: dict[str, np.ndarray] = {}
    with meter("2-D maps", total=len(config.report.embeddings)) as progress:
        for method in config.report.embeddings:
            maps[method] = embed(x_ND, method=method, seed=config.seed).round(_DIGITS)
            progress.advance(1)
    patch_ids = latents.table["patch_id"].to_numpy()[rows_N].tolist()
    embedding = Embedding(inputs, patch_ids, maps, neighbours(x_ND))
    embedding.save(path)
    return embedding


def embed(x_ND: np.ndarray, *, method: str, seed: int) -> np.ndarray:
    """The map of features, float64 (N, 2), each axis from 0 to 1; ``method`` is ``pca``, ``tsne`` or ``umap``.

    The same bytes on one machine. An axis on which all patches are equal lies at 0.5. ``UserError`` where UMAP is not
    installed.
    """
    components = min(2 if method == "pca" else _COMPONENTS, *x_ND.shape)
    xy_N2 = PCA(components, svd_solver="full").fit_transform(np.asarray(x_ND, dtype=np.float64))
    random_state = derive(seed, "report", "embedding", method) % 2**32
    if method == "tsne":
        perplexity = min(_PERPLEXITY, (len(x_ND) - 1) / 3)
        xy_N2 = TSNE(2, perplexity=perplexity, init="pca", random_state=random_state).fit_transform(xy_N2)
    elif method == "umap":
        try:
            from umap import UMAP  # an extra
        except ImportError as error:
            raise UserError(
                "report.embeddings has umap, which is an extra: pip install 'histoloom[umap]', or leave it out"
            ) from error
        xy_N2 = UMAP(n_neighbors=min(15, len(x_ND) - 1), random_state=random_state, n_jobs=1).fit_transform(xy_N2)
    xy_N2 = np.asarray(xy_N2, dtype=np.float64)
    if xy_N2.shape[1] < 2:  # a single feature has a single component
        xy_N2 = np.concatenate([xy_N2, np.zeros((len(xy_N2), 1))], axis=1)
    low_2, high_2 = xy_N2.min(axis=0), xy_N2.max(axis=0)
    return np.where(high_2 > low_2, (xy_N2 - low_2) / np.where(high_2 > low_2, high_2 - low_2, 1), 0.5)


def neighbours(x_ND: np.ndarray) -> np.ndarray:
    """The rows of each patch's ``NEIGHBOURS`` nearest others, (N, n) int64; fewer where there are fewer patches."""
    n = min(NEIGHBOURS, len(x_ND) - 1)
    return NearestNeighbors(n_neighbors=n).fit(x_ND).kneighbors(return_distance=False).astype(np.int64)
