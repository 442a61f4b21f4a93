"""Run folders: what counts as finished, and what a stage leaves behind."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tcore_lib import runs
from tcore_lib.errors import InputError
from tcore_lib.files import read_json, write_json
from tcore_lib.params import Params

PREP, TRAIN = "00_data_prep", "01_pretraining"
PARAMS = Params.model_validate({"run": {"name": "p"}})


def test_stage_is_finished_only_by_its_marker(project: Path) -> None:
    output = project / "big.bin"
    output.write_text("weights")
    assert not runs.is_finished(PREP, PARAMS)
    stage = runs.open_stage(PREP, PARAMS)
    stage.finish({"clips": 3}, {"per_class": pd.DataFrame({"class": ["a"], "clips": [3]})}, outputs=[output])
    assert runs.is_finished(PREP, PARAMS)
    assert runs.read_results(stage.folder)[PREP]["result"] == {"clips": 3}
    assert runs.read_table(stage.folder, PREP, "per_class")["clips"].tolist() == [3]
    for section, key, value, same in (
        ("data", "num_frames", 7, False),
        ("davis", "enabled", False, False),
        ("davis", "top_k", 3, True),
    ):
        changed = Params.model_validate({"run": {"name": "p"}, section: {key: value}})
        assert runs.is_finished(PREP, changed) == same, "only what it reads counts"
    output.unlink()
    assert not runs.is_finished(PREP, PARAMS)


def test_changed_notebook_or_upstream_makes_a_stage_unfinished(project: Path) -> None:
    runs.open_stage(PREP, PARAMS).finish({})
    runs.open_stage(TRAIN, PARAMS).finish({})
    assert runs.is_finished(TRAIN, PARAMS)
    runs.open_stage(PREP, PARAMS).finish({})  # prepared anew: training is outdated
    assert runs.is_finished(PREP, PARAMS)
    assert not runs.is_finished(TRAIN, PARAMS)
    path = project / "notebooks" / f"{PREP}.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["opened by hand"]}]
    path.write_text(json.dumps(notebook))
    assert runs.is_finished(PREP, PARAMS)
    notebook["cells"][-1]["source"] = "1 + 1"
    path.write_text(json.dumps(notebook))
    assert not runs.is_finished(PREP, PARAMS)


def test_a_rerun_keeps_what_the_run_had_cost(project: Path) -> None:
    path = runs.open_stage(PREP, PARAMS).finish({})
    record = read_json(path)
    record["provenance"]["seconds"] = 5000.0
    write_json(path, record)
    runs.open_stage(PREP, PARAMS).finish({"clips": 3})
    again = read_json(path)
    assert (again["provenance"]["seconds"], again["result"]) == (5000.0, {"clips": 3})


def test_stage_without_its_predecessor_says_what_to_run(project: Path) -> None:
    with pytest.raises(InputError, match=r"builds on 00_data_prep.*run notebooks/00_data_prep\.ipynb"):
        runs.open_stage(TRAIN, Params())


def test_damaged_marker_is_not_finished(project: Path) -> None:
    runs.open_stage(PREP, PARAMS).finish({})
    (runs.run_folder(PARAMS) / ".finished" / PREP).write_text("{")
    assert not runs.is_finished(PREP, PARAMS)
