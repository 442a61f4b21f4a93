"""The parameter schema: what is refused, in which words, and that the shipped profiles are the recipe."""

import re
from pathlib import Path
from typing import Any

import pytest

from tcore_lib import params as parameters
from tcore_lib.errors import InputError
from tcore_lib.params import Params

ROOT = Path(__file__).parents[1]
PROFILES = sorted((ROOT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_shipped_profile_is_valid_and_opens_with_its_purpose(path: Path) -> None:
    loaded = parameters.load(path)
    assert loaded.run.name == path.stem
    head = path.read_text().splitlines()[:8]
    for word in ("# Reproduces:", "# Expect:", "# Cost", "# Command:"):
        assert any(line.startswith(word) for line in head), f"{path.name} does not say {word!r}"


def test_defaults_are_the_recipe_of_the_k400_row() -> None:
    """The full profile spells out docs/method.md's figures; the schema's defaults must be the same ones."""
    spelled, default = (params.pretrain.model_dump() for params in (parameters.load("k400_vits16_400ep"), Params()))
    for key in ("checkpoint_every", "milestone_every", "log_every", "compile"):
        spelled["loop"].pop(key), default["loop"].pop(key)
    assert spelled == default


CASES = {
    "davis: {topk: 3}": ("davis.topk", "did you mean 'top_k'?"),
    "davsi: {}": ("davsi", "did you mean 'davis'?"),
    "davis: {temperature: 1e-4}": ("davis.temperature", "1.0e-4"),
    "davis: {top_k: true}": ("davis.top_k = True", "integer"),
    "run: {sed: 1}\ndavis: {topk: 1, top_k: 0}\nvip: {root: 3}": (
        "4 things are wrong", "\n  - the key run.sed", "davis.topk", "davis.top_k = 0", "vip.root = 3",
    ),
    "pretrain: {views: {global_size: 200}, loop: {keep_last: 0}}": ("2 things are wrong", "patch_size", "keep_last = 0"),
    "pretrain: {masks: {ratio: [0.5, 0.1]}}": ("pretrain.masks.ratio", "the first value must not exceed the second"),
    "pretrain: {views: {blur_kernel: 4}}": ("pretrain.views", "must be odd"),
    "pretrain: {sandwich: {past_offset_range: [0.2, 0.4]}}": ("pretrain.sandwich", "before the clip"),
    "pretrain: {views: {global_size: 200}}": ("pretrain", "multiple of encoder.patch_size (16)"),
    "pretrain: {encoder: {width: 64}}": ("pretrain.encoder", "only read with arch: custom"),
    "pretrain: {encoder: {arch: custom}}": ("pretrain.encoder", "needs width, depth and heads"),
    "pretrain: {loop: {accumulate: 3}}": ("pretrain", "multiple of loop.accumulate"),
    "pretrain: {optimiser: {epochs: .inf}}": ("pretrain.optimiser.epochs", "finite"),
    "data: {direct: true}": ("data.direct (value True) was removed, because videos are", "; delete that line"),
    "run: {seed: 1, seed: 2}": ("'seed' stands twice", "correct"),
    "run: &a {seed: 1}\ndata: *a": ("alias", "correct"),
    "run: !!python/object/apply:os.system [ls]": ("cannot be read", "correct that place"),
    "run: {seed: [": ("cannot be read", "correct that place"),
    'davis: {"a\\nb": 1}': (r"davis.a\nb (value 1)",),
    f"? {'k' * 300}\n: 1": ("k" * 77 + "...",),
    "": ("holds no sections", "run"),
    "1: {}": ("holds no sections", "run"),
}  # fmt: skip


@pytest.mark.parametrize("text", CASES, ids=lambda text: text[:40])
def test_bad_file_is_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        parameters.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert ("\n" in message) == ("things are wrong" in message)
    for part in CASES[text]:
        assert part in message


def test_missing_file_names_the_nearest_profile_first() -> None:
    with pytest.raises(InputError, match=r"did you mean 'quick'\? Known are "):
        parameters.load("quik")


INJECTED = ["", "# Parameters\nrun = {}\ndata = {}\n", "later"]


@pytest.mark.parametrize(
    ("namespace", "name", "frames"),
    [
        ({"run": None, "profile": "small_scale"}, "small_scale", 20),
        ({"data": {"num_frames": 5}, "profile": "small_scale"}, "small_scale", 5),  # by hand, or by -y
        ({"run": {"name": "x"}, "data": {}, "profile": "quick", "In": INJECTED}, "x", 20),  # a whole file by -f
        ({"profile": "quick", "scores": {"a": 1}, "steps": {}, "In": ["", "scores = {'a': 1}"]}, "quick", 20),
    ],
)
def test_notebook_looks_only_at_sections(namespace: dict[str, Any], name: str, frames: int) -> None:
    loaded = parameters.from_notebook(namespace)
    assert (loaded.run.name, loaded.data.num_frames) == (name, frames)
    whole = "In" in namespace and namespace["In"] is INJECTED
    assert loaded.data.short_side == (256 if whole else 160), "a partial section keeps the profile's other settings"


@pytest.mark.parametrize(
    ("cell", "words"),
    [("num_frames = 5", r"'num_frames' is no .* write -y \"data: \{num_frames: "), ("davsi = {}", "mean 'davis'")],
)
def test_a_name_that_papermill_injects_must_be_a_section(cell: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parameters.from_notebook({"profile": "quick", "In": ["", f"# Parameters\n{cell}\n", "x = 1"]})
    with pytest.raises(InputError, match="data = 3 is not possible"):
        parameters.from_notebook({"profile": "quick", "data": 3})


def test_what_is_injected_is_read_as_it_was() -> None:
    loaded = parameters.load("explore", ["run.seed=3"])
    assert parameters.from_notebook({**parameters.injected(loaded), "In": INJECTED}) == loaded


def test_a_relative_path_is_relative_to_its_file_or_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "files/mine").mkdir(parents=True)
    text = "data: {source: videos, root: ../frames}\ncheckpoint: {encoders: {a: mine, b: run, c: sub/x.pth, d: 'timm:x/y'}}\n"
    (tmp_path / "files/my.yaml").write_text("\ufeff" + text)  # a byte order mark changes nothing
    monkeypatch.chdir(tmp_path)
    loaded = parameters.load("files/my.yaml", ["davis.root=here", "vip.root=synthetic", "checkpoint.encoders.e=./y"])
    assert loaded.data.source == f"{tmp_path}/files/videos"
    assert loaded.data.root == f"{tmp_path}/frames"
    assert loaded.checkpoint.encoders == {
        "a": f"{tmp_path}/files/mine", "b": "run", "c": f"{tmp_path}/files/sub/x.pth", "d": "timm:x/y", "e": f"{tmp_path}/y",
    }  # fmt: skip
    assert (loaded.davis.root, loaded.vip.root) == (f"{tmp_path}/here", "synthetic")
    assert loaded.run.results == f"{tmp_path}/files/results", "outside a project: beside the file"
    monkeypatch.chdir(ROOT / "notebooks")
    quick = parameters.load("quick")
    assert (quick.data.root, quick.run.results) == ("data/quick", "results"), "in a project: the same on every machine"
    assert parameters.resolve(quick.data.root) == ROOT / "data/quick"


def test_the_template_is_a_profile_that_points_at_nothing_of_ours(tmp_path: Path) -> None:
    target = tmp_path / "my.yaml"
    parameters.init(target)
    loaded = parameters.load(target)
    assert parameters.resolve(loaded.data.source) == tmp_path / "my_videos"
    assert [loaded.davis.enabled, loaded.jhmdb.enabled, loaded.vip.enabled] == [False] * 3
    with pytest.raises(InputError, match="exists already"):
        parameters.init(target)


def test_set_replaces_single_settings() -> None:
    loaded = parameters.load("quick", ["pretrain.loop.max_steps=3", "run.name=other", "davis.input_size=[64, 96]"])
    assert (loaded.pretrain.loop.max_steps, loaded.run.name, loaded.davis.input_size) == (3, "other", (64, 96))
    assert loaded.pretrain.encoder == parameters.load("quick").pretrain.encoder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=1", "write section.key=value"),
        ("run.name.first=1", "run.name = {'first': 1} is not possible"),
        ("run.seed=[1", "write its value as YAML"),
        ("run.sed=1", "did you mean 'seed'"),
        ("run.seed=1e-4", "--set run.seed=1e-4"),
        *(
            (f"run.seed={value}", "--set run.seed=")
            for value in ("[" * 3000, "!!python/name:os.system", "*a", "1" * 5000)
        ),
    ],
    ids=lambda text: text[:20],
)
def test_a_wrong_set_is_one_sentence(change: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        parameters.load("quick", [change])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
