"""The driver: what it runs and skips, with which kernel, and what the terminal says when something fails."""

import json
import logging
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tcore_lib.__main__ import main
from tcore_lib.errors import InputError
from tcore_lib.params import Params
from tcore_lib.reproduction import reproduce

ROOT = Path(__file__).parents[1]


def test_runs_skips_and_reports_failure(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel is this interpreter, whatever else is called python3."""
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "another", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["reproduce", "params/p.yaml", "--only", "0,1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "[1/2] 00_data_prep" in lines
    assert f"    half way {sys.executable}" in lines
    assert any(line.startswith("[1/2] 00_data_prep: finished in") for line in lines)
    assert "01_pretraining failed: data/x.mp4 holds no video; remove it." in lines
    saved = project / "results" / "p" / "notebooks" / "01_pretraining.ipynb"
    assert f"The notebook as far as it came: {saved}" in lines
    assert saved.is_file()
    assert main(["reproduce", "params/p.yaml", "--only", "00"]) == 0
    second = capsys.readouterr().out
    assert "[1/1] 00_data_prep: finished earlier and unchanged, skipped" in second
    assert "not run" in second, "it ends with the table"
    assert f"tcore book {project / 'results' / 'p'}" in second


def test_a_killed_kernel_is_a_failure(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (project / "results/run/.finished").mkdir(parents=True)
    for stage in ("00_data_prep", "01_pretraining"):
        (project / f"results/run/.finished/{stage}").write_text('{"id": "x"}')
    failure = reproduce.run_notebook("02_checkpoint_inspection", Params(), project / "out.ipynb")
    assert failure.startswith("DeadKernelError: Kernel died")


def test_refuses_before_starting(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "params/p.yaml", "--only", "09"]) == 2
    assert "There is no notebook '09'; the notebooks are 00, 01" in capsys.readouterr().err
    assert main(["reproduce", "params/p.yaml", "--only", "0", "--set", "run.naem=x"]) == 2
    assert "did you mean 'name'?" in capsys.readouterr().err
    assert not (project / "results" / "p").exists()


def test_a_second_driver_of_the_same_run_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "PATIENCE", 0.1)
    folder = project / "results" / "p"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(reproduce.Busy, match=r"Another process is running .*/results/p"):
        reproduce.run_stages(Params.model_validate({"run": {"name": "p"}}), only="0")


def test_which_stages_run() -> None:
    params = Params.model_validate({"pretrain": {"enabled": False}, "vip": {"enabled": False}})
    for only, numbers in ((None, "00 02 03 04 06 07"), ("3, 07", "03 07")):
        assert " ".join(stage[:2] for stage in reproduce.stages_to_run(params, only)) == numbers
    with pytest.raises(InputError, match="Nothing is left to run"):
        reproduce.stages_to_run(params, only="5")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("\r10%\r90%", "90%"),
        ("\r100%\nnext\n", "100%\n    next"),
        ("Executing Cell 3------", "Executing Cell 3------"),
        ("Ending Cell 3------", None),
        ("<Figure size 900x300 with 3 Axes>", None),
        ("\n", None),
    ],
)
def test_the_log_shows_what_is_worth_reading(message: str, shown: str | None) -> None:
    record = logging.LogRecord("papermill", logging.INFO, "", 0, message, (), None)
    assert reproduce._worth_reading(record) == (shown is not None)
    assert shown is None or record.getMessage() == shown
