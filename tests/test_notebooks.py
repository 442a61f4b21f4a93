"""All eight notebooks, really executed, on the smallest profile that still goes through every line of them."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from tcore_lib import params as parameters, runs
from tcore_lib.reproduction import table

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.notebooks


def tiny_profile(folder: Path) -> dict[str, Any]:
    """Everything of `params/quick.yaml`, as small as it goes; all files below `folder`."""
    return {
        "run": {"name": "tiny", "results": str(folder / "results"), "device": "cpu"},
        "data": {
            "root": str(folder / "data"),
            "num_frames": 12,
            "short_side": 64,
            "workers": 1,
            "synthetic": {"videos": 6, "classes": 2, "video_size": [96, 64], "video_seconds": 1.5, "fps": 10,
                          "davis_clips": 2, "jhmdb_clips": 2, "vip_clips": 2, "eval_frames": 4},
        },
        "pretrain": {
            "encoder": {"arch": "custom", "width": 32, "depth": 2, "heads": 2},
            "views": {"global_size": 64, "local_size": 32, "num_local": 2},
            "decoder": {"heads": 4},
            "head": {"prototypes": 64, "hidden": 48, "bottleneck": 16},
            "optimiser": {"epochs": 2.0, "iterations_per_epoch": 4, "warmup_epochs": 1.0, "base_lr": 0.004,
                          "teacher_temperature_epochs": 1.0},
            "loop": {"batch_size": 4, "checkpoint_every": 4, "log_every": 2, "workers": 0},
        },
        "davis": {"input_size": [240, 432]},
        "jhmdb": {"input_size": [160, 160]},
        "vip": {"long_side": 320},
        "attention": {"videos": 2, "patches": 2, "clip_frames": 3},
    }  # fmt: skip


def reproduce(profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tcore_lib", "reproduce", str(profile), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=profile.parent, check=False)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The profile's file and what the command printed.

    It runs in a copy of the project whose notebooks hold all cells twice: as one that presses "run all" a second time.
    No cell may leave a global that the cells above it stumble over.
    """
    folder = tmp_path_factory.mktemp("tiny")
    profile = folder / "tiny.yaml"
    profile.write_text(yaml.safe_dump(tiny_profile(folder)))
    for name in ("params", "docs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "results").mkdir()
    shutil.copy(ROOT / "results" / "paper.csv", folder / "results")
    (folder / "notebooks").mkdir()
    for stage in runs.STAGES:
        notebook = json.loads((ROOT / "notebooks" / f"{stage}.ipynb").read_text())
        again = [cell | {"id": f"again-{cell['id']}"} for cell in notebook["cells"] if not cell["metadata"].get("tags")]
        twice = json.dumps(notebook | {"cells": notebook["cells"] + again})
        (folder / "notebooks" / f"{stage}.ipynb").write_text(twice)
    done = reproduce(profile)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return profile, done.stdout


@pytest.fixture
def finished(reproduced: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The same, from inside the project."""
    monkeypatch.chdir(reproduced[0].parent)
    return reproduced


def test_command_shows_progress_and_ends_with_the_table(finished: tuple[Path, str]) -> None:
    lines = finished[1].splitlines()
    for number, stage in enumerate(runs.STAGES, 1):
        assert any(line.startswith(f"[{number}/8] {stage}: finished in") for line in lines)
    assert any("pretraining:" in line and "step" in line for line in lines), "tqdm of the training reaches the terminal"
    rows = [line for line in lines if line.split()[:1] == ["reproduced"]]
    assert [row.count("not run") for row in rows] == [3, 3, 3]
    assert [line.split()[1] for line in lines if line.split()[:1] == ["ours"]] == ["pretrained", "random", "pixels"]
    assert any(line.startswith("pretrained - pixels") for line in lines)


def test_every_notebook_ran_without_a_warning(finished: tuple[Path, str]) -> None:
    folder = runs.run_folder(parameters.load(finished[0]))
    for stage in runs.STAGES:
        notebook = nbformat.read(folder / "notebooks" / f"{stage}.ipynb", as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        for output in outputs:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", f"{stage}: {output['text'][:500]}"
        assert any("image/png" in output.get("data", {}) for output in outputs), f"{stage} shows no picture"


def test_results_are_measurements(finished: tuple[Path, str]) -> None:
    params = parameters.load(finished[0])
    folder = runs.run_folder(params)
    records = runs.read_results(folder)
    assert list(records) == list(runs.STAGES)
    assert records["01_pretraining"]["result"]["steps"] == 8
    log = runs.read_table(folder, "01_pretraining", "log")
    assert log["step"].tolist() == [2, 4, 6, 8]
    assert {"dino_global", "dino_local", "koleo", "patch_past", "patch_future", "agreement"} <= set(log.columns)
    measured = table.of_runs([folder])
    assert measured.groupby("benchmark")["encoder"].apply(list).tolist() == [["pretrained", "random", "pixels"]] * 3
    assert measured["value"].between(0, 100).all()
    assert not measured["real"].any()
    assert len(table.differences(folder)) == 6  # against random and pixels, on three benchmarks
    objects = runs.read_table(folder, "03_davis_evaluation", "objects")
    assert set(objects["clip"]) == {path.stem for path in (folder.parents[1] / "data/davis/JPEGImages/480p").iterdir()}
    for record in records.values():
        assert record["provenance"]["params_sha256"] == params.digest()


def test_rerun_skips_and_a_changed_setting_runs_what_depends_on_it(finished: tuple[Path, str], tmp_path: Path) -> None:
    again = reproduce(finished[0])
    assert again.returncode == 0
    assert again.stdout.count("finished earlier and unchanged, skipped") == 8
    params = parameters.load(finished[0], ["jhmdb.top_k=5"])
    state = {stage[:2]: runs.is_finished(stage, params) for stage in runs.STAGES}
    assert [number for number, done in state.items() if not done] == ["04", "06", "07"]  # 06 shows a benchmark's clip


def test_a_chapter_by_plain_papermill(finished: tuple[Path, str], tmp_path: Path) -> None:
    notebook = ROOT / "notebooks" / "07_paper_table.ipynb"
    command = [sys.executable, "-m", "papermill", str(notebook), str(tmp_path / "out.ipynb"), "-f", str(finished[0])]
    done = subprocess.run([*command, "-k", "python3"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Passed unknown parameter" not in done.stderr


def test_the_book_of_the_run(finished: tuple[Path, str]) -> None:
    """One site of all chapters and the index, without a word about the network; three chapters as markdown."""
    from tcore_lib.__main__ import main

    folder = runs.run_folder(parameters.load(finished[0]))
    for path in (folder / "notebooks").iterdir():  # as a reader has them: each cell once
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if not cell.id.startswith("again-")]
        nbformat.write(notebook, path)
    assert main(["book", str(folder)]) == 0
    index = (folder / "book" / "index.html").read_text()
    for stage in runs.STAGES:
        page = (folder / "book" / f"{stage}.html").read_text()
        assert f'href="{stage}.html"' in index
        assert not re.search(r'(src|<link[^>]*href)="(https?:)?//|@import', page), (
            f"{stage} asks the network for something"
        )
    assert "pretrained - random" in index
    pages = runpy.run_path(str(ROOT / "docs" / "write_pages.py"))
    pages["write_markdown"](pages["executed"](folder), folder / "chapters")
    written = list((folder / "chapters").rglob("*"))
    assert sorted(path.stem[:2] for path in written if path.suffix == ".md") == ["01", "03", "06"]
    assert sum(path.stat().st_size for path in written) < 3_000_000
