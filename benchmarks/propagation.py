"""How fast is the evaluation? The engine against the brute-force way of the protocol, on one clip, in one run.

    python benchmarks/propagation.py                      # car-shadow where its files are, or a rendered clip; fp32
    python benchmarks/propagation.py --precision fp32 bf16 --rounds 3
    python benchmarks/propagation.py --long 2000          # memory of a 2,000-frame clip beside that of 100 frames
    python benchmarks/propagation.py --set --device cuda  # 30 clips, 1,999 frames: the size of DAVIS-2017 val

The brute-force way does what the released code does, in its order: frame 0 is decoded and encoded once for each of
its places in the context, affinities are dense float32 matrices over all context frames (100 queries and two frames at
a time), masked, divided and searched along their non-contiguous dimension, predictions are written as coloured label
images, read again, turned into ids colour by colour, resized, written as palette PNGs and read once more to be scored.

Each way runs in a process of its own, so that its peak memory is its own. Wall-clock seconds depend on what else the
machine does (its load average is recorded); CPU seconds much less. Results go to results/benchmarks/propagation.json.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from step import flops_of, matrix_rate
from tcore_lib.evaluation.protocol import MaskScorer, input_size, make_scorer, propagator_settings
from torch import Tensor

from tcore_lib import params
from tcore_lib.evaluation import clips as clipfiles, labels as labelmaps, scoring
from tcore_lib.evaluation.clips import Clip
from tcore_lib.evaluation.evaluate import BATCH, encode, evaluate
from tcore_lib.evaluation.propagation import DTYPES, Propagator
from tcore_lib.evaluation.scores import summarise
from tcore_lib.files import write_json
from tcore_lib.model.encoders import FeatureEncoder, load_encoder, random_encoder
from tcore_lib.scenes import synthetic

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT.parent / "shared" / "data" / "davis-sample"
Stages = dict[str, dict[str, float]]


def cpu_seconds() -> float:
    """User and system seconds of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Clock:
    """Wall and CPU seconds per stage."""

    def __init__(self, device: str) -> None:
        self.stages: Stages = {}
        self.device = device

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what happens inside to a stage."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        yield
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        stage = self.stages.setdefault(name, {"wall": 0.0, "cpu": 0.0})
        stage["wall"] += time.perf_counter() - wall
        stage["cpu"] += cpu_seconds() - cpu


def find_clip(root: Path | None, name: str | None, frames: int | None) -> tuple[Clip, params.Davis]:
    """The clip to measure on: of a DAVIS root, of the sample data, or a rendered one."""
    if root is None and SAMPLE.is_dir():
        root, name = SAMPLE, name or "car-shadow"
    if root is None:
        root = Path(tempfile.gettempdir()) / "tcore-benchmark-davis"
        synthetic.write_davis(root, params.SyntheticData(davis_clips=1, eval_frames=40), seed=0)
    settings = params.Davis(root=str(root), clips=[name] if name else None)
    return cycled(clipfiles.load_clips(settings, root)[0], frames), settings


def cycled(clip: Clip, frames: int | None) -> Clip:
    """The clip played forward and backward until it has this many frames."""
    order = list(range(len(clip))) + list(range(len(clip) - 2, 0, -1))
    chosen = [order[i % len(order)] for i in range(frames or len(clip))]
    paths = tuple(clip.frames[i] for i in chosen)
    return replace(clip, frames=paths, annotations=tuple(clip.annotations[i] for i in chosen))


def find_encoder(source: str, device: str) -> FeatureEncoder:
    """`random` (ViT-S/16 as training starts from), `random:DEPTH`, or whatever `load_encoder` takes."""
    if not source.startswith("random"):
        return load_encoder(source, device=device)
    depth = int(source.partition(":")[2] or 12)
    settings = params.Encoder(arch="custom", width=384, depth=depth, heads=6)
    return random_encoder(settings, 224, seed=0).to(device)


# ---------------------------------------------------------------------------------------------- the engine


