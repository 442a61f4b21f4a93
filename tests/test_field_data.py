"""Inputs as people have them: other numbering, stray folders, odd containers, lists saved by a spreadsheet.

Each kind was a report of somebody who does this job. The right outcome is the right value, or a refusal that says why.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coded_videos import coded_frame, read_code, write_video
from PIL import Image

from tcore_lib.data import images, sources, videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.params import Data, parse

pytestmark = pytest.mark.usefixtures("here")


def data(source: Path, **changes: Any) -> Data:
    return parse({"data": {"source": str(source), "root": f"{source}-out"} | changes}, "test").data


def prepared(source: Path, **changes: Any) -> FrameIndex:
    return FrameIndex.load(videos.prepare(data(source, **changes), progress=False).index)


def left_out(source: Path, **changes: Any) -> dict[str, str]:
    """Name -> reason."""
    return {Path(name).name: reason for name, reason in sources.find(data(source, **changes)).left_out}


def frames(folder: Path, names: list[str], size: tuple[int, int] = (64, 48)) -> None:
    """Frame k shows the number k."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        Image.fromarray(coded_frame(k, size)).save(folder / name)


# ---------------------------------------------------------------------------------------------- the order of frames

NUMBERINGS = {
    "prefix": [f"frame_{i}.jpg" for i in range(1, 13)],
    "too many zeros": [f"000{i}.jpg" for i in range(1, 13)],
    "behind": [f"{i}_left.jpg" for i in range(1, 13)],
    "two numbers": [f"v2-s{i // 10}-f{i}.jpg" for i in range(1, 13)],
    "seconds": [f"{i / 25}.png" for i in range(12)],
    "date and time": [f"IMG_2024010{i // 8 + 1}_{1000 + 7 * i}.jpg" for i in range(12)],
    "both cases": [f"{'Frame' if i % 2 else 'frame'}_{i}.{'JPG' if i % 3 else 'jpeg'}" for i in range(1, 13)],
    "letters of the world": [f"кадр ({i}).jpg" for i in range(1, 13)],
}


@pytest.mark.parametrize("kind", NUMBERINGS)
def test_frames_go_by_their_numbers(tmp_path: Path, kind: str) -> None:
    names = NUMBERINGS[kind]
    assert images.in_order(sorted(names)) == images.in_order(sorted(names, reverse=True)) == names
    assert images.in_order([Path("x9") / name for name in sorted(names)]) == [Path("x9") / name for name in names]
    frames(tmp_path / "in/walk/clip1", names)
    index = prepared(tmp_path / "in")
    assert index.kind == "frames"
    assert [read_code(frame) for frame in index.read(0, range(12))] == list(range(12))


def test_tenths_or_the_tenth() -> None:
    """0.1 of a second comes after 0.04; frame 10 of video 1 after frame 2."""
    assert images.in_order(["0.1.jpg", "0.12.jpg", "0.04.jpg"]) == ["0.04.jpg", "0.1.jpg", "0.12.jpg"]
    names = [f"1.{i}.jpg" for i in range(1, 12)]
    assert images.in_order(sorted(names)) == names


