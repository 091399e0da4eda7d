"""Averaged weights: a constant decay, or a power function of the training so far."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom.config import Phase, TrainingConfig
from histoloom.training.schedules import average_decay, average_power


def averaging(**changes: object) -> TrainingConfig:
    phases = (Phase(optimizer="adam", lr=0.1, images=100),)
    return TrainingConfig.model_validate({"phases": phases} | changes)


def shares(config: TrainingConfig, *, steps: int) -> np.ndarray:
    """What each step's weights count in the average after ``steps``."""
    share = np.zeros(steps)
    for step in range(steps):
        decay = average_decay(config, step=step)
        share *= decay
        share[step] = 1 - decay
    return share


@pytest.mark.parametrize(("width", "power"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_power_of_a_width_is_the_published_one(width: float, power: float) -> None:
    gamma = average_power(width)
    assert gamma == pytest.approx(power, abs=0.005)
    assert (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 == pytest.approx(width)


@pytest.mark.parametrize("steps", [400, 4000])
@pytest.mark.parametrize("width", [0.05, 0.10, 0.25])
def test_the_average_is_as_wide_as_was_asked_whatever_the_length(width: float, steps: int) -> None:
    share = shares(averaging(ema_width=width), steps=steps)
    at = (np.arange(steps) + 1) / steps
    assert share.sum() == pytest.approx(1)
    mean = (share * at).sum()
    assert np.sqrt((share * (at - mean) ** 2).sum()) == pytest.approx(width, rel=0.01)


def test_the_first_weights_are_forgotten_at_once() -> None:
    assert average_decay(averaging(ema_width=0.1), step=0) == 0
    assert average_decay(averaging(ema=0.999), step=0) == pytest.approx(0.1)
    assert average_decay(averaging(ema=0.999), step=10**6) == 0.999


def test_one_kind_of_average_at_a_time() -> None:
    with pytest.raises(ValueError, match="set ema=0, or ema_width=null"):
        averaging(ema=0.9, ema_width=0.1)
    assert averaging(ema_width=0.1).averages
    assert averaging(ema=0.9).averages
    assert not averaging().averages
