"""What the 2-D maps of patches are called, apart from what computes them, which takes seconds to load."""

from __future__ import annotations

TITLES = {"pca": "Principal components", "tsne": "t-SNE", "umap": "UMAP"}
"""The maps by method."""

FEATURES = {
    "pooled": "means and deviations of the autoencoder's latents",
    "codes": "histograms of the autoencoder's codes",
    "flat": "the autoencoder's latents, place by place",
    "same": "the features that the clusters are made of",
}
"""What they are computed from, by ``clusters.validity_features``."""
