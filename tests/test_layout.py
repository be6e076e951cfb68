"""The files of the root folder, and imports that go one way."""

import ast
import re
import subprocess
from graphlib import TopologicalSorter

import pytest
from helpers import ROOT

FILES = (
    "main.py colorize.py app.py Regressor.py Colorizer.py Regressor_Manager.py ColorizerManager.py Constants.py "
    "utils.py run_regressor.sh pyproject.toml README.md .gitignore"
)
FOLDERS = "data outputs_sigmoid outputs_tanh Plots checkpoints pretrained deepcolor tests benchmarks docs .ci"
# Each stage may import earlier ones only.
STAGES = (
    ("Constants",),
    ("utils",),
    ("deepcolor.common",),
    ("deepcolor.data",),
    ("Regressor", "Colorizer"),
    ("deepcolor.training",),
    ("deepcolor.reporting",),
    ("Regressor_Manager", "ColorizerManager"),
    ("deepcolor.sweep",),
    ("main",),
)
INFERENCE_USES = (
    *("Constants", "utils", "deepcolor.common", "deepcolor.data", "Regressor", "Colorizer", "deepcolor.inference"),
    *("deepcolor.training.checkpoint", "deepcolor.training.trained_colorizer", "deepcolor.training.paths"),
    "deepcolor.reporting.metrics",
)


def test_the_root_holds_only_what_a_user_types_or_opens() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not re.fullmatch(r"requirements.*\.txt", name)} <= {
        *FILES.split(),
        *FOLDERS.split(),
    }


def imports() -> dict[str, set[str]]:
    """Returns module -> the modules of the project that it imports, anywhere in its text."""
    paths = [*ROOT.glob("*.py"), *(ROOT / "deepcolor").rglob("*.py")]
    modules = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in paths}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: a relative import"
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            found[module].update(name for name in names if name in modules)
    return found


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def stage_of(module: str) -> int | None:
    return next((number for number, packages in enumerate(STAGES) if is_within(module, packages)), None)


def test_imports_go_one_way() -> None:
    wrong = []
    for module, imported in imports().items():
        for other in imported:
            if is_within(module, ("deepcolor.inference",)):
                allowed = is_within(other, INFERENCE_USES)
            elif is_within(module, ("app", "deepcolor.page")):
                allowed = is_within(other, (*INFERENCE_USES, "colorize", "deepcolor.reporting", "deepcolor.page"))
            elif stage_of(module) is None:  # colorize.py
                allowed = is_within(other, INFERENCE_USES)
            else:
                allowed = stage_of(other) is not None and stage_of(other) <= stage_of(module)
            if not allowed:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_imports_have_no_cycle() -> None:
    assert list(TopologicalSorter(imports()).static_order())  # raises CycleError
