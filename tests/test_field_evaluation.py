"""Inputs from the field: what public reports say people have on disk, each with its right outcome.

DAVIS masks (davis2017-evaluation #4), clips too short (VISOR-VOS #7), layouts of predictions (davis2017-evaluation #8), splits
without annotations (STCN #101, STM #39), odd images (Pillow #2574), frame numbers (pytorch-video-recognition #30).
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_clips import H, W, scene, write_small_davis, write_small_jhmdb

from tcore_lib import params
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips
from tcore_lib.evaluation.benchmarks import load_clips
from tcore_lib.evaluation.commands import evaluate_command, score_command

Save = Callable[[np.ndarray, Path], Any]
NOTES = "Annotations/480p/two"


def ids(frame: int) -> np.ndarray:
    """The id map of the small clip `two`: one square that moves."""
    return scene(1, frame, objects=1)[1]


def grey(labels: np.ndarray, path: Path) -> None:
    Image.fromarray(labels).save(path)


def write_davis(root: Path, frames: int, labels: Callable[[int], np.ndarray] = ids, save: Save = grey) -> Path:
    """The small clip `two` with other annotations."""
    write_small_davis(root, ("two",), frames)
    for frame in range(frames):
        save(labels(frame), root / NOTES / f"{frame:05d}.png")
    return root


def run(root: Path, output: Path, kind: Any = "davis", **changed: Any) -> int:
    changes = ("input_size=[96,160]" if kind == "davis" else "input_size=[96,96]", "radius=4.0")
    return evaluate_command(kind, root=root, output=output, **{"changes": changes, "encoder": ["pixels"], **changed})


@pytest.mark.parametrize(
    ("index", "frames", "objects"), [(5, (0, 1, 2, 3), 5), (2, (2, 3), 1), (2, (0, 1), 2), (255, (0, 1, 2, 3), 1)],
    ids=["gaps in the ids", "an object that comes later", "an object that is lost", "void"],
)  # fmt: skip
def test_ids_are_those_of_the_official_toolkit(index: int, frames: Any, objects: int, tmp_path: Path) -> None:
    def labels(t: int) -> np.ndarray:
        found = ids(t)
        found[60:80, 100:140] = index if t in frames else 0  # one more object below
        return found

    assert run(write_davis(tmp_path / "davis", 4, labels), tmp_path / "out") == 0
    table = pd.read_csv(tmp_path / "out" / "objects.csv")
    assert table["object"].tolist() == list(range(1, objects + 1))
    assert table["JF_mean"].notna().all()


REFUSED: dict[str, tuple[Save, str]] = {
    "0 and 255": (lambda m, p: grey(m * 255, p), "shows only 0 and 255, and 255 means void in DAVIS; write .* 1"),
    "alpha": (lambda m, p: Image.merge("LA", [Image.fromarray(m)] * 2).save(p), "LA image.* it holds transparency"),
    "colours": (lambda m, p: grey(np.stack([m * 128] * 3, -1), p), "RGB image.* it holds colours"),
    "JPEG": (lambda m, p: Image.fromarray(m).save(p, "JPEG"), "is a JPEG, which changes ids at outlines"),
    "16 bits": (lambda m, p: grey(m.astype(np.uint16), p), "it holds numbers of more than 8 bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_masks_are_refused_with_the_true_reason(name: str, tmp_path: Path) -> None:
    save, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason):
        run(write_davis(tmp_path / "davis", 3, save=save), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_clip_of_which_no_frame_is_scored_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_small_davis(tmp_path / "davis", ("short", "one"), 2)
    write_small_davis(root, ("long",), 4)
    (root / "ImageSets/2017/val.txt").write_text("\ufefflong\nshort\none")  # a byte order mark changes nothing
    assert run(root, tmp_path / "out") == 0
    said = "no frame is scored of short (2 frames), one (2 frames); the other 1 clips make the mean"
    assert capsys.readouterr().out.count(said) == 2  # by the doctor, and beside the score
    (root / "ImageSets/2017/val.txt").write_text("short\none")
    assert run(root, tmp_path / "out") == 1  # no score at all is not success
    root = write_small_jhmdb(tmp_path / "jhmdb", ("ball_1",), frames=1)
    assert run(root, tmp_path / "joints", "jhmdb") == 1


def test_a_split_without_annotations_gives_predictions_for_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_davis(tmp_path / "davis", 4)
    (root / "ImageSets/2017/val.txt").rename(root / "ImageSets/2017/test-dev.txt")
    for path in (root / NOTES).glob("0000[1-9].png"):
        path.unlink()
    assert run(root, tmp_path / "out", split="test-dev") == 0
    assert "the predictions are for the benchmark's server" in capsys.readouterr().out
    made = sorted((tmp_path / "out/predictions/pixels/two").iterdir())
    assert [path.name for path in made] == [f"{t:05d}.png" for t in range(4)]
    assert clips.read_ids(made[3]).shape == (H, W)
    shutil.copy(root / NOTES / "00000.png", root / NOTES / "00002.png")
    with pytest.raises(InputError, match=r"00001\.png is missing \(2 in all\); every frame needs"):
        run(root, tmp_path / "out", split="test-dev")  # some, not all: a damaged copy


def palette_anew(labels: np.ndarray, path: Path) -> None:
    Image.fromarray(np.stack([labels * 128, labels * 0, labels * 0], -1)).quantize(4).save(path)


LAYOUTS: dict[str, tuple[str, str, Save, str]] = {  # folder, name of frame t + 1, writer, reason
    "counted from 1": ("two", "{1:05d}.png", grey, "the files are 00001.png .* the frames 00000.png"),
    "JPEG": ("two", "{0:05d}.jpg", grey, "00000.jpg belongs to no frame"),
    "0 and 255": ("two", "{0:05d}.png", REFUSED["0 and 255"][0], "id 255, but the ids of two are 0 ... 1"),
    "palette anew": ("two", "{0:05d}.png", palette_anew, "quantising a coloured image numbers its colours anew"),
    "half size": ("two", "{0:05d}.png", lambda m, p: grey(m[::2, ::2], p), r"\(48, 80\), its annotation \(96, 160\)"),
    "nested": ("480p/two", "{0:05d}.png", grey, "made/two is no folder of images"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_predictions_that_do_not_fit_the_frames_are_refused_with_their_reason(name: str, tmp_path: Path) -> None:
    folder, named, save, reason = LAYOUTS[name]
    root, made = write_davis(tmp_path / "davis", 5), tmp_path / "made" / folder
    made.mkdir(parents=True)
    for t in range(5):
        save(ids(t), made / named.format(t, t + 1))
    with pytest.raises(InputError, match=reason):
        score_command("davis", root=root, predictions=tmp_path / "made", output=tmp_path / "s.json")
    assert not (tmp_path / "s.json").exists()


def test_all_frames_or_all_but_the_first_and_the_last_score_100(tmp_path: Path) -> None:
    root, made = write_davis(tmp_path / "davis", 5), tmp_path / "made" / "two"
    made.mkdir(parents=True)
    for t in (1, 2, 3, 0, 4):
        grey(ids(t), made / f"{t:05d}.png")
        if t in (3, 4):
            assert score_command("davis", root=root, predictions=made.parent, output=tmp_path / "s.json") == 0
            assert '"J&F_m": {\n    "value": 100.0' in (tmp_path / "s.json").read_text()
    (made / "00002.png").unlink()
    with pytest.raises(InputError, match=r"two/00002\.png is missing, every scored"):
        score_command("davis", root=root, predictions=made.parent, output=tmp_path / "s.json")


def test_names_suffixes_and_numbers_of_all_kinds_are_read_in_order(tmp_path: Path) -> None:
    """Letters that mean something to a shell, JPEG, 16-bit grey, no padding, files of other programs."""
    names = ("#122_It's_(a)_catch_&_throw!_0", "Ägypten_catch_f_cm_np1_le_med_0")
    root = write_small_jhmdb(tmp_path, names, frames=12)
    first, second = (root / "Rename_Images/catch" / name for name in names)
    for folder in (first, second):
        for name in ("Thumbs.db", ".DS_Store", "._00001.png"):
            (folder / name).write_bytes(b"x")
    for t in range(12):
        (first / f"{t + 1:05d}.png").unlink()
        Image.fromarray(np.full((H, W), 10 * t, np.uint8)).save(first / f"frame_{t + 1}.jpg")
        Image.fromarray(np.full((H, W), 2570 * t, np.uint16)).save(second / f"{t + 1:05d}.png")
    for clip in load_clips(params.Jhmdb(), root):
        brightness = [clip.image(frame).mean() for frame in range(len(clip))]
        np.testing.assert_allclose(brightness, 10 * np.arange(12), atol=1)  # in the order of time, 16 bits scaled to 8
