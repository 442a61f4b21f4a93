"""The house rules that a machine can check: direction of imports, notebook contract, one dependency list."""

import ast
import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tcore_lib import runs
from tcore_lib.params import SECTIONS

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "tcore_lib"
# From the ground up; "" are the modules that stand in no room; `__main__` is the roof. CONTRIBUTING.md shows the same map.
ROOMS = ["", "figures", "scenes", "data", "model", "training", "evaluation", "widgets", "reproduction", "__main__"]
MODULES = sorted(path for path in LIBRARY.rglob("*.py") if path != LIBRARY / "__init__.py")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def _name(path: Path) -> str:
    """`data.index`, `data` for its `__init__`, `files`, `__main__`."""
    return ".".join(part for part in path.relative_to(LIBRARY).with_suffix("").parts if part != "__init__")


def _room(module: str) -> str:
    first = module.partition(".")[0]
    return first if first in ROOMS else ""


def _own_imports(tree: ast.AST) -> set[str]:
    """Modules of the library that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and re.match(r"tcore_lib(\.|$)", node.module or ""):
            origin = str(node.module).split(".")[1:]
            for name in ([*origin, alias.name] for alias in node.names):  # a module of a package, or a name of a module
                is_module = LIBRARY.joinpath(*name).with_suffix(".py").exists()
                found.add(".".join(name if is_module else origin))
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("tcore_lib") for alias in node.names), "write: from ... import"
    return found - {""}  # not the version, a name of the package itself


TREES = {_name(path): ast.parse(path.read_text()) for path in MODULES}
GRAPH = {module: _own_imports(tree) for module, tree in TREES.items()}


def test_every_room_is_on_the_map() -> None:
    rooms = {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(ROOMS) - {"", "__main__"}
    table = (ROOT / "CONTRIBUTING.md").read_text()
    assert re.findall(r"^\| `(\w+)/` \|", table, re.M) == [room for room in ROOMS[1:] if room in rooms]
    missing = [path.stem for path in MODULES if path.stem != "__init__" and f"`{path.stem}`" not in table]
    assert not missing, "not on the map of CONTRIBUTING.md"


def test_imports_point_downward_and_make_no_circle() -> None:
    for module, needs in GRAPH.items():
        upward = [name for name in needs if ROOMS.index(_room(name)) > ROOMS.index(_room(module))]
        assert not upward, f"{module} imports {upward}"
    done: set[str] = set()
    while len(done) < len(GRAPH):
        free = {module for module, needs in GRAPH.items() if module not in done and needs <= done}
        assert free, f"a circle among {sorted(set(GRAPH) - done)}"
        done |= free


def test_the_linter_reads_every_module() -> None:
    """A pattern for the folder `data/` of the checkout once left the room `tcore_lib/data/` out."""
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed here")
    listed = subprocess.run([ruff, "check", "--show-files", "."], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {str(path) for path in MODULES} <= set(listed.stdout.split())


def test_widget_packages_stay_in_the_explorer() -> None:
    pattern = re.compile(r"^\s*(import|from) (anywidget|ipywidgets|traitlets(?!\.config))", re.M)
    assert {path.stem for path in MODULES if pattern.search(path.read_text())} <= {"base", "explorer", "painter"}


def test_no_pickle_no_eval_in_the_library() -> None:
    only = {"allow_pickle": False, "shell": False, "weights_only": True}
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), module
            if isinstance(node, ast.keyword) and node.arg in only:
                assert isinstance(node.value, ast.Constant), module
                assert node.value.value is only[node.arg], module


def test_the_eight_notebooks_are_the_stages() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(runs.STAGES)


HELD = re.compile(r"assert_close|assert_allclose|assert_array_equal")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_notebook_contract(path: Path) -> None:
    """A chapter: question on top, tagged parameters, the method in cells held against the library, a result at the end."""
    cells = json.loads(path.read_text())["cells"]
    for cell in cells:
        cell["source"] = "".join(cell["source"]).splitlines()
    first, parameters, *rest = cells
    opening = "\n".join(first["source"])
    assert first["cell_type"] == "markdown"
    for word in ("# ", "**Question.**", "**Inputs.**", "**Outputs.**", "**Time.**", "Reading time:"):
        assert word in opening, word
    assert parameters["metadata"]["tags"] == ["parameters"]
    names = [line.split(" = ")[0] for line in parameters["source"] if " = " in line]
    assert names == ["profile", *SECTIONS]
    sources = ["\n".join(cell["source"]) for cell in rest if cell["cell_type"] == "code"]
    assert ".finish(" in sources[-1], "the last cell writes the run's result"
    sections = rf"^(?:def |class |for )?(?:{'|'.join(SECTIONS)}) ?(?:=[^=]|\(|in )"
    for source in sources:
        assert len(source.splitlines()) <= 40, source
        assert not re.search(sections, source, re.M), f"a second Run All would take this for a parameter:\n{source}"
        for banned in ("!pip", "%pip", "sys.path", "requests", "urllib"):
            assert banned not in source, banned
    method = [i for i, source in enumerate(sources) if re.search(r"^(def|class) ", source, re.M)]
    assert sum(len(re.findall(r"^ *(?:def|class) ", source, re.M)) for source in sources) <= 8, "at most 8 definitions"
    for i in method:
        later = "\n".join(sources[i:])
        assert HELD.search(later), f"nothing holds this cell against the library:\n{sources[i]}"
    for before, after in itertools.pairwise(rest):
        assert not (before["cell_type"] == after["cell_type"] == "code" and len(before["source"]) > 14), (
            "a code cell follows a long one: say in between what it does"
        )
    assert all(not cell.get("outputs") for cell in cells), "outputs belong to a run's folder"
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)


def test_one_dependency_list() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda[-1] == {"pip": ["-e .[dev]"]}
    assert f"python{project['requires-python']}" in conda
    listed = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    wanted = {re.split(r"[<>=]", line)[0] for line in listed if not line.startswith(project["name"])}
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {line.split("==")[0] for line in pins}
    assert {name.replace("_", "-") for name in wanted} <= pinned
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_environment_ymls_list_installs(python: str, tmp_path: Path) -> None:
    """A dry run into an empty folder: every package of the list, with the pins, exists for this Python and they fit together."""
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    target = ["--dry-run", "--target", str(tmp_path), "--python-version", python]
    command = [sys.executable, "-m", "uv", "pip", "install", *target, "--constraint", "constraints.txt"]
    command += [word for line in listed for word in line.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if any(word in done.stderr for word in ("Could not connect", "dns error", "No module named uv")):
        pytest.skip(f"no package registry or no uv here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert "torchvision==" in done.stderr


def test_no_big_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tests/large_files.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if "not a git repository" in done.stderr:
        pytest.skip("this is no git checkout: nothing says which files belong to it")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "big.bin").write_bytes(b"0" * 500_001)
    script = [sys.executable, "tests/large_files.py", str(tmp_path / "big.bin")]
    assert subprocess.run(script, cwd=ROOT, capture_output=True, check=False).returncode == 1


def test_pre_commit_runs_what_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = " ".join(hook["entry"] for hook in hooks)
    lint = (ROOT / "Makefile").read_text()
    for words in ("ruff check", "ruff format", '--extra-keys "metadata.papermill cell.metadata.papermill"'):
        assert words in entries
        assert words in lint


def test_no_address_of_a_registry() -> None:
    for path in [*ROOT.glob("*.*"), *ROOT.glob("*/*.*")]:
        if path.suffix in (".toml", ".yml", ".yaml", ".txt", ".cfg") and "data" not in path.parts:
            assert not re.search(r"https?://[^\s]*(pypi|index-url|simple/)", path.read_text()), path


# Lines at most: one budget for the whole, none for a file. A ratchet: lower a limit when a room got shorter, never raise it.
# The aims are 9,500 / 750 / 7,500 / 1,300; CONTRIBUTING, "Size", says what stands between.
LINES = {  # what -> (patterns, limit)
    "library": (("tcore_lib/**/*.py",), 11_620),
    "widgets in the browser": (("tcore_lib/**/*.js", "tcore_lib/**/*.css"), 750),
    "tests": (("tests/**/*.py",), 8_620),
    "benchmarks": (("benchmarks/**/*.py",), 1_345),
}


@pytest.mark.parametrize("what", LINES)
def test_the_house_stays_thin(what: str) -> None:
    patterns, most = LINES[what]
    files = [path for pattern in patterns for path in ROOT.glob(pattern)]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert sum(lines.values()) <= most, sorted(lines.items(), key=lambda item: -item[1])[:10]


def test_installing_in_layers() -> None:
    """The library without Jupyter, `notebooks` with it, `dev` with everything; the command is a console script."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        extra: {re.split(r"[<>=\[]", line)[0] for line in lines}
        for extra, lines in {"": project["dependencies"], **project["optional-dependencies"]}.items()
    }
    jupyter = {"anywidget", "ipywidgets", "jupyterlab", "nbconvert", "nbstripout", "papermill"}
    assert not names[""] & (jupyter | {"ipykernel", "nbformat", "nbclient"})
    assert jupyter <= names["notebooks"]
    assert "tcore-notebooks[notebooks]" in project["optional-dependencies"]["dev"]
    assert project["scripts"] == {"tcore": "tcore_lib.__main__:main"}
    assert set(project["urls"].values()) >= {"https://arxiv.org/abs/2503.15096", "https://github.com/yafeng19/T-CORE"}


def test_nothing_shipped_points_beside_the_checkout() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout: nothing says which files belong to it")
    kinds = (".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".js", ".html")
    for path in (ROOT / name for name in listed.stdout.splitlines() if not name.startswith("tests/")):
        if path.suffix in kinds and path.is_file():
            assert "../shared" not in path.read_text(encoding="utf-8"), path