SEVERAL = {
    "two cameras": [f"cam{c}_{i:04d}.jpg" for c in (1, 2) for i in range(8)],
    "colour and depth": [f"{kind}_{i:04d}.png" for kind in ("colour", "depth") for i in range(8)],
    "twice": [f"{i:05d}.{suffix}" for suffix in ("jpg", "png") for i in range(8)],
    "padded and not": ["1.jpg", "01.jpg", "2.jpg"],
    "no numbers": ["a.jpg", "b.jpg", "c.jpg"],
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_folder_holds_one_sequence_or_is_reported(tmp_path: Path, kind: str) -> None:
    """... and never stops the others."""
    frames(tmp_path / "in/walk/bad", SEVERAL[kind])
    frames(tmp_path / "in/walk/good", [f"{i}.jpg" for i in range(8)])
    frames(tmp_path / "in/walk/two sizes", ["1.jpg", "2.jpg"])
    frames(tmp_path / "in/walk/two sizes", ["3.jpg"], (32, 24))
    report = videos.prepare(data(tmp_path / "in", layout="frames"), progress=False)
    assert FrameIndex.load(report.index).paths.tolist() == ["walk/good"]
    said = report.bad_files.read_text()
    assert "several sequences" in said or "none with a number" in said
    assert "different sizes (32x24, 64x48)" in said


# ---------------------------------------------------------------------------------------------- what lies beside the data


@pytest.mark.parametrize("deep", ["", "walk/"])
def test_stray_folders_are_no_videos(tmp_path: Path, deep: str) -> None:
    for name in "abc":
        frames(tmp_path / f"in/{deep}{name}", [f"{i:05d}.jpg" for i in range(20)])
    for folder in (f"{deep}@eaDir", f"{deep}b/@eaDir", f"{deep}b/thumbs", f"{deep}__MACOSX", f"{deep}.cache"):
        frames(tmp_path / "in" / folder, ["SYNOPHOTO_THUMB_M.jpg"], (20, 16))
    frames(tmp_path / f"in/{deep}c/flow", [f"{i:05d}.jpg" for i in range(20)])
    index = prepared(tmp_path / "in")
    assert index.paths.tolist() == [f"{deep}{name}" for name in "abc"]
    assert index.num_frames.tolist() == [20] * 3
    found = left_out(tmp_path / "in")
    assert found["@eaDir"] == found["__MACOSX"] == found["thumbs"] == "stray folders of a disk or viewer"
    assert found["flow"] == "folders inside a video's folder"


def test_pictures_that_are_no_frames(tmp_path: Path) -> None:
    folder = tmp_path / "in/walk/a"
    frames(folder, [f"{i:05d}.jpg" for i in range(20)])
    frames(folder, ["thumbnail.jpg"], (20, 16))
    for name in ("Thumbs.db", "._00000.jpg", ".DS_Store"):
        (folder / name).write_bytes(b"x")
    frames(tmp_path / "in/walk", ["cover.jpg"])
    frames(tmp_path / "in/b", [f"{i:05d}.jpg" for i in range(20)])  # a video beside the classes
    index = prepared(tmp_path / "in")
    assert index.paths.tolist() == ["b", "walk/a"]
    assert index.num_frames.tolist() == [20, 20]
    found = left_out(tmp_path / "in")
    assert found["thumbnail.jpg"] == "pictures without a number among frames"
    assert found["cover.jpg"] == "pictures outside a video's folder"
    assert found["Thumbs.db"] == "files of type '.db'"


def test_links_odd_names_and_empty_files(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_video(source / "a class/ein Vidéo, “mit” ☃.mp4", frames=1)
    write_video(tmp_path / "elsewhere/linked.mp4", frames=2)
    (source / "links").symlink_to(tmp_path / "elsewhere")
    (source / "links again").symlink_to(source)  # a circle
    (source / "a class/lost.mp4").symlink_to(tmp_path / "gone.mp4")
    (source / "a class/empty.MOV").touch()
    (source / "a class/half.mp4.part").write_bytes(b"x")
    report = videos.prepare(data(source), progress=False)
    index = FrameIndex.load(report.index)
    assert index.paths.tolist() == ["a class/ein Vidéo, “mit” ☃", "links/linked"]
    assert index.num_frames.tolist() == [1, 2]
    assert (report.bad, report.complete) == (2, True)
    assert left_out(source) == {"half.mp4.part": "files of type '.part'"}
    broken = os.fsencode(source / "a class") + b"/caf\xe9.mp4"  # a name in another encoding
    os.rename(os.fsencode(source / "a class/empty.MOV"), broken)
    found = sources.find(data(source))
    assert "files whose name is no text" in found.summary()
    assert videos.prepare(data(source), progress=False).videos == 2


def test_one_name_for_two_files(tmp_path: Path) -> None:
    for name in ("a.avi", "a.mp4", "A.mp4"):
        write_video(tmp_path / "in/c" / name, frames=2)
    assert prepared(tmp_path / "in").paths.tolist() == ["c/A", "c/a", "c/a.mp4"]


# ---------------------------------------------------------------------------------------------- the guess


def test_a_guess_is_shown_with_counts_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("walk01", "walk02", "jump01"):
        frames(tmp_path / "in" / name, [f"frame_{i:04d}.jpg" for i in range(1, 21)])
    index = FrameIndex.load(videos.prepare(data(tmp_path / "in")).index)
    assert (index.kind, index.num_frames.tolist()) == ("frames", [20, 20, 20])
    assert prepared(tmp_path / "in/jump01").num_frames.tolist() == [20]  # one folder alone is one video
    said = capsys.readouterr().out
    assert "3 videos as folders of frames in 1 class" in said.splitlines()[0]
    assert "guessed from 0 video files, 3 folders of numbered pictures (60), 60 pictures in all" in said


def test_what_may_be_read_in_two_ways_is_asked(tmp_path: Path) -> None:
    """cat/0001.jpg ... may be a video or photos: nothing is written before somebody says which."""
    for name in ("cat", "dog"):
        frames(tmp_path / "in" / name, [f"{i:04d}.jpg" for i in range(1, 21)])
    with pytest.raises(InputError, match=r"say data.layout .*: frames for 2 videos, or images for 40 photos"):
        prepared(tmp_path / "in")
    assert not (tmp_path / "in-out").exists()
    assert prepared(tmp_path / "in", layout="images").num_frames.tolist() == [1] * 40
    assert prepared(tmp_path / "in", layout="frames").num_frames.tolist() == [20] * 2
    write_video(tmp_path / "in/cat/a.mp4", frames=2)  # one film among forty photos
    with pytest.raises(InputError, match="videos, frames for 2 videos, or images"):
        prepared(tmp_path / "in")


DOUBTFUL = {
    **{kind: SEVERAL[kind] for kind in ("two cameras", "colour and depth")},
    "every 2.5th frame": [f"{int(2.5 * i)}.jpg" for i in range(8)],
    "seconds": [f"{i / 30:.3f}.jpg" for i in range(8)],
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_frames_of_all_kinds_are_not_taken_for_photos(tmp_path: Path, kind: str) -> None:
    """Else training would see stills, without a word."""
    frames(tmp_path / "in/clip", DOUBTFUL[kind])
    with pytest.raises(InputError, match="several ways"):
        sources.find(data(tmp_path / "in"))


def test_photos_by_class_are_images(tmp_path: Path) -> None:
    frames(tmp_path / "in/a", [f"n01440764_{7 * i * i}.JPEG" for i in range(20)])  # ImageNet: numbers with gaps
    frames(tmp_path / "in/b", ["red.png", "green.png", "blue.png"])
    assert prepared(tmp_path / "in").kind == "images"


def test_left_out_files_are_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "in/walk").mkdir(parents=True)
    for name in ("a.MP4", "b.m4v", "c.Ts", "d.xyz", "e.xyz", "g.jpg"):
        (tmp_path / "in/walk" / name).touch()
    found = sources.find(data(tmp_path / "in"))
    assert list(found.items) == ["walk/a", "walk/b", "walk/c"]
    assert "left out: 2 files of type '.xyz', such as" in found.summary()
    assert left_out(tmp_path / "in")["g.jpg"] == "files of type '.jpg'"


# ---------------------------------------------------------------------------------------------- annotations

ROWS = """label,youtube_id,time_start,time_end,split
weaving fabric,dMzycn1d3qU,1,11,train
yarn spinning,dMzycn1d3qU,0,10,train
cutting apple,c9ZWYpxefXQ,64,74,train
peeling apples,c9ZWYpxefXQ,64,74,train
passing American football (in game),lqciwm6gDrk,659,669,train
zumba,-3B32lodo2M,5,15,train
archery,onlyid_abcd,3,13,train
archery,not_at_home,3,13,train
surfing,ValClipAAAA,3,13,validate
"""


def test_classes_by_whole_name_else_by_id(tmp_path: Path) -> None:
    (tmp_path / "k.csv").write_text(ROWS)
    classes = {  # of each file
        "dMzycn1d3qU_000001_000011": "weaving_fabric",
        "dMzycn1d3qU_000000_000010": "yarn_spinning",
        "c9ZWYpxefXQ_000064_000074": "cutting_apple",
        "lqciwm6gDrk_659_669": "passing_American_football_in_game",  # another tool's zeros
        "-3B32lodo2M_000006_000016": "zumba",  # another cut of the same video
        "onlyid_abcd": "archery",
    }
    others = ("ValClipAAAA_000003_000013", "unknownnnnn_000001_000011", "lqciwm6gDrk_000659_000669.f137")
    for name in (*classes, *others):
        write_video(tmp_path / f"in/{name}.mp4", frames=2)
    found = sources.find(data(tmp_path / "in", annotations=str(tmp_path / "k.csv")))
    assert set(found.items) == {f"{label}/{name}" for name, label in classes.items()}
    assert left_out(tmp_path / "in", annotations=str(tmp_path / "k.csv")) == {
        **{f"{name}.mp4": "files that the annotations do not name" for name in others},
        "not_at_home_3_13": "rows of the annotations without a file",
    }
    found = sources.find(data(tmp_path / "in", annotations=str(tmp_path / "k.csv"), split="val"))
    assert list(found.items) == ["surfing/ValClipAAAA_000003_000013"]


@pytest.mark.parametrize(
    ("saved", "encoding"),
    [
        (lambda text: text, "utf-8"),
        (lambda text: text.replace("\n", "\r\n"), "utf-8-sig"),
        (lambda text: text.replace(",", ";"), "utf-8-sig"),
        (lambda text: text.replace(",", "\t"), "utf-16"),
    ],
)
def test_a_list_as_a_spreadsheet_saves_it(tmp_path: Path, saved: Callable[[str], str], encoding: str) -> None:
    lines = ("youtube_id,label,time_start,time_end,split", "AAAA,abseiling,10,20,train", "BBBB,zumba,1,11,train", "")
    (tmp_path / "k.csv").write_bytes(saved("\n".join(lines)).encode(encoding))
    (tmp_path / "in").mkdir()
    for name in ("AAAA_000010_000020", "BBBB_000001_000011"):
        (tmp_path / f"in/{name}.mp4").touch()
    found = sources.find(data(tmp_path / "in", annotations=str(tmp_path / "k.csv")))
    assert list(found.items) == ["abseiling/AAAA_000010_000020", "zumba/BBBB_000001_000011"]


def test_another_list_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "in/a.mp4", frames=2)
    for content, problem in (
        ("a,b\n1,2\n", r"k\.csv cannot be read \(.time_start.\); data\.annotations takes the official CSV"),
        ("label,youtube_id,time_start,time_end,split\nx,y,1,2,val\n", "has no row of split 'train'"),
    ):
        (tmp_path / "k.csv").write_text(content)
        with pytest.raises(InputError, match=problem):
            sources.find(data(tmp_path / "in", annotations=str(tmp_path / "k.csv")))


# ---------------------------------------------------------------------------------------------- images

RGB = np.zeros((64, 96, 3), np.uint8)
RGB[:, :48], RGB[:, 48:], RGB[:16] = (200, 40, 40), (40, 40, 200), 240
GREY = np.asarray(Image.fromarray(RGB).convert("L"))


def written(folder: Path, kind: str) -> Path:
    image, path = Image.fromarray(RGB), folder / f"a.{kind.split()[-1]}"
    if kind.startswith("exif"):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.ascontiguousarray(np.rot90(RGB))).save(path, quality=95, exif=exif)
    elif kind.startswith(("16 bit", "float")):
        array = GREY.astype(np.uint16) * 257 if kind.startswith("16") else GREY.astype(np.float32)
        Image.fromarray(array / 255 if "0..1" in kind else array).save(path)
    else:
        mode, _, form = kind.partition(" ")[0], *kind.partition(" ")[1:]
        options: dict[str, Any] = {"quality": 95} if form in ("JPEG", "webp", "MPO") else {}
        options |= {"transparency": 0} if mode == "P" else {"save_all": True} if form in ("webp", "MPO") else {}
        image.convert(mode).save(path, form.upper().replace("TIF", "TIFF").replace("JPG", "JPEG"), **options)
    return path


