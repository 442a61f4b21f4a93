"""Studies: what is refused, how verdicts follow from figures, and a whole study on the smallest data."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tcore_lib.__main__ import main
from tcore_lib.data.videos import prepare
from tcore_lib.errors import InputError
from tcore_lib.files import read_json, write_json
from tcore_lib.reproduction import profile as profiles, study, study_results

BASE = {
    "run": {"name": "base"},
    "data": {
        "short_side": 64,
        "synthetic": {
            "videos": 4, "classes": 2, "video_size": [96, 64], "video_seconds": 2.0, "davis_clips": 1, "eval_frames": 3,
        },
    },
    "pretrain": {
        "encoder": {"arch": "custom", "width": 32, "depth": 1, "heads": 2},
        "views": {"global_size": 64, "local_size": 32, "num_local": 1},
        "decoder": {"heads": 2},
        "head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
        "optimiser": {"epochs": 2.0, "iterations_per_epoch": 1, "warmup_epochs": 0.0},
        "loop": {"batch_size": 2, "log_every": 1, "workers": 0},
    },
    "davis": {"input_size": [64, 96]},
    "jhmdb": {"enabled": False},
    "vip": {"enabled": False},
}  # fmt: skip
STUDY = {
    "seeds": [0, 1],
    "points": 2,
    "variants": {
        "full": {"title": "T-CoRe"},
        "random": {"title": "random", "trained": False},
        "past_only": {"title": "past only", "pretrain": {"decoder": {"branches": "past"}}},
    },
    "comparisons": [{"claim": "training helps", "better": "full", "worse": "random"}],
}


def _write(folder: Path, pretrain: object = BASE["pretrain"], **changes: object) -> Path:
    base = BASE | {"run": {"name": "base", "results": str(folder / "results")}, "pretrain": pretrain}
    base["data"] = BASE["data"] | {"root": str(folder / "data")}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY | {"base": str(folder / "base.yaml")} | changes))
    return folder / "tiny.yaml"


def test_the_shipped_studies_are_possible() -> None:
    files = sorted((Path(__file__).parents[1] / "params" / study.FOLDER).glob("*.yaml"))
    assert files
    for path in files:
        loaded = study.load_study(path.stem)
        assert len({loaded.key(task) for task in loaded.tasks}) == len(loaded.tasks)
        assert path.read_text().startswith("# Asks:")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": 3}, "points = 3 does not divide the 2 steps"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"sedes": [1]}, "did you mean 'seeds'"),
        ({"comparisons": [{"claim": "x", "better": "full", "worse": "none"}]}, "comparisons name 'none'"),
        ({"baseline": "none"}, "baseline is 'none'"),
        ({"real": {"coco": "x"}}, "real names ['coco']"),
        (
            {"variants": {"full": {"title": "a", "pretrian": {}}, "random": {"title": "b"}}},
            "variants.full.pretrian (value {}) does not exist; did you mean 'pretrain'",
        ),
        (
            {"variants": STUDY["variants"] | {"wide": {"title": "c", "pretrain": {"decoder": {"branch": "past"}}}}},
            "variant wide: the key pretrain.decoder.branch",
        ),
    ],
)
def test_an_impossible_study_is_one_sentence(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        study.load_study(_write(tmp_path, **changes))
    assert words in str(caught.value)


def test_variants_differ_only_in_what_they_name(tmp_path: Path) -> None:
    loaded = study.load_study(_write(tmp_path))
    full, past = (loaded.params(study.Task(name, 1)) for name in ("full", "past_only"))
    assert past.pretrain.decoder.branches == "past"
    assert past.model_copy(update={"pretrain": full.pretrain, "run": full.run}) == full
    assert full.run.seed == past.run.seed == 1
    assert full.pretrain.decoder.heads == past.pretrain.decoder.heads == 2  # merged, not replaced


def test_verdicts_by_hand() -> None:
    """t(0.975, 2 degrees of freedom) = 4.3027; differences 1, 2, 3: mean 2, std 1, half width 4.3027 / sqrt(3) = 2.4841."""
    word, low, high = study_results.verdict([1.0, 2.0, 3.0])
    assert (word, round(low, 4), round(high, 4)) == ("cannot tell at this scale", -0.4841, 4.4841)
    assert study_results.verdict([2.0, 2.1, 2.2])[0] == "holds here"
    assert study_results.verdict([-2.0, -2.1, -2.2])[0] == "does not hold here"
    for few in ([5.0], [5.0, 5.0]):
        assert study_results.verdict(few)[0] == "cannot tell at this scale"
    assert study_results.verdict([])[0] == "not run"


def test_pairs_are_taken_seed_by_seed() -> None:
    rows = [("full", 0, 10.0), ("full", 1, 20.0), ("random", 0, 9.0), ("random", 1, 19.0), ("random", 2, 50.0)]
    table = pd.DataFrame(rows, columns=["variant", "seed", "value"]).assign(benchmark="davis", step=4, clips=1)
    claim = study.Comparison(claim="c", better="full", worse="random")
    row = study_results.compare(table, claim).iloc[0]
    assert (row["seeds"], row["difference"], row["verdict"]) == (2, 1.0, "cannot tell at this scale")


def test_a_whole_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks run, are kept, and become tables; the second seed stays "not run" until it is there."""
    path = _write(tmp_path)
    loaded = study.load_study(path)
    profiles.render(loaded.base, progress=False)
    prepare(loaded.base.data.model_copy(update={"source": str(profiles.source(loaded.base))}), progress=False)
    for variant in ("full", "random"):
        assert main(["study", str(path), "--task", f"{variant}/0"]) == 0
    record = read_json(loaded.score_file(study.Task("full", 0)))
    assert [score["step"] for score in record["scores"]] == [1, 2]
    assert record["provenance"]["params_sha256"]
    assert loaded.is_finished(study.Task("full", 0))
    assert not loaded.is_finished(study.Task("full", 1))
    assert main(["study", str(path), "--tables"]) == 0
    page = (loaded.folder / "README.md").read_text()
    assert "2 of 6 tasks finished" in page
    assert "| past only | not run | 0 |" in page
    assert "(one seed): cannot tell" in page
    assert {"scores.csv", "summary.csv", "comparisons.csv", "curves.png", "seeds.png", "study.json"} <= {
        file.name for file in loaded.folder.iterdir()
    }
    # The same scores belong to no other question.
    assert not study.load_study(_write(tmp_path, points=1)).is_finished(study.Task("full", 0))
    capsys.readouterr()
    assert main(["study", str(path), "--task", "full/7"]) == 2
    assert "write VARIANT/SEED, such as full/0" in capsys.readouterr().err
    assert main(["study", str(path), "--only", "ful"]) == 2
    assert "has no variant 'ful'" in capsys.readouterr().err


