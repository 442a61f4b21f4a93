"""A clip's attention as files: from a checkpoint and a clip to what the released script draws."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tiny_problem import Pictures, tiny

from tcore_lib.__main__ import main
from tcore_lib.errors import InputError
from tcore_lib.figures import style as look
from tcore_lib.model import attention, attention_files
from tcore_lib.training import checkpoints
from tcore_lib.training.checkpoints import official_weights
from tcore_lib.training.tcore import TCoRe

RUN = tiny()
FRAMES = Pictures().read(0, range(20))  # 48 x 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = official_weights(TCoRe(RUN.pretrain, 5)) | {"params": RUN.model_dump(mode="json")}
    return checkpoints.save(tmp_path_factory.mktemp("weights"), 1, content)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def folder_of_frames(folder: Path) -> Path:
    folder.mkdir()
    for i, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{i:05d}.png")
    return folder


def test_a_folder_and_a_video_give_past_current_and_future(tmp_path: Path, video: Path) -> None:
    found = attention_files.read_sandwich(folder_of_frames(tmp_path / "frames"))
    for got, i in zip(found, (5, 9, 13), strict=True):  # 9 = the middle of 20, 4 = a fifth of them
        np.testing.assert_array_equal(got, FRAMES[i])
    for got, i in zip(attention_files.read_sandwich(video, (1, 2, 19)), (1, 2, 19), strict=True):
        assert np.abs(got.astype(int) - FRAMES[i]).mean() < 3  # the colour space is lossy


def test_every_patch_gets_its_pictures_and_the_right_outline(tmp_path: Path, checkpoint: Path) -> None:
    clip = folder_of_frames(tmp_path / "frames")
    assert main(["attention", str(checkpoint), str(clip), str(tmp_path / "out"), "--frames", "2", "9", "16"]) == 0
    side = 4  # 64 pixels in patches of 16
    names = {path.name for path in (tmp_path / "out" / "patches").iterdir()}
    assert len(names) == 3 * side**2
    expected = attention_files.look_from_everywhere(
        attention_files.load_model(checkpoint), [FRAMES[i] for i in (2, 9, 16)]
    )
    saved = np.load(tmp_path / "out" / "weights.npz")
    np.testing.assert_allclose(saved["past"], expected.maps["past"], atol=1e-6)
    assert saved["future"].shape == (4, side, side, side, side)
    np.testing.assert_allclose(saved["future"].sum((-2, -1)), 1, atol=1e-5)
    with Image.open(tmp_path / "out" / "patches" / "row01_column03_query.jpg") as image:
        query = np.asarray(image).astype(int)
    orange = np.argwhere(np.abs(query - look.to_rgb8(look.OKABE_ITO["orange"])).max(-1) < 40)
    size = len(query) / side
    inside = (orange[:, 0] // size == 1) & (orange[:, 1] // size == 3)
    assert inside.mean() > 0.9  # row 1 from the top, column 3 from the left
    with Image.open(tmp_path / "out" / "patches" / "row01_column03_future.jpg") as image:
        painted = np.asarray(image).astype(int)
    mean = expected.maps["future"][:, 1, 3].mean(0)
    wanted = look.overlay_heat(expected.crops[2], mean, limits=(0, mean.max()))
    assert np.abs(painted - wanted).mean() < 4  # JPEG
    for name in ("past.jpg", "current.jpg", "future.jpg", "current_masked.jpg", "overview.png"):
        assert (tmp_path / "out" / name).is_file()


def test_each_row_is_from_the_pass_that_hid_the_patch(checkpoint: Path) -> None:
    model = attention_files.load_model(checkpoint)
    three = [FRAMES[i] for i in (2, 9, 16)]
    everywhere = attention_files.look_from_everywhere(model, three)
    hidden = np.zeros((4, 4), bool)
    hidden[:2, 2:] = True  # one of the four squares of 2 x 2
    once = attention.look_through(model, three, hidden)
    for role in ("past", "future"):
        difference = np.abs(everywhere.maps[role] - once.maps[role])
        assert difference[:, :2, 2:].max() < 2e-3  # crops are rounded to whole grey values once more
        assert difference[:, 2:].max() > difference[:, :2, 2:].max()


@pytest.mark.parametrize(
    ("clip", "frames", "message"),
    [
        ("nothing.mp4", None, "nothing.mp4 cannot be read: file is missing; give a video"),
        ("empty", None, "empty holds no frames"),
        ("frames", (0, 5, 20), r"frames \[0, 5, 20\] are not in .*frames; give three numbers from 0 to 19"),
    ],
)
def test_bad_clips_are_one_sentence(tmp_path: Path, clip: str, frames: tuple[int, ...] | None, message: str) -> None:
    (tmp_path / "empty").mkdir()
    folder_of_frames(tmp_path / "frames")
    with pytest.raises(InputError, match=message):
        attention_files.read_sandwich(tmp_path / clip, frames)


def test_bad_weights_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no file; give a checkpoint"):
        attention_files.load_model(tmp_path / "none.pt")
    (tmp_path / "step-00000001.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="damaged or no checkpoint"):
        attention_files.load_model(tmp_path / "step-00000001.pt")
