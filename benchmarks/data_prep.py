"""Speed of data preparation and of the index at the size of Kinetics-400.

    python benchmarks/data_prep.py [--clips 2] [--output results/benchmarks/data_prep.json]

Extraction is compared, on one core, with the plain way: decode every frame of the clip, make each a Pillow image,
    resize each, keep
20. Both write the same bytes (checked); times are CPU seconds. The clips are 10 seconds at 30 frames a second, drawn
here and encoded with libx264 as ffmpeg does by default.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tcore_lib import files, params, randomness
from tcore_lib.data import sandwich, videos
from tcore_lib.data.index import FrameIndex

SIZES = ((340, 256), (640, 480), (1280, 720))
VIDEOS = 240_000


def draw_clip(path: Path, size: tuple[int, int], seed: int, frames: int = 300) -> None:
    """A textured ground that drifts below three textured discs, with some noise: as hard to decode as a home video."""
    rng = randomness.generator(seed, "scenes")
    width, height = size
    ground = np.asarray(
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize(
            (2 * width, 2 * height), Image.BICUBIC
        )
    )
    rows, columns = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            shift = int(width * 0.4 * (1 + np.sin(t / 40 + seed)))
            image = ground[height // 3 : height // 3 + height, shift : shift + width].astype(np.int16)
            for k in range(3):
                x = width * (0.5 + 0.4 * np.sin(t / 25 + k + seed))
                y = height * (0.5 + 0.4 * np.cos(t / 31 + 2 * k))
                disc = (columns - x) ** 2 + (rows - y) ** 2 < (height / 6) ** 2
                image[disc] = 255 - image[disc][:, ::-1]
            image += rng.integers(-6, 7, image.shape, dtype=np.int16)
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def plain_way(path: Path, folder: Path, num_frames: int = 20, short_side: int = 256, quality: int = 95) -> None:
    """Decode and resize everything, then keep some."""
    images = []
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            image = frame.to_image()
            scale = short_side / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            images.append(image.resize(size, Image.BICUBIC) if scale < 1 else image.resize(image.size, Image.BICUBIC))
    folder.mkdir(parents=True)
    for k, position in enumerate(np.round(np.linspace(0, len(images) - 1, num_frames)).astype(int)):
        images[position].save(folder / f"{k:05d}.jpg", quality=quality)


def our_way(path: Path, folder: Path) -> None:
    """What a worker of `prepare` does."""
    videos.extract(path, folder, folder.parent / "scratch", params.Data())


def seconds(function: object, paths: list[Path], scratch: Path, repeats: int = 2) -> float:
    """Seconds per clip, the best of some runs (other work on the machine only ever adds)."""
    best = float("inf")
    for _ in range(repeats):
        shutil.rmtree(scratch, ignore_errors=True)
        started = time.process_time()
        for path in paths:
            function(path, scratch / path.stem)
        best = min(best, (time.process_time() - started) / len(paths))
    return best


def extraction(clips: int, root: Path) -> list[dict[str, object]]:
    rows = []
    for size in SIZES:
        paths = [root / f"{size[0]}_{k}.mp4" for k in range(clips)]
        for k, path in enumerate(paths):
            draw_clip(path, size, k)
        plain = seconds(plain_way, paths, root / "plain")
        ours = seconds(our_way, paths, root / "ours")
        equal = all(
            frame.read_bytes() == (root / "ours" / path.stem / frame.name).read_bytes()
            for path in paths
            for frame in sorted((root / "plain" / path.stem).iterdir())
        )
        rows.append(
            {
                "size": f"{size[0]}x{size[1]}",
                "megabytes_per_clip": round(sum(path.stat().st_size for path in paths) / clips / 1e6, 2),
                "plain_clips_per_second_and_core": round(1 / plain, 2),
                "clips_per_second_and_core": round(1 / ours, 2),
                "speedup": round(plain / ours, 2),
                "same_bytes": equal,
            }
        )
        print(rows[-1])
    return rows


def whole_run(root: Path, workers: int) -> dict[str, object]:
    """`prepare` with its worker processes and index, on the smallest clips, each many times."""
    source = root / "source"
    source.mkdir()
    originals = sorted(root.glob(f"{SIZES[0][0]}_*.mp4"))
    for k in range(40):
        shutil.copy(originals[k % len(originals)], source / f"{k:03d}.mp4")
    settings = params.Data(source=str(source), root=str(root / "prepared"), workers=workers)
    report = videos.prepare(settings, progress=False)
    return {"workers": workers, "clips": report.done, "clips_per_second": round(report.done / report.seconds, 2)}


def build_index(path: Path) -> float:
    """An index of 240,000 videos of 400 classes, as Kinetics-400's would be; seconds to build and save."""
    rng = randomness.generator(0, "order")
    ids = [f"{a:08x}{b:08x}" for a, b in rng.integers(1 << 32, size=(VIDEOS, 2))]
    started = time.perf_counter()
    FrameIndex(
        root=path.parent / "frames/train",
        paths=[f"class_name_of_{k % 400:03d}/{ids[k][:11]}_{k % 300:06d}_{k % 300 + 10:06d}" for k in range(VIDEOS)],
        class_ids=np.arange(VIDEOS) % 400,
        class_names=[f"class_name_of_{k:03d}" for k in range(400)],
        num_frames=np.full(VIDEOS, 20),
        widths=np.full(VIDEOS, 340),
        heights=np.full(VIDEOS, 256),
        short_side=256,
    ).save(path)
    return time.perf_counter() - started


