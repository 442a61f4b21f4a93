"""How fast is the evaluation? Ours against the brute-force way of the protocol, on one clip, in one run.

    python benchmarks/propagation.py                      # car-shadow where its files are, or a rendered clip
    python benchmarks/propagation.py --frames 3 --size 96 160 --encoder random:1 --threads 1    # seconds: does it run?
    python benchmarks/propagation.py --rounds 3           # medians; the two ways take turns
    python benchmarks/propagation.py --long 2000          # memory of a 2,000-frame clip beside that of 100 frames
    python benchmarks/propagation.py --set --device cuda  # 30 clips, 1,999 frames: the size of DAVIS-2017 val

The brute-force way does what the released code does, in its order: frame 0 is decoded and encoded once for each of
its places in the context, affinities are dense float32 matrices over all context frames (100 queries and two frames at
a time), masked, divided and searched along their non-contiguous dimension; predictions are written as coloured label
images, read again, turned into ids colour by colour, resized, written as palette PNGs and read once more to be scored.

Each way runs in a process of its own. Wall-clock seconds depend on what else the machine does (its load is recorded); CPU
seconds much less. Results go to results/benchmarks/propagation.json.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tcore_lib import bodies, params
from tcore_lib.evaluation import clips as clipfiles, davis, idmaps, labels as labelmaps
from tcore_lib.evaluation.benchmarks import load_clips
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import encode, evaluate
from tcore_lib.files import write_json
from tcore_lib.model.encoders import FeatureEncoder, load_encoder, random_encoder
from tcore_lib.model.features import to_input
from tcore_lib.scenes import synthetic

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT.parent / "shared" / "data" / "davis-sample"
Stages = dict[str, dict[str, float]]


class Clock:
    """Wall and CPU seconds per stage."""

    def __init__(self) -> None:
        self.stages: Stages = defaultdict(lambda: {"wall": 0.0, "cpu": 0.0})

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what happens inside to a stage."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stages[name]["wall"] += time.perf_counter() - wall
        self.stages[name]["cpu"] += time.process_time() - cpu

    def total(self, without: str = "") -> dict[str, float]:
        """Of all stages but one."""
        stages = [stage for name, stage in self.stages.items() if name != without]
        return {kind: sum(stage[kind] for stage in stages) for kind in ("wall", "cpu")}


def find_clip(args: argparse.Namespace, frames: int | None) -> tuple[Clip, params.Davis]:
    """The clip to measure on: of a DAVIS root, of the sample data, or a rendered one."""
    root, name = args.root, args.clip
    if root is None and SAMPLE.is_dir():
        root, name = SAMPLE, name or "car-shadow"
    if root is None:
        root = Path(tempfile.gettempdir()) / "tcore-benchmark-davis"
        synthetic.write_set("davis", root, params.SyntheticData(davis_clips=1, eval_frames=40), seed=0)
    chosen = {"clips": [name] if name else None, "precision": args.precision, "input_size": tuple(args.size)}
    settings = params.Davis(root=str(root), **chosen)
    return cycled(load_clips(settings, root)[0], frames), settings


def cycled(clip: Clip, frames: int | None) -> Clip:
    """The clip played forward and backward until it has this many frames."""
    order = list(range(len(clip))) + list(range(len(clip) - 2, 0, -1))
    chosen = [order[i % len(order)] for i in range(frames or len(clip))]
    return replace(
        clip, frames=tuple(clip.frames[i] for i in chosen), annotations=tuple(clip.annotations[i] for i in chosen)
    )


def find_encoder(source: str, device: str) -> FeatureEncoder:
    """`random` (ViT-S/16 as training starts from), `random:DEPTH`, or whatever `load_encoder` takes."""
    if not source.startswith("random"):
        return load_encoder(source, device=device)
    depth = int(source.partition(":")[2] or 12)
    return random_encoder(params.Encoder(arch="custom", width=384, depth=depth, heads=6), 224, seed=0).to(device)


# ---------------------------------------------------------------------------------------------- the two ways


class Known(torch.nn.Module):
    """Hands out features that were computed before: an evaluation with it costs all but the encoder."""

    def __init__(self, encoder: FeatureEncoder, features: list[torch.Tensor]) -> None:
        super().__init__()
        self.patch_size, self.width, self.features = encoder.patch_size, encoder.width, iter(features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Those of the next frames, (B, h, w, D)."""
        return torch.stack([next(self.features) for _ in images])


def ours(clip: Clip, settings: params.Davis, encoder: FeatureEncoder, device: str, folder: Path) -> dict[str, Any]:
    """Two runs as users make them, with decoding and scoring beside the computation; one is spared the encoder."""
    size, clock = davis.Scorer(clip, settings, encoder.patch_size).size, Clock()
    encode(encoder, torch.zeros(1, 3, *size, device=device), settings.precision)  # warm up
    with clock("end to end"):
        table = evaluate({"ours": encoder}, [clip], settings, output=folder, progress=False, device=device)
    inputs = (torch.from_numpy(clipfiles.read_frame(path)[None].copy()) for path in clip.frames)
    features = [encode(encoder, to_input(one.to(device), size), settings.precision)[0] for one in inputs]
    with clock("without encoder"):
        evaluate({"known": Known(encoder, features)}, [clip], settings, output=folder, progress=False, device=device)  # type: ignore[dict-item]
    ends = {"end_to_end": clock.stages["end to end"], "without_encoder": clock.stages["without encoder"]}
    return {**ends, "J&F_m": 100 * table["JF_mean"].mean()}


