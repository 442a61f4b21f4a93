"""`evaluate` and `score` as commands, and the overlay video."""

import json
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from small_clips import H, W, write_small_davis, write_small_jhmdb, write_small_vip

from tcore_lib import params, runs
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, video as overlay
from tcore_lib.evaluation.commands import evaluate_command, score_command
from tcore_lib.figures import style as look

SMALL = {"input_size": [H, W], "radius": 4.0, "context": 3}


def test_davis_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_small_davis(tmp_path / "data"), tmp_path / "out"
    assert evaluate_command("davis", root, ["pixels"], out, overlays=True, settings=SMALL) == 0
    printed = capsys.readouterr().out
    assert "fit for evaluation" in printed
    assert "J&F_m" in printed
    record = json.loads((out / "summary.json").read_text())
    assert record["clips"] == ["one", "two"]
    assert record["frames"] == 12
    assert record["settings"]["radius"] == 4.0  # the settings stand beside the scores
    assert record["settings"]["temperature"] == 0.7
    assert record["provenance"]["versions"]["torch"]
    table = pd.read_csv(out / "objects.csv")
    assert len(table) == 3
    score = record["scores"]["pixels"]["J&F_m"]
    assert score["value"] == pytest.approx(100 * table["JF_mean"].mean(), abs=1e-3)
    assert score["low"] <= score["value"] <= score["high"]
    # What was written scores the same.
    assert score_command("davis", root, out / "predictions" / "pixels", tmp_path / "score.json") == 0
    scored = json.loads((tmp_path / "score.json").read_text())
    assert scored["scores"]["predictions"] == record["scores"]["pixels"]
    assert [row["object"] for row in scored["rows"]] == [1, 2, 1]
    with av.open(str(out / "overlays" / "pixels" / "two.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 6
    assert frames[0].shape == (H, 3 * W + 2 * overlay.GAP, 3)
    original = clips.read_frame(root / "JPEGImages" / "480p" / "two" / "00000.jpg")
    assert np.abs(frames[0][:, :W].astype(int) - original).mean() < 12  # the plain frame, but for compression


def test_parts_and_joints_from_the_command_line(tmp_path: Path) -> None:
    root = write_small_vip(tmp_path / "vip")
    evaluate_command(
        "vip", root, ["pixels"], tmp_path / "a", clips=["videos2"], overlays=True, settings={"long_side": W}
    )
    record = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert record["clips"] == ["videos2"]
    assert record["scores"]["pixels"]["mIoU"]["low"] is None  # one clip has no interval
    assert len(pd.read_csv(tmp_path / "a" / "parts.csv")) == 20
    score_command("vip", root, tmp_path / "a" / "predictions" / "pixels", tmp_path / "s.json", clips=["videos2"])
    scored = json.loads((tmp_path / "s.json").read_text())
    assert scored["scores"]["predictions"]["mIoU"]["value"] == record["scores"]["pixels"]["mIoU"]["value"]
    root = write_small_jhmdb(tmp_path / "jhmdb")
    evaluate_command("jhmdb", root, ["pixels"], tmp_path / "b", overlays=True, settings={"input_size": [96, 96]})
    record = json.loads((tmp_path / "b" / "summary.json").read_text())
    assert set(record["scores"]["pixels"]) == {f"PCK@{t}" for t in (0.1, 0.2, 0.3, 0.4, 0.5)}
    assert len(pd.read_csv(tmp_path / "b" / "joints.csv")) == 30
    for name in ("a/overlays/pixels/videos2.mp4", "b/overlays/pixels/ball_1.mp4"):
        with av.open(str(tmp_path / name)) as container:
            assert sum(1 for _ in container.decode(video=0)) == 5


def test_a_pose_is_drawn_where_it_is() -> None:
    joints = np.full((15, 2), np.nan)
    joints[0], joints[1] = (10.0, 5.0), (10.0, 25.0)  # neck and belly; everything else was not found
    drawn = overlay.draw_joints(np.zeros((40, 60, 3), np.uint8), joints)
    assert drawn[15, 10].max() > 0  # the bone between them
    assert np.abs(drawn[5, 10].astype(int) - look.to_rgb8(look.SIDE_COLOURS["middle"])).max() < 10
    assert drawn[:, 20:].max() == 0


def test_bad_input_stops_before_work(tmp_path: Path) -> None:
    root = write_small_davis(tmp_path / "data")
    with pytest.raises(InputError, match="no benchmark 'davis2017'"):
        evaluate_command("davis2017", root, ["pixels"], tmp_path / "out")
    with pytest.raises(InputError, match="topk"):
        evaluate_command("davis", root, ["pixels"], tmp_path / "out", settings={"topk": 5})
    with pytest.raises(InputError, match="'three' is not in"):
        evaluate_command("davis", root, ["pixels"], tmp_path / "out", clips=["three"])
    with pytest.raises(InputError, match="cannot be scored from PNGs"):
        score_command("jhmdb", root, tmp_path, tmp_path / "s.json")
    with pytest.raises(InputError, match="is not a folder"):
        score_command("davis", root, tmp_path / "absent", tmp_path / "s.json")
    with pytest.raises(InputError, match=r"one/00001\.png is missing"):
        score_command("davis", root, tmp_path, tmp_path / "s.json")
    clip = clips.load_clips(params.Davis(), root)[0]
    with pytest.raises(InputError, match="evaluate the clip with save_predictions first"):
        overlay.write_overlay(clip, tmp_path / "absent", tmp_path / "x.mp4")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "s.json").exists()


def test_the_device_is_checked_and_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, asked = write_small_davis(tmp_path / "data"), []
    for device in ("tpu", "cuda:99"):
        with pytest.raises(InputError, match=r"run\.device"):
            evaluate_command("davis", root, ["pixels"], tmp_path / "out", device=device, settings=SMALL)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(runs, "provenance", lambda params, started: asked.append(params.run.device) or {})
    evaluate_command("davis", root, ["pixels"], tmp_path / "out", clips=["two"], device="cpu", settings=SMALL)
    assert asked == ["cpu"]  # else a machine with a GPU would claim to have used it
