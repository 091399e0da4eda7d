from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from histoloom.config import (
    Config,
    Section,
    dump_config,
    identity,
    load_config,
    make_config,
    preset_names,
    read_preset,
    with_settings,
)
from histoloom.errors import UserError
from histoloom.setup import resolve_auto


def config_of(preset: str, *settings: str) -> Config:
    return make_config(with_settings({**read_preset(preset), "slides": {"paths": ["/slides"]}}, settings))


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_valid_and_survives_its_file(preset: str, tmp_path: Path) -> None:
    config = config_of(preset)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert config.preset == preset


def test_presets_are_the_six() -> None:
    assert preset_names() == ["cpu", "demo", "modern", "paper", "starter", "tune"]


def test_paper_preset_is_the_published_recipe() -> None:
    config = config_of("paper")
    auto, diffusion = config.autoencoder, config.diffusion
    assert (config.patches.count, config.patches.size, config.patches.mpp) == (10_000, 128, 2.0)
    assert (auto.codes, auto.code_dim, auto.factor, auto.widths) == (128, 16, 4, (32, 64, 128))
    assert (auto.architecture, auto.pixel_range, auto.codebook_decay) == ("paper", "unit", None)
    assert (auto.mse_weight, auto.perceptual_weight, auto.commitment) == (1.0, 1.0, 0.2)
    assert (auto.perceptual, auto.perceptual_trunk) == ("lpips", "vgg")
    assert (auto.adversarial.loss, auto.adversarial.weight, auto.adversarial.lr) == ("least-squares", 0.5, 1e-4)
    assert (auto.adversarial.max_adaptive, auto.adversarial.warmup) == (None, 0)
    assert auto.training.betas == auto.adversarial.betas == (0.5, 0.999)
    assert auto.training.batch_size == 16
    assert (auto.quantize_latents, auto.quantize_decoded, diffusion.scaling) == (True, False, "none")
    assert (auto.training.averages, diffusion.training.averages, auto.augment) == (False, False, False)
    assert [(p.optimizer, p.lr, p.epochs) for p in auto.training.phases] == [("adam", 1e-4, 20)]
    assert config.clusters.k == (10, 11, 12, 13, 14, 15, 16)
    assert (diffusion.steps, diffusion.schedule, diffusion.training.batch_size) == (1000, "linear", 16)
    assert config.patches.size // auto.factor // 2**diffusion.halvings == 8
    assert (diffusion.beta_start, diffusion.beta_end, diffusion.prediction) == (1e-4, 0.02, "epsilon")
    joint = config.clusters.joint
    assert joint is not None
    assert (joint.marginal_weight, joint.conditional_weight) == (0.1, 0.06)
    assert joint.consistency_weights == (0.04, None, 0.05)
    assert (joint.rotation, joint.translation, joint.scaling) == (5.0, 0.05, 0.05)
    assert config.clusters.validity_features == "softmax"
    assert [(p.optimizer, p.lr, p.epochs) for p in diffusion.training.phases] == [
        ("adadelta", 0.003, 600),
        ("adam", 0.0001, 130),
        ("adadelta", 0.003, 70),
    ]
    assert (config.samples.sampler.method, config.samples.sampler.steps) == ("ddpm", 1000)


def test_filters_are_off_with_all_and_on_with_detect() -> None:
    plain, detect = config_of("paper").patches, config_of("paper", "patches.tissue=detect").patches
    assert (plain.min_sharpness, plain.max_pen) == (None, None)
    assert (detect.min_sharpness, detect.max_pen) == (0.012, 0.05)
    chosen = config_of("paper", "patches.filters.pen=0.3", "patches.filters.blur=null", "patches.tissue=detect").patches
    assert (chosen.min_sharpness, chosen.max_pen) == (None, 0.3)


