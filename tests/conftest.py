"""The option --all, and the fixtures of `shared_fixtures.py`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run the slow tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        slow = [item for item in items if "slow" in item.keywords]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]


def pytest_configure(config: pytest.Config) -> None:
    # A process that only hands out tests need not import PyTorch.
    if config.getoption("dist") == "no" or hasattr(config, "workerinput"):
        config.pluginmanager.import_plugin("shared_fixtures")