def brute(clip: Clip, settings: params.Davis, encoder: FeatureEncoder, device: str, folder: Path) -> dict[str, Any]:
    """The protocol done the way of the released code, in float32."""
    clock, context = Clock(), settings.context
    scorer = davis.Scorer(clip, settings, encoder.patch_size)
    encoder(torch.zeros(1, 3, *scorer.size, device=device))
    padded = [0] * context + list(range(len(clip)))
    with clock("decode"):
        read = (torch.from_numpy(np.stack([clipfiles.read_frame(clip.frames[i])])) for i in padded)
        images = torch.cat([to_input(frame, scorer.size) for frame in read])
    with clock("encode"):
        features = torch.cat([encode(encoder, part.to(device)).cpu() for part in images.split(5)])  # (n, h, w, D)
    h, w = features.shape[1:3]
    flat = F.normalize(features, dim=-1).flatten(1, 2).transpose(1, 2)  # (n, D, P)
    places = torch.cartesian_prod(torch.arange(h), torch.arange(w)).float()
    mask = torch.where(torch.cdist(places, places) < settings.radius, 0.0, -1e10).to(device)
    weights, indices = [], []  # per frame (k, P)
    with clock("affinity"):
        for first in range(0, len(clip), 2):
            frames = range(first, min(first + 2, len(clip)))
            known = torch.stack([flat[[0, *range(t, t + context)]].transpose(0, 1) for t in frames]).to(device)
            query = torch.stack([flat[t + context] for t in frames]).to(device)
            found = []
            for asked in range(0, h * w, 100):  # queries at a time
                affinity = torch.einsum("fdcp,fdq->fcpq", known, query[..., asked : asked + 100])
                affinity[:, 1:] += mask[:, asked : asked + 100]
                affinity = affinity.flatten(1, 2)  # (frames, context * P, Q)
                affinity /= settings.temperature
                best, index = affinity.topk(settings.top_k, dim=-2)
                found.append((best.softmax(dim=-2), index))
            weights += list(torch.cat([best for best, _ in found], dim=-1).cpu())
            indices += list(torch.cat([index for _, index in found], dim=-1).cpu())
    start, ids = scorer.first_map((h, w)), np.array(scorer.channels)
    palette = np.array(bodies.palette(), np.uint8).reshape(256, 3)
    soft = torch.zeros(len(padded), *start.shape)
    soft[: context + 1] = start
    with clock("propagate, label files"):
        for t in range(len(clip)):
            if t > 0:
                labels = (
                    soft[[0, *range(t, t + context)]].to(device).flatten(2).transpose(0, 1).flatten(1)
                )  # (C, n * P)
                voted = (labels[:, indices[t].to(device)] * weights[t].to(device)).sum(1)
                soft[t + context] = voted.view(start.shape).cpu()
            large = F.interpolate(soft[t + context][None], scorer.size, mode="bilinear", align_corners=False)[0]
            Image.fromarray(palette[ids[large.argmax(0).numpy()]]).save(folder / f"{t}_mask.png")
    with clock("palette conversion"):
        for t in range(len(clip)):
            coloured = np.array(Image.open(folder / f"{t}_mask.png"))
            found_ids = np.zeros(coloured.shape[:2], np.uint8)
            for colour in np.unique(coloured.reshape(-1, 3), axis=0):
                found_ids[(coloured == colour).all(-1)] = np.flatnonzero((palette == colour).all(-1))[0]
            clipfiles.write_ids(folder / f"{t}.png", labelmaps.resize_ids(found_ids, clip.size))
    with clock("score"):
        scores = [
            davis.frame_scores(clipfiles.read_ids(folder / f"{t}.png"), idmaps.truth(clip, t), scorer.largest)
            for t in davis.counted(clip)
        ]
    ends = {"end_to_end": clock.total(), "without_encoder": clock.total("encode")}
    score = 100 * float(np.mean([row["JF_mean"] for row in scorer.rows(scores)]))
    return {**ends, "stages": clock.stages, "J&F_m": score}


# ---------------------------------------------------------------------------------------------- running and comparing


