"""The whole evaluation: equal to the protocol written out, to the golden figures, resumable, and clear about faults."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import brute_force
from PIL import Image
from small_clips import H, W, write_small_davis, write_small_jhmdb, write_small_vip
from tcore_lib.evaluation.protocol import input_size
from tcore_lib.evaluation.scoring import jhmdb_rows, score_predictions
from test_clips import damage

from tcore_lib import bodies, params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips as clipfiles, evaluate as evaluation, labels as labelmaps, metrics
from tcore_lib.evaluation.clips import Clip, load_clips
from tcore_lib.evaluation.evaluate import evaluate, share
from tcore_lib.evaluation.explain import inspect_step
from tcore_lib.evaluation.scores import summarise
from tcore_lib.model.encoders import FeatureEncoder, Pixels

SHARED = Path(__file__).parents[2] / "shared"
SMALL = {"input_size": (H, W), "radius": 4.0, "context": 3, "save_predictions": False}


def pixels(patch_size: int = 16) -> FeatureEncoder:
    return FeatureEncoder(Pixels(patch_size), f"pixels{patch_size}")


def davis(**settings: object) -> params.Davis:
    return params.Davis(**{**SMALL, **settings})  # type: ignore[arg-type]


def vip(**settings: object) -> params.Vip:
    return params.Vip(**{"long_side": W, "radius": 4.0, "save_predictions": False, **settings})  # type: ignore[arg-type]


@pytest.fixture
def davis_clips(tmp_path: Path) -> list[Clip]:
    return clipfiles.load_clips(davis(), write_small_davis(tmp_path / "davis"))


# ---------------------------------------------------------------------------------------------- right


def soft_maps(
    clip: Clip, first: torch.Tensor, size: tuple[int, int], top_k: int = 7, **settings: object
) -> torch.Tensor:
    """The protocol written out: every frame's pixels as features, brute force."""
    frames = torch.from_numpy(np.stack([clipfiles.read_frame(path) for path in clip.frames]))
    features = pixels()(labelmaps.to_input(frames, size))  # float32: the still ground ties, in float64 otherwise
    return brute_force(features, first, top_k=top_k, radius=4.0, **settings)  # type: ignore[arg-type]


