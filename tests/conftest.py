"""The option --all, the order of the files, and the fixtures of `shared_fixtures.py`."""

from pathlib import Path

import pytest

# Files and folders with long tests run first, so that no process is left alone with a long one at the end.
LONGEST = [
    Path(__file__).parent / name
    for name in (
        "sweep/test_slurm.py",
        "test_readme.py",
        "sweep/test_claims.py",
        "training/test_distributed_ends.py",
        "common/test_system.py",
        "sweep",
        "training",
    )
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the slow tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        slow = [item for item in items if "slow" in item.keywords]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]
    items.sort(key=_position)


def _position(item: pytest.Item) -> int:
    found = (number for number, path in enumerate(LONGEST) if item.path == path or path in item.path.parents)
    return next(found, len(LONGEST))


def pytest_configure(config: pytest.Config) -> None:
    # A process that only hands out tests need not import PyTorch.
    if config.getoption("dist") == "no" or hasattr(config, "workerinput"):
        config.pluginmanager.import_plugin("shared_fixtures")
