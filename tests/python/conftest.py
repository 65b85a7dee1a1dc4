"""The option `--only-gpu` runs just the tests that skip without a GPU, for a machine that is available for minutes."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--only-gpu", action="store_true", help="just the tests that need a GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--only-gpu"):
        return
    wanted = [
        item for item in items if any("no GPU" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif"))
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in wanted])
    items[:] = wanted
