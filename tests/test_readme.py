"""README's commands exist, with these options, and some test runs each of them."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tcore_lib.__main__ import application, main
from tcore_lib.params import SyntheticData
from tcore_lib.scenes import synthetic

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
ENCODER = ROOT / "results" / "encoders" / "evening.safetensors"
COMMANDS = sorted(set(re.findall(r"`(?:python -m tcore_lib|tcore) ((?:[^`\n|]|\n(?!\n))+?)`", TEXT)))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command: str) -> None:
    words = shlex.split(command.replace("<file>", "quick"))
    application(words).parse_args(words, exit_on_error=False, print_error=False)  # raises where a word is unknown


def test_every_subcommand_is_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    used = {command.split()[0] for command in COMMANDS}
    assert len(used) >= 10
    for name in used:
        assert re.search(rf"""(main\(\s*\[|"tcore_lib",|tcore\()\s*["']{name}["']""", tests), f"no test runs {name}"


def test_evaluation_commands_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As README lists them: examine a benchmark, evaluate an encoder on it, score the predictions again."""
    root, out = tmp_path / "davis", tmp_path / "out"
    synthetic.write_set("davis", root, SyntheticData(davis_clips=1, eval_frames=3), 0, progress=False)
    assert main(["doctor", "davis", "--root", str(root)]) == 0
    assert main(["evaluate", "davis", "--root", str(root), "--encoder", str(ENCODER), "--output", str(out)]) == 0
    (predictions,) = (out / "predictions").iterdir()
    scores = tmp_path / "scores.json"
    where = ["--root", str(root), "--predictions", str(predictions), "--output", str(scores)]
    assert main(["score", "davis", *where]) == 0
    measured = json.loads((out / "summary.json").read_text())["scores"][str(ENCODER)]["J&F_m"]["value"]
    assert json.loads(scores.read_text())["scores"]["predictions"]["J&F_m"]["value"] == pytest.approx(measured)
    assert main(["inspect", str(ENCODER)]) == 0
    assert "128" in capsys.readouterr().out
    assert main(["export", str(ENCODER), str(tmp_path / "timm"), "--format", "timm"]) == 0
    assert list((tmp_path / "timm").iterdir())


def test_data_and_table_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = SyntheticData(videos=2, classes=2, video_size=(96, 64), video_seconds=1.0)
    synthetic.write_set("videos", tmp_path / "videos", settings, 0, progress=False)
    assert main(["prepare", str(tmp_path / "videos"), str(tmp_path / "frames"), "--frames", "4"]) == 0
    assert "2 videos" in capsys.readouterr().out
    assert main(["table"]) == 0
    assert "reproduced" in capsys.readouterr().out
    assert main(["fetch", "vip", "--root", str(tmp_path)]) == 2  # nothing is fetched: it says what to do by hand
    assert "OneDrive" in capsys.readouterr().err


def test_make_targets_and_files_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"make ([a-z]+)", TEXT):
        assert target in targets
    for path in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / path).exists(), path
