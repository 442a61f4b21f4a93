"""How fast is the evaluation? Ours against the brute-force way of the protocol, on one clip, in one run.

    python benchmarks/propagation.py --rounds 3           # car-shadow where its files are, or a rendered clip; medians
    python benchmarks/propagation.py --frames 3 --size 96 160 --encoder random:1 --threads 1    # seconds: does it run?
    python benchmarks/propagation.py --set --device cuda  # 30 clips, 1,999 frames: the size of DAVIS-2017 val

The brute-force way does what the released code does, in its order: frame 0 is decoded and encoded once for each of its places in
the context, affinities are dense float32 matrices over all context frames (100 queries and two frames at a time), masked, divided
and searched along their non-contiguous dimension; predictions are written as coloured label images, read again, turned into ids
colour by colour, resized, written as palette PNGs and read once more to be scored. The two ways take turns, so that a slow minute
of the machine hits both; its load is recorded. Results go to results/benchmarks/propagation.json.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tcore_lib import bodies, params, runs
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps
from tcore_lib.evaluation.benchmarks import benchmark_of, load_clips
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import encode, evaluate
from tcore_lib.files import read_json, write_json
from tcore_lib.machine import Meter
from tcore_lib.model.encoders import FeatureEncoder, load_encoder, random_encoder
from tcore_lib.model.features import to_input
from tcore_lib.scenes import synthetic

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT.parent / "shared" / "data" / "davis-sample"


def find_clip(args: argparse.Namespace) -> tuple[Clip, params.Davis]:
    """The clip to measure on: of a DAVIS root, of the sample data, or a rendered one."""
    root, name = args.root, args.clip
    if root is None and SAMPLE.is_dir():
        root, name = SAMPLE, name or "car-shadow"
    if root is None:
        root = Path(tempfile.gettempdir()) / "tcore-benchmark-davis"
        synthetic.write_set("davis", root, params.SyntheticData(davis_clips=1, eval_frames=40), seed=0)
    chosen = {"clips": [name] if name else None, "precision": args.precision, "input_size": tuple(args.size)}
    settings = params.Davis(root=str(root), **chosen)
    return load_clips(settings, root)[0], settings


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
        self.name, self.patch_size, self.width = "known", encoder.patch_size, encoder.width
        self.features = iter(features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Those of the next frames, (B, h, w, D)."""
        return torch.stack([next(self.features) for _ in images])


def ours(clip: Clip, settings: params.Davis, encoder: FeatureEncoder, device: str, folder: Path) -> dict[str, Any]:
    """Two runs as users make them, with decoding and scoring beside the computation; one is spared the encoder."""
    size, meter = benchmark_of(settings).input_size(clip, encoder.patch_size), Meter(torch.device(device))
    encode(encoder, torch.zeros(1, 3, *size, device=device), settings.precision)  # warm up
    with meter("end_to_end"):
        table = evaluate({"ours": encoder}, [clip], settings, output=folder, progress=False, device=device)
    inputs = (torch.from_numpy(clip.image(frame)[None].copy()) for frame in range(len(clip)))
    features = [encode(encoder, to_input(one.to(device), size), settings.precision)[0] for one in inputs]
    with meter("without_encoder"):
        evaluate({"known": Known(encoder, features)}, [clip], settings, output=folder, progress=False, device=device)  # type: ignore[dict-item]
    return {name: seconds for name, (seconds,) in meter.seconds.items()} | {"J&F_m": 100 * table["JF_mean"].mean()}


def brute(clip: Clip, settings: params.Davis, encoder: FeatureEncoder, device: str, folder: Path) -> dict[str, Any]:
    """The protocol done the way of the released code, in float32."""
    meter = Meter(torch.device(device))
    benchmark, context = benchmark_of(settings), settings.context
    size = benchmark.input_size(clip, encoder.patch_size)
    encoder(torch.zeros(1, 3, *size, device=device))
    padded = [0] * context + list(range(len(clip)))
    with meter("decode"):
        images = torch.cat([to_input(torch.from_numpy(clip.image(i)[None].copy()), size) for i in padded])
    with meter("encode"):
        features = torch.cat([encode(encoder, part.to(device)).cpu() for part in images.split(5)])  # (n, h, w, D)
    h, w = features.shape[1:3]
    flat = F.normalize(features, dim=-1).flatten(1, 2).transpose(1, 2)  # (n, D, P)
    places = torch.cartesian_prod(torch.arange(h), torch.arange(w)).float()
    mask = torch.where(torch.cdist(places, places) < settings.radius, 0.0, -1e10).to(device)
    weights, indices = [], []  # per frame (k, P)
    with meter("affinity"):
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
    start, ids = benchmark.first_map(clip, size, (h, w)), np.array(clip.channels)
    palette = np.array(bodies.palette(), np.uint8).reshape(256, 3)
    soft = torch.zeros(len(padded), *start.shape)
    soft[: context + 1] = start
    with meter("propagate, label files"):
        for t in range(len(clip)):
            if t > 0:
                labels = (
                    soft[[0, *range(t, t + context)]].to(device).flatten(2).transpose(0, 1).flatten(1)
                )  # (C, n * P)
                voted = (labels[:, indices[t].to(device)] * weights[t].to(device)).sum(1)
                soft[t + context] = voted.view(start.shape).cpu()
            large = F.interpolate(soft[t + context][None], size, mode="bilinear", align_corners=False)[0]
            Image.fromarray(palette[ids[large.argmax(0).numpy()]]).save(folder / f"{t}_mask.png")
    with meter("palette conversion"):
        for t in range(len(clip)):
            coloured = np.array(Image.open(folder / f"{t}_mask.png"))
            found_ids = np.zeros(coloured.shape[:2], np.uint8)
            for colour in np.unique(coloured.reshape(-1, 3), axis=0):
                found_ids[(coloured == colour).all(-1)] = np.flatnonzero((palette == colour).all(-1))[0]
            clipfiles.write_ids(folder / f"{t}.png", labelmaps.resize_ids(found_ids, clip.size))
    with meter("score"):
        rows = benchmark.score(clip, lambda t: clipfiles.read_ids(folder / f"{t}.png"))
    stages = {name: seconds for name, (seconds,) in meter.seconds.items()}
    whole, score = sum(stages.values()), 100 * float(rows["JF_mean"].mean())
    return {"end_to_end": whole, "without_encoder": whole - stages["encode"], "stages": stages, "J&F_m": score}


