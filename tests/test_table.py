"""The paper table: published figures as they are, measured ones from result files, "not run" for the rest."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tcore_lib import runs
from tcore_lib.__main__ import main
from tcore_lib.errors import InputError
from tcore_lib.files import write_json
from tcore_lib.params import Davis, Params
from tcore_lib.reproduction import paper_table, readme, table

SETTINGS = {"checkpoint": {"encoders": {"ours16": "run", "random": "random"}}}


def _params(tmp_path: Path, root: str) -> Params:
    return Params.model_validate(
        {
            "run": {"name": "r", "results": str(tmp_path)},
            "checkpoint": SETTINGS["checkpoint"] | {"paper_rows": {"ours16": "vits16_400ep_K400.pth"}},
            "davis": {"root": root},
        }
    )


def _measure(params: Params) -> None:
    scores = {"ours16": {"value": 64.2, "low": 60.0, "high": 68.0, "clips": 30}, "random": {"value": 30.0}}
    result = {"scores": scores, "data": "val, 30 clips"}
    record = {"stage": "03_davis_evaluation", "result": result, "settings": SETTINGS, "provenance": {}}
    write_json(runs.run_folder(params) / "03_davis_evaluation.json", record)


def test_published_figures() -> None:
    rows = table.paper_rows().set_index("source")
    assert rows.loc["vits16_400ep_K400.pth", table.SCORES].tolist() == [64.7, 37.8, 47.0]
    assert rows.loc["vitb16_200ep_K400.pth", table.SCORES].tolist() == [66.4, 38.9, 47.1]
    assert rows.loc["vits16_100ep_INET.pth", table.SCORES].tolist() == [64.1, 39.7, 46.2]


def test_linked_encoder_fills_the_papers_row_and_the_rest_is_not_run(tmp_path: Path) -> None:
    params = _params(tmp_path, "data/davis")
    _measure(params)
    shown = table.as_shown(table.paper_table(params))
    ours = shown[(shown.who == "reproduced") & (shown.source == "vits16_400ep_K400.pth")].iloc[0]
    assert ours[table.SCORES].tolist() == ["64.2", "not run", "not run"]
    other = shown[(shown.who == "reproduced") & (shown.source == "vits16_100ep_INET.pth")].iloc[0]
    assert other[table.SCORES].tolist() == ["not run"] * 3
    assert shown[shown.encoder == "random"]["DAVIS J&F_m"].tolist() == ["30.0"]


def test_rendered_clips_never_fill_the_papers_row(tmp_path: Path) -> None:
    params = _params(tmp_path, "synthetic")
    _measure(params)
    rows = table.reproduction_rows(params)
    assert rows[table.SCORES].isna().all(axis=None)


def test_markdown_and_text_carry_every_row(tmp_path: Path) -> None:
    shown = table.paper_table(_params(tmp_path, "synthetic"))
    assert len(table.as_markdown(shown).splitlines()) == 2 + len(shown)
    assert table.as_text(shown).count("not run") == 9


def test_broken_published_table_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "paper.csv"
    pd.DataFrame({"data": ["K400"]}).to_csv(path)
    with pytest.raises(InputError, match=r"paper\.csv.*restore it from git"):
        table.paper_rows(path)


def test_readme_and_table_files_show_the_committed_results() -> None:
    """They are written by `python -m tcore_lib table --readme`, never by hand."""
    root = Path(__file__).parents[1]
    text = (root / "README.md").read_text(encoding="utf-8")
    for name, block in readme.blocks().items():
        assert f"{block}\n<!-- {name}:end -->" in text, (
            f"README's block {name!r} disagrees with results/; after a run of your own: python -m tcore_lib table --readme"
        )


def _run(results: Path, name: str, root: str, value: float | None, **settings: object) -> None:
    davis = Davis(root=root, **settings).model_dump(mode="json")
    checkpoint = {"encoders": {"theirs": "x.pth"}, "paper_rows": {"theirs": "vits16_400ep_K400.pth"}}
    record = {
        "stage": "03_davis_evaluation",
        "result": {"scores": {"theirs": {"value": value, "low": 60.0, "high": 68.0, "clips": 30}}, "data": "val"},
        "settings": {"run": {"title": name}, "checkpoint": checkpoint, "davis": davis},
        "provenance": {
            "finished": "2026-01-01", "commit": "a" * 40, "uncommitted_changes": False, "device": "cpu", "params_sha256": name,
        },
    }  # fmt: skip
    write_json(results / name / "03_davis_evaluation.json", record)


def test_a_reproduction_stands_beside_the_paper_with_its_difference(tmp_path: Path) -> None:
    _run(tmp_path, "released", "data/davis", 64.9)
    whole = paper_table.write(tmp_path)
    row = whole[(whole["who"] == "reproduced") & (whole["file"] == "vits16_400ep_K400.pth")].iloc[0]
    assert (row["run"], row["davis settings"], row["davis clips"]) == ("released", "protocol", 30)
    assert row["davis difference"] == pytest.approx(0.2)
    assert paper_table.cell(row, "davis") == "64.9 (+0.2) [60.0, 68.0]"
    assert paper_table.cell(row, "vip") == "not run"
    assert "[released](released)" in (tmp_path / "paper_table.md").read_text()
    assert '<a href="released/">' in (tmp_path / "paper_table.html").read_text()


def test_a_score_that_could_not_be_measured_is_not_run(tmp_path: Path) -> None:
    _run(tmp_path, "empty", "data/davis", None)
    whole = paper_table.write(tmp_path)
    row = whole[(whole["who"] == "reproduced") & (whole["file"] == "vits16_400ep_K400.pth")].iloc[0]
    assert paper_table.cell(row, "davis") == "not run"


def test_rendered_clips_and_other_settings_are_said(tmp_path: Path) -> None:
    _run(tmp_path, "drawn", "synthetic", 30.0, top_k=5)
    whole = paper_table.overview(tmp_path)
    row = whole[whole["who"] == "ours"].iloc[0]
    assert row["davis settings"] == "top_k 5, rendered clips"
    assert whole[whole["who"] == "reproduced"]["davis value"].isna().all()


def test_the_html_table_escapes_what_people_write(tmp_path: Path) -> None:
    _run(tmp_path, "drawn", "synthetic", 30.0)
    path = tmp_path / "drawn" / "03_davis_evaluation.json"
    path.write_text(path.read_text().replace("theirs", "<img src=x onerror=alert(1)>"))
    assert "<img" not in paper_table.as_html(paper_table.overview(tmp_path))


def test_list_of_runs_and_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, "one", "data/davis", 64.0)
    _run(tmp_path, "two", "data/davis", 64.5, top_k=5)
    assert main(["results", "--results", str(tmp_path)]) == 0
    assert "theirs davis 64.0" in capsys.readouterr().out
    assert main(["results", "diff", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    shown = capsys.readouterr().out
    assert "settings.davis.top_k" in shown
    assert "result.scores.theirs.value" in shown
    assert "radius" not in shown
    assert main(["results", "--results", str(tmp_path), "diff", "one", "two"]) == 0
    assert capsys.readouterr().out.split() == shown.split()
    assert main(["results", "diff", str(tmp_path / "one"), str(tmp_path / "none")]) == 2
    assert main(["results", "difference"]) == 2


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    """`results | head -1`: more is written than a pipe holds, and nobody reads it."""
    for number in range(300):
        _run(tmp_path, f"run {number} " + 200 * "x", "data/davis", 64.0)
    command = [sys.executable, "-m", "tcore_lib", "results", "--results", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("source", "value", "verdict"),
    [("vits16_k400", 64.6, "yes"), ("vits16_k400", 64.55, "no"), ("run", 63.7, "yes"), ("run", 63.6, "no")],
)
def test_reproduced_means_within_the_accepted_band(tmp_path: Path, source: str, value: float, verdict: str) -> None:
    params = _params(tmp_path, "data/davis")
    params = params.model_copy(
        update={"checkpoint": params.checkpoint.model_copy(update={"encoders": {"ours16": source, "random": "random"}})}
    )
    none = {"low": None, "high": None, "clips": 30}
    shown = table.compared(params, "davis", {"ours16": {"value": value} | none, "random": {"value": 30.0} | none})
    assert shown["reproduced"].tolist() == [verdict, "nothing to compare"]


def test_a_headline_in_words() -> None:
    """Overlapping intervals give no verdict, separate ones do, and no interval none."""
    ours, random = (
        {"value": 33.2, "low": 21.5, "high": 47.0, "clips": 4},
        {"value": 33.7, "low": 21.7, "high": 46.5, "clips": 4},
    )
    text = table.in_words("davis", {"ours": ours, "random": random})
    assert text.startswith("DAVIS J&F_m in percent over 4 clips: ours 33.2, random 33.7.")
    assert "interval of random overlaps that of ours: the intervals do not say" in text
    assert "ours lies above all others" in table.in_words(
        "vip", {"ours": ours | {"value": 50.0, "low": 46.6}, "random": random}
    )
    assert table.in_words("vip", {"ours": ours | {"low": None, "high": None}, "random": random}).endswith("no verdict.")
    assert table.in_words("jhmdb", {"ours": ours}) == "JHMDB PCK@0.1 in percent over 4 clips: ours 33.2."
    assert [table.readable(value) for value in (None, 15.7576, 4, "yes")] == ["none", "15.8", "4", "yes"]
    assert table.in_words("jhmdb", {"ours": ours | {"value": None}}) == "No encoder has a score here."
