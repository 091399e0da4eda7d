""" "More like this" and "between these two": orders that begin from pictures instead of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from histoloom.diffusion.generation.source_images import Source
from histoloom.diffusion.generation.spec import InitImage, SampleSpec
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.samplers.partial_noise import PartialNoise
from histoloom.errors import UserError

if TYPE_CHECKING:
    from histoloom.diffusion.generation.generator import Generator


def orders_like(
    generator: Generator,
    source: Source,
    *,
    strength: float,
    n: int,
    seed: int,
    tissue: str | None = None,
    k: int | None = None,
) -> list[SampleSpec]:
    """``n`` orders that begin from ``source``; of its own cluster, unless a ``tissue`` is named.

    ``UserError`` for a strength that is not in (0, 1], and where a cluster cannot be told.
    """
    check_variation(strength)
    k = generator.facts.chosen_k if k is None else k
    generator.facts.conditions.offset(k)
    origin = InitImage(source.name, strength)
    plain = generator.orders(str(source.cluster(k)) if tissue is None else tissue, n=n, seed=seed, k=k)
    return [replace(order, origin=origin) for order in plain]


def check_variation(strength: float) -> None:
    """``UserError`` for a strength that no variation can have."""
    if not 0 < strength <= 1:
        raise UserError(f"the strength has to be above 0 and at most 1, got {strength:g}")


def check_way(strength: float, *, n: int) -> None:
    """``UserError`` for a strength or number that no way between two pictures can have."""
    if not 0 < strength < 1:
        raise UserError(f"the strength has to be above 0 and below 1, got {strength:g}")
    if n < 2:
        raise UserError(f"between two pictures there are at least the two ends; ask for 2 or more, not {n}")


def orders_between(
    generator: Generator, source: Source, other: Source, *, strength: float, n: int, seed: int, k: int | None = None
) -> list[SampleSpec]:
    """``n`` orders at even distances from ``source`` to ``other``, both ends included, each of the nearer's cluster.

    ``UserError`` for fewer than two, for a strength that is not between 0 and 1, and where a cluster cannot be told.
    """
    check_way(strength, n=n)
    k = generator.facts.chosen_k if k is None else k
    ends = [generator.facts.conditions.number(k=k, cluster=end.cluster(k)) for end in (source, other)]
    first = generator.facts.conditions.offset(k)
    orders = []
    for index in range(n):
        fraction = index / (n - 1)
        origin = InitImage(source.name, strength, other.name, fraction)
        orders.append(SampleSpec(k, ends[round(fraction)] - first, index, seed, origin))
    return orders


def beginning(orders: Sequence[SampleSpec], *, sources: Sequence[Source], space: LatentSpace) -> PartialNoise | None:
    """Where the images of ``orders`` begin; None for pure noise. All begin from noise, or at one strength."""
    strengths = {order.origin and order.origin.strength for order in orders}
    assert len(strengths) == 1, "one strength a batch"
    origins = [order.origin for order in orders if order.origin is not None]
    if not origins:
        return None
    x_of = {source.name: space.encode(source.z_Chw[None])[0] for source in sources}
    return PartialNoise(
        strength=origins[0].strength,
        from_NCHW=torch.stack([x_of[origin.source] for origin in origins]),
        to_NCHW=torch.stack([x_of[origin.other or origin.source] for origin in origins]),
        fraction_N=[origin.fraction for origin in origins],
    )
