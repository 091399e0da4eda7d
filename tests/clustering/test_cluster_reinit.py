"""Outputs without patches of their own: copies and dead ones are initialised again, the others stay.

Shapes: M patches, F features, K outputs.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from histoloom.clustering.cluster_reinit import CHECKS, FIRST, LAST, direction, due, reinitialise
from histoloom.seeding import torch_generator
from histoloom.training.tasks import StepContext

CENTRES_3F = 4 * torch.eye(3, 5)


def views() -> tuple[Tensor, Tensor]:
    """Two views of 600 patches around three centres; patches of the first differ along axis 3, views along axis 4."""
    generator = torch_generator(0, "reinit")
    place_MF = CENTRES_3F[torch.arange(600) % 3] + 0.1 * torch.randn(600, 5, generator=generator)
    place_MF[::3, 3] += 1 - 2 * (torch.arange(200) % 2)
    apart_MF = 0.05 * torch.randn(600, 5, generator=generator)
    apart_MF[:, 4] += torch.randn(600, generator=generator)
    return place_MF + apart_MF, place_MF - apart_MF


def a_head(*rows: Tensor, bias: tuple[float, ...]) -> nn.Linear:
    head = nn.Linear(5, len(rows))
    with torch.no_grad():
        head.weight.copy_(torch.stack(rows))
        head.bias.copy_(torch.tensor(bias))
    return head


def probabilities(head: nn.Linear) -> Tensor:
    """(M, K) of both views' mean."""
    first_MF, second_MF = views()
    with torch.no_grad():
        return head((first_MF + second_MF) / 2).softmax(1)


COPIES = a_head(CENTRES_3F[0], CENTRES_3F[1], CENTRES_3F[2], CENTRES_3F[2], bias=(0, 0, -0.7, -0.7))
DEAD = a_head(CENTRES_3F[0], CENTRES_3F[1], CENTRES_3F[2], torch.zeros(5), bias=(0, 0, 0, -50))


@pytest.mark.parametrize("start", [COPIES, DEAD], ids=["copies", "dead"])
def test_a_free_output_takes_one_side_of_the_cluster_that_differs_most(start: nn.Linear) -> None:
    first_MF, second_MF = views()
    head = a_head(*start.weight.detach(), bias=tuple(start.bias.tolist()))
    before_MK = probabilities(head)
    assert reinitialise(head, first_MF=first_MF, second_MF=second_MF) == 1
    after_MK = probabilities(head)
    sides = after_MK[::3, 0] > after_MK[::3, 3]
    along_3 = ((first_MF + second_MF) / 2)[::3, 3] > 0
    assert float((sides == along_3).float().mean()) in (0.0, 1.0), "the two kinds of patches come apart"
    assert torch.equal(after_MK[1::3].argmax(1), torch.ones(200, dtype=torch.int64))
    assert torch.equal(after_MK[2::3].argmax(1), torch.full((200,), 2))
    torch.testing.assert_close(after_MK[::3, [0, 3]].sum(1), before_MK[::3, 0], atol=0.02, rtol=0)
    assert float(after_MK[::3, 0].mean()) == pytest.approx(0.5, abs=0.1)


def test_outputs_with_patches_of_their_own_stay_as_they_are() -> None:
    head = a_head(*CENTRES_3F, bias=(0, 0, 0))
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    assert reinitialise(head, first_MF=views()[0], second_MF=views()[1]) == 0
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, bias)


def test_the_direction_is_that_of_patches_and_not_of_views() -> None:
    first_MF, second_MF = views()
    first_of_three_M = (torch.arange(600) % 3 == 0).float()
    result = direction(first_of_three_M, first_MF=first_MF, second_MF=second_MF)
    assert float(result.along_F[3]) == pytest.approx(1, abs=0.02)
    assert abs(float(result.along_F[4])) < 0.1
    assert result.deviation == pytest.approx(1, abs=0.1)
    assert abs(result.middle) < 1.5
    narrow = direction(1 - first_of_three_M, first_MF=first_MF, second_MF=second_MF)
    assert narrow.ratio > 1, "two centres apart"


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_checks_are_spread_over_the_training_whatever_the_batch(batch_size: int) -> None:
    total = 3000
    checks = [images / total for images in range(0, total, batch_size) if due(step_context(images, total, batch_size))]
    expected = int(CHECKS * LAST) - int(CHECKS * FIRST)
    assert abs(len(checks) - expected) <= 1, "a check at either end may fall outside"
    assert min(checks) >= FIRST
    assert max(checks) < LAST


def step_context(images: int, total: int, batch_size: int) -> StepContext:
    return StepContext(
        images=images,
        step=images // batch_size,
        progress=images / total,
        device=torch.device("cpu"),
        generator=torch_generator(0, "context"),
        rows=slice(0, batch_size),
        batch_size=batch_size,
    )
