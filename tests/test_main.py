"""The command line: bad input is a sentence, a typo finds the nearest name, nothing heavy is imported before it is needed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcore_lib.__main__ import COMMANDS, NOTEBOOKS, main, summary

ROOT = Path(__file__).parents[1]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_line_and_its_arguments_have_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary(COMMANDS[name]).endswith(".")
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "Args:" not in shown, "the docstring's section was not read"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("reproduc quick", "there is no command reproduc; did you mean 'reproduce'?"),
        ("reproduce quik", "did you mean 'quick'?"),
        ("evaluate davs --root x --encoder y --output z", 'Did you mean "davis"?'),
        ("evaluate davis --rot x", "Did you mean --root"),
        ("fetch davis", "did you mean 'davis2017'?"),
        ("prepare a", "requires an argument"),
    ],
)
def test_a_typo_is_one_sentence_with_the_nearest_name(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("tcore: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_help_and_checks_need_no_torch(tmp_path: Path) -> None:
    """A parameter file is refused before torch (seconds) or a notebook package (which may be missing) is imported."""
    (tmp_path / "bad.yaml").write_text("run: {sed: 1}")
    code = (
        "import sys; from tcore_lib.__main__ import main\n"
        f"assert main(['--help']) == 0; assert main(['init', '{tmp_path}/my.yaml']) == 0\n"
        f"from tcore_lib import runs; runs.checked_profile('quick', [], lambda params: list(runs.STAGES))\n"
        "heavy = {'torch', 'papermill', 'jupyterlab', 'anywidget', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_library_does_without_jupyter() -> None:
    """As installed without the extra `notebooks`: every command but those that run notebooks can be imported."""
    needed = sorted({where.partition(":")[0] for name, where in COMMANDS.items() if name not in NOTEBOOKS})
    code = (
        "import sys, importlib, importlib.abc\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'anywidget', 'ipywidgets', 'ipykernel', 'jupyterlab', 'papermill', 'nbclient', "
        "'nbformat', 'nbconvert', 'traitlets', 'IPython'}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"for module in {needed}: importlib.import_module(module)\n"
        "import tcore_lib.data.videos, tcore_lib.evaluation.evaluate, tcore_lib.training.loop, tcore_lib.model.export\n"
        "from tcore_lib import __main__ as cli\n"
        "cli.find_spec = lambda name: None\n"
        "sys.exit(cli.main(['reproduce', 'quick']))"
    )
    done = python(code)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "pip install 'tcore-notebooks[notebooks]'" in done.stderr


def test_everything_missing_is_said_at_once_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(
        "run: {name: trial, sed: 1}\ndata: {source: films}\ncheckpoint: {encoders: {mine: weights/best.pth}}\n"
        "pretrain: {enabled: false}\ndavis: {root: my davis}\njhmdb: {root: jhmdb}\nvip: {enabled: false, root: vip}\n"
    )
    assert main(["reproduce", "my.yaml"]) == 2
    said = capsys.readouterr().err
    for part in (
        "5 things are wrong", "run.sed", f"data.source = {tmp_path}/films is not there",
        f"tcore fetch davis2017 --root '{tmp_path}/my davis'", f"tcore fetch jhmdb --root {tmp_path}/jhmdb",
        f"checkpoint.encoders.mine = {tmp_path}/weights/best.pth is not there",
    ):  # fmt: skip
        assert part in said, said
    assert "vip" not in said
    assert main(["reproduce", "my.yaml", "--only", "3"]) == 2
    only = capsys.readouterr().err
    assert ("jhmdb" in only, "films" in only, "davis2017" in only) == (False, False, True)
    assert os.listdir(tmp_path) == ["my.yaml"]


def test_interrupt_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; from tcore_lib import __main__ as cli, fetch\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job is started deaf to it
        "def wait(name=None): print('ready', flush=True); time.sleep(60)\n"
        "fetch.fetch = wait; sys.exit(cli.main(['fetch']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (said.startswith("tcore: stopped;"), said.count("\n"), process.returncode) == (True, 1, 130)


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m tcore_lib fetch | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("kinetics400")