# ---------------------------------------------------------------------------------------------- comparing


def compare(args: argparse.Namespace, encoder: FeatureEncoder) -> dict[str, Any]:
    """Both ways on the clip."""
    found, settings = find_clip(args)
    clip = cycled(found, args.frames)
    rounds: dict[str, list[dict[str, Any]]] = {"brute": [], "ours": []}
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            for way in (brute, ours):
                name = way.__name__
                print(f"round {number + 1} of {args.rounds}: {name} ...", flush=True)
                (Path(scratch) / name).mkdir()
                rounds[name].append(way(clip, settings, encoder, args.device, Path(scratch) / name))
            read = benchmark_of(settings).predictions(Path(scratch) / "ours" / "predictions" / "ours", clip)
            pairs = [(read(t), clipfiles.read_ids(Path(scratch) / "brute" / f"{t}.png")) for t in range(len(clip))]
            pixels = {"different": int(sum((a != b).sum() for a, b in pairs)), "of": sum(a.size for a, _ in pairs)}
    reference, measured = (median(rounds[name]) for name in ("brute", "ours"))
    parts = ("end_to_end", "without_encoder")
    measured["speed_up"] = {f"{part}_wall": round(reference[part] / measured[part], 2) for part in parts}
    measured["pixels"] = pixels
    size = {"clip": clip.name, "frames": len(clip), "input_size": settings.input_size, "rounds": args.rounds}
    return {**size, "brute force": reference, f"engine {args.precision}": measured}


def median(values: list[Any]) -> Any:
    """The median of numbers, and of every number in dictionaries of one shape; three decimals are enough for people."""
    if isinstance(values[0], dict):
        return {key: median([value[key] for value in values]) for key in values[0]}
    return round(float(statistics.median(values)), 3)


def set_of_clips(args: argparse.Namespace, encoder: FeatureEncoder) -> dict[str, Any]:
    """A set of the size of DAVIS-2017 val: 30 clips, 1,999 frames, made of the clip at hand."""
    clip, settings = find_clip(args)
    lengths = args.lengths or [67] * 19 + [66] * 11  # 1,273 + 726
    made = [replace(cycled(clip, length), name=f"clip{i:02d}") for i, length in enumerate(lengths)]
    meter = Meter(torch.device(args.device))
    evaluate(encoder, [cycled(clip, 24)], settings, progress=False, device=args.device)  # warm up
    with meter("seconds"):
        evaluate(encoder, made, settings, device=args.device)
    return {"clips": len(made), "frames": sum(lengths), args.precision: {"seconds": round(meter.median("seconds"), 3)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--root", type=Path, help="a DAVIS-2017 folder; default: the sample data, or a rendered clip")
    add("--clip", help="clip name; default: car-shadow, or the first")
    add("--frames", type=int, help="use that many frames, playing the clip to and fro; default: all")
    add("--size", type=int, nargs=2, default=(480, 880), help="height and width of the input")
    add("--encoder", default="random", help="random (ViT-S/16), random:DEPTH, or an encoder's source")
    add("--precision", default="fp32", choices=["fp32", "bf16", "fp16"], help="of our encoder")
    add("--device", default="cpu")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--rounds", type=int, default=1, help="medians of that many rounds")
    add("--lengths", type=int, nargs="+", help="frames of the clips of --set, instead of DAVIS's")
    add("--set", action="store_true", help="time a set of 30 clips and 1,999 frames")
    add("--output", type=Path, default=ROOT / "results" / "benchmarks" / "propagation.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name = f"{'set of DAVIS size' if args.set else 'one clip'}, {args.device}"
    machine = {"threads": args.threads, "encoder": args.encoder, "load_before": os.getloadavg()[0]}
    found = (set_of_clips if args.set else compare)(args, find_encoder(args.encoder, args.device))
    machine |= runs.provenance(params.parse({"run": {"device": args.device}}, "propagation.py"), time.time())
    kept = read_json(args.output) if args.output.exists() else {}
    record = {**kept.get(name, {}), "machine": machine, **found}  # its precisions may come from several calls
    write_json(args.output, {**kept, name: record})
    print(found)


if __name__ == "__main__":
    main()
