"""Command line: `python -m tcore_lib COMMAND`. Each command is one call into the library, imported when it is asked for."""

import argparse
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcore_lib.errors import InputError


def _reproduce(args: argparse.Namespace) -> int:
    from tcore_lib.reproduction.reproduce import reproduce

    only = args.only.split(",") if args.only else None
    return reproduce(args.profile, only=only, start=args.start, force=args.force, changes=args.changes)


def _table(args: argparse.Namespace) -> int:
    from tcore_lib import params
    from tcore_lib.reproduction import paper_table, readme

    results = params.resolve(args.results)
    print(paper_table.as_shown(paper_table.write(results)).to_string(index=False))
    print(f"{results / 'paper_table.csv'}, .md, .html")
    if args.readme:
        readme.write_into(params.project_root() / "README.md")
    return 0


def _report(args: argparse.Namespace) -> int:
    from tcore_lib.widgets.report import write_report

    target = write_report(args.run_folder, args.output, explorer=args.explorer)
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB)")
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    from tcore_lib import params
    from tcore_lib.training.loop import run_profile

    return run_profile(params.load(args.profile, args.changes), resume=not args.fresh)


def _plan(args: argparse.Namespace) -> int:
    from tcore_lib import params
    from tcore_lib.data.sharded import open_index
    from tcore_lib.reproduction import profile as profiles
    from tcore_lib.training import forecast as planner

    loaded = params.load(args.profile)
    index = planner.MadeUpFrames() if args.made_up_frames else open_index(loaded.data)
    print(planner.forecast(loaded, index, profiles.device(loaded), steps=args.steps, seconds=args.seconds))
    return 0


def _write_shards(args: argparse.Namespace) -> int:
    from tcore_lib import params
    from tcore_lib.data import shards
    from tcore_lib.data.index import FrameIndex
    from tcore_lib.data.videos import index_path

    index = FrameIndex.load(index_path(params.load(args.profile).data))
    part = _shard(args.part, "--part") or (0, 1)
    report = shards.write_shards(index, args.target, part=part, videos_per_shard=args.videos_per_shard)
    print(f"{report.videos} videos, {report.bytes / 1e9:.3f} GB in {report.shards} shards in {report.folder}")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from tcore_lib.data import videos
    from tcore_lib.params import parse

    data = {"source": args.source, "root": args.target, "num_frames": args.frames, "short_side": args.short_side}
    data |= {"workers": args.workers, "annotations": args.annotations, "layout": args.layout}
    report = videos.prepare(parse({"data": data}, "the command").data, shard=_shard(args.shard, "--shard"))
    print(f"{report.videos} videos in {report.index}, {report.bad} bad files in {report.bad_files}")
    return 0


def _shard(text: str | None, option: str) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit()):
        raise InputError(f"{option} = {text!r} is not possible; write i/n, such as 0/8.")
    return int(first), int(second)


def _fetch(args: argparse.Namespace) -> int:
    from tcore_lib.fetch import fetch

    print(fetch(args.name, args.root))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from tcore_lib.data.frame_checks import FrameReport, doctor_frames
    from tcore_lib.evaluation import doctor
    from tcore_lib.params import Params

    report: FrameReport | doctor.Report
    if args.kind == "frames":
        report = doctor_frames(args.root)
    else:
        report = doctor.examine(getattr(Params(), args.kind), args.root)
    print(report)
    return 0 if report.ok else 1


def _evaluate(args: argparse.Namespace) -> int:
    from tcore_lib.evaluation.commands import evaluate_command

    clips = args.clips.split(",") if args.clips else None
    return evaluate_command(
        args.kind, args.root, args.encoder, args.output, clips=clips, device=args.device, precision=args.precision,
        overlays=args.overlays, which=args.which,
    )  # fmt: skip


def _score(args: argparse.Namespace) -> int:
    from tcore_lib.evaluation.commands import score_command

    return score_command(args.kind, args.root, args.predictions, args.output)


def _attention(args: argparse.Namespace) -> int:
    from tcore_lib.model.attention_files import write_attention

    print(write_attention(args.weights, args.clip, args.folder, args.frames))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from tcore_lib.model.contents import inspect

    print(inspect(args.file, args.which))
    return 0


def _export(args: argparse.Namespace) -> int:
    from tcore_lib.model.export import export

    if args.format == "model":
        from tcore_lib.training.model_file import write_model

        write_model(args.file, args.target)
    else:
        export(args.file, args.target, args.format, which=args.which)
    print(args.target)
    return 0


def _parity(args: argparse.Namespace) -> int:
    from tcore_lib.training.parity import run

    return run(args.steps)


