"""Everything that wants a GPU, in one call: speed of the parts and of the whole, then training for the time that is left.

    python benchmarks/gpu.py --output OUT [--minutes 10]             all parts
    python benchmarks/gpu.py --output OUT --parts step,loader       some of them
    python benchmarks/gpu.py --output OUT --tiny                    every line of it, on a CPU, in a minute or two

Parts, and what one H200 should reach:

step         the step of ViT-S and ViT-B at full size: 1.5 times the plain way, 40 % of the bf16 matrix rate
end_to_end   the training loop from JPEG frames: 1,200 samples/s with ViT-S; ViT-B too
propagation  30 clips, 1,999 frames, 480x880, ViT-S/16, in float32 and bf16: under 60 s
loader       all loader processes from JPEG frames and from shards; views on the device
train        ViT-S/16 at 224 with full-size heads on rendered video for what is left; scores of the trained, the random
             and the weightless encoder; the trained one as encoder.safetensors

--clips names a folder with real clips (davis-sample, jhmdb-sample); without it they are rendered. A video is rendered and read
back before the first part, so that a machine whose libraries cannot do that costs seconds. Each part is a process that is
stopped at the end of its share of the time; it writes its figures to OUT, and one that fails says so there and stops no other.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from views import write_frames

from tcore_lib import files, params, runs
from tcore_lib.data import videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.data.shards import ShardIndex, write_shards
from tcore_lib.evaluation.benchmarks import load_clips
from tcore_lib.evaluation.evaluate import evaluate
from tcore_lib.evaluation.scores import summarise
from tcore_lib.machine import Meter, Place, cores
from tcore_lib.model.encoders import load_encoder, random_encoder
from tcore_lib.model.export import export
from tcore_lib.scenes import synthetic
from tcore_lib.training.batches import loader, worker_count
from tcore_lib.training.forecast import forecast
from tcore_lib.training.loop import pretrain
from tcore_lib.training.schedules import Schedules
from tcore_lib.training.step import Trainer

ROOT = Path(__file__).parents[1]
SHARE = {"step": 0.33, "end_to_end": 0.3, "propagation": 0.55, "loader": 0.25, "train": 1.0}  # of the time left
BATCH = {"vit_small": 256, "vit_base": 128}  # the plain step holds all logits
ROWS = {"vit_small": "k400_vits16_400ep", "vit_base": "k400_vitb16_200ep"}
SMALL_VIDEO: dict[str, Any] = {"video_size": [96, 64], "video_seconds": 1.0, "videos": 6}
TINY: dict[str, Any] = {
    "encoder": {"arch": "custom", "width": 32, "depth": 2, "heads": 2},
    "views": {"global_size": 64, "local_size": 32, "num_local": 2},
    "decoder": {"heads": 4},
    "head": {"hidden": 48, "bottleneck": 16, "prototypes": 96},
}


class Bench:
    """One call's settings, and where its figures go."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.output, self.tiny, self.clips = args.output, args.tiny, args.clips
        self.device = torch.device("cpu" if args.tiny else "cuda")
        self.started = time.time()
        self.end = self.started + 60 * args.minutes

    def settings(self, arch: str = "vit_small", **loop: Any) -> params.Params:
        """The K400 row with another encoder and loop; tiny on request."""
        sections: dict[str, Any] = {**TINY} if self.tiny else {"encoder": {"arch": arch}}
        batch = 4 if self.tiny else BATCH[arch]
        sections["loop"] = {"batch_size": batch, "log_every": 1 if self.tiny else 10, "compile": True} | loop
        return params.parse({"pretrain": sections, "run": {"device": str(self.device)}}, "benchmarks/gpu.py")

    def write(self, part: str, figures: dict[str, Any]) -> None:
        """Keep a part's figures, as far as they are known."""
        figures = figures | {"provenance": runs.provenance(self.settings(), self.started)}
        files.write_json(self.output / f"{part}.json", figures)
        print(part, figures, flush=True)

    def call(self, script: str, *words: str) -> str:
        """Run another benchmark on this device. Returns its errors; empty where it ended well."""
        command = [sys.executable, str(ROOT / "benchmarks" / script), "--device", self.device.type, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout[-3000:], flush=True)
        return done.stderr[-1500:] if done.returncode else ""


# ---- the parts ------------------------------------------------------------------------------------------------------


def step(bench: Bench, folder: Path) -> None:
    """The step, compiled and not, against the plain way, by benchmarks/step.py."""
    wanted = {arch: f"--arch {arch} --batch {batch} --compile" for arch, batch in BATCH.items()}
    if bench.tiny:
        wanted = {"vit_small": "--arch vit_tiny --batch 2 --prototypes 128 --rounds 1 --threads 1"}
    figures: dict[str, Any] = {}
    for name, words in wanted.items():
        path, profile = folder / f"{name}.json", bench.output / f"profile-{name}.txt"
        failed = bench.call("step.py", *words.split(), "--profile", str(profile), "--output", str(path))
        figures[name] = {"failed": failed} if failed else files.read_json(path)
        figures[name].pop("provenance", None)
        bench.write("step", figures)


