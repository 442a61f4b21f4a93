"""Speed of data preparation: extraction on one core against the plain way, and an index of the size of Kinetics-400.

The plain way decodes every frame of the clip, resizes each and keeps 20. Both write the same bytes (checked); times are CPU
seconds, the best of two. The clips are rendered scenes, 10 seconds at 30 frames a second. Into results/benchmarks/data_prep.json.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from tcore_lib import files, params, runs
from tcore_lib.data import images, videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.sandwich import SandwichDataset
from tcore_lib.scenes import synthetic
from tcore_lib.scenes.scenes import DOMAINS, render_scene

SIZES = ((340, 256), (640, 480), (1280, 720))
VIDEOS, CLIPS = 240_000, 2  # in the index, per size


def plain_way(path: Path, folder: Path) -> None:
    """Decode and resize everything, then keep some."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        read = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
        frames = [images.reduce_short_side(frame, 256) for frame in read]
    folder.mkdir(parents=True)
    for k, place in enumerate(np.round(np.linspace(0, len(frames) - 1, 20)).astype(int)):
        (folder / f"{k:05d}.jpg").write_bytes(videos.encode(frames[place]))


def our_way(path: Path, folder: Path) -> None:
    """What a worker of `prepare` does."""
    videos.extract(path, folder, folder.parent / "scratch", params.Data())


def seconds(way: Callable[[Path, Path], None], paths: list[Path], scratch: Path) -> float:
    """CPU seconds per clip, the better of two runs: other work on the machine only ever adds."""
    spent = []
    for _ in range(2):
        shutil.rmtree(scratch, ignore_errors=True)
        started = time.process_time()
        for path in paths:
            way(path, scratch / path.stem)
        spent.append((time.process_time() - started) / len(paths))
    return min(spent)


def extraction(root: Path) -> list[dict[str, object]]:
    """Both ways at every size, of a rendered second, ten times in a row."""
    rows = []
    for size in SIZES:
        paths = [root / f"{size[0]}_{k}.mp4" for k in range(CLIPS)]
        for k, path in enumerate(paths):
            scene = render_scene("walking", 0, DOMAINS["fresh"], k, size=size, num_frames=30, seconds=1.0)
            synthetic.encode(path, np.concatenate([scene.frames] * 10), 30)
        plain, ours = seconds(plain_way, paths, root / "plain"), seconds(our_way, paths, root / "ours")
        written = [frame.relative_to(root / "plain") for frame in sorted((root / "plain").rglob("*.jpg"))]
        equal = all((root / "plain" / name).read_bytes() == (root / "ours" / name).read_bytes() for name in written)
        rows.append({"size": f"{size[0]}x{size[1]}", "clips_per_second_and_core": round(1 / ours, 2),
                     "speedup": round(plain / ours, 2), "same_bytes": equal})  # fmt: skip
        print(rows[-1])
    return rows


def index(path: Path) -> dict[str, float]:
    """An index of 240,000 videos: seconds to save and to open, megabytes."""
    paths = np.array([f"class_{k % 400:03d}/video_{k:06d}" for k in range(VIDEOS)])
    began = time.perf_counter()
    FrameIndex(path.parent, paths, *np.full((3, VIDEOS), [[20], [340], [256]]), kind="videos").save(path)
    saved = time.perf_counter()
    assert len(SandwichDataset(FrameIndex.load(path), params.Sandwich(), seed=0)) == VIDEOS
    return {"videos": VIDEOS, "save_seconds": round(saved - began, 2), "open_seconds": round(time.perf_counter() - saved, 2),
            "file_megabytes": round(path.stat().st_size / 1e6, 1)}  # fmt: skip


if __name__ == "__main__":
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        result = {"extraction_of_10_second_clips": extraction(root), "index": index(root / "index.parquet")}
    result |= {"provenance": runs.provenance(params.Params(), started)}
    files.write_json(Path(__file__).parents[1] / "results/benchmarks/data_prep.json", result)
