"""The trained clusterer: clusters of any latents, or other features, for every k of the sweep."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from histoloom import paper
from histoloom.clustering.infomax import Heads, InfoMaxNet, Network, VectorNet, probabilities
from histoloom.clustering.neighbours import LinearNet
from histoloom.run.directory import read_json, write_bytes, write_json
from histoloom.training.devices import full_precision

BLOCK: Mapping[str, int] = {"cpu": 32, "mps": 64, "cuda": 256}
"""Patches that the network sees at once: sums differ in the last bit between batch sizes."""

TIGHT = 1e-4
"""Two best clusters nearer than this are compared again in double precision: devices differ by some 1e-6 in single."""


@dataclass(frozen=True)
class Architecture:
    """What ``clusterer.json`` says: enough to build the network that the weights fit.

    ``in_channels``: of latents, or the numbers of a vector where ``vectors`` are what is clustered. ``side``: of the
    latents of the paper's networks, of which there is one for each k; 0: one network with a head for each k.
    ``linear``: vectors are classified without hidden layers. ``of_patch``: how many of a vector's numbers describe the
    patch itself, and the others its surroundings; 0: all of them. ``unseen``: how many of the first are for images
    without a slide alone, and have no part in the clusters.
    """

    in_channels: int
    channels: int
    ks: tuple[int, ...]
    vectors: bool = False
    side: int = 0
    linear: bool = False
    of_patch: int = 0
    unseen: int = 0


class SweepClusterer(nn.Module):
    """The paper's clusterers of latents (N, C, side, side), one for each k of the sweep."""

    def __init__(self, networks: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({str(k): network for k, network in networks.items()})

    def forward(self, z_NChw: Tensor) -> Heads:
        """Logits of every network, (N, k) by k."""
        return {int(k): network(z_NChw) for k, network in self.networks.items()}


class Clusterer(nn.Module):
    """A network with its clusters in their published order (falling size on the training split)."""

    def __init__(self, architecture: Architecture, *, network: Network | SweepClusterer) -> None:
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
        """Number each k's clusters by falling ``sizes``, which are in the head's own order; ties keep that order."""
        for k, sizes_K in sizes.items():
            self.order(k).copy_(torch.argsort(sizes_K, descending=True, stable=True))

    @torch.no_grad()
    def probabilities(self, z_NChw: Tensor) -> Heads:
        """Clusters' probabilities of normalised latents, or of vectors (N, D); float32 (N, k) by k.

        Vectors may be of the patch alone where the architecture has ``of_patch``.
        They depend on each patch alone, never on the others, their order or their batches. On other
        machines and devices they differ in the last digits, but the most probable cluster of the same latents does not.
        """
        block = BLOCK[z_NChw.device.type]
        with full_precision():
            parts = [self._of_block(part_nChw, block=block) for part_nChw in z_NChw.split(block)]
        heads = {k: torch.cat([part[k] for part in parts]) for k in self.architecture.ks}
        return {k: p_NK[:, self.order(k)] for k, p_NK in self._decided(heads, z_NChw=z_NChw).items()}

    def _of_block(self, z_nChw: Tensor, *, block: int) -> Heads:
        n = len(z_nChw)
        filled_BChw = torch.cat([z_nChw, z_nChw[-1:].expand(block - n, *z_nChw.shape[1:])]) if 0 < n < block else z_nChw
        return {k: p_BK[:n] for k, p_BK in probabilities(self.network(filled_BChw)).items()}

    def _decided(self, heads: Heads, *, z_NChw: Tensor) -> Heads:
        """``heads`` with the patches that lie between two clusters computed again, each alone, in double precision."""
        best_two = [p_NK.topk(2, dim=1).values for p_NK in heads.values()]
        tight_N = torch.stack([p_N2[:, 0] - p_N2[:, 1] < TIGHT for p_N2 in best_two]).any(0)
        rows = tight_N.nonzero()[:, 0].tolist()
        if not rows:
            return heads
        network = copy.deepcopy(self.network).cpu().double()  # not every device has double precision
        decided = {k: p_NK.clone() for k, p_NK in heads.items()}
        for row in rows:
            for k, logits_1K in network(z_NChw[row : row + 1].cpu().double()).items():
                decided[k][row] = logits_1K.softmax(1)[0].to(decided[k])
        return decided

    def save(self, folder: Path) -> None:
        """Write ``clusterer.safetensors`` and ``clusterer.json``."""
        weights = save({name: value.contiguous() for name, value in self.state_dict().items()})
        write_bytes(folder / "clusterer.safetensors", weights)
        values = asdict(self.architecture)
        for name in ("vectors", "linear", "of_patch", "unseen"):
            if not values[name]:
                del values[name]  # as files had it before there was such a network
        write_json(folder / "clusterer.json", values)

    @staticmethod
    def load(folder: Path) -> Clusterer:
        """Read what ``save`` wrote; in evaluation mode, on the CPU."""
        values = read_json(folder / "clusterer.json")
        clusterer = build(Architecture(**values | {"ks": tuple(values["ks"])}))
        clusterer.load_state_dict(load_file(folder / "clusterer.safetensors"))
        return clusterer.eval().requires_grad_(False)


def build(architecture: Architecture) -> Clusterer:
    """A clusterer with fresh weights."""
    if architecture.side:
        networks = {k: build_for(k, architecture) for k in architecture.ks}
        return Clusterer(architecture, network=SweepClusterer(networks))
    if architecture.linear:
        D = architecture.in_channels
        of_patch, unseen = architecture.of_patch or D, architecture.unseen
        return Clusterer(architecture, network=LinearNet(D, ks=architecture.ks, of_patch=of_patch, unseen=unseen))
    kind = VectorNet if architecture.vectors else InfoMaxNet
    network = kind(architecture.in_channels, channels=architecture.channels, ks=architecture.ks)
    return Clusterer(architecture, network=network)


def build_for(k: int, architecture: Architecture) -> paper.Clusterer:
    """The paper's network for ``k`` with fresh weights."""
    return paper.Clusterer(architecture.in_channels, channels=architecture.channels, k=k, side=architecture.side)
