"""The report of a run: `python -m tcore_lib report results/<run>` -> one HTML file that opens from disk, without a network.

It shows what the run folder holds: scores beside the paper's, curves, every clip, the best and the worst one, the
correspondence explorer, settings and provenance. What was not run is shown as "not run"; what cannot be shown because the
run's data or weights are not on this machine says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tcore_lib import files, params, runs
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, video as overlay
from tcore_lib.evaluation.clips import Clip
from tcore_lib.figures import plots, style as look
from tcore_lib.params import Params
from tcore_lib.reproduction import profile as profiles, table
from tcore_lib.widgets import report_page as page, scene as correspondences
from tcore_lib.widgets.report_page import Section

PICTURES = 5  # frames shown of a clip
# Benchmark -> (title of its section, table of a stage's results, what a row of that table is about).
KINDS = {
    "davis": ("Objects (DAVIS)", "objects", "object"),
    "jhmdb": ("Joints (JHMDB)", "joints", "joint"),
    "vip": ("Parts (VIP)", "parts", "part"),
}

LEGENDS = {
    "davis": {},
    "jhmdb": {look.SIDE_NAMES[side]: look.to_rgb8(colour) for side, colour in look.SIDE_COLOURS.items()},
    "vip": dict(zip(look.VIP_CLASSES[1:], look.VIP_PALETTE[1:].tolist(), strict=True)),
}


@dataclass(frozen=True)
class Results:
    """What a run folder holds: stage -> its record (`result`, `settings`, `provenance`), without what was not run."""

    folder: Path
    records: dict[str, dict[str, Any]]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The sections of the run's parameter file, as the stages used them."""
        return {name: section for record in self.records.values() for name, section in record["settings"].items()}

    @cached_property
    def params(self) -> Params:
        """The run's parameters, with the folder as it is called and lies now.

        Raises:
            InputError: another version of the library wrote them.
        """
        place = {"name": self.folder.name, "results": str(self.folder.parent)}
        sections = self.settings | {"run": self.settings["run"] | place}
        return params.parse(sections, f"the settings in {self.folder}")


