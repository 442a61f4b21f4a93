"""Side-by-side video of a clip: the frame, the prediction over it, the ground truth over it (mp4, H.264)."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tcore_lib.evaluation.benchmarks import benchmark_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.files import atomic_path
from tcore_lib.params import Benchmark

GAP = 8  # pixels between pictures
FPS = 15


def write_overlay(clip: Clip, settings: Benchmark, predictions: Path, target: Path) -> None:
    """Write the side-by-side video of a clip from one encoder's predictions, the folder `<output>/predictions/<encoder>`.

    A frame without annotation shows the bare frame in the third place.
    """
    benchmark = benchmark_of(settings)
    found = benchmark.predictions(predictions, clip, range(len(clip)))

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for frame, prediction in enumerate(found):
            image, truth = clip.image(frame), clip.truth(frame)
            gap = np.full((image.shape[0], GAP, 3), 255, np.uint8)
            true = image if truth is None else benchmark.draw(image, truth)
            yield np.concatenate([image, gap, benchmark.draw(image, prediction), gap, true], axis=1)

    write_video(target, pictures(), FPS)


def write_video(target: str | Path, pictures: Iterable[NDArray[np.uint8]], fps: int) -> None:
    """Write pictures uint8 (H, W, 3) of one size, read one by one, as H.264 .mp4; odd sizes, which it does not know, are cut."""
    with atomic_path(target) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            even = np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])
            if not stream.codec_context.is_open:
                stream.height, stream.width = even.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))
