"""Order of the tests: files that take minutes come first, so that two workers end at about the same time."""

import pytest

LONG = ("test_notebooks", "test_benchmarks", "test_lab", "test_evaluate", "test_runs", "test_pretrain", "test_study")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file: `LONG` in its order, then the others as collected."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))  # stable
