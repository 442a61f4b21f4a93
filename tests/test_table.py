"""The one score table: published figures as they are, measured ones from result files, "not run" for the rest."""

import math
import runpy
from pathlib import Path
from typing import Any

import pytest

from tcore_lib import runs
from tcore_lib.__main__ import main
from tcore_lib.files import write_json, write_text
from tcore_lib.params import Davis
from tcore_lib.reproduction import table

ROOT = Path(__file__).parents[1]
RELEASED = "vits16_400ep_K400.pth"
HEADINGS = ["DAVIS J&F_m", "VIP mIoU", "JHMDB PCK@0.1"]


def a_run(
    results: Path,
    name: str = "r",
    root: str = "data/davis",
    value: float | None = 64.9,
    source: str = "x.pth",
    **settings: object,
) -> Path:
    """A run folder with one evaluation on DAVIS, of a released encoder and of the random initialisation."""
    checkpoint = {"encoders": {"theirs": source, "random": "random"}, "paper_rows": {"theirs": RELEASED}}
    record = {
        "stage": "03_davis_evaluation",
        "result": {},
        "settings": {
            "run": {"title": name, "seed": 0},
            "checkpoint": checkpoint,
            "davis": Davis(root=root, **settings).model_dump(mode="json"),
        },
        "provenance": {"finished": "2026-01-01", "seconds": 60.0, "peak_memory_gb": 1.0, "commit": None,
                       "uncommitted_changes": False, "device": "cpu", "processor": "some", "cores": 2},
    }  # fmt: skip
    write_json(results / name / "03_davis_evaluation.json", record)
    scores = [f"theirs,J&F_m,{'' if value is None else value},60,68,30", "random,J&F_m,30,,,30", "random,J_m,10,,,30"]
    write_text(
        results / name / "03_davis_evaluation.scores.csv", "\n".join(["encoder,score,value,low,high,clips", *scores])
    )
    rows = [f"{encoder},{clip},1,{jf},{jf},1,0,{jf},1,0" for encoder, mean in (("theirs", 0.6), ("random", 0.3))
            for clip, jf in (("a", mean), ("b", mean + 0.1))]  # fmt: skip
    head = "encoder,clip,object,JF_mean,J_mean,J_recall,J_decay,F_mean,F_recall,F_decay"
    write_text(results / name / "03_davis_evaluation.objects.csv", "\n".join([head, *rows]) + "\n")
    return results / name


def test_published_figures() -> None:
    figures = table.paper().pivot(index="released", columns="benchmark", values="value")[["davis", "vip", "jhmdb"]]
    assert figures.loc[RELEASED].tolist() == [64.7, 37.8, 47.0]
    assert figures.loc["vitb16_200ep_K400.pth"].tolist() == [66.4, 38.9, 47.1]
    assert figures.loc["vits16_100ep_INET.pth"].tolist() == [64.1, 39.7, 46.2]


@pytest.mark.parametrize(
    ("score", "shown"),
    [
        ({"value": 33.2}, "33.2"),
        ({"value": 33.2, "low": 21.46, "high": 47.0}, "33.2 [21.5, 47.0]"),
        ({"value": 64.9, "low": 60.0, "high": 68.0, "expected": 64.7}, "64.9 (+0.2) [60.0, 68.0]"),
        ({"value": 0.42, "low": -1.0, "high": 1.84, "sign": True}, "+0.4 [-1.0, +1.8]"),
        ({"value": 5.0, "low": math.nan, "high": math.nan}, "5.0"),
        ({"value": None, "low": 1.0, "high": 2.0}, "not run"),
        ({"value": math.nan}, "not run"),
    ],
)
def test_one_way_to_write_a_score(score: dict[str, Any], shown: str) -> None:
    assert table.text(**score) == shown


def test_a_reproduction_stands_below_the_paper_with_its_difference(tmp_path: Path) -> None:
    shown = table.show(table.of_runs([a_run(tmp_path, "released")]))
    assert shown["who"].tolist() == ["paper"] * 3 + ["reproduced"] * 3 + ["ours"]
    reproduced = shown[shown["who"] == "reproduced"].set_index("training")
    measured = reproduced.loc["K400, 400 epochs", HEADINGS].tolist()
    assert measured == ["64.9 (+0.2) [60.0, 68.0]", "not run", "not run"]
    assert reproduced.loc["K400, 400 epochs", "run"] == "released"
    assert reproduced.loc["ImageNet, 100 epochs", HEADINGS].tolist() == ["not run"] * 3
    assert shown.iloc[-1][["encoder", "training", "DAVIS J&F_m"]].tolist() == ["random", "none", "30.0"]