def test_davis_equals_the_protocol_written_out(davis_clips: list[Clip]) -> None:
    table = evaluate({"pixels": pixels()}, davis_clips, davis(), progress=False)
    assert table[["encoder", "clip", "object"]].to_numpy().tolist() == [
        ["pixels", "one", 1],
        ["pixels", "one", 2],
        ["pixels", "two", 1],
    ]
    for clip in davis_clips:
        truths = np.stack([clipfiles.read_ids(path) for path in clip.annotations])
        first, ids = labelmaps.first_soft_map(truths[0], (H, W), (H // 16, W // 16))
        predicted = labelmaps.to_ids(soft_maps(clip, first, (H, W), context=3), ids, (H, W)).numpy()
        for row in table[table["clip"] == clip.name].itertuples():
            found, true = predicted[1:-1] == row.object, truths[1:-1] == row.object
            j = [(a & b).sum() / (a | b).sum() for a, b in zip(found, true, strict=True)]
            f = [metrics.boundary_measure(a, b) for a, b in zip(found, true, strict=True)]
            assert row.J_mean == pytest.approx(np.mean(j), abs=1e-9)
            assert row.F_mean == pytest.approx(np.mean(f), abs=1e-9)
            assert row.JF_mean == pytest.approx((np.mean(j) + np.mean(f)) / 2, abs=1e-9)
            assert row.frames == 4
    assert table["J_mean"].min() > 0.3  # the squares are found at all


def test_jhmdb_equals_the_protocol_written_out(tmp_path: Path) -> None:
    settings = params.Jhmdb(input_size=(96, 96), radius=4.0, context=3, save_predictions=False)
    clips = clipfiles.load_clips(settings, write_small_jhmdb(tmp_path))
    table = evaluate({"pixels": pixels()}, clips, settings, progress=False)
    assert len(table) == 2 * 15
    for clip in clips:
        grid = clip.joints[0] * (96 / W, 96 / H) / 16
        joints = labelmaps.to_joints(soft_maps(clip, labelmaps.joint_soft_map(grid, (6, 6)), (96, 96), context=3))
        joints = joints.numpy() / 6 * (W, H)
        rows = table[table["clip"] == clip.name]
        for threshold in metrics.PCK_THRESHOLDS:
            box = clip.joints[1:].max(1) - clip.joints[1:].min(1)  # every joint is found
            unit = 0.6 * np.linalg.norm(box, axis=-1)
            correct = np.linalg.norm(joints[1:] - clip.joints[1:], axis=-1) <= threshold * unit[:, None]
            assert rows[f"correct@{threshold}"].tolist() == correct.sum(0).tolist()
        assert rows["found"].tolist() == [4] * 15  # frame 0 is not counted


def test_vip_counts_every_annotated_frame_and_no_other(tmp_path: Path) -> None:
    clips = clipfiles.load_clips(vip(), write_small_vip(tmp_path))
    table = evaluate({"pixels": pixels()}, clips, vip(), progress=False)
    assert input_size(clips[0], vip(), 16) == (64, W)  # 96 rows floored to a multiple of 64
    assert len(table) == 2 * 20
    per_clip = table.groupby("clip")["true"].sum()
    assert per_clip.tolist() == [3 * H * W] * 2  # 3 of 5 frames are annotated
    present = table[table["true"] > 0]
    assert sorted(present["part"].unique()) == ["background", "face", "hair"]
    assert table[table["part"] == "hat"]["IoU"].isna().all()
    first, ids = labelmaps.first_soft_map(clipfiles.read_ids(clips[0].annotations[0]), (64, W), (4, W // 16))
    predicted = labelmaps.to_ids(soft_maps(clips[0], first, (64, W), top_k=10), ids, (64, W)).numpy()
    hits = 0
    for frame in (0, 2, 4):
        truth = clipfiles.read_ids(clips[0].annotations[frame])
        column = Image.fromarray(np.arange(64, dtype=np.uint8)[:, None])  # the released scorer resizes with Pillow
        rows = np.array(column.resize((1, H), Image.Resampling.NEAREST))[:, 0]
        hits += (predicted[frame][rows] == truth).sum()
    assert table[table["clip"] == "videos1"]["hit"].sum() == hits


def golden(name: str) -> dict[str, object]:
    path = SHARED / "golden" / "evaluation.json"
    if not path.exists():
        pytest.skip(f"{path} is not there: the original's figures come with the work place, not with the repository")
    return json.loads(path.read_text())[name]


@pytest.mark.parametrize("threads", [1, 2])  # sums round differently, and equal cells are then not quite equal
def test_jhmdb_golden(threads: int) -> None:
    # The DAVIS clips take minutes: benchmarks/evaluation_parity.py compares all of them.
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    expected = golden("jhmdb-sample")["PCK"]
    settings = params.Jhmdb(save_predictions=False)
    clips = clipfiles.load_clips(settings, SHARED / "data" / "jhmdb-sample")
    scores = summarise(evaluate(pixels(), clips, settings, progress=False), "jhmdb").set_index("score")["value"]
    torch.set_num_threads(before)
    assert scores.to_dict() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("size", "expected"), [((720, 1280), (448, 880)), ((1280, 720), (880, 448)), ((500, 500), (880, 832))]
)
def test_vip_input_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    clip = Clip("x", "vip", (Path("a"),), size)
    assert input_size(clip, params.Vip(), 16) == expected  # int(720 * 880 / 1280) = 495, floored to 448 = 7 * 64
    assert input_size(clip, params.Vip(), 14) == tuple(side // 14 * 14 for side in expected)


def test_input_smaller_than_a_patch_is_refused() -> None:
    clip = Clip("x", "vip", (Path("a"),), (100, 2000))  # int(100 * 880 / 2000) = 44, floored to 0
    with pytest.raises(InputError, match=r"x .2000x100. would be resized to 880x0"):
        input_size(clip, params.Vip(), 16)


# ---------------------------------------------------------------------------------------------- practical


def test_encoders_share_decoded_frames_and_may_differ_in_patch_size(
    davis_clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    original = clipfiles.read_frame
    monkeypatch.setattr(clipfiles, "read_frame", lambda path: (read.append(path), original(path))[1])
    both = evaluate({"a": pixels(16), "b": pixels(14)}, davis_clips, davis(), progress=False)
    assert sorted(read) == sorted(path for clip in davis_clips for path in clip.frames)  # once each
    for name, patch_size in (("a", 16), ("b", 14)):
        alone = evaluate({name: pixels(patch_size)}, davis_clips, davis(), progress=False)
        pd.testing.assert_frame_equal(both[both["encoder"] == name].reset_index(drop=True), alone)


class Killed(Exception):
    pass


def test_a_killed_run_continues_with_the_first_unfinished_clip(
    davis_clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(pixels(), davis_clips, davis(), progress=False)
    encoded: list[int] = []
    original = evaluation.encode

    def encode(encoder: FeatureEncoder, images: torch.Tensor, precision: str) -> torch.Tensor:
        encoded.append(len(images))
        if sum(encoded) == 10:  # in the second clip
            raise Killed
        return original(encoder, images, precision)

    monkeypatch.setattr(evaluation, "encode", encode)
    with pytest.raises(Killed):
        evaluate(pixels(), davis_clips, davis(), output=tmp_path / "out", progress=False)
    assert [path.name for path in (tmp_path / "out").glob("clips/*/*.json")] == ["one.json"]
    encoded[:] = [-100]  # no more interruptions
    pd.testing.assert_frame_equal(
        evaluate(pixels(), davis_clips, davis(), output=tmp_path / "out", progress=False), expected
    )
    assert sum(encoded) + 100 == 6  # only the second clip
    encoded.clear()
    pd.testing.assert_frame_equal(
        evaluate(pixels(), davis_clips, davis(), output=tmp_path / "out", progress=False), expected
    )
    assert encoded == []


def test_whatever_a_result_depends_on_is_noticed(davis_clips: list[Clip], tmp_path: Path) -> None:
    output = tmp_path / "out"
    encoder = pixels()

    def computed(**changed: object) -> int:
        before = {path: path.stat().st_mtime_ns for path in output.glob("clips/*/*.json")}
        evaluate({"pixels": encoder}, davis_clips, davis(**changed), output=output, progress=False)
        return sum(before.get(path) != path.stat().st_mtime_ns for path in output.glob("clips/*/*.json"))

    assert computed() == 2
    assert computed() == 0
    assert computed(clips=["one", "two"], root="elsewhere") == 0  # says where and which, not what
    assert computed(top_k=3) == 2
    assert computed(top_k=3) == 0
    clipfiles.write_ids(davis_clips[0].annotations[3], np.zeros((H, W), np.uint8))
    assert computed(top_k=3) == 1
    encoder.network.register_buffer("scale", torch.ones(1))  # other weights
    assert computed(top_k=3) == 2


def test_predictions_are_written_and_score_the_same(davis_clips: list[Clip], tmp_path: Path) -> None:
    table = evaluate(
        {"a/b": pixels()}, davis_clips, davis(save_predictions=True), output=tmp_path / "out", progress=False
    )
    (folder,) = (tmp_path / "out" / "predictions").iterdir()
    assert folder.name.startswith("a_b-")
    assert sorted(path.name for path in (folder / "one").iterdir()) == [f"{i:05d}.png" for i in range(6)]
    scored = score_predictions(davis_clips, folder)
    pd.testing.assert_frame_equal(scored, table.drop(columns="encoder"))
    (folder / "two" / "00003.png").unlink()  # a lost file is made again
    evaluate({"a/b": pixels()}, davis_clips, davis(save_predictions=True), output=tmp_path / "out", progress=False)
    assert (folder / "two" / "00003.png").exists()


def test_predictions_of_parts_and_joints(tmp_path: Path) -> None:
    settings = vip(save_predictions=True)
    clips = clipfiles.load_clips(settings, write_small_vip(tmp_path / "vip"))
    table = evaluate({"pixels": pixels()}, clips, settings, output=tmp_path / "out", progress=False)
    folder = tmp_path / "out" / "predictions" / "pixels"
    pd.testing.assert_frame_equal(score_predictions(clips, folder), table.drop(columns="encoder"))
    settings = params.Jhmdb(input_size=(96, 96), radius=4.0)
    clips = clipfiles.load_clips(settings, write_small_jhmdb(tmp_path / "jhmdb"))
    table = evaluate({"pixels": pixels()}, clips, settings, output=tmp_path / "out2", progress=False)
    joints = clipfiles.read_predicted_joints(tmp_path / "out2" / "predictions" / "pixels" / "ball_1.json")
    assert joints.shape == (5, 15, 2)
    assert pd.DataFrame(jhmdb_rows(clips[0], joints)).equals(table[table["clip"] == "ball_1"].drop(columns="encoder"))


def test_nothing_is_written_under_the_root(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path / "davis")
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    evaluate(pixels(), load_clips(davis(), root), davis(save_predictions=True), output=tmp_path / "out", progress=False)
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before


def test_ranks_share_clips_by_length() -> None:
    clips = [
        Clip(name, "davis", (Path("x"),) * length, (1, 1)) for name, length in (("a", 5), ("b", 9), ("c", 4), ("d", 1))
    ]
    parts = [share(clips, rank, 2) for rank in range(2)]
    assert [[clip.name for clip in part] for part in parts] == [["b", "d"], ["a", "c"]]  # 9 + 1 and 5 + 4 frames


def test_two_ranks_return_the_table_of_one(davis_clips: list[Clip], tmp_path: Path) -> None:
    script = tmp_path / "ranked.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_evaluate import *\n"
        f"clips = clipfiles.load_clips(davis(), {str(tmp_path / 'davis')!r})\n"
        f"table = evaluate(pixels(), clips, davis(), output={str(tmp_path / 'out')!r}, progress=False)\n"
        f"table.to_json({str(tmp_path)!r} + f'/{{os.environ[\"RANK\"]}}.json', double_precision=15)\n"
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = evaluate(pixels(), davis_clips, davis(), progress=False)
    for rank in range(2):
        pd.testing.assert_frame_equal(pd.read_json(tmp_path / f"{rank}.json"), expected)


# ---------------------------------------------------------------------------------------------- faults


def test_an_encoder_without_finite_features_is_named(davis_clips: list[Clip]) -> None:
    class Broken(Pixels):
        def tokens(self, images: torch.Tensor) -> torch.Tensor:
            return super().tokens(images) * torch.nan

    with pytest.raises(InputError, match="The encoder broken gives features that are not finite"):
        evaluate(FeatureEncoder(Broken(), "broken"), davis_clips, davis(), progress=False)


def test_a_broken_frame_and_a_wrong_size_are_named(davis_clips: list[Clip]) -> None:
    Image.new("RGB", (W, H + 2)).save(davis_clips[1].frames[2])
    with pytest.raises(InputError, match=r"two/00002\.jpg is 160x98 pixels, the clip's first frame 160x96"):
        evaluate(pixels(), davis_clips, davis(), progress=False)
    damage(davis_clips[0].frames[4])
    with pytest.raises(InputError, match=r"one/00004\.jpg cannot be decoded"):
        evaluate(pixels(), davis_clips, davis(), progress=False)


def test_nothing_to_evaluate_is_an_error(davis_clips: list[Clip]) -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate({}, davis_clips, davis(), progress=False)


def test_an_object_that_vanishes_and_one_that_was_never_there(davis_clips: list[Clip]) -> None:
    clip = davis_clips[0]
    for frame in range(len(clip)):
        ids = clipfiles.read_ids(clip.annotations[frame])
        if frame >= 2:
            ids[ids == 2] = 0  # object 2 leaves
        ids[ids == 1] = 3  # ids 2 and 3: object 1 is never there, and never predicted
        clipfiles.write_ids(clip.annotations[frame], ids)
    rows = evaluate(pixels(), [clip], davis(), progress=False).set_index("object")
    assert rows.index.tolist() == [1, 2, 3]
    assert rows.loc[1, "J_mean"] == 1  # both empty in every frame, as in the toolkit
    assert 0 < rows.loc[2, "J_mean"] < 0.5  # predicted on, but gone
    assert rows.notna().all(axis=None)


def test_void_pixels_do_not_count(davis_clips: list[Clip]) -> None:
    clip = davis_clips[1]
    plain = evaluate(pixels(), [clip], davis(), progress=False)
    for frame in range(1, len(clip)):
        ids = clipfiles.read_ids(clip.annotations[frame])
        ids[:, : W // 2] = metrics.VOID  # the square and whatever was predicted on it
        clipfiles.write_ids(clip.annotations[frame], ids)
    rows = evaluate(pixels(), [clip], davis(), progress=False)
    assert rows.loc[0, "frames"] == plain.loc[0, "frames"]
    assert rows.loc[0, "J_mean"] == 1  # nothing is left to find, and nothing is found there


# ---------------------------------------------------------------------------------------------- predictions of others


@pytest.fixture
def perfect(davis_clips: list[Clip], tmp_path: Path) -> Path:
    """The annotations as predictions."""
    for clip in davis_clips:
        for frame in range(1, len(clip) - 1):
            path = clipfiles.prediction_path(tmp_path / "made", clip, frame)
            clipfiles.write_ids(path, clipfiles.read_ids(clip.annotations[frame]))
    return tmp_path / "made"


def test_annotations_score_one(davis_clips: list[Clip], perfect: Path) -> None:
    table = score_predictions(davis_clips, perfect)
    assert table["J_mean"].tolist() == [1, 1, 1]
    assert table["F_mean"].tolist() == [1, 1, 1]


def test_an_object_that_nobody_predicted_scores_zero(davis_clips: list[Clip], perfect: Path) -> None:
    for path in (perfect / "one").iterdir():
        ids = clipfiles.read_ids(path)
        clipfiles.write_ids(path, np.where(ids == 2, 0, ids).astype(np.uint8))
    assert score_predictions(davis_clips, perfect)["J_mean"].tolist() == [1, 0, 1]


def test_wrong_predictions_are_named(davis_clips: list[Clip], perfect: Path) -> None:
    file = perfect / "two" / "00003.png"
    ids = clipfiles.read_ids(file)
    clipfiles.write_ids(file, ids + 1)
    with pytest.raises(InputError, match=r"two/00003\.png has the id 2, but two has 1 object"):
        score_predictions(davis_clips, perfect)
    clipfiles.write_ids(file, ids[:50])
    with pytest.raises(InputError, match=r"two/00003\.png is 50x160 pixels .*, its annotation 96x160"):
        score_predictions(davis_clips, perfect)
    file.unlink()
    with pytest.raises(InputError, match=r"two/00003\.png is missing"):
        score_predictions(davis_clips, perfect)


# ---------------------------------------------------------------------------------------------- one step


def test_one_step_is_the_step_of_the_evaluation(davis_clips: list[Clip]) -> None:
    clip, settings = davis_clips[0], davis()
    step = inspect_step(pixels(), clip, settings, 5, (2, 3))
    truth = clipfiles.read_ids(clip.annotations[0])
    first, ids = labelmaps.first_soft_map(truth, (H, W), (6, 10))
    soft = soft_maps(clip, first, (H, W), context=3)
    torch.testing.assert_close(step.soft, soft[5], atol=1e-5, rtol=0)
    assert step.channels == ids == [0, 1, 2]
    assert step.context == [0, 2, 3, 4]  # long memory and three frames
    assert step.context_images.shape == (4, H, W, 3)
    assert step.affinity.shape == (4, 6, 10)
    assert step.affinity[0].isfinite().all()  # frame 0 votes from anywhere
    row, column = torch.meshgrid(torch.arange(6), torch.arange(10), indexing="ij")
    assert step.affinity[1].isfinite().equal((row - 2) ** 2 + (column - 3) ** 2 < 16)
    assert len(step.votes) == 7
    assert step.votes["weight"].sum() == pytest.approx(1)
    for vote in step.votes.itertuples():
        seen = step.affinity[step.context.index(vote.frame), vote.row, vote.col]
        assert vote.similarity == pytest.approx(seen.item(), abs=1e-6)
    labels = torch.stack(
        [step.context_labels[step.context.index(v.frame), :, v.row, v.col] for v in step.votes.itertuples()]
    )
    weights = torch.tensor(step.votes["weight"].to_numpy())
    torch.testing.assert_close((labels * weights[:, None]).sum(0), step.soft[:, 2, 3])
    with pytest.raises(InputError, match="not on the grid of 6 rows and 10 columns"):
        inspect_step(pixels(), clip, settings, 5, (6, 0))
    with pytest.raises(InputError, match="choose 1 to 5"):
        inspect_step(pixels(), clip, settings, 6, (0, 0))


def test_one_step_of_joints_and_parts(tmp_path: Path) -> None:
    settings = params.Jhmdb(input_size=(96, 96), radius=4.0, context=2)
    clip = clipfiles.load_clips(settings, write_small_jhmdb(tmp_path / "jhmdb"))[0]
    step = inspect_step(pixels(), clip, settings, 4, (1, 1))
    assert step.channels == ["background", *bodies.JOINTS]
    assert step.soft.shape == (16, 6, 6)
    assert step.prediction.shape == (15, 2)
    assert step.context == [0, 2, 3]
    step = inspect_step(pixels(), clip, settings, 1, (0, 5))
    assert step.context == [0]  # every place of the context is frame 0
    assert step.votes["frame"].eq(0).all()
    clip = clipfiles.load_clips(vip(), write_small_vip(tmp_path / "vip"))[0]
    step = inspect_step(pixels(), clip, vip(), 3, (0, 0))
    assert step.channels == [0, 2, 13]
    assert set(np.unique(step.prediction)) <= {0, 2, 13}


@pytest.mark.parametrize(
    "variant",
    [
        {"radius_inclusive": True},
        {"restrict_first": True},
        {"repeat_first": False},
        {"upsampling": "nearest"},
        {"score_size": "input"},
    ],
    ids=lambda variant: next(iter(variant)),
)
def test_variants_give_another_number(davis_clips: list[Clip], variant: dict[str, object]) -> None:
    other = {"input_size": (64, 128), "radius": 1.0}  # small, so that the radius and the sizes matter
    plain = evaluate(pixels(), davis_clips, davis(**other), progress=False)
    changed = evaluate(pixels(), davis_clips, davis(**other, **variant), progress=False)
    assert not plain["JF_mean"].equals(changed["JF_mean"])
    assert changed["JF_mean"].between(0, 1).all()
