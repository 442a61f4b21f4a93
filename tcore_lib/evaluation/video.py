"""Side-by-side video of a clip: the frame, the prediction over it, the ground truth over it (mp4, H.264)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tcore_lib.errors import InputError
from tcore_lib.evaluation.benchmarks import benchmark_of
from tcore_lib.evaluation.clips import Clip, read_frame
from tcore_lib.files import atomic_path
from tcore_lib.params import Benchmark

GAP = 8  # pixels between pictures
FPS = 15


def write_overlay(clip: Clip, settings: Benchmark, predictions: str | Path, target: str | Path) -> Path:
    """Write the side-by-side video of a clip, 15 frames per second.

    Args:
        clip: any.
        settings: the section of its benchmark.
        predictions: folder of one encoder's predictions, `<output>/predictions/<encoder>`.
        target: the .mp4 file.

    Returns:
        `target`. A frame without annotation shows the bare frame in the third place.

    Raises:
        InputError: a prediction is missing.
    """
    benchmark, folder = benchmark_of(settings), Path(predictions)
    if not benchmark.has_predictions(folder, clip):
        raise InputError(f"{folder} lacks predictions of {clip.name}; evaluate the clip with save_predictions first.")

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for frame in range(len(clip)):
            image, truth = read_frame(clip.frames[frame]), benchmark.truth(clip, frame)
            predicted = benchmark.draw(image, benchmark.predictions(folder, clip, [frame])[0])
            yield side_by_side([image, predicted, image if truth is None else benchmark.draw(image, truth)])

    write_video(target, pictures(), FPS, {"crf": "20", "preset": "veryfast"})
    return Path(target)


def side_by_side(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures (H, W, 3) of one size in a row with white gaps."""
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)


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
