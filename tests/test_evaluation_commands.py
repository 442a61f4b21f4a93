"""`evaluate`, `score` and `compare` as commands, and the variants."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_clips import H, W, write_small_davis, write_small_jhmdb, write_small_vip

from tcore_lib import params
from tcore_lib.__main__ import main
from tcore_lib.errors import InputError
from tcore_lib.evaluation import clips, labels, variants
from tcore_lib.evaluation.benchmarks import load_clips
from tcore_lib.evaluation.commands import evaluate_command, score_command
from tcore_lib.evaluation.davis import Davis
from tcore_lib.model.encoders import load_encoder

SMALL = ("input_size=[96,160]", "radius=4.0", "context=3")
KINDS: dict[str, Any] = {  # writer, settings, rows, first clip
    "davis": (write_small_davis, SMALL, 3, "one"),
    "vip": (write_small_vip, ("long_side=160",), 40, "videos1"),
    "jhmdb": (write_small_jhmdb, ("input_size=[96,96]",), 30, "ball_1"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_command_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, changes, rows, clip = KINDS[kind]
    root, out = write(tmp_path / "data"), tmp_path / "out"
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    assert evaluate_command(kind, output=out, root=root, encoder=["pixels"], changes=changes) == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before  # nothing is written there
    assert "fit for evaluation" in capsys.readouterr().out
    record = json.loads((out / "summary.json").read_text())
    assert record["clips"][0] == clip
    assert record["settings"]["temperature"] == 0.7  # the settings stand beside the scores
    assert record["provenance"]["versions"]["torch"]
    assert len(pd.read_csv(next(out.glob("[jop]*s.csv")))) == rows
    # What was written scores the same.
    predictions = out / "predictions" / "pixels"
    assert score_command(kind, root=root, predictions=predictions, output=tmp_path / "s.json") == 0
    scored = json.loads((tmp_path / "s.json").read_text())
    assert scored["scores"]["predictions"] == record["scores"]["pixels"]


def test_bad_input_stops_before_work(tmp_path: Path) -> None:
    root, out = write_small_davis(tmp_path / "data"), tmp_path / "out"
    settings: dict[str, Any] = {"root": root, "encoder": ["pixels"], "output": out}
    for said, changed in (
        ("topk", {"changes": ("topk=5",)}), (r"davis\.top_k", {"changes": ("top_k",)}),
        ("'three' is not in", {"changes": ("clips=[three]",)}),
        ("neither a file, a folder nor", {"encoder": ["absent.pth"], "root": tmp_path / "nothing"}),  # before data
        ("test-dev.txt cannot be read", {"split": "test-dev"}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            evaluate_command("davis", **settings | changed)
    with pytest.raises(InputError, match="is not a folder"):
        score_command("davis", root=root, predictions=tmp_path / "absent", output=tmp_path / "s.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_variants_are_named_settings_measured_beside_the_protocol(tmp_path: Path) -> None:
    for settings in (params.Davis(), params.Vip(), params.Jhmdb()):
        table = variants.table(settings)
        assert table["variant"].is_unique
        assert table["variant"][0] == "protocol"
        assert ("scored at input size" in set(table["variant"])) == isinstance(settings, params.Davis)
    small = params.Davis(input_size=(64, 128), radius=1.0, context=3)  # so that the radius and the sizes matter
    found = load_clips(small, write_small_davis(tmp_path))
    table = variants.compare(load_encoder("pixels"), found, small, progress=False).set_index("variant")
    assert table.loc["protocol", ["difference", "low", "high"]].eq(0).all()
    same = ["protocol", "bf16 features", "short context", "official toolkit"]  # the toolkit's are the protocol's
    assert (table.drop(index=same)["difference"] != 0).all()
    assert table.loc["official toolkit", "difference"] == 0


def test_the_first_stage_that_differs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"root": write_small_davis(tmp_path / "data"), "encoder": ["pixels"], "changes": SMALL}
    evaluate_command("davis", output=tmp_path / "reference", **settings)

    def again(**changed: Any) -> tuple[list[str], dict[str, str], str]:
        evaluate_command("davis", output=tmp_path / "run", **settings | changed)
        notes, table = variants.compare_runs(tmp_path / "run", tmp_path / "reference")
        same = notes == [] and table["differs"].eq(variants.SAME).all()
        assert main(["compare", str(tmp_path / "run"), str(tmp_path / "reference")]) == int(not same)
        table = table.set_index("clip")
        return notes, table["differs"].to_dict(), table["what"]["one"]

    assert again() == ([], {"one": variants.SAME, "two": variants.SAME}, "")
    notes, differs, what = again(changes=(*SMALL, "top_k=1"))
    assert notes == ["setting top_k: 1 here, 7 in the reference"]
    assert differs == {"one": "labels", "two": "labels"}
    assert what.endswith("in the reference")
    shutil.rmtree(tmp_path / "run")
    with monkeypatch.context() as planted:  # another interpolation of the frames, the classic
        real = labels.to_input
        planted.setattr(labels, "to_input", lambda frames, size: real(frames[:, ::2, ::2], size))
        assert again()[1] == {"one": "features", "two": "features"}
    shutil.rmtree(tmp_path / "run")
    with monkeypatch.context() as planted:  # the first frame is counted too, as some scorers do
        planted.setattr(Davis, "counted", lambda self, clip: list(range(len(clip))))
        _, differs, what = again()
        assert differs == {"one": "score", "two": "score"}
        assert "frames of object 1: 6.0000 here, 4.0000 in the reference" in what
    clips.write_ids(settings["root"] / "Annotations/480p/two/00003.png", np.ones((H, W), np.uint8))
    assert again()[1]["two"] == "data"
    with pytest.raises(InputError, match="give an output folder of evaluate"):
        variants.compare_runs(tmp_path / "absent", tmp_path / "reference")
