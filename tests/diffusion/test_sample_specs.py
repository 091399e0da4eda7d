"""Which clusters a request without a tissue draws from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.generation.sample_spec import specs_of_tissue
from histoloom.names import Label

SPEC = cast(
    GeneratorSpec, SimpleNamespace(conditions=SimpleNamespace(offset=lambda _k: 0), frequencies={3: [0.6, 0.3, 0.1]})
)


def drawn(labels: dict[int, Label], *, tissue: str | None = None) -> set[int]:
    return {spec.cluster for spec in specs_of_tissue(SPEC, labels, tissue=tissue, n=60, seed=1, k=3)}


def test_a_mixture_leaves_artefacts_out_unless_they_are_asked_for_by_name() -> None:
    labels = {cluster: Label(name=f"cluster {cluster}") for cluster in range(3)}
    assert drawn(labels) == {0, 1, 2}
    labels[0] = Label(name="pen", flag="artefact")
    labels[2] = Label(name="cluster 2", flag="unsure")
    assert drawn(labels) == {1, 2}
    assert drawn(labels, tissue="pen") == {0}
    everything = {cluster: Label(name="pen", flag="artefact") for cluster in range(3)}
    assert drawn(everything) == {0, 1, 2}, "nothing else is there to draw"
