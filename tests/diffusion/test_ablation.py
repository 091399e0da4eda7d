"""The ablation's variants: what trains, what only draws; the table's command is one that can be run."""

from __future__ import annotations

import re
import shlex

import ablation
import pytest

from histoloom.config import SamplerConfig, make_config, read_preset, with_settings


def test_settings_of_the_sampler_change_the_shared_one() -> None:
    shared = SamplerConfig(method="dpm-solver++", steps=20, guidance=1.8)
    assert ablation.sampler_of(["diffusion.min_snr=5"], guidance=1.8) == shared
    changed = ablation.sampler_of(["samples.sampler.guidance_interval=[0.2, 3]", "latents.copies=8"], guidance=1.8)
    assert changed == shared.model_copy(update={"guidance_interval": (0.2, 3.0)})


@pytest.mark.parametrize("line", re.findall(r"--variant (.*?)(?: \\)?\n", (ablation.__doc__ or "").split("cpu``")[1]))
def test_every_variant_of_the_table_is_a_valid_change_of_the_preset(line: str) -> None:
    _, *settings = shlex.split(line)
    values = {**read_preset("cpu"), "slides": {"paths": ["/slides"]}}
    plain = make_config(values)
    trained = [setting for setting in settings if not setting.startswith(ablation.DRAWS)]
    assert (make_config(with_settings(values, trained)) != plain) == bool(trained)
    assert (ablation.sampler_of(settings, guidance=1) != ablation.sampler_of([], guidance=1)) == (
        len(trained) < len(settings)
    )
