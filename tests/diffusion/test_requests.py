from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.run_request import Request, draw_request, sampler_of
from histoloom.diffusion.samplers.registry import SAMPLERS
from histoloom.errors import UserError

DEFAULT = SamplerConfig(method="dpm-solver++", steps=20, guidance=1.8, guidance_interval=(0.2, 3.0))


def test_a_request_changes_what_it_names_and_keeps_the_rest() -> None:
    assert sampler_of(Request(n=1), default=DEFAULT) == DEFAULT
    changed = sampler_of(Request(n=1, method="heun", steps=19, guidance_interval=(0.1, 5.0)), default=DEFAULT)
    assert changed == SamplerConfig(method="heun", steps=19, guidance=1.8, guidance_interval=(0.1, 5.0))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_no_guidance_needs_no_interval(guidance: float) -> None:
    assert sampler_of(Request(n=1, guidance=guidance), default=DEFAULT).guidance_interval is None
    with pytest.raises(UserError, match="no effect with guidance"):
        sampler_of(Request(n=1, guidance=guidance, guidance_interval=(0.1, 5.0)), default=DEFAULT)


def test_a_request_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"sampler: heun makes two evaluations a step .* set steps to 19 or 21, not 20$"
    ):
        sampler_of(Request(n=1, method="heun"), default=DEFAULT)


def test_every_sampler_draws_with_a_trained_generator_and_goes_on(tiny_run: Path, tmp_path: Path) -> None:
    for method in sorted(set(SAMPLERS) - {"student"}):
        request = Request(n=2, method=method, steps=3, spacing=1.5, guidance=2.0, guidance_interval=(0.01, 5.0))
        out = draw_request(tiny_run, request, out=tmp_path / method)
        before = {file.name: file.read_bytes() for file in out.rglob("*.png")}
        assert len(before) == 2
        said = pd.read_csv(out / "metadata.csv")[["sampler", "steps", "spacing", "guidance", "guidance_interval"]]
        assert said.to_numpy().tolist() == [[method, 3, 1.5, 2.0, "[0.01, 5.0]"]] * 2
        next(out.rglob("*.png")).unlink()
        draw_request(tiny_run, request, out=out)
        assert {file.name: file.read_bytes() for file in out.rglob("*.png")} == before