def test_scientific_notation_is_a_number() -> None:
    assert config_of("cpu", "autoencoder.training.phases.0.lr=1e-4").autoencoder.training.phases[0].lr == 1e-4


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("patchs.size=64", ["patchs", "did you mean 'patches'"]),
        ("patches.sise=64", ["patches.sise", "did you mean 'size'", "mpp"]),
        ("patches.size=100", ["patches.size", "multiple of 8", "100"]),
        ("patches.tissue=some", ["patches.tissue", "'all' or 'detect'", "some"]),
        ("patches.overlap=0.5", ["patches", "sampling: grid", "patches.overlap=0"]),
        ("patches.count=null", ["patches.count or patches.per_slide"]),
        ("patches.per_slide=0", ["patches.per_slide", "greater than 0"]),
        ("patches.filters.blur=sharp", ["'patches.filters.blur'", "auto, null", "above 0", "sharp"]),
        ("patches.filters.pen=1", ["'patches.filters.pen'", "below 1"]),
        ("patches.filters.hair=1", ["patches.filters.hair", "blur, pen"]),
        ("autoencoder.training.phases.0.lr=-1", ["autoencoder.training.phases.0.lr", "greater than 0"]),
        ("diffusion.training.phases.0.foo=1", ["foo", "optimizer, lr, epochs, images"]),
        ("diffusion.attention=[true]", ["diffusion", "one entry for each"]),
        ("clusters.k=[3,2]", ["clusters", "rising list"]),
        ("clusters.k=[1,2]", ["clusters", "from 2 up"]),
        ("clusters.features=encoder", ["clusters", "hf:NAME", "give both"]),
        ("clusters.encoder=hf:owner/model", ["clusters", "features: encoder", "give both"]),
        ("clusters.encoder=owner/model", ["clusters.encoder", "(hf|timm):"]),
        ("clusters.features=files", ["clusters", "place of the files", "give both"]),
        ("clusters.files=/features", ["clusters", "features: files", "give both"]),
        ("clusters.obsm=X_uni", ["clusters", "obsm has no effect without features: files"]),
        ("clusters.features=selfsup", ["clusters", "selfsup was removed", "take perceptual"]),
        ("clusters.selfsup={channels: 16}", ["clusters", "selfsup was removed", "only None is left"]),
        ("clusters.training.batch_sise=16", ["clusters.training.batch_sise", "did you mean 'batch_size'"]),
        ("clusters.features=latents", ["clusters", "latents are maps", "clusters.surroundings=0", "positives=views"]),
        ("clusters.features=[latents, codes]", ["clusters", "latents are maps", "pooled or codes"]),
        ("clusters.features=[codes, codes]", ["clusters", "several that differ"]),
        ("clusters.features=[]", ["clusters", "one kind, or several"]),
        ("clusters.positives=views", ["clusters", "surroundings", "clusters.positives=neighbours"]),
        ("clusters.surroundings=-1", ["clusters.surroundings", "greater than or equal to 0"]),
        ("autoencoder.adversarial.channels=12", ["adversarial.channels", "multiple of 8, or 1, 2 or 4", "12"]),
        ("runtime.fast=maybe", ["runtime.fast", "'auto', 'on', 'off' or 'graphs'", "maybe"]),
        ("patches.tissue=no", ["patches.tissue", "'all' or 'detect'"]),
        ("autoencoder.code_space=sphere", ["code_space was removed", "only 'plane' is left"]),
        ("samples.sampler.steps=1001", ["samples.sampler.steps", "at most diffusion.steps = 1000", "1001"]),
        ("report.k=99", ["report.k", "clusters.k"]),
        ("clusters.consistency=vat", ["clusters", "consistency was removed", "only 'augment' is left"]),
        ("diffusion.zero_terminal_snr=true", ["diffusion", "zero_terminal_snr was removed"]),
        ("diffusion.weighting=sigmoid", ["diffusion", "weighting was removed"]),
        ("diffusion.min_snr=5", ["diffusion", "min_snr was removed"]),
        ("diffusion.fold=2", ["diffusion", "fold was removed"]),
        ("diffusion.stain_augment=true", ["diffusion", "stain_augment was removed"]),
        ("diffusion.augment=true", ["diffusion", "augment was removed, got true", "latents.copies=8"]),
        ("latents.copies=4", ["latents.copies", "1 or 8"]),
        ("diffusion.training.ema_width=0.1", ["diffusion.training", "ema_width was removed"]),
        ("clusters.training.ema=0.9", ["no effect on clusters", "set ema=0"]),
        ("samples.sampler.method=heun", ["heun", "set steps to 999 or 1001, not 1000"]),
        ("samples.sampler.method=euler", ["samples.sampler.method", "'ddim'", "euler"]),
        ("samples.sampler.guidance_interval=[0.1, 3]", ["samples.sampler", "guidance_interval was removed"]),
        ("samples.sampler.spacing=1.5", ["samples.sampler", "spacing was removed"]),
        ("autoencoder.perceptual=none", ["perceptual_weight: 0"]),
        ("autoencoder.mse_weight=0", ["l1_weight and mse_weight"]),
        ("seed", ["key=value"]),
        ("seed={", ["seed", "YAML"]),
        ("seed.x=1", ["seed", "valid integer"]),
        ("clusters.k.x=1", ["clusters.k.x=1", "not a setting"]),
        ("clusters.k.x.y=1", ["clusters.k.x.y=1", "not a section"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(setting: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config_of("cpu" if setting.startswith("clusters.") else "paper", setting)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_mirrored_margins_are_narrower_than_the_patch() -> None:
    small = ("patches.size=16", "autoencoder.perceptual=pyramid", "autoencoder.adversarial.weight=0")
    networks = ("autoencoder.multipliers=[1]", "diffusion.channels=[32, 32]", "diffusion.attention=[false, true]")
    assert config_of("starter", *small, *networks, "autoencoder.loss_shift=15").autoencoder.loss_shift == 15
    with pytest.raises(UserError, match=r"loss_shift must be below patches\.size, got 16 and 16"):
        config_of("starter", *small, *networks, "autoencoder.loss_shift=16")


@pytest.mark.parametrize(
    ("text", "value"), [("on", "on"), ("off", "off"), ("yes", "on"), ("no", "off"), ("auto", "auto"), ('"on"', "on")]
)
def test_words_that_yaml_reads_as_booleans_are_read_as_typed(text: str, value: str, tmp_path: Path) -> None:
    assert config_of("cpu", f"runtime.fast={text}").runtime.fast == value
    written = dump_config(config_of("cpu")).replace("fast: auto", f"fast: {text}")
    (tmp_path / "config.yaml").write_text(written)
    assert load_config(tmp_path / "config.yaml").runtime.fast == value


def test_every_setting_understands_its_own_words() -> None:
    """Each word of each choice, as it is typed; and off, no, none and null where a setting can be off."""
    tried = set()

    def check(section: type[Section], path: str) -> None:
        read_plain_values: Callable[[Any], Any] = section._read_plain_values  # type: ignore[assignment]
        for name, field in section.model_fields.items():
            for option in (field.annotation, *get_args(field.annotation)):
                if isinstance(option, type) and issubclass(option, Section):
                    check(option, f"{path}{name}.")
                for word in get_args(option) if get_origin(option) is Literal else ():
                    values = yaml.safe_load(f"{name}: {word}")
                    assert read_plain_values(values) == {name: word}, f"{path}{name}={word}"
                    tried.add(f"{path}{name}={word}")
            if NoneType in get_args(field.annotation):
                for word in ("off", "no", "none", "null"):
                    assert read_plain_values(yaml.safe_load(f"{name}: {word}")) == {name: None}

    check(Config, "")
    assert {"runtime.fast=on", "evaluation.originality=off", "patches.stain=none"} <= tried


def test_the_perceptual_loss_stays_as_it_was_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that appear later must not make the same init ask for another run."""
    config = config_of("demo")
    assert config.autoencoder.perceptual == "auto"
    monkeypatch.setattr("histoloom.autoencoder.lpips.find_weights", lambda *_, **__: None)
    first = resolve_auto(config)
    assert first.autoencoder.perceptual == "pyramid"
    monkeypatch.setattr("histoloom.autoencoder.lpips.find_weights", lambda *_, **__: object())
    assert resolve_auto(config, previous=first) == first
    assert resolve_auto(config).autoencoder.perceptual == "lpips"
    assert resolve_auto(config_of("demo", "patches.size=16")).autoencoder.perceptual == "pyramid"


def test_every_setting_has_a_description() -> None:
    def check(section: type[Section]) -> None:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            for option in (field.annotation, *get_args(field.annotation)):
                if isinstance(option, type) and issubclass(option, Section):
                    check(option)

    check(Config)


def test_settings_that_came_later_leave_the_identity_of_runs_made_before() -> None:
    earlier = (
        "clusters.features=latents",
        "clusters.surroundings=0",
        "clusters.positives=views",
        "clusters.validity_features=pooled",
    )
    before, after = (
        identity(config_of("cpu", *earlier)),
        identity(config_of("cpu", *earlier, "clusters.features=pooled")),
    )
    assert not {"features", "encoder", "surroundings", "positives"} & set(before["clusters"])
    assert after["clusters"] == before["clusters"] | {"features": "pooled"}
    assert set(before["samples"]["sampler"]) == {"method", "steps", "guidance"}
    assert "copies" not in before["latents"]
    assert "betas" not in before["autoencoder"]["adversarial"]
    assert identity(config_of("paper"))["autoencoder"]["adversarial"]["betas"] == [0.5, 0.999]
    for section in ("autoencoder", "clusters", "diffusion"):
        assert "ema_width" not in before[section]["training"]


def test_removed_settings_of_the_autoencoder_stay_readable() -> None:
    config = config_of("cpu")
    values = config.model_dump(mode="json")
    values["autoencoder"] |= {"code_space": "plane", "equivariance": 0.0}
    assert make_config(values) == config
    with pytest.raises(UserError, match=r"equivariance was removed, only 0\.0 is left"):
        make_config(values | {"autoencoder": values["autoencoder"] | {"equivariance": 0.5}})


def test_a_new_setting_of_the_autoencoder_leaves_existing_runs_up_to_date() -> None:
    """Fingerprints of an autoencoder as runs of before have it hold these settings; later ones where they are set."""
    first = "adversarial attention augment blocks channels code_dim codebook_decay codes commitment l1_weight"
    further = "mse_weight multipliers perceptual perceptual_trunk perceptual_weight restart_below stem training"
    held = set(identity(config_of("demo"))["autoencoder"])
    assert held == {*first.split(), *further.split()}
    assert identity(config_of("demo", "autoencoder.codes=0"))["autoencoder"]["codes"] == 0
    changed = config_of("demo", "autoencoder.codes=0", "autoencoder.kl_weight=0.001")
    assert set(identity(changed)["autoencoder"]) - held == {"kl_weight"}


def test_removed_settings_of_the_clusters_stay_readable_and_in_the_identity() -> None:
    config = config_of("cpu")
    values = config.model_dump(mode="json")
    values["clusters"] |= {"consistency": "augment"}
    assert make_config(values) == config
    assert identity(config)["clusters"]["consistency"] == "augment"


def test_removed_settings_of_the_diffusion_model_stay_readable_and_in_the_identity() -> None:
    """Where they had no effect; ``augment`` follows from ``latents.copies``."""
    earlier = {
        "zero_terminal_snr": False,
        "fold": 1,
        "weighting": "plain",
        "weighting_centre": None,
        "min_snr": None,
        "stain_augment": False,
    }
    for copies, augment in ((1, False), (8, "copies")):
        plain = config_of("cpu", f"latents.copies={copies}")
        values = plain.model_dump(mode="json")
        values["diffusion"] |= {**earlier, "augment": augment}
        values["samples"]["sampler"] |= {"spacing": 1.0, "guidance_interval": None}
        assert make_config(values) == plain
        kept = identity(plain)["diffusion"]
        assert (kept["augment"], kept["min_snr"]) == (augment, None)
        assert not (set(earlier) - {"min_snr"}) & set(kept)


def test_a_phase_has_one_length() -> None:
    both = "autoencoder.training.phases=[{optimizer: adam, lr: 1.0e-3, epochs: 1, images: 5}]"
    with pytest.raises(UserError, match="exactly one of epochs and images"):
        config_of("cpu", both)


def test_unknown_preset_lists_what_there_is() -> None:
    with pytest.raises(UserError, match="cpu, demo, modern, paper"):
        read_preset("papre")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_a_damaged_config_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_config(tmp_path / "config.yaml")


def test_every_default_is_written_out() -> None:
    written = yaml.safe_load(dump_config(config_of("cpu")))
    assert set(written) == set(Config.model_fields)
    assert written["runtime"]["checkpoint_seconds"] == 60


def test_a_setting_may_be_given_by_its_earlier_name_where_the_preset_has_the_present_one() -> None:
    before = read_preset("demo")
    values = with_settings(before, ["evaluation.judge.channels=8", "diffusion.training.phases.0.lr=0.5"])
    assert values["evaluation"]["cluster_classifier"] == {**before["evaluation"]["cluster_classifier"], "channels": 8}
    assert "judge" not in values["evaluation"]
    assert values["diffusion"]["training"]["phases"][0]["lr"] == 0.5
