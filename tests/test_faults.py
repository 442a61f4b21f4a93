"""Faults of the machine and figures at the edge: a full or read-only disk, files that vanish, processes that die, NaN."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from coded_videos import write_video
from faulty import Missing, Mortal, remount, small_disk
from small_clips import H, W, write_small_davis, write_small_jhmdb, write_small_vip
from test_pretrain import assert_same, newest, prepared, train
from tiny_problem import Pictures

from tcore_lib import params, runs
from tcore_lib.data import videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.evaluation import commands, evaluate
from tcore_lib.evaluation.benchmarks import benchmark_of, load_clips
from tcore_lib.evaluation.scores import summarise
from tcore_lib.model.encoders import FeatureEncoder, Pixels
from tcore_lib.model.weights import write_torch
from tcore_lib.training import checkpoints, loop as pretrain, step as trainer
from tcore_lib.training.log import TrainingStopped

ROOT = Path(__file__).parents[1]
DAVIS = {"input_size": (H, W), "radius": 4.0, "context": 3}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "600k") as mounted:
        yield mounted


def pixels() -> FeatureEncoder:
    return FeatureEncoder(Pixels(16), "pixels")


def hidden(root: Path) -> list[str]:
    """Names of what a writer leaves behind when it fails: nothing."""
    return [path.name for path in root.rglob(".*.tmp*")]


# ---------------------------------------------------------------------------------------------- a full disk


def test_a_training_on_a_full_disk_continues_when_there_is_space(disk: Path, tmp_path: Path) -> None:
    loop = {"checkpoint_every": 1, "keep_last": 1}  # the second is written before the first is removed
    whole = train(tmp_path / "whole", 4, loop=loop)
    size = checkpoints.path_of(tmp_path / "whole" / "checkpoints", 4).stat().st_size
    remount(disk, f"size={int(1.6 * size)}")
    with pytest.raises(InputError, match="No space left on device"):
        train(disk / "run", 4, loop=loop)
    assert newest(disk / "run")["step"] == 1
    remount(disk, f"size={4 * size}")
    log = train(disk / "run", 4, loop=loop)
    assert log["total"].tolist() == whole["total"].tolist()
    for name, value in newest(tmp_path / "whole")["student"].items():
        assert torch.equal(newest(disk / "run")["student"][name], value)
    assert not hidden(disk)


def test_frames_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    first = write_video(tmp_path / "in/any/000.mp4", frames=20, size=(320, 240))
    for number in range(1, 30):
        shutil.copy(first, tmp_path / f"in/any/{number:03d}.mp4")
    settings = params.Data(source=str(tmp_path / "in"), root=str(disk / "out"), num_frames=8, workers=1)
    with pytest.raises(
        InputError, match=r"cannot be written \(No space left on device\); free some space .* continues"
    ):
        videos.prepare(settings, progress=False)
    finished = {path: path.stat().st_mtime_ns for path in (disk / "out/frames").rglob("*.jpg")}
    assert len(finished) % 8 == 0
    remount(disk, "size=64m")
    report = videos.prepare(settings, progress=False)
    assert (report.videos, report.bad, report.skipped) == (30, 0, len(finished) // 8)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert not list((disk / "out/.prepare-train").glob("unfinished*"))


def test_a_read_only_disk_is_refused_in_a_sentence(disk: Path, tmp_path: Path) -> None:
    settings = prepared(tmp_path)
    write_video(tmp_path / "in/any/a.mp4", frames=9)
    found = load_clips(params.Davis(**DAVIS), write_small_davis(tmp_path / "davis"))
    remount(disk, "ro")
    stored = {"run": {"name": "x", "results": str(disk)}}
    refused = "Read-only file system"
    with pytest.raises(InputError, match=refused):
        pretrain.pretrain(settings, FrameIndex.load(videos.index_path(settings.data)), disk / "run")
    with pytest.raises(InputError, match=refused):
        runs.open_stage("00_data_prep", params.parse(stored, "test"))
    with pytest.raises(InputError, match=refused):
        videos.prepare(params.Data(source=str(tmp_path / "in"), root=str(disk / "d"), workers=1), progress=False)
    with pytest.raises(InputError, match=refused):
        evaluate.evaluate(pixels(), found, params.Davis(**DAVIS), output=disk / "out", progress=False)


def test_a_frame_removed_during_a_training_is_named(tmp_path: Path) -> None:
    settings = prepared(tmp_path, loop={"max_steps": 8, "checkpoint_every": 1})
    index = FrameIndex.load(videos.index_path(settings.data))

    def remove() -> None:
        for path in tmp_path.glob("clip*/*.jpg"):
            path.unlink()

    with pytest.raises(InputError, match=r"^/\S+/clip\d held 20 frames and now holds 0; put a whole file in its place"):
        pretrain.pretrain(settings, index, tmp_path / "run", progress=False, on_log=remove)
    assert newest(tmp_path / "run")["step"] >= 1


# ---------------------------------------------------------------------------------------------- memory and processes


def test_a_full_device_names_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee documentation")

    monkeypatch.setattr(evaluate, "encode", full)
    found = load_clips(params.Davis(**DAVIS), write_small_davis(tmp_path / "d"))
    with pytest.raises(InputError, match="memory is full; set the benchmark's precision: bf16"):
        evaluate.evaluate(pixels(), found, params.Davis(**DAVIS), progress=False)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (Mortal(8), r"^A process that loads data died \(DataLoader worker.*lower pretrain\.loop\.workers"),
        (Missing(8), r"^clip7/00000\.jpg cannot be read \(gone\)\.$"),  # there it comes with a traceback of its own
    ],
    ids=["dies", "raises"],
)
def test_a_loader_process_that_fails_is_reported_with_its_cause(tmp_path: Path, index: Pictures, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        train(tmp_path, 6, index=index, loop={"workers": 1})
    assert train(tmp_path, 6, index=Pictures(8))["step"].iloc[-1] == 6


# ---------------------------------------------------------------------------------------------- figures at the edge


@pytest.mark.parametrize("black", [False, True])
def test_short_and_black_clips_train(tmp_path: Path, black: bool) -> None:
    """Clips of one, two and three frames; all features equal, so that KoLeo would take the logarithm of zero."""
    pictures = Pictures(9)
    pictures.num_frames = np.array([1, 2, 3] * 3)
    if black:
        pictures.read = lambda i, frames: [np.zeros((48, 64, 3), np.uint8) for _ in frames]  # type: ignore[method-assign]
    assert np.isfinite(train(tmp_path, 3, index=pictures).to_numpy()).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_with_spoilt_weights_is_passed_over(tmp_path: Path, value: float) -> None:
    """The run goes on from the one before, as if nothing had been; where all are spoilt, the sentence says what to do."""
    train(tmp_path, 2, loop={"checkpoint_every": 1})
    sound = checkpoints.load(checkpoints.path_of(tmp_path / "checkpoints", 2))
    for step in (2, 1):
        content = checkpoints.load(checkpoints.path_of(tmp_path / "checkpoints", step))
        name = next(name for name in content["student"] if name.endswith("qkv.weight"))
        content["student"][name][0, 0] = value
        write_torch(checkpoints.path_of(tmp_path / "checkpoints", step), content)
        said = rf"step-0000000{step}\.pt cannot be read \(student\..*qkv\.weight holds NaN or infinity\)"
        if step == 2:
            with pytest.warns(UserWarning, match=said + r".* The run continues from the checkpoint before it\."):
                assert train(tmp_path, 2, loop={"checkpoint_every": 1})["step"].tolist() == [1, 2]
            assert_same(newest(tmp_path)["student"], sound["student"])
    checkpoints.path_of(tmp_path / "checkpoints", 2).unlink()
    with pytest.raises(InputError, match=said + r".*move it out of the folder"):
        train(tmp_path, 4)


def test_a_spoilt_gradient_stops_a_training(tmp_path: Path) -> None:
    """The loss is finite, its gradient is not."""
    real = trainer.Trainer.gradients

    def spoilt(self: trainer.Trainer, *args: Any) -> dict[str, torch.Tensor]:
        values = real(self, *args)
        next(iter(self.model.trained()["encoder"].parameters())).grad.fill_(float("nan"))  # type: ignore[union-attr]
        return values

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer.Trainer, "gradients", spoilt)
        with pytest.raises(TrainingStopped, match=r"step 1: grad_norm_encoder became nan"):
            train(tmp_path, 2)
    assert not checkpoints.steps_in(tmp_path / "checkpoints")


WRITERS = {
    "davis": (write_small_davis, params.Davis(**DAVIS), ("one",)),
    "vip": (write_small_vip, params.Vip(long_side=W, radius=4.0), ("videos1",)),
    "jhmdb": (write_small_jhmdb, params.Jhmdb(input_size=(96, 96), radius=4.0), ("ball_1",)),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_clips_of_one_two_and_three_frames_are_scored_or_said_to_have_nothing(
    tmp_path: Path, kind: str, frames: int
) -> None:
    """DAVIS leaves the first and the last frame out, JHMDB the first: of a clip too short nothing is left, and it is said."""
    write, settings, names = WRITERS[kind]
    found = load_clips(settings, write(tmp_path / kind, names, frames))
    table = evaluate.evaluate(pixels(), found, settings, output=tmp_path / "out", progress=False)
    scores = summarise(table, kind)
    counted = {"davis": frames - 2, "vip": 1, "jhmdb": frames - 1}[kind]
    headline = scores["value"].iloc[0]
    assert np.isnan(headline) == (counted <= 0)
    again = evaluate.evaluate(pixels(), found, settings, output=tmp_path / "out", progress=False)
    pd.testing.assert_frame_equal(table, again)  # also NaN survives the file of a finished clip
    assert commands.finish(tmp_path / "s.json", {}, table, settings, found) == int(counted <= 0)  # without NaN


def test_joints_outside_the_image_are_counted_and_defined(tmp_path: Path) -> None:
    """A joint that lies outside in every frame has no mass on the grid, is never found, and does not count."""
    settings = params.Jhmdb(input_size=(96, 96), radius=4.0)
    root = write_small_jhmdb(tmp_path, ("ball_1",))
    import scipy.io

    path = root / "joint_positions/catch/ball_1/joint_positions.mat"
    joints = scipy.io.loadmat(path)["pos_img"]
    joints[:, 3] = -500.0
    scipy.io.savemat(path, {"pos_img": joints})
    found = load_clips(settings, root)
    table = evaluate.evaluate(pixels(), found, settings, output=tmp_path / "o", progress=False)
    assert table["found"].tolist() == [4, 4, 4, 0] + [4] * 11
    assert summarise(table, "jhmdb")["value"].notna().all()
    read = benchmark_of(settings).predictions(tmp_path / "o" / "predictions" / "pixels", found[0])
    predicted = np.array([read(frame) for frame in range(5)])
    assert np.isnan(predicted[1:, 3]).all()
    assert np.isfinite(np.delete(predicted, 3, axis=1)).all()