def _study(args: argparse.Namespace) -> int:
    from tcore_lib.reproduction import study, study_results

    if args.task:
        return study.run_task(args.study, args.task)
    only = args.only.split(",") if args.only else None
    code = 0 if args.tables else study.run_study(args.study, workers=args.workers, only=only)
    for path in study_results.write(study.load_study(args.study)):
        print(path)
    return code


def _results(args: argparse.Namespace) -> int:
    from tcore_lib import params
    from tcore_lib.reproduction import run_list

    results = params.resolve(args.results)
    match args.words:
        case []:
            table = run_list.list_of_runs(results)
        case ["diff", first, second]:
            table = run_list.difference(*(run if Path(run).is_dir() else results / run for run in (first, second)))
        case words:
            raise InputError(f"`results {' '.join(words)}` is not possible; write `results`, or `results diff A B`.")
    print(table.to_string(index=False) if len(table) else "nothing")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tcore_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("reproduce", help="run a profile's notebooks and print the table")
    command.add_argument("profile", help="a parameter file, or the name of one in params/")
    command.add_argument("--only", metavar="03,07", help="just these notebooks")
    command.add_argument("--from", dest="start", metavar="02", help="this notebook and the ones after it")
    command.add_argument("--force", action="store_true", help="also run what is finished and unchanged")
    _add_changes(command)
    command.set_defaults(run=_reproduce)

    command = commands.add_parser("table", help="the paper's table beside all runs: results/paper_table.{csv,md,html}")
    command.add_argument("--results", default="results", help="folder that holds the run folders")
    command.add_argument("--readme", action="store_true", help="also put table, data sets and cost into README.md")
    command.set_defaults(run=_table)

    command = commands.add_parser("report", help="one self-contained page about a run: scores, curves, clips, explorer")
    command.add_argument("run_folder", metavar="results/RUN")
    command.add_argument("--output", metavar="FILE", help="the HTML file; report.html in the run folder by default")
    command.add_argument(
        "--no-explorer", dest="explorer", action="store_false", help="without the explorer: smaller, faster"
    )
    command.set_defaults(run=_report)

    command = commands.add_parser("results", help="list the runs, or show what differs between two")
    command.add_argument(
        "words",
        nargs="*",
        metavar="diff A B",
        help="two runs to compare, names of the list or folders; nothing = list all runs",
    )
    command.add_argument("--results", default="results", help="folder that holds the run folders")
    command.set_defaults(run=_results)

    command = commands.add_parser("pretrain", help="train a profile on the index notebook 00 made; also under torchrun")
    command.add_argument("profile", help="a parameter file, or the name of one in params/")
    command.add_argument("--fresh", action="store_true", help="start anew instead of resuming")
    _add_changes(command)
    command.set_defaults(run=_pretrain)

    command = commands.add_parser("study", help="train and score variants of a profile over several seeds, and compare")
    command.add_argument("study", help="a file, or the name of one in params/studies/")
    command.add_argument("--workers", type=int, default=1, help="tasks at a time; they share the cores")
    command.add_argument("--only", metavar="full,random", help="some variants only")
    command.add_argument("--tables", action="store_true", help="only write tables and figures of what is finished")
    command.add_argument("--task", metavar="VARIANT/SEED", help="just this task, in this process")
    command.set_defaults(run=_study)

    command = commands.add_parser("prepare", help="videos, frame folders or images -> frames and an index")
    command.add_argument("source", help="what lies on disk")
    command.add_argument("target", help="folder for frames and index")
    command.add_argument("--frames", type=int, default=20, help="frames kept per video")
    command.add_argument("--short-side", type=int, default=256, help="pixels")
    command.add_argument("--workers", type=int, help="processes; all cores by default")
    command.add_argument("--shard", metavar="i/n", help="this process's part, for cluster arrays")
    command.add_argument("--annotations", metavar="CSV", help="the official list of a flat folder or of archives")
    command.add_argument("--layout", choices=("auto", "videos", "frames", "images"), default="auto")
    command.set_defaults(run=_prepare)

    command = commands.add_parser("plan", help="measure some steps: hours, memory, bottleneck, workers")
    command.add_argument("profile", help="a parameter file, or the name of one in params/")
    command.add_argument("--steps", type=int, default=20, help="steps to measure")
    command.add_argument("--seconds", type=float, default=60.0, help="stop measuring after about that long")
    command.add_argument("--made-up-frames", action="store_true", help="no data yet: frames of 340x256 made up")
    command.set_defaults(run=_plan)

    command = commands.add_parser("shard", help="frames of a profile's index -> tar shards that training can read")
    command.add_argument("profile", help="a parameter file, or the name of one in params/")
    command.add_argument("target", help="folder for the shards")
    command.add_argument("--part", metavar="i/n", help="only this part of the videos, e.g. for one of n file systems")
    command.add_argument("--videos-per-shard", type=int, default=3000, metavar="N")
    command.set_defaults(run=_write_shards)

    command = commands.add_parser("fetch", help="download a data set or a published encoder")
    command.add_argument("name", help="see the table in notebook 00")
    command.add_argument("--root", default="data", help="where it goes")
    command.set_defaults(run=_fetch)

    command = commands.add_parser("doctor", help="check data before anything is computed")
    command.add_argument("kind", choices=("davis", "jhmdb", "vip", "frames"))
    command.add_argument("--root", required=True)
    command.set_defaults(run=_doctor)
    _add_encoder_commands(commands)
    return parser


