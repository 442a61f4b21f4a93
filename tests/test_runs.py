"""Run folders: what counts as finished, and what a stage leaves behind."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.files import atomic_path, read_json, write_json
from tcore_lib.params import Params

ROOT = Path(__file__).parents[1]
PREP, TRAIN = "00_data_prep", "01_pretraining"


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
