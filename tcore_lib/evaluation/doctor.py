"""The data doctor: is a benchmark on disk what its protocol expects? All of it is looked at before any computation.

Most scores that are off by one to three points with the right weights come from here: resized annotations, another
split, a missing clip. (docs/protocol.md, "Files".) Nothing is written.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from tcore_lib.errors import InputError
from tcore_lib.evaluation.benchmarks import benchmark_of
from tcore_lib.evaluation.clips import Clip
from tcore_lib.params import Benchmark

SHOWN = 12  # problems, remarks, or clips without a score that are named


@dataclass
class Report:
    """What the doctor found."""

    facts: list[str]  # benchmark, split and folder; what there is
    problems: list[str] = field(default_factory=list)  # to be put right before an evaluation means anything: one a clip
    remarks: list[str] = field(
        default_factory=list
    )  # what makes scores incomparable with published ones, or is unusual

    def __str__(self) -> str:
        """The report as lines of text."""
        lines = list(self.facts)
        for title, found in (("problem", self.problems), ("remark", self.remarks)):
            lines += [f"  {title:<12}{text}" for text in found[:SHOWN]]
            lines += [f"  {title:<12}and {len(found) - SHOWN} more"] * (len(found) > SHOWN)
        return "\n".join([*lines, f"  {'NOT ' if self.problems else ''}fit for evaluation"])

    def require(self) -> None:
        """Stop here with the first problem, unless everything is in order."""
        if self.problems:
            more = f" ({len(self.problems) - 1} more problems are in the report)" if len(self.problems) > 1 else ""
            raise InputError(f"{self.problems[0]}{more}")


def examine(settings: Benchmark, root: str | Path, *, progress: bool = True) -> Report:
    """Examine the clips of a benchmark that its section of the parameters asks for, every image to its end.

    Nothing is raised for what is wrong with the data. `progress` shows a bar over clips.
    """
    benchmark, split, root = benchmark_of(settings), str(settings.split), Path(root)  # type: ignore[attr-defined]
    report = Report([f"{benchmark.title}, split {split}, in {root}"])
    try:
        names = benchmark.names(root)
    except InputError as error:
        report.problems.append(str(error))
        return report

    def look(name: str) -> tuple[Clip, list[str]] | InputError:
        """The clip and remarks about it, or what is wrong with it."""
        try:
            clip = benchmark.load(root, name)
            for frame in range(len(clip)):
                clip.image(frame)
            return clip, [f"{clip.name}: {remark}" for remark in (*_lost_frames(clip), *benchmark.check(clip))]
        except InputError as error:
            return error

    clips: list[Clip] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked = pool.map(look, names)
        hidden = not progress
        for found in tqdm(looked, "doctor", total=len(names), unit="clip", file=sys.stdout, disable=hidden):
            if isinstance(found, InputError):
                report.problems.append(str(found))
            else:
                clips.append(found[0])
                report.remarks += found[1]
    frames, scored = sum(map(len, clips)), sum(len(benchmark.counted(clip)) for clip in clips)
    sizes = Counter(f"{clip.size[1]}x{clip.size[0]}" for clip in clips).most_common(6)
    report.facts += [
        f"  clips       {len(clips)} complete of {len(names)} {'listed' if settings.clips is None else 'chosen'}",
        f"  frames      {frames}, {scored} of them are scored",
        f"  sizes       {', '.join(f'{size}: {count}' for size, count in sizes)}",
    ]
    official_split, official, official_frames = benchmark.official
    if split != official_split:
        report.remarks.append(f"published figures are of split {official_split}, not {split}")
    elif settings.clips is None and (len(clips) != official or official_frames not in (None, frames)):
        expected = f"{official} clips" + (f" and {official_frames} frames" if official_frames else "")
        report.remarks.append(f"the published split has {expected}: scores here are not comparable with published ones")
    report.remarks += filter(None, [without_score(settings, clips)])
    return report


def _lost_frames(clip: Clip) -> list[str]:
    """A gap in consecutive numbers: a lost file that no list knows of. Every fifth frame of a video is no gap."""
    numbers = [int(path.stem) for path in clip.frames if path.stem.isdecimal()]
    lost = sorted(set(range(min(numbers, default=0), max(numbers, default=0))) - set(numbers))
    few = 0 < len(lost) < len(numbers) == len(clip)
    return [f"frame {lost[0]} and {len(lost) - 1} more are missing between others"] if few else []


def without_score(settings: Benchmark, clips: Sequence[Clip]) -> str:
    """The sentence about clips of which no frame is scored, and which therefore have no part in the mean; may be empty."""
    names = [f"{clip.name} ({len(clip)} frames)" for clip in clips if not benchmark_of(settings).counted(clip)]
    if names and for_a_server(clips):
        return "no frame is scored: only first frames are annotated; the predictions are for the benchmark's server"
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    others = f": the mean is that of the other {len(clips) - len(names)} clips" if len(names) < len(clips) else ""
    return f"no frame is scored of {shown}{others}" if names else ""


def for_a_server(clips: Sequence[Clip]) -> bool:
    """Whether only the first frames are annotated, as in DAVIS' test-dev: a server scores the predictions."""
    return all(clip.joints is None and len(clip) > 1 and not any(clip.annotations[1:]) for clip in clips)