def test_told_to_end(tmp_path: Path) -> None:
    """The running task writes its checkpoint and ends with the study; no other task begins."""
    long = BASE["pretrain"] | {"optimiser": {"epochs": 5000.0, "iterations_per_epoch": 1, "warmup_epochs": 0.0}}
    path = _write(tmp_path, pretrain=long)
    runs = tmp_path / "results/studies/tiny/runs"
    command = [sys.executable, "-m", "tcore_lib", "study", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 240
        while not (runs / "full-seed0/log.csv").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.terminate()
        printed, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143, printed
    assert "told to end; the same command continues" in printed
    log = (runs / "full-seed0/task.log").read_text()
    assert re.search(r"tcore_lib: Stopped at step \d+ of 5000 by SIGTERM; a checkpoint is in", log), log
    assert list((runs / "full-seed0/checkpoints").glob("step-*.pt"))
    assert [folder.name for folder in runs.iterdir()] == ["full-seed0"]


def _finish(loaded: study.LoadedStudy) -> None:
    """Leave score files as finished tasks do."""
    for number, task in enumerate(loaded.tasks):
        score = {"benchmark": "davis", "step": 2, "score": "J&F_m", "value": 40.0 + number, "clips": 1}
        origin = {"seconds": 60.0, "processor": "some", "cores": 2}
        record = {"key": loaded.key(task), "real": [], "scores": [score], "provenance": origin}
        write_json(loaded.score_file(task), record)


def test_a_study_without_claims_has_tables_too(tmp_path: Path) -> None:
    loaded = study.load_study(_write(tmp_path, comparisons=[]))
    _finish(loaded)
    written = study_results.write(loaded)
    assert {"scores.csv", "summary.csv", "README.md"} <= {path.name for path in written}
    page = (loaded.folder / "README.md").read_text()
    assert "| T-CoRe | 41.5" in page  # (40 + 43) / 2
    assert "Verdicts" not in page


def test_the_page_says_how_many_steps_a_task_makes(tmp_path: Path) -> None:
    path = _write(tmp_path)
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["pretrain"]["optimiser"]["epochs"], base["pretrain"]["loop"]["max_steps"] = 10.0, 2
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    loaded = study.load_study(path)
    assert " for 2 steps of 2 samples " in study_results.page(loaded, study_results.scores(loaded))
