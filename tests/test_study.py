"""Studies: what is refused, how verdicts follow from figures, what is kept, and a whole study on the smallest data."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tcore_lib import params as parameters, runs
from tcore_lib.__main__ import main
from tcore_lib.errors import InputError
from tcore_lib.files import write_json
from tcore_lib.params import Davis
from tcore_lib.reproduction import study

BASE: dict[str, Any] = {
    "run": {"name": "tiny", "device": "cpu"},
    "data": {
        "num_frames": 8, "short_side": 64, "workers": 1,
        "synthetic": {"videos": 2, "classes": 2, "video_size": [96, 64], "video_seconds": 1.0, "davis_clips": 1,
                      "eval_frames": 3},
    },
    "pretrain": {
        "encoder": {"arch": "custom", "width": 32, "depth": 1, "heads": 2},
        "views": {"global_size": 32, "local_size": 32, "num_local": 1, "blur_kernel": 3},
        "decoder": {"heads": 2},
        "head": {"prototypes": 16, "hidden": 16, "bottleneck": 8},
        "optimiser": {"epochs": 2.0, "iterations_per_epoch": 1, "warmup_epochs": 0.0},
        "loop": {"batch_size": 2, "workers": 0},
    },
    "davis": {"input_size": [120, 216]}, "jhmdb": {"enabled": False}, "vip": {"enabled": False},
}  # fmt: skip
STUDY: dict[str, Any] = {
    "base": "",
    "seeds": [0, 1],
    "points": 2,
    "variants": {
        "full": {"title": "T-CoRe"},
        "past_only": {"title": "past only", "pretrain": {"decoder": {"branches": "past"}}},
        "random": {"title": "random initialisation", "encoder": "random"},
    },
    "comparisons": [{"claim": "pretraining helps", "better": "full", "worse": "random"}],
}


def written(folder: Path, **changes: object) -> Path:
    """A study file and its base profile below `folder`."""
    places = {"run": {"results": str(folder / "results")}, "data": {"root": str(folder / "data")}}
    (folder / "base.yaml").write_text(yaml.safe_dump(parameters.merged(BASE, places)))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY | {"base": "base.yaml"} | changes))
    return folder / "tiny.yaml"


def test_the_shipped_studies_are_possible() -> None:
    files = sorted((Path(__file__).parents[1] / "params" / study.FOLDER).glob("*.yaml"))
    assert files
    for path in files:
        loaded = study.Study(path.stem)
        assert len({loaded.key(*task) for task in loaded.tasks if task[1] == 0}) == len(loaded.settings.variants)
        assert path.read_text().startswith("# Asks:")
        shown = loaded.folder / "README.md"  # not there before its first task is finished
        if shown.exists():
            page = study.page(loaded, study.titled(loaded.scores()))
            assert page == shown.read_text(), f"tcore study {path.stem} --tables"


MISSPELT = {"wide": {"title": "c", "pretrain": {"decoder": {"branch": "past"}}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": 3}, "points = 3 does not divide 2 steps"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"sedes": [1]}, "did you mean 'seeds'"),
        ({"comparisons": [{"claim": "x", "better": "full", "worse": "none"}]}, "comparisons names 'none'"),
        ({"real": {"coco": "x"}}, "coco"),
        ({"variants": STUDY["variants"] | MISSPELT}, "variant wide: the key pretrain.decoder.branch"),
    ],
)
def test_an_impossible_study_is_one_sentence(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        study.Study(written(tmp_path, **changes))
    assert words in str(caught.value)


def test_variants_differ_only_in_what_they_name(tmp_path: Path) -> None:
    loaded = study.Study(written(tmp_path))
    full, past = (loaded.tasks[name, 1][0] for name in ("full", "past_only"))
    assert past.pretrain.decoder.branches == "past"
    assert past.model_copy(update={"pretrain": full.pretrain, "run": full.run}) == full
    assert (full.run.seed, full.data.synthetic.seed) == (1, 0), "another seed trains on the same clips"
    assert full.pretrain.decoder.heads == past.pretrain.decoder.heads == 2  # merged, not replaced
    assert full.checkpoint.encoders == {"step 1": "run@1", "step 2": "run@2"}
    assert full.pretrain.loop.milestone_every == 1
    untrained = loaded.tasks["random", 0][0]
    assert (untrained.pretrain.enabled, untrained.checkpoint.encoders) == (False, {"step 0": "random"})


def test_real_clips_are_scored_with_the_trainings_checkpoints(tmp_path: Path) -> None:
    """Also those of a benchmark that the base profile leaves out."""
    (tmp_path / "clips").mkdir()
    real = {"davis": "clips", "jhmdb": str(tmp_path / "clips"), "vip": "no"}  # relative to the study's file
    loaded = study.Study(written(tmp_path, real=real))
    params = loaded.tasks["full", 0][1]
    assert params.davis == Davis(root=str(tmp_path / "clips"))  # the protocol's input size, not the base profile's
    assert (params.jhmdb.enabled, params.vip.enabled, params.pretrain.enabled) == (True, False, False)
    files = [f"{tmp_path}/results/studies/tiny/runs/full-seed0/checkpoints/step-0000000{step}.pt" for step in (1, 2)]
    assert list(params.checkpoint.encoders.values()) == files
    other = loaded.tasks["past_only", 0][1]
    assert params.run.title != other.run.title, "other weights are another run"


def test_verdicts_by_hand() -> None:
    """t(0.975, 2 degrees of freedom) = 4.3027; differences 1, 2, 3: mean 2, std 1, half width 4.3027 / sqrt(3) = 2.4841.

    With 6 seeds it would be 2.5706 / sqrt(6) = 1.05, with 7 2.4469 / sqrt(7) = 0.92 points.
    """
    say = {
        (1.0, 2.0, 3.0): "+2.0 [-0.5, +4.5]: cannot tell (one point: 7 seeds)",
        (2.0, 2.1, 2.2): "+2.1 [+1.9, +2.3]: holds here (one point: 3 seeds)",
        (-2.0, -2.1, -2.2): "-2.1 [-2.3, -1.9]: does not hold here (one point: 3 seeds)",
        (5.0,): "+5.0: cannot tell",
        (5.0, 5.0): "+5.0 [+5.0, +5.0]: cannot tell",
        (): "not run",
    }
    for differences, words in say.items():
        assert study.verdict(pd.Series(differences, dtype=float)) == words


def test_the_page_and_its_pairs_seed_by_seed_after_the_last_step(tmp_path: Path) -> None:
    loaded = study.Study(written(tmp_path))
    rows = [("full", 0, 1, 99.0), ("full", 0, 2, 40.0), ("full", 1, 2, 43.0)]
    rows += [("random", 0, 0, 39.0), ("random", 1, 0, 42.0), ("random", 2, 0, 50.0)]
    scores = pd.DataFrame(rows, columns=["variant", "seed", "step", "value"])
    scores = scores.assign(benchmark="davis", metric="J&F_m", clips=1, real=False, machine="one", minutes=2.0)
    loaded.folder.mkdir(parents=True)
    scores.reindex(columns=study.COLUMNS).to_csv(loaded.folder / "scores.csv", index=False)
    study.write_page(loaded)
    page = (loaded.folder / "README.md").read_text().replace(" ", "")
    assert "5of6tasksarefinished,2minuteseach(median)onone" in page
    assert "after2stepsof2samples" in page
    assert "|T-CoRe|41.5±2.1|2|" in page
    assert "|pastonly|notrun|notrun|" in page
    assert "|pretraininghelps|+1.0[+1.0,+1.0]:cannottell|" in page
    assert (loaded.folder / "curves.png").is_file()


def test_what_a_task_measured_is_kept_and_belongs_to_its_question(tmp_path: Path) -> None:
    loaded = study.Study(written(tmp_path))
    origin = {"seconds": 90.0, "device": "cpu", "processor": "some", "cores": 2, "commit": "a" * 40,
              "uncommitted_changes": False, "finished": "2026-01-01"}  # fmt: skip
    params = loaded.tasks["full", 0][0]
    for value in (40.0, 41.0):  # measured twice: the second one stays
        found = {"step 1": {"value": 30.0, "clips": 1}, "step 2": {"value": value, "clips": 1}}
        record = {"result": {"scores": found, "data": "x"}, "settings": params.model_dump(mode="json")}
        write_json(runs.run_folder(params) / "03_davis_evaluation.json", record | {"provenance": origin})
        study.keep(loaded, "full", 0)
    assert loaded.scores()[["step", "value", "minutes"]].to_numpy().tolist() == [[1, 30.0, 1.5], [2, 41.0, 1.5]]
    assert loaded.is_finished("full", 0)
    assert not loaded.is_finished("full", 1)
    assert not study.Study(written(tmp_path, points=1)).is_finished("full", 0)


def test_unknown_variant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(written(tmp_path)), "--only", "ful"]) == 2
    assert "has no variant 'ful'" in capsys.readouterr().err


@pytest.mark.notebooks
def test_a_whole_study(tmp_path: Path) -> None:
    """A training-free task and a trained one, with real papermill; a second call runs nothing."""
    path = written(tmp_path, seeds=[0], points=1, variants={key: STUDY["variants"][key] for key in ("full", "random")})
    assert main(["study", str(path)]) == 0
    loaded = study.Study(path)
    assert all(loaded.is_finished(*task) for task in loaded.tasks)
    before = (loaded.folder / "scores.csv").read_text()
    assert main(["study", str(path)]) == 0
    assert (loaded.folder / "scores.csv").read_text() == before
    assert "2 of 2 tasks are finished" in (loaded.folder / "README.md").read_text()