def resident() -> float:
    """Memory this process holds, in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def use_index(path: Path) -> dict[str, float]:
    """Open, sample and walk through the index; run in a fresh process so that its memory can be seen."""
    before, computing = resident(), time.process_time()
    started = time.perf_counter()
    index = FrameIndex.load(path)
    opened = time.perf_counter()
    computing, held = time.process_time() - computing, resident() - before
    sandwich.epoch_order(0, 0, len(index))
    ordered = time.perf_counter()
    for counter in range(20_000):
        video = sandwich.video_of(0, counter, len(index))
        rng = randomness.generator(0, "frames", counter)
        for j in sandwich.sandwich_indices(int(index.num_frames[video]), params.Sandwich(), rng):
            index.frame_path(video, j)
    sampled = time.perf_counter()
    walked = sum(len(str(index.path(i))) for i in range(len(index)))
    done = time.perf_counter()
    assert walked
    return {
        "open_seconds": round(opened - started, 3),
        "open_cpu_seconds": round(computing, 3),
        "memory_megabytes": round(held, 1),
        "epoch_order_seconds": round(ordered - opened, 3),
        "samples_per_second": round(20_000 / (sampled - ordered)),
        "walk_seconds": round(done - sampled, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2, help="clips per frame size")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/data_prep.json"))
    parser.add_argument("--use-index", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.use_index:
        print(json.dumps(use_index(args.use_index)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = extraction(args.clips, root)
        run = whole_run(root, args.workers)
        print(run)
        built = build_index(root / "index.parquet")
        command = [sys.executable, __file__, "--use-index", str(root / "index.parquet")]
        index = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        index |= {"videos": VIDEOS, "build_seconds": round(built, 2)}
        index |= {"file_megabytes": round((root / "index.parquet").stat().st_size / 1e6, 1)}
        print(index)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    result = {
        "command": "python benchmarks/data_prep.py " + " ".join(sys.argv[1:]),
        "machine": {
            "cpu": cpu or platform.processor(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("av", "numpy", "pillow", "pyarrow")},
        "extraction_of_10_second_clips": rows,
        "prepare": run,
        "index": index,
    }
    files.write_json(args.output, result)


if __name__ == "__main__":
    main()
