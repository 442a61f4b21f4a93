"""The paper table: published figures as they are, measured ones from result files, "not run" for the rest."""

from pathlib import Path

import pandas as pd
import pytest

from tcore_lib import params as parameters
from tcore_lib import runs, table
from tcore_lib.errors import InputError
from tcore_lib.files import write_json
from tcore_lib.params import Params

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
    record = {"result": {"scores": scores, "data": "val, 30 clips"}, "settings": SETTINGS}
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
    ours = shown[(shown.who == "ours") & (shown.source == "vits16_400ep_K400.pth")].iloc[0]
    assert ours[table.SCORES].tolist() == ["64.2", "not run", "not run"]
    other = shown[(shown.who == "ours") & (shown.source == "vits16_100ep_INET.pth")].iloc[0]
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


def test_readme_shows_the_committed_results() -> None:
    """README's table and cost are written by `python -m tcore_lib table quick --readme`, never by hand."""
    params = parameters.load("quick")
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for name, block in table.readme_blocks(params).items():
        assert f"{block}\n<!-- {name}:end -->" in text, f"README's block {name!r} disagrees with results/quick"