def _add_changes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", dest="changes", metavar="SECTION.KEY=VALUE", action="append", default=[],
        help="replace one setting of the profile; may be repeated",
    )  # fmt: skip


def _add_encoder_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("evaluate", help="score a frozen encoder on a benchmark")
    command.add_argument("kind", choices=("davis", "jhmdb", "vip"))
    command.add_argument("--root", required=True)
    command.add_argument(
        "--encoder",
        required=True,
        action="append",
        help="may be repeated: pixels, a file or folder, a published name, or timm:NAME",
    )
    command.add_argument("--clips", metavar="a,b", help="some clips only")
    command.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, or auto")
    command.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="of features and the candidate search")
    command.add_argument("--which", choices=("teacher", "student"), default="teacher")
    command.add_argument("--overlays", action="store_true", help="also write a video per clip")
    command.add_argument("--output", required=True, help="folder for summary.json, tables and predictions")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("score", help="score label PNGs somebody else made")
    command.add_argument("kind", choices=("davis", "vip"))
    command.add_argument("--root", required=True)
    command.add_argument("--predictions", required=True)
    command.add_argument("--output", required=True, help="file for the scores")
    command.set_defaults(run=_score)

    command = commands.add_parser("attention", help="pictures of where each hidden patch of a clip's frame looks")
    command.add_argument("weights", help="a training checkpoint step-*.pt or a model file (export --format model)")
    command.add_argument("clip", help="a video, or a folder of images")
    command.add_argument("folder", help="where the pictures go")
    command.add_argument("--frames", type=int, nargs=3, metavar=("PAST", "CURRENT", "FUTURE"), help="numbers from 0")
    command.set_defaults(run=_attention)

    command = commands.add_parser("inspect", help="what is in a weight file")
    command.add_argument("file")
    command.add_argument("--which", choices=("teacher", "student"), default="teacher")
    command.set_defaults(run=_inspect)

    command = commands.add_parser("export", help="write an encoder for use elsewhere")
    command.add_argument("file")
    command.add_argument("target")
    command.add_argument(
        "--format", choices=("safetensors", "timm", "official", "pt2", "onnx", "model"), default="safetensors"
    )
    command.add_argument("--which", choices=("teacher", "student"), default="teacher")
    command.set_defaults(run=_export)

    command = commands.add_parser("parity", help="compare training steps with recorded ones")
    command.add_argument("steps", help="the .npz file; its sizes stand in the .json beside it")
    command.set_defaults(run=_parity)


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 when the work failed, 2 for bad input, 130 when interrupted, 141 when nobody reads on (`| head`),
        143 when told to end.
    """
    args = _parser().parse_args(argv)
    try:
        with _told_to_end():
            code: int = args.run(args)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return 128 + signal.SIGPIPE
    except InputError as error:
        print(f"tcore_lib: {error}", file=sys.stderr)
        return 2
    except _ToldToEnd:
        print("tcore_lib: told to end; the same command continues from what is finished.", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt as stop:  # a training says by itself at which step it stopped, and by which signal
        text = str(stop) or "interrupted; the same command continues from what is finished."
        print(f"tcore_lib: {text}", file=sys.stderr)
        return getattr(stop, "exit_code", 128 + signal.SIGINT)


def _reader_is_gone() -> bool:
    """Whether what the output is piped to has ended; then nothing more is written, not even as Python ends."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    gone = bool(output.poll(0))  # asked for nothing, it tells of errors
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


class _ToldToEnd(KeyboardInterrupt):
    """SIGTERM came: everything ends as it would with Ctrl-C."""


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Inside, SIGTERM raises `_ToldToEnd`, so that child processes and unfinished files are seen to."""

    def stop(*_: object) -> None:
        raise _ToldToEnd

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
