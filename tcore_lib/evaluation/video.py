"""Side-by-side video of a clip: the frame, the prediction over it, the ground truth over it (mp4, H.264)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tcore_lib.errors import InputError
from tcore_lib.evaluation.clips import Clip, prediction_path, read_frame, read_ids, read_predicted_joints
from tcore_lib.figures import style as look
from tcore_lib.files import atomic_path

GAP = 8  # pixels between pictures
FPS = 15


def draw_joints(image: NDArray[np.uint8], joints: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A pose over a frame (H, W, 3): joints (15, 2) in pixels, x then y; NaN = not found, not drawn.

    Colours tell the sides of the body apart (`look.SIDE_COLOURS`), a dark rim keeps them visible on any ground.
    """
    width = max(2, round(min(image.shape[:2]) / 90))
    scale = 2  # drawn at twice the size: Pillow's lines have jagged edges
    picture = Image.fromarray(image).resize((scale * image.shape[1], scale * image.shape[0]))
    draw = ImageDraw.Draw(picture)
    colours = [look.SIDE_COLOURS[look.side_of(joint)] for joint in range(len(joints))]
    points = (joints + 0.5) * scale
    found = np.isfinite(points).all(-1)
    for rim, thick in (("#14171C", 1.9), (None, 1.0)):
        for first, second in look.JHMDB_BONES:
            if found[first] and found[second]:
                ends = [tuple(points[first].tolist()), tuple(points[second].tolist())]
                draw.line(ends, fill=rim or colours[second], width=round(scale * width * thick))
        for joint in np.flatnonzero(found):
            (x, y), r = points[joint].tolist(), scale * width * (1.2 if rim is None else 1.7)
            draw.ellipse([x - r, y - r, x + r, y + r], fill=rim or colours[joint])
    return np.array(picture.resize(image.shape[1::-1], Image.Resampling.LANCZOS))


def _pictures(
    clip: Clip, frame: int, predictions: Path, joints: NDArray[np.floating] | None
) -> list[NDArray[np.uint8]]:
    """Frame, prediction and, where there is one, ground truth."""
    image = read_frame(clip.frames[frame])
    if joints is not None:
        assert clip.joints is not None
        return [image, draw_joints(image, joints[frame]), draw_joints(image, clip.joints[frame])]
    palette = look.VIP_PALETTE if clip.kind == "vip" else look.object_palette()
    predicted = look.overlay_labels(image, read_ids(prediction_path(predictions, clip, frame)), palette)
    path = clip.annotations[frame]
    truth = image if path is None else look.overlay_labels(image, read_ids(path), palette)
    return [image, predicted, truth]


def side_by_side(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures (H, W, 3) of one size in a row with white gaps."""
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


def write_overlay(clip: Clip, predictions: str | Path, target: str | Path) -> Path:
    """Write the side-by-side video of a clip, 15 frames per second.

    Args:
        clip: any.
        predictions: folder of one encoder's predictions, `<output>/predictions/<encoder>`.
        target: the .mp4 file.

    Returns:
        `target`. A VIP frame without annotation shows the bare frame in the third place.

    Raises:
        InputError: a prediction is missing.
    """
    predictions, target = Path(predictions), Path(target)
    needed = {prediction_path(predictions, clip, frame) for frame in range(len(clip))}
    missing = sorted(path for path in needed if not path.exists())
    if missing:
        raise InputError(f"{missing[0]} is missing; evaluate the clip with save_predictions first.")
    joints = read_predicted_joints(needed.pop()) if clip.kind == "jhmdb" else None
    rows = (side_by_side(_pictures(clip, frame, predictions, joints)) for frame in range(len(clip)))
    write_video(target, rows, FPS, {"crf": "20", "preset": "veryfast"})
    return target


def write_video(
    target: str | Path, pictures: Iterable[NDArray[np.uint8]], fps: int, options: Mapping[str, str]
) -> None:
    """Write pictures uint8 (H, W, 3) of one size as H.264 .mp4, atomically; odd sizes, which it does not know, are cut.

    Args:
        target: the file.
        pictures: in order; read one by one.
        fps: frames per second.
        options: of libx264, such as `crf`.
    """
    with atomic_path(target) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=dict(options))
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            even = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
            if number == 0:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))
