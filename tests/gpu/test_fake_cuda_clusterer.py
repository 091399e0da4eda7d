"""The clusterer in the fast mode, and vectors that lie on the GPU, on the stand-in for one."""

from __future__ import annotations

from pathlib import Path

import fake_cuda as stand_in
import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda
from torch import Tensor

from histoloom.clustering.independence import IndependentLoss
from histoloom.clustering.neighbours import LinearNet, NeighbourLoss
from histoloom.config import RuntimeConfig, TrainingConfig
from histoloom.run.stage import EventLog
from histoloom.training import devices
from histoloom.training.loop import Objective, Task, train
from histoloom.training.transfers import HELD_SHARE, hold

N, D = 48, 6


def fit(out: Path, *, device: str, fast: str) -> dict[str, Tensor]:
    """The weights of a clusterer after six steps."""
    torch.manual_seed(0)
    network = LinearNet(D, ks=(2, 3), of_patch=D)
    x_ND = torch.randn(N, D, generator=torch.Generator().manual_seed(1)).to(device)
    loss = IndependentLoss(NeighbourLoss(network, vectors=x_ND.__getitem__), weight=0.1, slides=3)

    def batch(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        rows_B = torch.from_numpy(rows)
        return torch.stack([rows_B, (rows_B + 1) % N], dim=1), rows_B % 3

    config = TrainingConfig.model_validate(
        {"batch_size": 16, "phases": [{"optimizer": "adam", "lr": 0.01, "images": 96}]}
    )
    objective = Objective("network", ("network",), loss, config.phases)
    modules = {"network": network}
    task = Task("clusters", modules, (objective,), N, batch, whole_batch=True, compiled=loss.compiled)
    runtime = RuntimeConfig.model_validate({"device": device, "precision": "fp32", "fast": fast})
    out.mkdir()
    trained = train(task, config=config, runtime=runtime, seed=5, out=out, log=EventLog(out / "log.jsonl"))
    return {name: value.cpu() for name, value in trained.modules["network"].state_dict().items()}


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # the compiler's own
@pytest.mark.parametrize("fast", ["on", "graphs"])
def test_a_compiled_clusterer_ends_with_the_weights_of_a_plain_one_on_the_cpu(
    fast: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "BACKEND", "eager")
    plain = fit(tmp_path / "plain", device="cpu", fast="off")
    with fake_cuda():
        compiled = fit(tmp_path / "compiled", device="cuda", fast=fast)
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[name], compiled[name], atol=1e-5) for name in plain)


@pytest.mark.parametrize(("share", "dtype"), [(1.0, torch.float32), (0.6, torch.float16), (0.4, None)])
def test_vectors_that_do_not_fit_are_held_in_half_precision(
    share: float, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``share``: the memory that is given to vectors, of what they take in single precision."""
    monkeypatch.setattr(stand_in, "MEMORY", round(share * N * D * 4 / HELD_SHARE))
    x_ND = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    with fake_cuda():
        held = hold(lambda rows: x_ND[rows], n=N, device=torch.device("cuda"))
        assert (held is None) is (dtype is None)
        if held is None:
            return
        rows_B = torch.arange(5, device="cuda")
        found = held(rows_B)
        assert (held.values_N.dtype, found.dtype, found.device.type) == (dtype, torch.float32, "cuda")
        assert torch.allclose(found.cpu(), x_ND[:5], atol=1e-2 if dtype == torch.float16 else 0)