@pytest.mark.parametrize(
    ("kind", "grey"),
    [
        ("RGB png", False), ("RGB JPEG", False), ("CMYK JPEG", False), ("RGB webp", False), ("RGBA png", False),
        ("P png", False), ("RGB MPO", False), ("exif on its side JPG", False),
        ("L JPEG", True), ("LA png", True), ("16 bit png", True), ("16 bit tif", True), ("float tif", True),
        ("float 0..1 tif", True),
    ],
)  # fmt: skip
def test_one_picture_of_a_file_for_training_and_evaluation(tmp_path: Path, kind: str, grey: bool) -> None:
    path = written(tmp_path / "in", kind) if (tmp_path / "in").mkdir() is None else tmp_path
    read = images.read_rgb(path)
    assert (read.dtype, read.shape) == (np.uint8, RGB.shape)
    expected = np.repeat(GREY[..., None], 3, -1) if grey else RGB
    tolerance = 60 if kind.startswith("P ") else 12  # a palette of web colours
    for row, column in ((8, 48), (40, 20), (40, 80)):
        assert np.abs(read[row, column].astype(int) - expected[row, column]).max() <= tolerance
    if path.suffix.lower() in images.IMAGE_SUFFIXES:
        assert np.array_equal(prepared(tmp_path / "in", layout="images").read(0, [0])[0], read)