def read(folder: str | Path) -> Results:
    """Read a run folder.

    Raises:
        InputError: there is no such folder, no notebook has finished in it, or a result is damaged.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        known = ", ".join(run.name for run in runs.list_runs(folder.parent)) if folder.parent.is_dir() else ""
        raise InputError(f"There is no run folder {folder}" + (f"; {folder.parent} has {known}." if known else "."))
    records = runs.read_results(folder)
    if not records:
        raise InputError(f"No notebook has finished in {folder} yet; run python -m tcore_lib reproduce first.")
    return Results(folder, records)


def write_report(folder: str | Path, target: str | Path | None = None, *, explorer: bool = True) -> Path:
    """Write the report of a run.

    Args:
        folder: `results/<run>`.
        target: the HTML file; `report.html` in the run folder by default.
        explorer: also compute and embed the correspondence explorer (seconds on a CPU, some megabytes).

    Returns:
        The file.

    Raises:
        InputError: see `read`; or one of the run's tables is missing.
    """
    look.use("light")  # the page gives figures the reader's theme
    run = read(folder)
    sections = [
        Section("scores", "Scores", _scores(run)),
        Section("training", "Training", _training(run)),
        *(Section(kind, KINDS[kind][0], _benchmark(run, kind)) for kind in KINDS),
        *([Section("explorer", "Correspondence explorer", _or_reason(lambda: _explorer(run)))] if explorer else []),
        Section("attention", "Attention", _attention(run)),
        Section("weights", "Checkpoint", _checkpoint(run)),
        Section("provenance", "Provenance", _provenance(run)),
        Section("settings", "Settings", _settings(run)),
    ]
    title = str(run.settings["run"].get("title") or "")
    target = Path(target) if target is not None else run.folder / "report.html"
    files.write_text(target, page.document(f"T-CoRe run {run.folder.name}", title, _lead(run), sections))
    return target


def _or_reason(build: Callable[[], str]) -> str:
    """HTML, or the sentence that says why it cannot be had here."""
    try:
        return build()
    except InputError as error:
        return page.paragraph(f"Not shown: {error}", "absent")


def _not_run(stage: str) -> str:
    return page.paragraph(f"not run (notebooks/{stage}.ipynb)", "absent")


def _lead(run: Results) -> str:
    """The facts on top: how much was run, when, on what, from which code."""
    origins = [record["provenance"] for record in run.records.values()]
    last = runs.latest(run.records)
    return page.facts(
        {
            "notebooks run": f"{len(run.records)} of {len(runs.STAGES)}",
            "training": run.records.get("01_pretraining", {}).get("result", {}).get("description", table.NOT_RUN),
            "time": f"{sum(origin['seconds'] for origin in origins) / 60:.1f} minutes",
            "machine": runs.machine(last),
            "finished": str(last["finished"]).replace("T", " ").replace("+00:00", " UTC"),
            "code": runs.commit(last),
        }
    )


# ---- scores ---------------------------------------------------------------------------------------------------------


def _scores(run: Results) -> str:
    paper = run.folder.parent / "paper.csv"
    published, measured = table.paper_rows(paper if paper.exists() else None), table.measured_rows(run.folder)
    both = pd.concat([part.astype(object) for part in (published, measured) if len(part)], ignore_index=True)
    body = page.paragraph(
        "The authors' figures and what this run measured, in percent. Rows of this run are another test wherever "
        "they were evaluated on rendered clips or on a part of a benchmark: compare them with each other.",
        "note",
    )
    shown = table.as_shown(both).rename(columns={"source": "file or run"})
    body += page.table(shown, marked=range(len(published), len(both)))
    return body + (page.figure(plots.score_table(_long(run)), "scores of each encoder") if len(measured) else "")


def _long(run: Results) -> pd.DataFrame:
    """One row per encoder and benchmark, for the figure."""
    rows = [
        {"encoder": encoder, "benchmark": heading, "measured": score["value"]}
        | {key: score.get(key) for key in ("low", "high")}
        for stage, heading in table.BENCHMARKS.values()
        for encoder, score in run.records.get(stage, {"result": {"scores": {}}})["result"]["scores"].items()
    ]
    return pd.DataFrame(rows).astype({name: float for name in ("measured", "low", "high")})


def _benchmark(run: Results, kind: str) -> str:
    """Scores with intervals, every clip, and the clips with the best and the worst score."""
    stage, heading = table.BENCHMARKS[kind]
    if stage not in run.records:
        return _not_run(stage)
    _, rows_of, about = KINDS[kind]
    scores, rows = runs.read_table(run.folder, stage, "scores"), runs.read_table(run.folder, stage, rows_of)
    per_clip = table.per_clip(rows, kind)
    body = page.paragraph(f"Measured on {run.records[stage]['result']['data']}.", "note")
    body += page.table(_with_intervals(scores))
    body += page.figure(plots.clip_bars(per_clip, unit=f"{heading}, %", title="each clip"), f"{heading} of each clip")
    body += page.folded(f"{len(per_clip)} clips as a table, %", page.table(per_clip.reset_index()))
    body += page.folded(f"{len(rows)} rows, one per encoder, clip and {about}", page.table(rows, 3))
    return body + _or_reason(lambda: _best_and_worst(run, kind, per_clip))


def _with_intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per score, one column per encoder: `33.2 [21.5, 47.0]`."""

    def cell(row: Any) -> str:
        interval = "" if pd.isna(row.low) else f"  [{row.low:.1f}, {row.high:.1f}]"
        return table.NOT_RUN if pd.isna(row.value) else f"{row.value:.1f}{interval}"

    shown: dict[str, dict[str, str]] = {}
    for row in scores.itertuples(index=False):
        shown.setdefault(row.score, {"%, [95 % interval over clips]": row.score})[row.encoder] = cell(row)
    return pd.DataFrame(list(shown.values()))


def _best_and_worst(run: Results, kind: str, per_clip: pd.DataFrame) -> str:
    if not profiles.benchmark_root(run.params, kind).is_dir():
        raise InputError(f"the clips are not on this machine ({profiles.benchmark_root(run.params, kind)}).")
    found = {clip.name: clip for clip in profiles.clips(run.params, kind)}
    first = per_clip.columns[0]
    ranked = per_clip[first].dropna().sort_values()
    body = ""
    for word, name in {ranked.index[0]: "worst", ranked.index[-1]: "best"}.items() if len(ranked) else ():
        if word not in found:
            raise InputError(f"the clip {word} is not in {profiles.benchmark_root(run.params, kind)}.")
        score = f"{name} clip of {first}: {word}, {ranked[word]:.1f} %"
        body = _clip_pictures(run, kind, found[word], list(per_clip.columns), score) + body
    return body + page.legend(LEGENDS[kind])


def _clip_pictures(run: Results, kind: str, clip: Clip, encoders: list[str], title: str) -> str:
    """Ground truth and every encoder's prediction through time."""
    at = np.array(correspondences.spread(len(clip), PICTURES))
    if clip.annotations:  # VIP annotates some of the frames only
        known = np.array([i for i, path in enumerate(clip.annotations) if path is not None])
        at = np.unique(known[np.abs(known[:, None] - at).argmin(0)])
    images = [clips.read_frame(clip.frames[i]) for i in at]
    truth = clip.joints[at] if clip.joints is not None else [clips.read_ids(clip.annotations[i]) for i in at]  # type: ignore[arg-type]
    rows = {"ground truth": _painted(kind, images, truth)}
    for name in encoders:
        predicted = profiles.predictions(run.folder / "predictions" / kind, name, clip, at.tolist())
        if predicted is not None:
            rows[name] = _painted(kind, images, predicted)
    body = page.strip(rows, [f"frame {i}" for i in at], title)
    return body if len(rows) > 1 else body + page.paragraph("The run's predictions are not on this machine.", "note")