def test_rendered_partial_or_missing_scores_never_fill_the_papers_row(tmp_path: Path) -> None:
    scores = table.of_runs([a_run(tmp_path, root="synthetic"), tmp_path / "nothing"])
    assert not scores["real"].any()
    assert table.show(scores)["encoder"].tolist()[-2:] == ["theirs", "random"]
    others: list[dict[str, Any]] = [{"top_k": 5}, {"clips": ["a"]}, {"value": None}]
    for found in (scores, *(table.of_runs([a_run(tmp_path, **other)]) for other in others)):
        shown = table.show(found)
        assert (shown.loc[shown["who"] == "reproduced", HEADINGS] == "not run").all(axis=None)


def test_paired_differences_by_hand(tmp_path: Path) -> None:
    """Clips a and b: 60 and 70 against 30 and 40. Each resample of the clips gives 30 points: an interval of no width."""
    found = table.differences(a_run(tmp_path))
    row = found.iloc[0]
    assert (row["better"], row["worse"], row["clips"]) == ("theirs", "random", 2)
    assert [round(row[key], 6) for key in ("difference", "low", "high")] == [30.0, 30.0, 30.0]
    shown = table.show_differences(found).iloc[0].tolist()
    assert shown == ["theirs - random", "+30.0 [+30.0, +30.0]", "not run", "not run"]
    objects = runs.read_table(tmp_path / "r", "03_davis_evaluation", "objects")
    objects.loc[(objects["encoder"] == "random") & (objects["clip"] == "b"), "JF_mean"] = 0.6  # now 30 and 10 points
    write_text(tmp_path / "r/03_davis_evaluation.objects.csv", objects.to_csv(index=False))
    row = table.differences(tmp_path / "r").iloc[0]
    assert [round(row[key], 6) for key in ("difference", "low", "high")] == [20.0, 10.0, 30.0]
    write_text(tmp_path / "r/03_davis_evaluation.objects.csv", objects[objects["clip"] == "a"].to_csv(index=False))
    assert math.isnan(table.differences(tmp_path / "r").iloc[0]["low"])


@pytest.mark.parametrize(
    ("source", "value", "verdict"),
    [("x.pth", 64.6, "yes"), ("x.pth", 64.55, "no"), ("x.pth", 64.85, "no"), ("run", 63.7, "yes"), ("run", 63.6, "no")],
)
def test_reproduced_means_within_the_accepted_band(source: str, value: float, verdict: str, tmp_path: Path) -> None:
    answer = table.answer(a_run(tmp_path, value=value, source=source), "davis")
    assert answer["reproduced"].tolist() == [verdict, ""]
    rendered = table.answer(a_run(tmp_path, root="synthetic"), "davis")
    columns = ["measured, %", "clips", "ahead of random"]
    assert list(rendered.columns) == columns, "no empty columns where nothing is expected"
    assert rendered.loc["theirs"].tolist() == ["64.9 [60.0, 68.0]", "30", "+30.0 [+30.0, +30.0]: yes"]


def test_a_verdict_follows_from_the_interval() -> None:
    intervals = [(0.1, 0.9), (-1.4, -0.1), (-1.4, 1.6), (math.nan, math.nan)]
    assert [table.verdict(*one) for one in intervals] == ["yes", "no", "cannot tell", "cannot tell"]


def test_table_command_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_run(tmp_path, "released")
    assert main(["table", str(folder)]) == 0
    assert "64.9 (+0.2)" in capsys.readouterr().out
    text = table.summary_of(folder)
    assert max(map(len, text.splitlines())) <= 100
    assert "theirs - random" in text
    assert main(["table", "nosuchrun"]) == 2
    assert "There is no run nosuchrun; the runs are" in capsys.readouterr().err


def test_readme_shows_what_is_published() -> None:
    """Its blocks are written by docs/write_pages.py, never by hand, and from nothing a run writes."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, block in runpy.run_path(str(ROOT / "docs" / "write_pages.py"))["blocks"]().items():
        assert f"\n{block}\n<!-- {name}:end -->" in text, f"README's block {name!r} is not what results/published says"


def test_publish_copies_text_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notebooks", "params", "results"):
        (tmp_path / name).mkdir()
    (tmp_path / "results" / "paper.csv").write_bytes((ROOT / "results" / "paper.csv").read_bytes())
    monkeypatch.chdir(tmp_path)
    folder = a_run(tmp_path / "results", "quick", root="synthetic")
    (folder / "checkpoints").mkdir()
    (folder / "notes.txt").write_text("mine")
    write_text(tmp_path / "results/published/quick/05_vip_evaluation.json", "{}")  # of an earlier run
    assert main(["publish", "results/quick"]) == 0
    kept = sorted(path.name for path in (tmp_path / "results/published/quick").iterdir())
    assert kept == ["03_davis_evaluation.json", "03_davis_evaluation.objects.csv", "03_davis_evaluation.scores.csv"]
    assert main(["publish", str(tmp_path)]) == 2
