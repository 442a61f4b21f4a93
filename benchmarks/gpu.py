"""Everything that wants a GPU, in one call: the step, the training loop, the evaluation, a training for the time that is left.

    python benchmarks/gpu.py --output OUT [--parts step,end_to_end]   all parts, or some of them
    python benchmarks/gpu.py --output OUT --tiny                      every line of it, on a CPU, in a minute or two

Parts, and what one H200 should reach:

step         the step of ViT-S and ViT-B at full size: 1.5 times the plain way, 40 % of the bf16 matrix rate
end_to_end   the training loop from JPEG frames: 1,200 samples/s with ViT-S; ViT-B too
propagation  30 clips, 1,999 frames, 480x880, ViT-S/16, in float32 and bf16: under 60 s
train        ViT-S/16 with the paper's heads for --minutes on --videos (anything `tcore prepare` takes; without it made-up frames);
             its encoder in 16 bit as encoder.safetensors.0, .1, ... of 16 MiB, to be joined with `cat`

--clips names a DAVIS folder with real clips; without it they are rendered. Each part writes its figures to OUT; one that fails, or
is not done after --minutes, says so at the end and stops no other.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from views import write_frames

from tcore_lib import files, params, runs
from tcore_lib.data import videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.model.export import export
from tcore_lib.training.forecast import forecast
from tcore_lib.training.loop import pretrain
from tcore_lib.training.schedules import Schedules

ROOT = Path(__file__).parents[1]
BATCH = {"vit_small": 256, "vit_base": 128}  # the plain step holds all logits
PART = 16 * 2**20  # bytes
ROWS = {"vit_small": "k400_vits16_400ep", "vit_base": "k400_vitb16_200ep"}
TINY: dict[str, Any] = {
    "encoder": {"arch": "custom", "width": 32, "depth": 2, "heads": 2},
    "views": {"global_size": 64, "local_size": 32, "num_local": 2},
    "decoder": {"heads": 4},
    "head": {"hidden": 48, "bottleneck": 16, "prototypes": 96},
}


def script(args: argparse.Namespace, name: str, *words: Any) -> None:
    """Run another benchmark on this device."""
    device = "cpu" if args.tiny else "cuda"
    command = [sys.executable, ROOT / "benchmarks" / name, "--device", device, *words]
    subprocess.run(list(map(str, command)), timeout=60 * args.minutes, check=True)


def step(args: argparse.Namespace) -> None:
    """The step, compiled and not, against the plain way, by benchmarks/step.py."""
    wanted = {arch: f"--arch {arch} --batch {batch} --compile" for arch, batch in BATCH.items()}
    if args.tiny:
        wanted = {"vit_small": "--arch vit_tiny --batch 2 --prototypes 128 --rounds 1 --threads 1"}
    figures: dict[str, Any] = {}
    for name, words in wanted.items():
        path = args.output / "step.json"
        profile = args.output / f"profile-{name}.txt"
        script(args, "step.py", *words.split(), "--profile", profile, "--output", path)
        figures[name] = files.read_json(path)
        files.write_json(path, figures)


def end_to_end(args: argparse.Namespace) -> None:
    """The training loop itself, from JPEG frames; the first rows of its log warm up."""
    figures: dict[str, Any] = {}
    started, device = time.time(), "cpu" if args.tiny else "cuda"
    with tempfile.TemporaryDirectory() as folder:
        index = write_frames(Path(folder) / "frames", 4 if args.tiny else 16)
        for arch in ("vit_small",) if args.tiny else BATCH:
            sections: dict[str, Any] = {**TINY} if args.tiny else {"encoder": {"arch": arch}}
            steps, every, batch = (4, 1, 4) if args.tiny else (120, 10, BATCH[arch])
            loop = {"batch_size": batch, "log_every": every, "max_steps": steps, "checkpoint_every": 10**6}
            sections["loop"] = loop | {"compile": True}
            settings = params.parse({"pretrain": sections, "run": {"device": device}}, "benchmarks/gpu.py")
            log = pretrain(settings, index, Path(folder) / arch, progress=False)
            rates = log["samples_per_second"].iloc[len(log) // 3 :]
            row = params.load(ROOT / "params" / f"{ROWS[arch]}.yaml").pretrain  # the paper's Kinetics row
            samples = Schedules(row).steps * row.loop.batch_size
            figures[arch] = {
                "samples_per_second": round(float(rates.median()), 1),
                "lowest_and_highest": [round(float(rates.min()), 1), round(float(rates.max()), 1)],
                "peak_memory_gb": round(float(log["peak_memory_gb"].iloc[-1]), 2),
                "batch_size": batch,
                "hours_of_the_k400_row_at_that_rate": round(samples / float(rates.median()) / 3600, 1),
            }
            result = figures | {"provenance": runs.provenance(settings, started)}
            files.write_json(args.output / "end_to_end.json", result)
    print(figures)


def propagation(args: argparse.Namespace) -> None:
    """By benchmarks/propagation.py: one clip both ways, and a set of the size of DAVIS-2017 val."""
    common: list[Any] = ["--output", args.output / "propagation.json"]  # each call adds to it
    if args.clips:
        common += ["--root", args.clips]
    wanted = [[*how, "--precision", name] for name in ("bf16", "fp32") for how in (["--set"], [])]
    if args.tiny:
        common += ["--encoder", "random:1", "--threads", "1", "--size", "96", "160"]
        wanted = [["--set", "--lengths", "3", "2"], ["--frames", "3"]]
    for words in wanted:
        script(args, "propagation.py", *common, *words)


def train(args: argparse.Namespace) -> None:
    """As many steps as fit --minutes, with a schedule of that length; the encoder comes back in parts."""
    device = torch.device("cpu" if args.tiny else "cuda")
    sections: dict[str, Any] = {**TINY} if args.tiny else {}
    batch = 4 if args.tiny else BATCH["vit_small"]
    sections["loop"] = {"batch_size": batch, "compile": True, "log_every": 1 if args.tiny else 10}
    with tempfile.TemporaryDirectory() as folder:
        if args.videos:
            data = params.Data(source=str(args.videos.absolute()), root=folder)
            index = FrameIndex.load(videos.prepare(data).index)
        else:
            index = write_frames(Path(folder) / "frames", 4 if args.tiny else 16)
        content = {"pretrain": sections, "run": {"device": device.type}}
        rate = forecast(params.parse(content, "gpu.py"), index, device, seconds=20.0).samples_per_second
        steps = 2 if args.tiny else max(100, int(60 * args.minutes * rate / batch))
        sections["optimiser"] = {"epochs": 10.0, "iterations_per_epoch": max(1, steps // 10), "warmup_epochs": 1.0}
        sections["loop"] |= {"max_steps": steps, "checkpoint_every": steps}
        log = pretrain(params.parse(content, "gpu.py"), index, Path(folder) / "run")
        newest = max((Path(folder) / "run" / "checkpoints").glob("step-*.pt"))
        encoder = load_file(export(newest, Path(folder) / "encoder.safetensors"))
    log.to_csv(args.output / "train.log.csv", index=False, float_format="%.5g")
    whole = save({name: value.half() for name, value in encoder.items()})
    for number, start in enumerate(range(0, len(whole), PART)):
        (args.output / f"encoder.safetensors.{number}").write_bytes(whole[start : start + PART])


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "step": step,
    "end_to_end": end_to_end,
    "propagation": propagation,
    "train": train,
}


def main() -> int:
    """Run the parts one after the other; 0 if all of them ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="at most, for each call of another script, and of training"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, to try the script")
    parser.add_argument("--videos", type=Path, help="what `train` learns from")
    parser.add_argument("--clips", type=Path, help="a DAVIS folder of real clips")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU here; --tiny tries the script on a CPU")
    args.output.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in args.parts.split(","):
        try:
            PARTS[part](args)
        except Exception:
            traceback.print_exc()
            failed.append(part)
    print(f"failed: {', '.join(failed)}" if failed else "all parts ended well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
