"""Order of the tests: files that take minutes come first, so that two workers end at about the same time."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import tcore_lib  # noqa: F401 (first: it sets how OpenMP waits, which is read when torch is loaded)

# isort: split
import nbformat
import pytest
import torch

from tcore_lib.machine import compiled

SHARED = Path(os.environ.get("TCORE_SHARED", Path(__file__).parents[2] / "shared"))  # real samples; tests skip without
LONG = (
    "test_notebooks",
    "test_benchmarks",
    "test_lab",
    "test_evaluate",
    "test_reproduce",
    "test_pretrain",
    "test_study",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file: `LONG` in its order, then the others as collected."""
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))  # stable


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project, in a path with a space and an umlaut: a notebook that works, one that fails, one whose kernel dies."""
    root = tmp_path / "mein Prüfstand"
    (root / "params").mkdir(parents=True)
    (root / "notebooks").mkdir()
    (root / "results").mkdir()
    shutil.copy(Path(__file__).parents[1] / "results" / "paper.csv", root / "results")
    (root / "params" / "p.yaml").write_text("run: {name: p}\ndata: {source: synthetic}\n")
    head = (
        "import os, sys\nfrom tcore_lib import params, runs\nparams = params.from_notebook(globals())\n"
        "stage = runs.open_stage({stage!r}, params)\n"
    )
    rest = {
        "00_data_prep": "print('half way', sys.executable)\nstage.finish({'clips': 3})",
        "01_pretraining": "from tcore_lib.errors import InputError\nraise InputError('data/x.mp4 holds no video; remove it.')",
        "02_checkpoint_inspection": "os.kill(os.getpid(), 9)",
    }
    for stage, code in rest.items():
        notebook = nbformat.v4.new_notebook()
        parameters = nbformat.v4.new_code_cell("run = None\ndata = None", metadata={"tags": ["parameters"]})
        cell = nbformat.v4.new_code_cell(head.format(stage=stage) + code)
        notebook.cells = [nbformat.v4.new_markdown_cell("# A title"), parameters, cell]
        nbformat.write(notebook, root / "notebooks" / f"{stage}.ipynb")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`compile_with(backend=...)`: from then on functions are traced for that backend, so that no C++ compiler is needed."""
    compile_ = torch.compile

    def choose(**options: Any) -> None:
        monkeypatch.setattr(torch, "compile", lambda function, dynamic: compile_(function, dynamic=dynamic, **options))
        compiled.cache_clear()
        torch.compiler.reset()

    yield choose
    compiled.cache_clear()


class _Here:
    """A pool whose work is done in this process, as starting others takes seconds."""

    def __init__(self, **_: object) -> None:
        self.arguments: list[tuple[Any, ...]] = []

    def schedule(self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass

    stop = join = close


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos are prepared in this process."""
    monkeypatch.setattr("tcore_lib.data.videos.ProcessPool", _Here)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window; the test is skipped where there is none."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser: apt-get install chromium, or set CHROMIUM to one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield instance
        instance.close()