def child(args: argparse.Namespace) -> None:
    """One way in a process of its own; prints its record as the last line."""
    torch.set_num_threads(args.threads)
    clip, settings = find_clip(args, args.frames)
    encoder = find_encoder(args.encoder, args.device)
    if args.way == "long":
        quiet = settings.model_copy(update={"save_predictions": False})
        evaluate({"ours": encoder}, [clip], quiet, progress=False, device=args.device)
        record: dict[str, Any] = {"frames": len(clip)}
    else:
        with torch.no_grad():
            record = (ours if args.way == "ours" else brute)(clip, settings, encoder, args.device, args.folder)
    record["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(record))


def run_child(args: argparse.Namespace, way: str, folder: Path, frames: int | None) -> dict[str, Any]:
    words = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    for name in ("precision", "encoder", "device", "threads", "root", "clip"):
        words += [f"--{name}", str(getattr(args, name))] if getattr(args, name) is not None else []
    words += ["--frames", str(frames)] if frames else []
    words += ["--size", *map(str, args.size)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways on the clip, in turns, so that a slow minute of the machine hits both."""
    clip, settings = find_clip(args, args.frames)
    rounds: dict[str, list[dict[str, Any]]] = {"brute": [], "ours": []}
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            folders = {way: Path(scratch) / way for way in rounds}
            for way, folder in folders.items():
                print(f"round {number + 1} of {args.rounds}: {way} ...", flush=True)
                folder.mkdir()
                rounds[way].append(run_child(args, way, folder, args.frames))
            maps = idmaps.predictions(folders["ours"] / "predictions" / "ours", clip, range(len(clip)))
            differ = sum(
                int((labels != clipfiles.read_ids(folders["brute"] / f"{t}.png")).sum())
                for t, labels in enumerate(maps)
            )
    reference, measured = (median(rounds[way]) for way in ("brute", "ours"))
    speed_up = {
        f"{part}_{kind}": reference[part][kind] / measured[part][kind]
        for part in ("end_to_end", "without_encoder")
        for kind in ("wall", "cpu")
    }
    measured |= {"pixels": {"different": differ, "of": maps.size}, "speed_up": speed_up}
    measured["J&F_difference_points"] = measured["J&F_m"] - reference["J&F_m"]
    size = {"clip": clip.name, "frames": len(clip), "input_size": settings.input_size, "rounds": args.rounds}
    return {**size, "brute force": reference, f"engine {args.precision}": measured}


def median(values: list[Any]) -> Any:
    """The median of numbers, and of every number in dictionaries of one shape."""
    if isinstance(values[0], dict):
        return {key: median([value[key] for value in values]) for key in values[0]}
    return statistics.median(values)


def long_clip(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a long clip beside that of one of 100 frames."""
    return {str(frames): run_child(args, "long", Path(tempfile.gettempdir()), frames) for frames in (100, args.long)}


def set_of_clips(args: argparse.Namespace) -> dict[str, Any]:
    """A set of the size of DAVIS-2017 val: 30 clips, 1,999 frames, made of the clip at hand."""
    clip, settings = find_clip(args, None)
    lengths = args.lengths or [67] * 19 + [66] * 11  # 1,273 + 726
    made = [replace(cycled(clip, length), name=f"clip{i:02d}") for i, length in enumerate(lengths)]
    encoder = find_encoder(args.encoder, args.device)
    quiet = settings.model_copy(update={"save_predictions": False})
    evaluate(encoder, [cycled(clip, 24)], quiet, progress=False, device=args.device)  # warm up
    began = time.perf_counter()
    evaluate(encoder, made, quiet, device=args.device)
    return {"clips": len(made), "frames": sum(lengths), args.precision: {"seconds": time.perf_counter() - began}}


def rounded(value: Any) -> Any:
    """Three decimals are enough for a file that people read."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a DAVIS-2017 folder; default: the sample data, or a rendered clip")
    parser.add_argument("--clip", help="clip name; default: car-shadow, or the first")
    parser.add_argument("--frames", type=int, help="use that many frames, playing the clip to and fro; default: all")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 880), help="height and width of the input")
    parser.add_argument("--encoder", default="random", help="random (ViT-S/16), random:DEPTH, or an encoder's source")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16", "fp16"], help="of our encoder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=1, help="medians of that many rounds")
    parser.add_argument("--long", type=int, metavar="FRAMES", help="peak memory of a clip of that many frames")
    parser.add_argument("--lengths", type=int, nargs="+", help="frames of the clips of --set, instead of DAVIS's")
    parser.add_argument("--set", action="store_true", help="time a set of 30 clips and 1,999 frames")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks" / "propagation.json")
    parser.add_argument("--way", choices=["ours", "brute", "long"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        child(args)
        return
    load = {"load_average_before": os.getloadavg()[0]}
    what = "long clip" if args.long else "set of DAVIS size" if args.set else "one clip"
    found = long_clip(args) if args.long else set_of_clips(args) if args.set else compare(args)
    where = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": args.threads}
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu"
    machine = {**where, "device": device, "torch": torch.__version__, "encoder": args.encoder}
    load["load_average_after"] = os.getloadavg()[0]
    kept = json.loads(args.output.read_text()) if args.output.exists() else {}
    name = f"{what}, {args.device}"
    earlier = kept.get(name, {})  # its precisions may come from several calls
    record = {**earlier, "machine": {**machine, **load}, **found}
    write_json(args.output, {**kept, name: rounded(record)})
    print(json.dumps(rounded(record), indent=1))


if __name__ == "__main__":
    main()
