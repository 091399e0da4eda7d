"""Makes set_metrics.json: what other people's code says of the same features.

    python -m venv there && there/bin/pip install torch numpy scipy scikit-learn
    there/bin/pip install --no-deps torch-fidelity==0.4.0 clean-fid==0.1.35 prdc==0.2
    there/bin/python tests/golden/make_set_metrics.py

torch-fidelity and clean-fid are read rather than imported, since importing them needs torchvision.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prdc import compute_prdc
from scipy import linalg

SETS = {"many": (300, 260, 24), "few": (40, 30, 64)}
"""name: real images, synthetic images, features"""


def features(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Real and synthetic features, float64."""
    n, m, dimension = SETS[name]
    rng = np.random.default_rng(7)
    real_ND = np.abs(rng.standard_normal((n, dimension)))
    return real_ND, 0.3 + np.abs(rng.standard_normal((m, dimension))) * np.linspace(0.6, 1.2, dimension)


def functions_of(package: str, file: str) -> dict[str, Any]:
    """All plain functions of a module, which need NumPy, SciPy and torch alone."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"pip install --no-deps {package}"
    assert spec.origin is not None, "a regular package"
    tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    wanted: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    scope = {
        "np": np,
        "linalg": linalg,
        "torch": torch,
        "vprint": lambda *_: None,
        "get_kwarg": lambda key, given: given[key],
    }
    scope |= {f"KEY_METRIC_{key.upper()}": key for key in ("fid", "precision", "recall", "f_score")}
    scope["vassert"] = lambda *_: None
    exec(compile(ast.Module(wanted, []), file, "exec"), scope)
    return scope


def golden(name: str) -> dict[str, float]:
    """The numbers of one pair of sets."""
    clean = functions_of("cleanfid", "fid.py")
    fidelity: dict[str, Any] = {}
    for file in ("metric_fid.py", "metric_kid.py", "metric_prc.py"):
        fidelity |= functions_of("torch_fidelity", file)
    poly_of, rbf_of, mmd2 = (fidelity[function] for function in ("kernel_poly", "kernel_rbf", "mmd2"))
    real, synthetic = features(name)
    a, b = torch.from_numpy(real), torch.from_numpy(synthetic)
    same = min(len(real), len(synthetic))
    x, y = real[:same], synthetic[:same]
    poly = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1.0}
    cubic = [poly_of(*pair, **poly) for pair in ((x, x), (x, y), (y, y))]
    u, v = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    gauss = [rbf_of(*pair, kid_kernel_rbf_sigma=10.0) for pair in ((u, u), (u, v), (v, v))]
    statistics = [fidelity["fid_features_to_statistics"](z) for z in (a, b)]
    prc = fidelity["calculate_precision_recall_full"](b, a, 3)
    prdc = compute_prdc(real, synthetic, nearest_k=5)
    moments = [part for z in (real, synthetic) for part in (z.mean(axis=0), np.cov(z, rowvar=False))]
    fid = fidelity["fid_statistics_to_metric"](*statistics, None)["fid"]
    return {
        "frechet torch-fidelity": float(fid),
        "frechet clean-fid": float(clean["frechet_distance"](*moments)),
        "kid torch-fidelity, equal numbers": float(mmd2(*cubic)),
        "kid clean-fid, equal numbers": float(clean["kernel_distance"](x, y, num_subsets=1, max_subset_size=10**6)),
        "mmd torch-fidelity, biased, equal numbers": 1000 * float(mmd2(*gauss, mmd_est="biased")),
        "precision torch-fidelity": float(prc[0]),
        "recall torch-fidelity": float(prc[1]),
        "density prdc": float(prdc["density"]),
        "coverage prdc": float(prdc["coverage"]),
    }


if __name__ == "__main__":
    made = "tests/golden/make_set_metrics.py with torch-fidelity 0.4.0, clean-fid 0.1.35 and prdc 0.2"
    value = {"made": made} | {name: golden(name) for name in SETS}
    Path(__file__).with_name("set_metrics.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
