"""Studies: what is refused, how verdicts follow from figures, what is kept, and a whole study on the smallest data."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tcore_lib import params as parameters, runs
from tcore_lib.__main__ import main
from tcore_lib.errors import InputError
from tcore_lib.files import write_json, write_text
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
    "base": "base.yaml",
    "seeds": [0, 1],
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
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return folder / "tiny.yaml"


def test_the_shipped_studies_are_possible() -> None:
    files = sorted((Path(__file__).parents[1] / "params" / study.FOLDER).glob("*.yaml"))
    assert files
    for path in files:
        loaded = study.Study(path.stem)
        several = [runs_of[0] for (_, seed), runs_of in loaded.tasks.items() if seed == 0]
        assert len({params.digest("pretrain", "checkpoint") for params in several}) == len(loaded.settings.variants)
        assert path.read_text().startswith("# Asks:")


MISSPELT = {"wide": {"title": "c", "pretrain": {"decoder": {"branch": "past"}}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"sedes": [1]}, "did you mean 'seeds'"),
        ({"comparisons": [{"claim": "x", "better": "full", "worse": "none"}]}, "comparisons names 'none'"),
        ({"also": "coco"}, "There is no parameter file"),
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
    untrained = loaded.tasks["random", 0][0]
    assert (untrained.pretrain.enabled, untrained.checkpoint.encoders) == (False, {"it": "random"})


def test_the_trained_encoders_are_scored_on_another_profile_s_clips(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("davis: {root: clips}\njhmdb: {enabled: false}\nvip: {enabled: false}\n")
    path = written(tmp_path, also="other.yaml")
    assert len(study.Study(path).tasks["full", 0]) == 1, "its clips are not there"
    (tmp_path / "clips").mkdir()
    loaded = study.Study(path)
    first, other = loaded.tasks["full", 0]
    assert other.davis == Davis(root=str(tmp_path / "clips"))  # the protocol's input size, not the base profile's
    assert (other.pretrain.enabled, other.pretrain.encoder) == (False, first.pretrain.encoder)
    weights = f"{tmp_path}/results/studies/tiny/runs/full-seed0/checkpoints/step-00000002.pt"
    assert other.checkpoint.encoders == {"it": weights}
    assert other.run.title != loaded.tasks["past_only", 0][1].run.title, "other weights are another run"


def test_verdicts_by_hand() -> None:
    """t(0.975, 2 degrees of freedom) = 4.3027; differences 1, 2, 3: mean 2, std 1, half width 4.3027 / sqrt(3) = 2.4841.

    With 6 seeds it would be 2.5706 / sqrt(6) = 1.05, with 7 2.4469 / sqrt(7) = 0.92 points.
    """
    say = {
        (1.0, 2.0, 3.0): "+2.0 [-0.5, +4.5]: cannot tell (one point: 7 seeds)",
        (2.0, 2.1, 2.2): "+2.1 [+1.9, +2.3]: yes (one point: 3 seeds)",
        (-2.0, -2.1, -2.2): "-2.1 [-2.3, -1.9]: no (one point: 3 seeds)",
        (5.0, 5.0): "+5.0: cannot tell",
        (): "not run",
    }
    for differences, words in say.items():
        assert study.verdict(pd.Series(differences, dtype=float)) == words


def keep(loaded: study.Study, variant: str, seed: int, value: float) -> None:
    """What the notebooks of a task leave, with one score."""
    params = loaded.tasks[variant, seed][0]
    stage = runs.run_folder(params) / "03_davis_evaluation"
    record = {"result": {}, "settings": params.model_dump(mode="json")}
    write_json(stage.with_suffix(".json"), record | {"provenance": {"params_sha256": params.digest()}})
    write_text(stage.with_suffix(".scores.csv"), f"encoder,score,value,low,high,clips\nit,J&F_m,{value},,,1\n")


def test_the_page_pairs_seed_by_seed_what_belongs_to_the_study(tmp_path: Path) -> None:
    loaded = study.Study(written(tmp_path))
    study.write_page(loaded)
    assert "|T-CoRe|0|" in (loaded.folder / "README.md").read_text().replace(" ", "")
    measured = {("full", 0): 40.0, ("full", 1): 43.0, ("random", 0): 39.0, ("random", 1): 42.0}
    for task, value in measured.items():
        keep(loaded, *task, value)
    study.write_page(loaded)
    page = (loaded.folder / "README.md").read_text().replace(" ", "")
    assert "after2stepsof2samples" in page
    assert "|T-CoRe|41.5±2.1|2|" in page  # sqrt(1.5**2 + 1.5**2) / sqrt(2 - 1)
    assert "|pastonly|notrun|0|" in page
    assert "|pretraininghelps|+1.0:cannottell|" in page
    scores = pd.read_csv(loaded.folder / "scores.csv")
    assert scores[["variant", "seed", "value"]].set_index(["variant", "seed"])["value"].to_dict() == measured
    other = parameters.merged(STUDY["variants"], {"full": {"pretrain": {"decoder": {"enabled": False}}}})
    assert set(study.Study(written(tmp_path, variants=other)).scores()["variant"]) == {"random"}


@pytest.mark.notebooks
def test_a_whole_study(tmp_path: Path) -> None:
    """A training-free task and a trained one, with real papermill; a second call runs nothing."""
    path = written(tmp_path, seeds=[0], variants={key: STUDY["variants"][key] for key in ("full", "random")})
    assert main(["study", str(path)]) == 0
    folder = study.Study(path).folder
    before = (folder / "scores.csv").read_text()
    assert len(before.splitlines()) == 1 + 2
    made = [marker.stat().st_mtime_ns for marker in sorted(folder.glob("runs/*/.finished/*"))]
    assert main(["study", str(path)]) == 0
    assert (folder / "scores.csv").read_text() == before
    assert [marker.stat().st_mtime_ns for marker in sorted(folder.glob("runs/*/.finished/*"))] == made
