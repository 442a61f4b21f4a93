"""The data doctor: is a benchmark on disk what its protocol expects? All of it is looked at before any computation.

Most scores that are off by one to three points with the right weights come from here: resized annotations, another
split, a missing clip. (EVALUATION, "Files".) Nothing is written.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tcore_lib.bodies import PARTS
from tcore_lib.errors import InputError
from tcore_lib.evaluation import metrics
from tcore_lib.evaluation.clips import Clip, clip_names, load_clip, read_frame, read_ids
from tcore_lib.params import Benchmark, Davis

# (clips, frames or None) of the splits that published figures are measured on
OFFICIAL = {"davis": ("val", 30, 1999), "jhmdb": ("1", 268, None), "vip": ("val", 50, None)}
TITLES = {"davis": "DAVIS-2017", "jhmdb": "JHMDB", "vip": "VIP"}
RESIZED = (480, 880)  # the masks of the variant DAVIS_480_880
SHOWN = 12  # problems and remarks that are printed


@dataclass
class Report:
    """What the doctor found.

    Attributes:
        kind: davis, jhmdb or vip.
        root: the folder that was looked at.
        split: name of the split.
        facts: (what, how much), in the order of printing.
        problems: what has to be put right before an evaluation means anything, one sentence each.
        remarks: what makes scores incomparable with published ones, or is unusual.
    """

    kind: str
    root: Path
    split: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """No problem; there may be remarks."""
        return not self.problems

    def __str__(self) -> str:
        """The report as lines of text."""
        lines = [f"{TITLES[self.kind]}, split {self.split}, in {self.root}"]
        lines += [f"  {name:<12}{value}" for name, value in self.facts]
        for title, found in (("problem", self.problems), ("remark", self.remarks)):
            lines += [f"  {title:<12}{text}" for text in found[:SHOWN]]
            if len(found) > SHOWN:
                lines.append(f"  {title:<12}and {len(found) - SHOWN} more")
        lines.append("  fit for evaluation" if self.ok else "  NOT fit for evaluation")
        return "\n".join(lines)

    def require(self) -> None:
        """Stop here unless everything is in order.

        Raises:
            InputError: the first problem, and how many more there are.
        """
        if not self.ok:
            more = f" ({len(self.problems) - 1} more problems are in the report)" if len(self.problems) > 1 else ""
            raise InputError(f"{self.problems[0]}{more}")


def examine(
    settings: Benchmark, root: str | Path, *, decode: bool = True, workers: int | None = None, progress: bool = True
) -> Report:
    """Examine a benchmark.

    Args:
        settings: its section; `split` and `clips` say what is looked at.
        root: its folder.
        decode: read every image to its end; False = lists, names, joints and first annotations only.
        workers: threads; None = one per core.
        progress: show a bar over files while they are decoded.

    Returns:
        The report; nothing is raised for what is wrong with the data.
    """
    kind = type(settings).__name__.lower()
    report = Report(kind, Path(root), str(settings.split))  # type: ignore[attr-defined]
    clips: list[Clip] = []
    try:
        names = clip_names(settings, root)
    except InputError as error:
        report.problems.append(str(error))
        return report
    for name in names:
        try:
            clips.append(load_clip(settings, root, name))
        except InputError as error:
            report.problems.append(str(error))
    _count(report, settings, names, clips)
    images = sum(len(clip) + sum(path is not None for path in clip.annotations) for clip in clips)
    bar = tqdm(total=images, unit="file", desc="doctor", file=sys.stdout, disable=not (progress and decode))
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, bar:
        found = pool.map(lambda clip: _examine_clip(clip, settings, decode), clips)
        for clip, (problems, remarks) in zip(clips, found, strict=True):
            report.problems += problems
            report.remarks += [f"{clip.name}: {remark}" for remark in remarks]
            bar.update(len(clip) + sum(path is not None for path in clip.annotations))
    return report


def _count(report: Report, settings: Benchmark, names: list[str], clips: list[Clip]) -> None:
    """Counts and sizes, and how they compare with the split of the published figures."""
    split, official, official_frames = OFFICIAL[report.kind]
    frames = sum(map(len, clips))
    wanted = "chosen" if settings.clips is not None else "listed"
    report.facts.append(("clips", f"{len(clips)} complete of {len(names)} {wanted}"))
    report.facts.append(("frames", str(frames)))
    sizes = Counter(f"{clip.size[1]}x{clip.size[0]}" for clip in clips)
    report.facts.append(("sizes", ", ".join(f"{size}: {count}" for size, count in sizes.most_common(6))))
    if report.kind == "vip":
        annotated = sum(path is not None for clip in clips for path in clip.annotations)
        report.facts.append(("annotated", f"{annotated} frames"))
    complete = len(clips) == official and official_frames in (None, frames)
    if report.split == split and settings.clips is None and not complete:
        expected = f"{official} clips" + (f" and {official_frames} frames" if official_frames else "")
        report.remarks.append(f"the published split has {expected}: scores here are not comparable with published ones")
    if report.split != split:
        report.remarks.append(f"published figures are of split {split}, not {report.split}")


Findings = tuple[list[str], list[str]]


def _examine_clip(clip: Clip, settings: Benchmark, decode: bool) -> Findings:
    """Problems and remarks of one clip."""
    problems: list[str] = []
    remarks = _numbering(clip)
    for path in clip.frames if decode else ():
        try:
            shape = read_frame(path).shape[:2]
            if shape != clip.size:
                problems.append(
                    f"{path} is {_size(shape)}, the clip's first frame {_size(clip.size)}; unpack it again."
                )
        except InputError as error:
            problems.append(str(error))
    check = {"davis": _masks, "vip": _parts, "jhmdb": _joints}[clip.kind]
    more = check(clip, settings, decode)
    return problems + more[0], remarks + more[1]


def _size(shape: Iterable[int]) -> str:
    height, width = shape
    return f"{width}x{height}"


def _numbering(clip: Clip) -> list[str]:
    """A gap in the frame numbers: a lost file that no list knows of."""
    if clip.kind == "vip" or not all(path.stem.isdecimal() for path in clip.frames):
        return []  # VIP's numbers are those of a longer video
    numbers = [int(path.stem) for path in clip.frames]
    missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    return [f"frame {missing[0]} and {len(missing) - 1} more are missing between others"] if missing else []


def _annotations(clip: Clip, decode: bool) -> Iterable[tuple[Path, np.ndarray | InputError]]:
    """The annotations to look at: all, or the first one."""
    paths = [path for path in clip.annotations if path is not None]
    for path in paths if decode else paths[:1]:
        try:
            yield path, read_ids(path)
        except InputError as error:
            yield path, error


def _masks(clip: Clip, settings: Benchmark, decode: bool) -> Findings:
    """DAVIS annotations: sizes, ids, void."""
    problems: list[str] = []
    remarks: list[str] = []
    objects: set[int] = set()
    later: set[int] = set()
    resized = void = 0
    for path, ids in _annotations(clip, decode):
        if isinstance(ids, InputError):
            problems.append(str(ids))
            continue
        if ids.shape == RESIZED and clip.size != RESIZED:
            resized += 1
        elif ids.shape != clip.size:
            problems.append(
                f"{path} is {_size(ids.shape)}, its frame {_size(clip.size)}; fetch the native annotations."
            )
        present = set(np.unique(ids).tolist()) - {0}
        void += metrics.VOID in present
        if path == clip.annotations[0]:
            objects = present - {metrics.VOID}
        later |= present - {metrics.VOID}
    text = f"{resized} annotations are resized to {_size(RESIZED)}, the frames are {_size(clip.size)}"
    if resized and isinstance(settings, Davis) and settings.score_size == "input":
        remarks.append(f"{text}; scored at input size, a variant")
    elif resized:
        problems.append(f"{clip.source}: {text}; fetch the native ones, scores on resized masks are off by points.")
    elif clip.size == RESIZED:
        remarks.append(f"frames and annotations are {_size(RESIZED)}, which no clip of DAVIS-2017 is: resized data?")
    if not objects and not problems:
        problems.append(f"{clip.annotations[0]} shows no object; a clip needs one in its first frame.")
    elif objects and objects != set(range(1, max(objects) + 1)):
        remarks.append(f"ids {sorted(objects)} of the first frame are not 1 ... {max(objects)}; gaps score 1 if unused")
    if later - objects and objects:
        remarks.append(f"ids {sorted(later - objects)} appear after the first frame; they are not scored")
    if void:
        remarks.append(f"{void} annotations have void pixels (id 255), which are left out")
    return problems, remarks


def _parts(clip: Clip, settings: Benchmark, decode: bool) -> Findings:
    """VIP annotations: sizes and class ids."""
    problems: list[str] = []
    remarks: list[str] = []
    for path, ids in _annotations(clip, decode):
        if isinstance(ids, InputError):
            problems.append(str(ids))
        elif ids.max() >= len(PARTS):
            problems.append(f"{path} has the id {ids.max()}, not one of 0 ... 19; take Category_ids, not instances.")
        elif ids.shape != clip.size:
            remarks.append(f"{path.name} is {_size(ids.shape)}, its frame {_size(clip.size)}; scored at its own size")
    scored = sum(path is not None for path in clip.annotations)
    if scored == 1:
        remarks.append("only the first frame is annotated, which was given")
    return problems, remarks


def _joints(clip: Clip, settings: Benchmark, decode: bool) -> Findings:
    """JHMDB: joints inside the image."""
    assert clip.joints is not None
    h, w = clip.size
    outside = ((clip.joints < 0) | (clip.joints > (w - 1, h - 1))).any(-1)  # (N, 15)
    return [], [f"{outside.sum()} of {outside.size} joints lie outside the image"] if outside.mean() > 0.5 else []