def engine(clip: Clip, settings: params.Davis, encoder: FeatureEncoder, device: str, folder: Path) -> dict[str, Any]:
    """One run as users make it, with decoding and scoring beside the computation; then the stages one by one."""
    encoder(torch.zeros(1, 3, *input_size(clip, settings, encoder.patch_size), device=device))  # warm up
    whole = Clock(device)
    with whole.stage("end to end"):
        table = evaluate({"engine": encoder}, [clip], settings, output=folder, progress=False, device=device)
    clock = Clock(device)
    scorer = make_scorer(clip, settings, encoder.patch_size)
    assert isinstance(scorer, MaskScorer)
    size = input_size(clip, settings, encoder.patch_size)
    batch, results = BATCH[torch.device(device).type], []
    propagator: Propagator | None = None
    with torch.no_grad():
        for first in range(0, len(clip), batch):
            with clock.stage("decode"):
                frames = np.stack([clipfiles.read_frame(path) for path in clip.frames[first : first + batch]])
                images = labelmaps.to_input(torch.from_numpy(frames).to(device), size)
            with clock.stage("encode"):
                features = encode(encoder, images, settings.precision)
            soft = []
            with clock.stage("affinity and propagate"):
                for frame in features:
                    if propagator is None:
                        start = scorer.soft_map((frame.shape[0], frame.shape[1])).to(device)
                        propagator = Propagator(frame, start, **propagator_settings(settings))
                        soft.append(start)
                    else:
                        soft.append(propagator.step(frame))
            with clock.stage("predict"):
                predictions = scorer.predict(torch.stack(soft))
            with clock.stage("score"):
                results += [scorer.score(first + i, prediction) for i, prediction in enumerate(predictions)]
    difference = abs(scorer.rows(results)[0]["JF_mean"] - table["JF_mean"][0])
    assert difference <= (0 if device == "cpu" else 1e-4)  # a GPU does not promise to sum in one order
    assert propagator is not None
    scores = summarise(table, "davis").set_index("score")["value"].to_dict()
    record = {"end_to_end": whole.stages["end to end"], "stages": clock.stages, "scores": scores}
    return record | {"matrix_products": products(len(clip), size, encoder, propagator, settings.precision, device)}


def products(
    frames: int, size: tuple[int, int], encoder: FeatureEncoder, propagator: Propagator, precision: str, device: str
) -> dict[str, float]:
    """What no implementation can do without: the products of encoder and affinities, at this device's rate for them."""
    image = torch.zeros(1, 3, *size, device=device)
    patches, width, slots = propagator.grid.patches, encoder.width, len(propagator.frame_in_slot)
    near = sum(strip.out_of_reach.numel() for strip in propagator.strips)  # queries x positions within reach
    affinity = sum(
        2 * width * (near * min(t, slots) + patches**2)  # frame 0 without radius, frames so far within it
        for t in range(1, frames)
    )
    operations = frames * flops_of(lambda: encoder(image)) + affinity
    rate = matrix_rate(torch.device(device), DTYPES[precision])
    return {"teraflop": operations / 1e12, "rate_tflops": rate / 1e12, "seconds_at_that_rate": operations / rate}


# ---------------------------------------------------------------------------------------------- the brute-force way


