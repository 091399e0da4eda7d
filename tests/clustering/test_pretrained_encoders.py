"""Pretrained encoders run for real: small networks of random weights, written as Hugging Face and timm write them.

The tests of timm need timm and the torchvision that fits torch (docs/how-to/foundation-models.md), and skip else.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features import pretrained
from histoloom.clustering.features.pretrained import RECIPES, load_encoder, timm_arguments
from histoloom.clustering.stage import run
from histoloom.config import load_config, make_config, with_settings
from histoloom.errors import UserError
from histoloom.run.directory import read_json, write_json
from histoloom.run.stage import EventLog, StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet

CPU = torch.device("cpu")
SIDE = 32  # px of the images; the networks' inputs have other sides
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TIMM_SIZES = {"img_size": 48, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="the extra encoders is not installed")


@pytest.fixture
def timm() -> ModuleType:
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    return pytest.importorskip("timm", exc_type=ImportError)


@pytest.fixture
def images_NHW3() -> np.ndarray:
    return numpy_generator(0, "images").integers(0, 256, (3, SIDE, SIDE, 3)).astype(np.uint8)


def prepared(
    images_NHW3: np.ndarray, *, side: int, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Tensor:
    """What a network should get: resized, and normalised channel by channel."""
    x_N3HW = torch.from_numpy(images_NHW3).permute(0, 3, 1, 2).float() / 255
    x_N3SS = F.interpolate(x_N3HW, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return torch.stack([(x_N3SS[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


def read(name: str, images_NHW3: np.ndarray) -> Tensor:
    with torch.no_grad():
        return load_encoder(name, device=CPU).features(torch.from_numpy(images_NHW3))


def save(network: nn.Module, folder: Path, **processor: object) -> nn.Module:
    """Write a network as Hugging Face does, with its preprocessing."""
    network.eval().save_pretrained(folder)  # type: ignore[operator]  # of transformers
    write_json(folder / "preprocessor_config.json", {"image_mean": MEAN, "image_std": STD, **processor})
    return network


@pytest.mark.parametrize(
    ("kind", "processor", "side"),
    [
        ("ViT", {}, 48),
        ("Dinov2", {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 36}}, 28),
        ("Dinov2WithRegisters", {"size": {"height": 42, "width": 42}}, 42),
    ],
)
def test_the_class_token_of_a_transformer_is_read_at_the_side_of_its_preprocessing(
    kind: str,
    processor: dict[str, object],
    side: int,
    transformers: ModuleType,
    images_NHW3: np.ndarray,
    tmp_path: Path,
) -> None:
    """DINOv2's configuration has the side of its position embedding, which is not the side of its input."""
    torch.manual_seed(0)
    shape = getattr(transformers, f"{kind}Config")(
        image_size=48 if kind == "ViT" else 56, patch_size=8 if kind == "ViT" else 14, **SIZES
    )
    network = save(getattr(transformers, f"{kind}Model")(shape), tmp_path, **processor)
    with torch.no_grad():
        wanted_ND = network(pixel_values=prepared(images_NHW3, side=side)).last_hidden_state[:, 0]
    torch.testing.assert_close(read(f"hf:{tmp_path}", images_NHW3), wanted_ND, atol=1e-5, rtol=1e-4)


def test_a_recipe_goes_before_the_files(transformers: ModuleType, images_NHW3: np.ndarray, tmp_path: Path) -> None:
    """As Midnight-12k: its card has 224 px and other colours than ImageNet's."""
    torch.manual_seed(0)
    shape = transformers.Dinov2Config(image_size=518, patch_size=14, **SIZES)
    network = transformers.Dinov2Model(shape).eval()
    network.save_pretrained(tmp_path / "midnight")
    half = (0.5, 0.5, 0.5)
    with torch.no_grad():
        wanted_ND = network(pixel_values=prepared(images_NHW3, side=224, mean=half, std=half)).last_hidden_state[:, 0]
    torch.testing.assert_close(read(f"hf:{tmp_path / 'midnight'}", images_NHW3), wanted_ND, atol=1e-5, rtol=1e-4)


def test_a_network_without_a_class_token_gives_the_mean_over_positions(
    transformers: ModuleType, images_NHW3: np.ndarray, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    shape = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], image_size=64)
    network = save(transformers.ConvNextModel(shape), tmp_path)
    with torch.no_grad():
        wanted_ND = network(pixel_values=prepared(images_NHW3, side=64)).last_hidden_state.mean(dim=(2, 3))
    torch.testing.assert_close(read(f"hf:{tmp_path}", images_NHW3), wanted_ND, atol=1e-5, rtol=1e-4)


def test_a_model_with_code_of_its_own_is_refused(transformers: ModuleType, tmp_path: Path) -> None:
    save(transformers.ViTModel(transformers.ViTConfig(image_size=48, patch_size=8, **SIZES)), tmp_path)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", config | {"auto_map": {"AutoModel": "modeling_own.OwnModel"}})
    with pytest.raises(UserError, match=r"code of its own, which is not run.*clusters\.features=files"):
        load_encoder(f"hf:{tmp_path}", device=CPU)