def end_to_end(bench: Bench, folder: Path) -> None:
    """The training loop itself, from JPEG frames; the first rows of its log warm up."""
    figures: dict[str, Any] = {}
    index = write_frames(folder / "frames", 4 if bench.tiny else 16)
    for arch in ("vit_small",) if bench.tiny else BATCH:
        settings = bench.settings(arch, max_steps=4 if bench.tiny else 120, checkpoint_every=10**6)
        log = pretrain(settings, index, folder / arch, progress=False)
        rates = log["samples_per_second"].iloc[len(log) // 3 :]
        row = params.load(ROOT / "params" / f"{ROWS[arch]}.yaml").pretrain  # the paper's Kinetics row
        samples = Schedules(row).steps * row.loop.batch_size
        figures[arch] = {
            "samples_per_second": round(float(rates.median()), 1),
            "lowest_and_highest": [round(float(rates.min()), 1), round(float(rates.max()), 1)],
            "peak_memory_gb": round(float(log["peak_memory_gb"].iloc[-1]), 2),
            "batch_size": settings.pretrain.loop.batch_size,
            "hours_of_the_k400_row_at_that_rate": round(samples / float(rates.median()) / 3600, 1),
        }
        bench.write("end_to_end", figures)


def propagation(bench: Bench, folder: Path) -> None:
    """By benchmarks/propagation.py: one clip both ways, and a set of the size of DAVIS-2017 val."""
    common = ["--output", str(bench.output / "propagation.json")]  # each call adds to it
    if bench.clips:
        common += ["--root", str(bench.clips / "davis-sample"), "--clip", "car-shadow"]
    wanted = [[*how, "--precision", name] for name in ("bf16", "fp32") for how in (["--set"], [])]
    if bench.tiny:
        common += ["--encoder", "random:1", "--threads", "1", "--size", "96", "160"]
        wanted = [["--set", "--lengths", "3", "2"], ["--frames", "3"]]
    for words in wanted:
        if failed := bench.call("propagation.py", *common, *words):
            raise RuntimeError(failed)


def load(bench: Bench, folder: Path) -> None:
    """Loader processes and views, each by itself."""
    rates: dict[str, float] = {}
    index = write_frames(folder / "frames", 4 if bench.tiny else 16)
    write_shards(index, folder / "shards", videos_per_shard=16, progress=False)
    for workers in [0, 1] if bench.tiny else [worker_count(None, bench.device, Place())]:
        for kind, source in (("frames", index), ("shards", ShardIndex(folder / "shards"))):
            settings = bench.settings(workers=workers)
            warm, counted = max(2, 4 * workers), max(4, 4 * workers)  # what stands ready does not count
            batches = iter(loader(settings, source, Place(), bench.device, 0, warm + counted))
            for _ in islice(batches, warm):
                pass
            start = time.perf_counter()
            number = settings.pretrain.loop.batch_size * sum(1 for _ in batches)
            rates[f"{kind}, {workers} workers"] = round(number / (time.perf_counter() - start), 1)
    settings = bench.settings(workers=0)
    trainer, meter = Trainer(settings.pretrain, 0, bench.device), Meter(bench.device)
    batch = next(iter(loader(settings, index, Place(), bench.device, 0, 1)))
    for _ in range(2 if bench.tiny else 10):
        with meter("views"):
            trainer.inputs(*batch[:3])
    rates["views on the device"] = round(len(batch.frames) / min(meter.seconds["views"]), 1)
    bench.write("loader", {"cores": cores(), "samples_per_second": rates})


def train(bench: Bench, folder: Path) -> None:
    """Rendered video until the time is over, then the encoder and its scores beside the random one's."""
    index = rendered(folder, SMALL_VIDEO if bench.tiny else {"videos": 480})
    settings, steps = bench.settings(checkpoint_every=10**6), 3
    if not bench.tiny:
        rate = forecast(settings, index, bench.device, steps=3, seconds=20.0).samples_per_second
        left = bench.end - time.time()
        steps = max(100, int((left - min(120.0, 0.33 * left)) * rate / settings.pretrain.loop.batch_size / 1.05))
    schedule = {"epochs": 10.0, "iterations_per_epoch": max(1, steps // 10), "warmup_epochs": 1.0}
    schedule |= {"teacher_temperature_epochs": 3.0, "freeze_last_layer_epochs": 0.1, "lr_multipliers": False}
    optimiser = settings.pretrain.optimiser.model_copy(update=schedule)
    chosen = settings.pretrain.model_copy(update={"optimiser": optimiser})
    log = pretrain(settings.model_copy(update={"pretrain": chosen}), index, folder / "run", progress=False)
    log.to_csv(bench.output / "train.log.csv", index=False, float_format="%.5g")
    figures: dict[str, Any] = {
        "what": f"{len(index)} rendered videos, {log['step'].iloc[-1]} steps of {chosen.loop.batch_size}",
        "samples_per_second": round(float(log["samples_per_second"].median()), 1),
        "first": log.iloc[0].to_dict(),
        "last": log.iloc[-1].to_dict(),
    }
    bench.write("train", figures)
    (newest,) = (folder / "run" / "checkpoints").glob("step-*.pt")
    export(newest, bench.output / "encoder.safetensors", "safetensors", {})
    first = random_encoder(chosen.encoder, chosen.views.global_size, settings.run.seed)
    encoders = {"trained": load_encoder(newest), "random": first, "pixels": load_encoder("pixels")}
    found: dict[str, dict[str, float]] = {name: {} for name in encoders}
    for of in benchmarks(bench, folder):
        name = type(of).__name__.lower()
        table = evaluate(encoders, load_clips(of, of.root), of, progress=False, device=bench.device.type)
        table.to_csv(bench.output / f"scores-{name}.csv", index=False)
        for row in summarise(table, name).itertuples():
            found[str(row.encoder)][f"{name} {row.score}"] = round(float(row.value), 2)
    bench.write("train", figures | {"scores": found})


def benchmarks(bench: Bench, folder: Path) -> list[params.Benchmark]:
    """The real DAVIS and JHMDB clips, where there are some; else rendered DAVIS clips."""
    if bench.clips and not bench.tiny:
        kinds = {"davis-sample": params.Davis, "jhmdb-sample": params.Jhmdb}
        return [kind(root=str(bench.clips / name), save_predictions=False) for name, kind in kinds.items()]
    drawn = params.SyntheticData(davis_clips=2 if bench.tiny else 4, eval_frames=3 if bench.tiny else 16)
    synthetic.write_set("davis", folder / "davis", drawn, seed=0, progress=False)
    size = {"input_size": (64, 96)} if bench.tiny else {}
    return [params.Davis(root=str(folder / "davis"), save_predictions=False, **size)]


def rendered(root: Path, drawn: dict[str, Any]) -> FrameIndex:
    """The index of rendered videos, written and read back below `root`."""
    data = params.parse({"data": {"root": str(root / "data"), "synthetic": drawn, "num_frames": 20}}, "gpu.py").data
    synthetic.write_set("videos", root / "videos", data.synthetic, seed=1, progress=False)
    return FrameIndex.load(videos.prepare(data, source=root / "videos", progress=False).index)


PARTS: dict[str, Callable[[Bench, Path], None]] = {
    "step": step,
    "end_to_end": end_to_end,
    "propagation": propagation,
    "loader": load,
    "train": train,
}


# ---- the call -------------------------------------------------------------------------------------------------------


def in_its_own_process(args: argparse.Namespace, part: str, seconds: float) -> bool:
    """Run a part, and its whole process group no longer than that; say in OUT if it fails. Returns whether it ended well."""
    command = [sys.executable, __file__, "--output", str(args.output), "--part", part, "--minutes", str(seconds / 60)]
    command += (["--tiny"] if args.tiny else []) + (["--clips", str(args.clips)] if args.clips else [])
    path = args.output / f"{part}.failed.txt"
    with open(path, "w") as errors:
        child = subprocess.Popen(command, start_new_session=True, stderr=errors)
        try:
            code = child.wait(seconds + 30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            code = child.wait()
    if code == 0:
        path.unlink()
    else:
        path.write_text(f"{part} ended with code {code} within {seconds:.0f} s\n{path.read_text()[-4000:]}")
    return code == 0


def main() -> int:
    """Run the parts one after the other; 0 if all of them ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, to try the script")
    parser.add_argument("--clips", type=Path, help="folder of real clips")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.part:
            PARTS[args.part](Bench(args), Path(folder))
            return 0
        if not args.tiny and not torch.cuda.is_available():
            parser.error("there is no GPU here; --tiny tries the script on a CPU")
        try:
            rendered(Path(folder), SMALL_VIDEO).read(0, [0])
        except Exception as error:  # whatever it is, it would come again when the time is short
            print(f"nothing was started: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
    wanted, end, failed = args.parts.split(","), time.time() + 60 * args.minutes, []
    for part in wanted:
        share = SHARE[part] if part != wanted[-1] else 1.0
        if not in_its_own_process(args, part, max(60.0, share * (end - time.time()))):
            failed.append(part)
    print(f"failed: {', '.join(failed)}" if failed else "all parts ended well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