def _painted(kind: str, images: list[np.ndarray], labels: Any) -> list[np.ndarray]:
    if kind == "jhmdb":
        return [overlay.draw_joints(image, joints) for image, joints in zip(images, labels, strict=True)]
    palette = look.VIP_PALETTE if kind == "vip" else None
    return [look.overlay_labels(image, ids, palette) for image, ids in zip(images, labels, strict=True)]


# ---- training, weights, attention -----------------------------------------------------------------------------------


def _training(run: Results) -> str:
    stage = "01_pretraining"
    if stage not in run.records:
        return _not_run(stage)
    result, log = run.records[stage]["result"], runs.read_table(run.folder, stage, "log")
    known = [name for name in plots.TITLES if name in log.columns and log[name].notna().any()]
    planned = known[known.index("lr") :] if "lr" in known else []
    body = page.paragraph(f"{result['description']}.", "note")
    body += page.figure(plots.loss_curves(log, [name for name in known if name not in planned]), "training curves")
    if planned:
        drawn = page.figure(plots.loss_curves(log, planned), "learning rates and other schedules")
        body += page.folded("learning rates and other schedules", drawn)
    terms = pd.DataFrame({"term": list(result["first"])})
    terms["name"] = [plots.TITLES.get(term, (term, ""))[0] for term in terms["term"]]
    for when in ("first", "last"):
        terms[f"{when} tenth"] = [result[when].get(term) for term in terms["term"]]
    return body + page.folded("loss terms as numbers", page.table(terms, 4))


def _checkpoint(run: Results) -> str:
    stage = "02_checkpoint_inspection"
    if stage not in run.records:
        return _not_run(stage)
    body = page.paragraph(f"{run.records[stage]['result']['about']}.", "note")
    counts = runs.read_table(run.folder, stage, "parameters").rename(columns={"index": "module"})
    return body + page.folded("parameters of each module, measured and expected", page.table(counts, 0))


def _attention(run: Results) -> str:
    stage = "06_attention_visualization"
    if stage not in run.records:
        return _not_run(stage)
    share = run.records[stage]["result"].get("uniform_share")
    body = page.paragraph(
        "The decoder's cross-attention from hidden patches of the current frame. Sharpness: share of the most attended "
        f"patch{'' if share is None else f' (evenly spread: {share:.4f})'}; entropy: in nats; reach: patches between "
        "the query's own place and the most attended one.",
        "note",
    )
    return body + page.table(runs.read_table(run.folder, stage, "statistics").rename(columns={"index": ""}), 4)


def _explorer(run: Results) -> str:
    """The explorer on one clip, with every encoder of the run, its decoder's attention and carried labels."""
    settings = run.params.model_copy(update={"run": run.params.run.model_copy(update={"device": "cpu"})})
    shown = correspondences.scene(settings)
    encoders = profiles.encoders(settings)
    models = correspondences.decoders(settings)
    widget = correspondences.explore(shown, encoders, models.get("after training"))
    body = page.paragraph(
        f"{shown.title}. Click or drag a patch in any frame: every other frame shows how alike its patches are, and the "
        "best match. Arrow keys move the patch and go through time. All of it is computed in this page.",
        "note",
    )
    return body + widget.to_fragment("explorer-widget")


# ---- where it comes from --------------------------------------------------------------------------------------------


def _provenance(run: Results) -> str:
    rows = []
    for stage in runs.STAGES:
        record = run.records.get(stage)
        if record is None:
            rows.append({"notebook": stage, "state": table.NOT_RUN})
            continue
        origin = record["provenance"]
        rows.append(
            {"notebook": stage, "state": "run", "minutes": origin["seconds"] / 60}
            | {"memory, GB": origin["peak_memory_gb"], "machine": runs.machine(origin), "code": runs.commit(origin)}
            | {"finished (UTC)": str(origin["finished"])[:16].replace("T", " ")}
        )
    last = runs.latest(run.records)
    versions = {"python": last["python"], **last["versions"], "system": last["system"]}
    hashes = {"library": last["library_sha256"][:16], "parameters": last["params_sha256"][:16]}
    body = page.table(pd.DataFrame(rows), 2) + "<h3>versions</h3>"
    body += page.facts({name: version or "not installed" for name, version in versions.items()})
    return body + "<h3>SHA-256, first digits</h3>" + page.facts(hashes)


def _settings(run: Results) -> str:
    body = page.paragraph("Every setting, defaults filled in, as the notebooks read them.", "note")
    for name in params.SECTIONS:
        if name in run.settings:
            flat = params.dotted(run.settings[name])
            values = pd.DataFrame({"setting": list(flat), "value": [str(value) for value in flat.values()]})
            body += page.folded(f"{name} ({len(flat)})", page.table(values))
    return body