def test_weights_that_the_network_has_no_place_for_are_refused(transformers: ModuleType, tmp_path: Path) -> None:
    """Register tokens that DINOv2 would leave out change every feature; the weights of a head do not."""
    shape = transformers.Dinov2WithRegistersConfig(image_size=56, patch_size=14, **SIZES)
    save(transformers.Dinov2WithRegistersForImageClassification(shape), tmp_path / "head")
    load_encoder(f"hf:{tmp_path / 'head'}", device=CPU)
    save(transformers.Dinov2WithRegistersModel(shape), tmp_path / "registers")
    path = tmp_path / "registers" / "config.json"
    write_json(path, read_json(path) | {"model_type": "dinov2", "architectures": ["Dinov2Model"]})
    with pytest.raises(UserError, match=r"Dinov2Model has no embeddings\.register_tokens"):
        load_encoder(f"hf:{tmp_path / 'registers'}", device=CPU)


def write_timm(timm: ModuleType, folder: Path, *, saved: Mapping[str, object], **classes: object) -> nn.Module:
    """A small vision transformer as on the hub; ``config.json`` has the arguments ``saved``, and no classes."""
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", **saved, **classes).eval()
    folder.mkdir(parents=True)
    from safetensors.torch import save_file

    save_file(network.state_dict(), folder / "model.safetensors")
    cfg = {"input_size": [3, 48, 48], "mean": MEAN, "std": STD, "num_classes": 0, "fixed_input_size": True}
    write_json(
        folder / "config.json",
        {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": saved, "pretrained_cfg": cfg},
    )
    return network


def test_the_arguments_in_config_json_of_timm_are_used(
    timm: ModuleType, images_NHW3: np.ndarray, tmp_path: Path
) -> None:
    saved = {**TIMM_SIZES, "reg_tokens": 4, "init_values": 0.1, "no_embed_class": True, "num_classes": 0}
    network = write_timm(timm, tmp_path / "vit", saved=saved)
    with torch.no_grad():
        wanted_ND = network(prepared(images_NHW3, side=48))
    assert wanted_ND.shape == (3, 16)
    torch.testing.assert_close(read(f"timm:{tmp_path / 'vit'}", images_NHW3), wanted_ND, atol=1e-5, rtol=1e-4)


def test_a_model_of_timm_that_needs_a_recipe_is_refused_without_it_and_loaded_with_it(
    timm: ModuleType, images_NHW3: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Virchow2: gated layers, which its configuration cannot name, and all tokens as output."""
    classes = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    saved = {**TIMM_SIZES, "reg_tokens": 4, "global_pool": "", "mlp_ratio": 5.5, "num_classes": 0}
    network = write_timm(timm, tmp_path / "gated", saved=saved, **classes)
    with pytest.raises(UserError, match="cannot be loaded by timm"):
        load_encoder(f"timm:{tmp_path / 'gated'}", device=CPU)
    monkeypatch.setattr(pretrained, "RECIPES", {"gated": RECIPES["Virchow2"]})
    with torch.no_grad():
        wanted_NLD = network(prepared(images_NHW3, side=48))
    assert wanted_NLD.shape == (3, 1 + 4 + 36, 16)
    torch.testing.assert_close(read(f"timm:{tmp_path / 'gated'}", images_NHW3), wanted_NLD[:, 0], atol=1e-5, rtol=1e-4)


VIRCHOW2 = {"img_size": 224, "init_values": 1e-5, "reg_tokens": 4, "mlp_ratio": 5.3375}  # of its config.json


@pytest.mark.parametrize(
    ("name", "architecture", "saved", "millions"),
    [
        ("UNI2-h", "vit_giant_patch14_224", {}, 681),
        ("Virchow2", "vit_huge_patch14_224", VIRCHOW2, 631),
        ("H-optimus-0", "vit_giant_patch14_reg4_dinov2", {"img_size": 224}, 1135),
    ],
)
def test_recipes_give_networks_of_the_size_of_the_model(
    name: str, architecture: str, saved: dict[str, object], millions: int, timm: ModuleType
) -> None:
    with torch.device("meta"):
        network = timm.create_model(architecture, num_classes=0, **saved, **timm_arguments(RECIPES[name], timm=timm))
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions


@pytest.mark.parametrize("library", ["hf", "timm"])
def test_patches_are_clustered_by_an_encoder_and_predicted_from_images(
    library: str, request: pytest.FixtureRequest, tiny_run: Path, tmp_path: Path
) -> None:
    encoder = tmp_path / "encoder"
    if library == "hf":
        transformers = request.getfixturevalue("transformers")
        save(transformers.ViTModel(transformers.ViTConfig(image_size=48, patch_size=8, **SIZES)), encoder)
    else:
        write_timm(request.getfixturevalue("timm"), encoder, saved={**TIMM_SIZES, "num_classes": 0})
    values = load_config(tiny_run / "config.yaml").model_dump(mode="json")
    config = make_config(with_settings(values, ["clusters.features=encoder", f"clusters.encoder={library}:{encoder}"]))
    inputs = {stage: tiny_run / stage for stage in ("patches", "latents", "autoencoder")}
    out = tmp_path / "clusters"
    out.mkdir()
    run(StageContext(tiny_run, config, out, inputs, EventLog(out / "log.jsonl")))
    patches = PatchSet.open(inputs["patches"])
    folders = {stage: inputs[stage] for stage in ("autoencoder", "latents")}
    rows = np.arange(len(patches))
    labels = Classifier.load(**folders, clusters=out, device=CPU).labels(
        patches.images(rows), patches.surroundings(rows)
    )
    for k in Clustering.open(out).ks:
        np.testing.assert_array_equal(labels[k], Clustering.open(out).table[f"k{k}"])
        assert len(np.unique(labels[k])) > 1
