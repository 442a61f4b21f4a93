"""Run folders and the driver: what counts as finished, and what the terminal says when something fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, write_json
from tcore_lib.machine.locks import sole_owner
from tcore_lib.params import Params
from tcore_lib.reproduction import reproduce

ROOT = Path(__file__).parents[1]
PREP, TRAIN = "00_data_prep", "01_pretraining"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with two trivial notebooks, one that works and one that fails."""
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params" / "p.yaml").write_text("run: {name: p}\ndata: {source: synthetic}\n")
    head = (
        "from tcore_lib import params, runs\nparams = params.from_notebook(globals())\n"
        "stage = runs.open_stage({stage!r}, params)\n"
    )
    good = head.format(stage=PREP) + "print('half way')\nstage.finish({'clips': 3})"
    bad = head.format(stage=TRAIN) + (
        "from tcore_lib.errors import InputError\nraise InputError('data/x.mp4 holds no video; remove it.')"
    )
    for stage, code in ((PREP, good), (TRAIN, bad)):
        notebook = nbformat.v4.new_notebook()
        parameters = nbformat.v4.new_code_cell("run = None\ndata = None", metadata={"tags": ["parameters"]})
        notebook.cells = [nbformat.v4.new_markdown_cell("# A title"), parameters, nbformat.v4.new_code_cell(code)]
        nbformat.write(notebook, tmp_path / "notebooks" / f"{stage}.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_atomic_path_keeps_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_json(target, {"old": 1})

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text('{"ne')
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert read_json(target) == {"old": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_nan_is_refused_in_a_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "result.json", {"score": float("nan")})
    assert os.listdir(tmp_path) == []


def test_stage_is_finished_only_by_its_marker(project: Path) -> None:
    params = Params.model_validate({"run": {"name": "p"}})
    output = project / "big.bin"
    output.write_text("weights")
    assert not runs.is_finished(PREP, params)
    stage = runs.open_stage(PREP, params)
    stage.finish({"clips": 3}, {"per_class": pd.DataFrame({"class": ["a"], "clips": [3]})}, outputs=[output])
    assert runs.is_finished(PREP, params)
    assert runs.read_result(stage.folder, PREP)["result"] == {"clips": 3}
    assert runs.read_table(stage.folder, PREP, "per_class")["clips"].tolist() == [3]
    changed = Params.model_validate({"run": {"name": "p"}, "data": {"num_frames": 7}})
    assert not runs.is_finished(PREP, changed)
    assert runs.is_finished(PREP, params)
    output.unlink()
    assert not runs.is_finished(PREP, params)


def test_changed_notebook_or_upstream_makes_a_stage_unfinished(project: Path) -> None:
    params = Params.model_validate({"run": {"name": "p"}})
    runs.open_stage(PREP, params).finish({})
    runs.open_stage(TRAIN, params).finish({})
    assert runs.is_finished(TRAIN, params)
    runs.open_stage(PREP, params).finish({})  # prepared anew: training is outdated
    assert runs.is_finished(PREP, params)
    assert not runs.is_finished(TRAIN, params)
    path = project / "notebooks" / f"{PREP}.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["opened by hand"]}]
    path.write_text(json.dumps(notebook))
    assert runs.is_finished(PREP, params)
    notebook["cells"][-1]["source"] = "1 + 1"
    path.write_text(json.dumps(notebook))
    assert not runs.is_finished(PREP, params)


def test_stage_without_its_predecessor_says_what_to_run(project: Path) -> None:
    with pytest.raises(InputError, match=r"builds on 00_data_prep.*run notebooks/00_data_prep\.ipynb"):
        runs.open_stage(TRAIN, Params())


def test_damaged_marker_is_not_finished(project: Path) -> None:
    params = Params.model_validate({"run": {"name": "p"}})
    runs.open_stage(PREP, params).finish({})
    (runs.run_folder(params) / ".finished" / PREP).write_text("{")
    assert not runs.is_finished(PREP, params)


def test_driver_runs_skips_and_reports_failure(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "tcore_lib", "reproduce", "params/p.yaml", "--only", "00,01"]
    first = subprocess.run(command, capture_output=True, text=True, cwd=project, check=False)
    assert first.returncode == 1
    lines = first.stdout.splitlines()
    assert "[1/2] 00_data_prep" in lines
    assert "    cell 3/3  A title" in lines  # papermill added the injected parameters
    assert "      half way" in lines
    assert "01_pretraining failed: data/x.mp4 holds no video; remove it." in lines
    saved = project / "results" / "p" / "notebooks" / f"{TRAIN}.ipynb"
    assert f"The notebook as far as it came: {saved}" in lines
    assert saved.is_file()
    second = subprocess.run(command, capture_output=True, text=True, cwd=project, check=False)
    assert "[1/2] 00_data_prep: finished earlier and unchanged, skipped" in second.stdout
    assert "01_pretraining failed" in second.stdout


def test_driver_refuses_before_starting(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tcore_lib.__main__ import main

    assert main(["reproduce", "params/p.yaml", "--only", "09"]) == 2
    assert "There is no notebook '09'" in capsys.readouterr().err
    (project / "params" / "p.yaml").write_text("run: {naem: p}")
    assert main(["reproduce", "params/p.yaml"]) == 2
    assert "did you mean 'name'?" in capsys.readouterr().err
    assert not (project / "results").exists()


def test_second_driver_of_the_same_run_is_refused(project: Path) -> None:
    folder = project / "results" / "p"
    with (
        sole_owner(folder / ".lock"),
        pytest.raises(InputError, match=rf"in use by process {os.getpid()}"),
        sole_owner(folder / ".lock"),
    ):
        pass
    with sole_owner(folder / ".lock"):  # free again
        pass


def test_plan_follows_the_profile() -> None:
    params = Params.model_validate({"pretrain": {"enabled": False}, "vip": {"enabled": False}})
    assert [stage[:2] for stage in reproduce.plan(params)] == ["00", "02", "03", "04", "06", "07"]
    assert [stage[:2] for stage in reproduce.plan(params, start="04")] == ["04", "06", "07"]
    assert [stage[:2] for stage in reproduce.plan(params, only=["03", "07"])] == ["03", "07"]


def test_progress_lines_are_readable_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with reproduce._LineEcho(sys.stdout, every=0.0) as echo:
        echo.write("\r10%")
        echo.write("\r90%")
        echo.write("\r100%\nnext")
    assert capsys.readouterr().out.splitlines() == ["      10%", "      90%", "      100%", "      next"]
