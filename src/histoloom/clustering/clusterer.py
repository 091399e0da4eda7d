"""The trained clusterer: clusters of any latents, for every k of the sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from histoloom.clustering.infomax import Heads, InfoMaxNet, probabilities
from histoloom.store import read_json, write_bytes, write_json


@dataclass(frozen=True)
class Architecture:
    """What ``clusterer.json`` says: enough to build the network that the weights fit."""

    in_channels: int
    channels: int
    ks: tuple[int, ...]


class Clusterer(nn.Module):
    """A network with its clusters in their published order (falling size on the training split)."""

    def __init__(self, architecture: Architecture, *, network: InfoMaxNet) -> None:
        super().__init__()
        self.architecture = architecture
        self.network = network
        for k in architecture.ks:
            self.register_buffer(f"order_{k}", torch.arange(k))
        self.eval()

    def order(self, k: int) -> Tensor:
        """Head output number of each published cluster of ``k``, (k,) int64."""
        return self.get_buffer(f"order_{k}")

    def sort_by_size(self, sizes: Mapping[int, Tensor]) -> None:
        """Number each k's clusters by falling ``sizes``, given in the head's own order; ties keep that order."""
        for k, sizes_K in sizes.items():
            self.order(k).copy_(torch.argsort(sizes_K, descending=True, stable=True))

    @torch.no_grad()
    def probabilities(self, z_NChw: Tensor) -> Heads:
        """Clusters' probabilities of normalised latents, (N, k) by k."""
        return {k: p_NK[:, self.order(k)] for k, p_NK in probabilities(self.network(z_NChw)).items()}

    def save(self, folder: Path) -> None:
        """Write ``clusterer.safetensors`` and ``clusterer.json``."""
        weights = save({name: value.contiguous() for name, value in self.state_dict().items()})
        write_bytes(folder / "clusterer.safetensors", weights)
        write_json(folder / "clusterer.json", vars(self.architecture) | {"ks": list(self.architecture.ks)})

    @staticmethod
    def load(folder: Path) -> Clusterer:
        """Read what ``save`` wrote; in evaluation mode, on the CPU."""
        values = read_json(folder / "clusterer.json")
        architecture = Architecture(values["in_channels"], values["channels"], tuple(values["ks"]))
        clusterer = build(architecture)
        clusterer.load_state_dict(load_file(folder / "clusterer.safetensors"))
        return clusterer.eval().requires_grad_(False)


def build(architecture: Architecture) -> Clusterer:
    """A clusterer with fresh weights."""
    network = InfoMaxNet(architecture.in_channels, channels=architecture.channels, ks=architecture.ks)
    return Clusterer(architecture, network=network)
