"""The whole evaluation: equal to the protocol written out, resumable, shared, clear about faults."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_clips import H, W, damage, write_small_davis

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles
from tcore_lib.evaluation.benchmarks import benchmark_of, load_clips
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import evaluate
from tcore_lib.model.encoders import FeatureEncoder, Pixels

ROOT = Path(__file__).parents[1]


def pixels(patch_size: int = 16) -> FeatureEncoder:
    return FeatureEncoder(Pixels(patch_size), f"pixels{patch_size}")


def settings_of(**changes: Any) -> params.Davis:
    return params.Davis(**{"input_size": (H, W), "radius": 4.0, "context": 3, **changes})


@pytest.fixture
def davis_clips(tmp_path: Path) -> list[Clip]:
    return load_clips(settings_of(), write_small_davis(tmp_path / "davis"))


def test_vip_input_size() -> None:
    for size, expected in (((720, 1280), (448, 880)), ((1280, 720), (880, 448)), ((500, 500), (880, 832))):
        # int(720 * 880 / 1280) = 495, floored to 448 = 7 * 64
        assert benchmark_of(params.Vip()).input_size(Clip("x", (), size), 16) == expected
        assert benchmark_of(params.Vip()).input_size(Clip("x", (), size), 14) == tuple(s // 14 * 14 for s in expected)


def finished(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in output.glob("clips/*/*/*.json")}


def test_two_encoders_in_one_call_score_as_alone(davis_clips: list[Clip], tmp_path: Path) -> None:
    both = {"a/b": pixels(), "c": pixels(14)}
    settings = settings_of()
    table = evaluate(both, davis_clips, settings, output=tmp_path, progress=False)
    for name, encoder in both.items():
        alone = evaluate({name: encoder}, davis_clips, settings, progress=False)
        pd.testing.assert_frame_equal(table[table["encoder"] == name].reset_index(drop=True), alone)
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "predictions").iterdir()) == ["a_b", "c"]


def test_whatever_a_result_depends_on_is_noticed(davis_clips: list[Clip], tmp_path: Path) -> None:
    output, encoder = tmp_path / "out", pixels()

    def computed(**changed: object) -> int:
        before = finished(output)
        evaluate({"pixels": encoder}, davis_clips, settings_of(**changed), output=output, progress=False)
        assert len(finished(output)) == 2  # what other settings left is gone
        return len(finished(output).items() - before.items())

    assert computed() == 2
    assert computed(clips=["one", "two"], root="elsewhere") == 0  # says where and which, not what
    assert computed(top_k=3) == 2
    (output / "predictions" / "pixels" / "two" / "00003.png").unlink()
    assert computed(top_k=3) == 1  # a lost file is made again
    clipfiles.write_ids(davis_clips[0].annotations[3], np.zeros((H, W), np.uint8))
    assert computed(top_k=3) == 1
    encoder.network.register_buffer("scale", torch.ones(1))  # other weights
    assert computed(top_k=3) == 2


HOLDING = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); time.sleep(600)"
SHARING = """
import sys
sys.path.insert(0, {tests!r})
from test_evaluate import *
settings = settings_of()
evaluate({{"pixels": pixels()}}, load_clips(settings, {root!r}), settings, output={output!r}, progress=False)
"""


def test_three_processes_share_the_clips_and_one_is_killed(tmp_path: Path) -> None:
    """The one that is killed has a clip; the others leave it alone, then take it over, and the table is that of one process."""
    root, output = write_small_davis(tmp_path / "davis"), tmp_path / "out"
    held = output / "clips" / "pixels" / "one"
    held.mkdir(parents=True)
    code = SHARING.format(tests=str(Path(__file__).parent), root=str(root), output=str(output))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    settings = settings_of()
    clips = load_clips(settings, root)
    with subprocess.Popen([sys.executable, "-c", HOLDING, str(held / "lock")], stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        victim.stdout.readline()  # it has the lock
        with subprocess.Popen([sys.executable, "-c", code], env=environment) as other:
            try:
                deadline = time.monotonic() + 200
                while not finished(output) and time.monotonic() < deadline:
                    time.sleep(0.1)
                time.sleep(1)
                assert [path.parent.name for path in finished(output)] == ["two"]
                assert other.poll() is None  # it waits
                victim.kill()
                table = evaluate({"pixels": pixels()}, clips, settings, output=output, progress=False)
                assert other.wait(200) == 0
            finally:
                victim.kill()
                other.kill()
    pd.testing.assert_frame_equal(table, evaluate({"pixels": pixels()}, clips, settings, progress=False))


def test_a_broken_frame_is_named_when_the_other_clips_are_finished(davis_clips: list[Clip], tmp_path: Path) -> None:
    output, settings = tmp_path / "out", settings_of()
    frame = davis_clips[0].frames[3]
    whole = frame.read_bytes()
    damage(frame)
    with pytest.raises(InputError, match=r"one/00003\.jpg cannot be read"):
        evaluate({"pixels": pixels()}, davis_clips, settings, output=output, progress=False)
    assert [path.parent.name for path in finished(output)] == ["two"]
    frame.write_bytes(whole)
    evaluate({"pixels": pixels()}, davis_clips, settings, output=output, progress=False)
    assert len(finished(output)) == 2


def test_faults_are_named(davis_clips: list[Clip]) -> None:
    class Broken(Pixels):
        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward_features(images) * torch.nan

    with pytest.raises(InputError, match="The encoder broken gives features that are not finite"):
        evaluate({"broken": FeatureEncoder(Broken(16), "broken")}, davis_clips, settings_of(), progress=False)
    with pytest.raises(InputError, match=r"nothing to evaluate: 1 encoder\(s\) and 0 clip"):
        evaluate(pixels(), [], settings_of())