def brute_affinity(
    keys: list[Tensor], queries: list[Tensor], mask: Tensor, settings: params.Davis
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and indices (k, P) of two frames' best context patches: dense, 100 queries at a time."""
    weights, indices = [], []
    patches = queries[0].shape[1]
    known = torch.stack(keys)  # (frames, D, context, P)
    for first in range(0, patches, 100):
        asked = torch.stack(queries)[..., first : first + 100]
        affinity = torch.einsum("fdcp,fdq->fcpq", known, asked)
        affinity[:, 1:] += mask[:, first : first + 100]
        affinity = affinity.flatten(1, 2)  # (frames, context * P, Q)
        affinity /= settings.temperature
        best, index = affinity.topk(settings.top_k, dim=-2)
        weights.append(best.softmax(dim=-2))
        indices.append(index)
    return list(torch.cat(weights, dim=-1)), list(torch.cat(indices, dim=-1))


def brute(clip: Clip, settings: params.Davis, encoder: FeatureEncoder, device: str, folder: Path) -> dict[str, Any]:
    """The protocol done the way of the released code."""
    clock = Clock(device)
    size = input_size(clip, settings, encoder.patch_size)
    encoder(torch.zeros(1, 3, *size, device=device))
    context = settings.context
    padded = [0] * context + list(range(len(clip)))
    with torch.no_grad():
        images = []
        with clock.stage("decode"):
            for index in padded:
                frame = torch.from_numpy(clipfiles.read_frame(clip.frames[index]))[None]
                images.append(labelmaps.to_input(frame, size)[0])
        features = []
        with clock.stage("encode"):
            for first in range(0, len(images), 5):
                features.append(encode(encoder, torch.stack(images[first : first + 5]).to(device)).cpu())
        grid = features[0].shape[1:3]
        flat = F.normalize(torch.cat(features).permute(0, 3, 1, 2), dim=1).flatten(2)  # (frames, D, P)
        rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        places = torch.stack([rows.flatten(), columns.flatten()], 1).float()
        mask = torch.where(torch.cdist(places, places) < settings.radius, 0.0, -1e10).to(device)
        weights, indices = [], []
        with clock.stage("affinity"):
            for first in range(0, len(clip), 2):
                frames = range(first, min(first + 2, len(clip)))
                keys = [flat[[0, *range(t, t + context)]].transpose(0, 1).to(device) for t in frames]
                found = brute_affinity(keys, [flat[t + context].to(device) for t in frames], mask, settings)
                weights += [part.cpu() for part in found[0]]
                indices += [part.cpu() for part in found[1]]
        truth = clipfiles.read_ids(clip.annotations[0])  # type: ignore[arg-type]
        start, ids = labelmaps.first_soft_map(truth, size, (grid[0], grid[1]))
        palette = np.array(clipfiles.palette(), np.uint8).reshape(256, 3)
        soft = torch.zeros(len(padded), *start.shape)
        soft[: context + 1] = start
        with clock.stage("propagate, label files"):
            for t in range(len(clip)):
                if t > 0:
                    known = (
                        soft[[0, *range(t, t + context)]].to(device).flatten(2).transpose(0, 1).flatten(1)
                    )  # (C, context * P)
                    voted = (known[:, indices[t].to(device)] * weights[t].to(device)).sum(1)
                    soft[t + context] = voted.view(start.shape).cpu()
                large = F.interpolate(soft[t + context][None], size, mode="bilinear", align_corners=False)[0]
                coloured = palette[np.array(ids)[large.argmax(0).numpy()]]
                Image.fromarray(coloured).save(folder / f"{t}_mask.png")
    made = folder / "converted"
    made.mkdir()
    with clock.stage("palette conversion"):
        for t in range(len(clip)):
            coloured = np.array(Image.open(folder / f"{t}_mask.png"))
            labels = np.zeros(coloured.shape[:2], np.uint8)
            for colour in np.unique(coloured.reshape(-1, 3), axis=0):
                labels[(coloured == colour).all(-1)] = np.flatnonzero((palette == colour).all(-1))[0]
            native = labelmaps.resize_ids(labels, clip.size)
            clipfiles.write_ids(made / f"{t}.png", native)
    with clock.stage("score"):
        objects = scoring.number_of_objects(truth)
        scores = [
            scoring.davis_frame(clipfiles.read_ids(made / f"{t}.png"), clipfiles.read_ids(clip.annotations[t]), objects)  # type: ignore[arg-type]
            for t in range(1, len(clip) - 1)
        ]
    rows_of_table = scoring.davis_rows(clip, np.stack(scores))
    total = {kind: sum(stage[kind] for stage in clock.stages.values()) for kind in ("wall", "cpu")}
    return {
        "end_to_end": total,
        "stages": clock.stages,
        "scores": {"J&F_m": 100 * float(np.mean([r["JF_mean"] for r in rows_of_table]))},
    }


# ---------------------------------------------------------------------------------------------- running and comparing


def child(args: argparse.Namespace) -> None:
    """One way in a process of its own; prints its record as the last line."""
    torch.set_num_threads(args.threads)
    clip, settings = find_clip(args.root, args.clip, args.frames)
    settings = settings.model_copy(update={"precision": args.precision[0], "save_predictions": args.way != "long"})
    encoder = find_encoder(args.encoder, args.device)
    if args.way == "long":
        began = time.perf_counter()
        evaluate({"engine": encoder}, [clip], settings, progress=False, device=args.device)
        record: dict[str, Any] = {"frames": len(clip), "seconds": time.perf_counter() - began}
    else:
        way = engine if args.way == "engine" else brute
        record = way(clip, settings, encoder, args.device, args.folder)
        record["frames"] = len(clip)
    record["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if args.device.startswith("cuda"):
        record["peak_gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps(record))


def run_child(args: argparse.Namespace, way: str, folder: Path, precision: str, frames: int | None) -> dict[str, Any]:
    words = [sys.executable, __file__, "--way", way, "--folder", str(folder), "--precision", precision]
    words += ["--encoder", args.encoder, "--device", args.device, "--threads", str(args.threads)]
    for name, value in (("--root", args.root), ("--clip", args.clip), ("--frames", frames)):
        words += [name, str(value)] if value is not None else []
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def differing_pixels(clip: Clip, engine_folder: Path, brute_folder: Path) -> dict[str, int]:
    """Pixels of the written predictions in which the two ways differ."""
    different = total = frames = 0
    (predictions,) = (engine_folder / "predictions").iterdir()
    for t in range(len(clip)):
        a = clipfiles.read_ids(clipfiles.prediction_path(predictions, clip, t))
        b = clipfiles.read_ids(brute_folder / "converted" / f"{t}.png")
        count = int((a != b).sum())
        different, total, frames = different + count, total + a.size, frames + (count > 0)
    return {"different": different, "of": total, "frames_with_differences": frames}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways on the clip: brute force in float32, the engine in each precision."""
    clip, settings = find_clip(args.root, args.clip, args.frames)
    record: dict[str, Any] = {"clip": clip.name, "frames": len(clip), "input_size": settings.input_size}
    record["rounds"] = args.rounds
    rounds: dict[str, list[dict[str, Any]]] = {}
    pixels: dict[str, dict[str, int]] = {}
    for number in range(args.rounds):  # the ways take turns, so that a slow minute of the machine hits all of them
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "brute").mkdir()
            print(f"round {number + 1} of {args.rounds}: brute force ...", flush=True)
            rounds.setdefault("brute force", []).append(run_child(args, "brute", folder / "brute", "fp32", args.frames))
            for precision in args.precision:
                print(f"engine, {precision} ...", flush=True)
                measured = run_child(args, "engine", folder / precision, precision, args.frames)
                rounds.setdefault(f"engine {precision}", []).append(measured)
                pixels[f"engine {precision}"] = differing_pixels(clip, folder / precision, folder / "brute")
    medians = {way: median(records) for way, records in rounds.items()}
    for way, measured in medians.items():
        measured["end_to_end"]["wall of each round"] = [each["end_to_end"]["wall"] for each in rounds[way]]
        if way in pixels:
            measured["pixels"] = pixels[way]
            measured["J&F_difference_points"] = measured["scores"]["J&F_m"] - medians["brute force"]["scores"]["J&F_m"]
            measured["speed_up"] = speed_up(medians["brute force"], measured)
            least = measured["matrix_products"]["seconds_at_that_rate"]
            measured["speed_up"]["ceiling_end_to_end"] = round(medians["brute force"]["end_to_end"]["wall"] / least, 2)
    return record | medians


def median(values: list[Any]) -> Any:
    """The median of numbers, and of every number in dictionaries of one shape."""
    if isinstance(values[0], dict):
        return {key: median([value[key] for value in values]) for key in values[0]}
    return statistics.median(values)


def speed_up(reference: dict[str, Any], measured: dict[str, Any]) -> dict[str, float]:
    """How many times faster, end to end and without the encoder, by wall clock and by CPU seconds.

    Without the encoder the engine's stages are added up one by one, so nothing that runs beside the encoder is free.
    """
    found = {}
    for kind in ("wall", "cpu"):
        found[f"end_to_end_{kind}"] = reference["end_to_end"][kind] / measured["end_to_end"][kind]
        rest = [sum(s[kind] for n, s in way["stages"].items() if n != "encode") for way in (reference, measured)]
        found[f"without_encoder_{kind}"] = rest[0] / rest[1]
    return {name: round(value, 2) for name, value in found.items()}


def set_of_clips(args: argparse.Namespace) -> dict[str, Any]:
    """A set of the size of DAVIS-2017 val: 30 clips, 1,999 frames, made of the clip at hand."""
    clip, settings = find_clip(args.root, args.clip, None)
    lengths = args.lengths or [67] * 19 + [66] * 11  # 1,273 + 726
    made = [replace(cycled(clip, length), name=f"clip{i:02d}") for i, length in enumerate(lengths)]
    record: dict[str, Any] = {"clips": len(made), "frames": sum(lengths)}
    for precision in args.precision:
        encoder = find_encoder(args.encoder, args.device)
        chosen = settings.model_copy(update={"precision": precision, "save_predictions": False})
        evaluate(encoder, [cycled(clip, 24)], chosen, progress=False, device=args.device)  # warm up
        began = time.perf_counter()
        evaluate(encoder, made, chosen, device=args.device)
        record[precision] = {"seconds": round(time.perf_counter() - began, 1)}
    return record


def long_clip(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a long clip beside that of one of 100 frames."""
    return {
        str(frames): run_child(args, "long", Path(tempfile.gettempdir()), args.precision[0], frames)
        for frames in (100, args.long)
    }


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures were measured on, and what else the machine did at that time."""
    name = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "torch_threads": args.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
        "load_average_before": [round(value, 2) for value in os.getloadavg()],
        "encoder": args.encoder,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a DAVIS-2017 folder; default: the sample data, or a rendered clip")
    parser.add_argument("--clip", help="clip name; default: car-shadow, or the first")
    parser.add_argument("--frames", type=int, help="use that many frames, playing the clip to and fro; default: all")
    parser.add_argument("--encoder", default="random", help="random (ViT-S/16), random:DEPTH, or an encoder's source")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=1, help="medians of that many rounds")
    parser.add_argument("--long", type=int, metavar="FRAMES", help="peak memory of a clip of that many frames")
    parser.add_argument("--lengths", type=int, nargs="+", help="frames of the clips of --set, instead of DAVIS's")
    parser.add_argument("--set", action="store_true", help="time a set of 30 clips and 1,999 frames")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmarks" / "propagation.json")
    parser.add_argument("--way", choices=["engine", "brute", "long"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        child(args)
        return
    what = "long clip" if args.long else "set of DAVIS size" if args.set else "one clip"
    record = {"machine": machine(args)}
    record |= long_clip(args) if args.long else set_of_clips(args) if args.set else compare(args)
    record["machine"]["load_average_after"] = [round(value, 2) for value in os.getloadavg()]
    kept = json.loads(args.output.read_text()) if args.output.exists() else {}
    name = f"{what}, {args.device}"
    earlier = kept.get(name, {}) if args.set else {}  # its precisions may come from several calls
    write_json(args.output, {**kept, name: {**earlier, **rounded(record)}})
    print(json.dumps(rounded(record), indent=1))


def rounded(value: Any) -> Any:
    """Three decimals are enough for a file that people read."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
