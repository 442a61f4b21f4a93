"""The loop: resume, ranks, workers, logs, stops. Tiny networks; everything else is the real thing."""

import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tiny_problem import Pictures, tiny

from tcore_lib import params, runs
from tcore_lib.data import videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.machine import Place
from tcore_lib.model.encoders import load_encoder
from tcore_lib.training import batches, checkpoints, log, loop, step as steps
from tcore_lib.training.checkpoints import read_model, write_model
from tcore_lib.training.log import read_log

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
CHILDREN = multiprocessing.get_context("forkserver")  # imports once for all tests' processes
CHILDREN.set_forkserver_preload(["tcore_lib.training.loop", "tiny_problem"])
TERMS = ["dino_global", "dino_local", "patch_past", "patch_future", "agreement", "koleo"]
NOT_COMPUTED = ("samples_per_second", "peak_memory_gb")


def train(
    folder: Path, last: int, *, seed: int = 0, index: Any = None, resume: bool = True, **changes: Any
) -> pd.DataFrame:
    changes["loop"] = {"max_steps": last, **changes.get("loop", {})}
    return loop.pretrain(tiny(seed, **changes), index or Pictures(), folder, progress=False, resume=resume)


def newest(folder: Path) -> dict[str, Any]:
    content = checkpoints.load_newest(folder / "checkpoints")
    assert content is not None
    return content


def assert_same(a: Any, b: Any, name: str = "") -> None:
    """Bit-equal, whatever is nested."""
    if isinstance(a, dict):
        assert set(a) == set(b), name
        for key in a:
            assert_same(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, list):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{name}[{i}]")
    else:
        assert a == b, name


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path: Path) -> None:
    """2 + 2 + 1 steps against 5: weights, centres, optimiser; the log too. With stochastic depth, masks, two epochs."""
    changes: dict[str, Any] = {"optimiser": {"hold_steps": 3}}
    whole = train(tmp_path / "a", 5, index=Pictures(7), **changes)
    for last in (2, 4, 5):
        log = train(tmp_path / "b", last, index=Pictures(7), **changes)
        assert log["step"].tolist() == list(range(1, last + 1))
    one, other = newest(tmp_path / "a"), newest(tmp_path / "b")
    for part in ("student", "teacher", "auxiliary", "centres", "optimiser", "step", "num_videos"):
        assert_same(one[part], other[part], part)
    same = [name for name in whole if name not in NOT_COMPUTED]
    pd.testing.assert_frame_equal(whole[same], log[same], check_exact=True)
    assert train(tmp_path / "a", 5, index=Pictures(7), **changes).equals(whole)  # nothing left to do: nothing changes


def test_a_run_continues_from_an_encoder(tmp_path: Path) -> None:
    """With zero steps its features are the encoder's; 1 + 2 steps are bit-equal to 3; another shape is refused in words."""
    train(tmp_path / "before", 1)
    source = str(checkpoints.path_of(tmp_path / "before" / "checkpoints", 1))
    changes: dict[str, Any] = {"encoder": {"init": source}, "optimiser": {"hold_steps": 1, "encoder_lr": 0.1}}
    train(tmp_path / "a", 0, seed=5, **changes)
    images = torch.rand(1, 3, 64, 96)
    begun = load_encoder(checkpoints.path_of(tmp_path / "a" / "checkpoints", 0))
    torch.testing.assert_close(begun(images), load_encoder(source)(images), rtol=1e-6, atol=1e-6)
    start = newest(tmp_path / "a")
    assert_same(
        *({n: w for n, w in start[role].items() if n.startswith("backbone")} for role in ("student", "teacher"))
    )
    heads = [newest(tmp_path / folder)["student"]["dino_head.mlp.0.weight"] for folder in ("a", "before")]
    assert not torch.equal(*heads)
    for last in (1, 3):
        train(tmp_path / "a", last, seed=5, **changes)
    whole = train(tmp_path / "b", 3, seed=5, **changes)
    one, other = newest(tmp_path / "a"), newest(tmp_path / "b")
    for part in ("student", "teacher", "auxiliary", "centres", "optimiser", "layout"):
        assert_same(one[part], other[part], part)
    assert (whole["encoder_lr"] < whole["lr"]).sum() == 2  # at step 0 both are 0
    wider = {"encoder": {"init": source, "width": 48, "heads": 3}}
    with pytest.raises(InputError, match=r"another shape; set pretrain\.encoder: \{width: 32"):
        train(tmp_path / "c", 1, **wider)


def test_checkpoints_hold_what_they_should(tmp_path: Path) -> None:
    """Which are kept; an encoder and a model file of one; the model file is the checkpoint in 16 bit."""
    train(tmp_path, 8, loop={"checkpoint_every": 1, "keep_last": 2, "milestone_every": 3})
    assert list(checkpoints.steps_in(tmp_path / "checkpoints")) == [3, 6, 7, 8]
    assert not list((tmp_path / "checkpoints").glob(".*"))  # no temporary files
    content, path = newest(tmp_path), checkpoints.path_of(tmp_path / "checkpoints", 8)
    assert {"commit", "versions", "params_sha256"} <= set(content["provenance"])
    model = write_model(path, tmp_path / "model.safetensors")
    after = checkpoints.official_weights(read_model(model))
    halved = {role: {name: x.half().float() for name, x in content[role].items()} for role in after}
    assert_same(after, halved)
    assert_same(checkpoints.official_weights(read_model(path)), {role: content[role] for role in after})
    for file, role in ((path, content), (model, halved)):
        weight = load_encoder(file).network.blocks[0].attn.qkv.weight
        assert torch.equal(weight, role["teacher"]["backbone.blocks.0.attn.qkv.weight"])


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """One bit is wrong: the run goes on from the one before, makes the same weights, and keeps what it has just written."""
    train(tmp_path, 4, loop={"checkpoint_every": 1, "keep_last": 2})
    file, before = checkpoints.path_of(tmp_path / "checkpoints", 4), newest(tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    shutil.copy(file, file.with_stem("step-00000009"))  # counts as newer for ever
    with pytest.warns(UserWarning, match=r"step-0000000[49]\.pt cannot be read .*move it out of the folder"):
        log = train(tmp_path, 4, loop={"checkpoint_every": 1, "keep_last": 1})
    assert list(checkpoints.steps_in(tmp_path / "checkpoints")) == [4, 9]
    assert log["step"].tolist() == [1, 2, 3, 4]
    assert_same(before["student"], checkpoints.load(file)["student"])
    for path in checkpoints.steps_in(tmp_path / "checkpoints").values():
        path.write_bytes(b"")
    warnings.simplefilter("ignore")  # pytest puts the filters back
    with pytest.raises(InputError, match="damaged"):
        train(tmp_path, 4)


def test_another_runs_checkpoint_is_refused_by_key(tmp_path: Path) -> None:
    train(tmp_path, 1)
    others: list[tuple[str, dict[str, Any]]] = [
        ("pretrain.encoder.drop_path = 0.2", {"encoder": {"drop_path": 0.2}}),
        ("pretrain.optimiser.base_lr = 0.5", {"optimiser": {"base_lr": 0.5}}),
        ("pretrain.loop.batch_size = 2", {"loop": {"batch_size": 2}}),
        ("run.seed = 1", {"seed": 1}),
        ("the number of videos = 5", {"index": Pictures(5)}),
    ]
    for key, changes in others:
        with pytest.raises(InputError, match=rf"^{re.escape(key)}, but .* was trained with"):
            train(tmp_path, 2, **changes)
    free = {"log_every": 3, "keep_last": 1, "checkpoint_every": 7, "accumulate": 2}
    assert train(tmp_path, 2, loop=free)["step"].tolist() == [1, 2]
    assert train(tmp_path, 1, seed=1, resume=False)["step"].tolist() == [1]


def test_a_run_that_loses_its_last_log_line_makes_it_again(tmp_path: Path) -> None:
    train(tmp_path, 2)
    log = tmp_path / "log.csv"
    text = log.read_text()
    log.write_text(text + text.splitlines()[-1].replace("2", "3", 1)[:40])  # the crash came in the middle of a line
    assert len(read_log(log)) == 2
    assert train(tmp_path, 3)["step"].tolist() == [1, 2, 3]
    assert read_log(tmp_path / "elsewhere.csv").empty


def prepared(folder: Path, **changes: Any) -> params.Params:
    """Parameters of a run whose frame folders and index lie on disk, as notebook 00 leaves them."""
    settings = tiny(**changes)
    run = {"results": str(folder / "results"), "device": "cpu"}
    settings = params.parse(settings.model_dump(mode="json") | {"run": run, "data": {"root": str(folder)}}, "test")
    pictures, count = Pictures(6), 6
    for i in range(count):
        (folder / f"clip{i}").mkdir(parents=True)
        for j, frame in enumerate(pictures.read(i, range(20))):
            Image.fromarray(frame).save(folder / f"clip{i}" / f"{j:05d}.jpg")
    columns = {"num_frames": [20] * count, "widths": [64] * count, "heights": [48] * count}
    index = FrameIndex(root=folder, paths=[f"clip{i}" for i in range(count)], **columns)
    index.save(videos.index_path(settings.data))
    return settings


def test_two_ranks_are_one(tmp_path: Path) -> None:
    """`train` with two processes against one: the log and all weights within 1e-6; the log is shown meanwhile.

    KoLeo is off: its neighbours are those of the rank.
    """
    several = {"precision": "fp64", "batch_size": 8, "checkpoint_every": 3, "max_steps": 3, "devices": 2}
    settings = prepared(tmp_path, loss={"koleo": 0.0}, loop=several)
    seen: list[int] = []
    two = loop.train(settings, on_log=lambda: seen.append(len(read_log(runs.run_folder(settings) / "log.csv"))))
    assert seen[-1] == 3
    assert two["step"].tolist() == [1, 2, 3]
    changed = settings.model_dump(mode="json")
    changed["pretrain"]["loop"]["devices"], changed["run"]["name"] = 1, "alone"
    alone = params.parse(changed, "test")
    one = loop.train(alone, progress=False)
    for name in set(one) - {*NOT_COMPUTED, "feature_std"}:  # a spread over half of the crops is another figure
        np.testing.assert_allclose(two[name], one[name], rtol=1e-6, atol=1e-9, err_msg=name)
    a, b = newest(runs.run_folder(alone)), newest(runs.run_folder(settings))
    for role in ("student", "teacher", "auxiliary", "centres"):
        for name, value in a[role].items():
            assert (b[role][name] - value).abs().max() <= 1e-6 * value.abs().max() + 1e-9, name


def test_workers_and_the_place_of_the_start_make_no_difference() -> None:
    """The batches of 0 and 2 loader processes, and of a start in the middle, are equal to the bit."""
    alone = list(batches.loader(tiny(), Pictures(), Place(), CPU, 0, 4))
    by_two = list(batches.loader(tiny(loop={"workers": 2}), Pictures(), Place(), CPU, 0, 4))
    late = list(batches.loader(tiny(), Pictures(), Place(), CPU, 2, 4))
    assert len(alone) == len(by_two) == 4
    for a, b in [*zip(alone, by_two, strict=True), *zip(alone[2:], late, strict=True)]:
        assert torch.equal(a.frames, b.frames)
        assert np.array_equal(a.views.boxes, b.views.boxes)
        assert torch.equal(a.draws.masks, b.draws.masks)
        assert_same(a.draws.keep, b.draws.keep)
    with pytest.raises(InputError, match=r"batch_size = 4 is not a multiple of processes"):
        next(iter(batches.loader(tiny(), Pictures(), Place(0, 3), CPU, 0, 1)))


def test_the_log(tmp_path: Path) -> None:
    """One row per `log_every` steps and at checkpoints; values are means over the steps since the row before."""
    every, seen = train(tmp_path / "every", 5), []
    settings = tiny(loop={"max_steps": 5, "log_every": 3, "checkpoint_every": 4})
    log = loop.pretrain(settings, Pictures(), tmp_path / "some", progress=False, on_log=lambda: seen.append(1))
    assert log["step"].tolist() == [3, 4, 5]
    assert len(seen) == 3
    assert log["samples"].tolist() == [12, 16, 20]
    for name in (*TERMS, "total", "grad_norm_head", "teacher_entropy"):
        assert log[name][0] == pytest.approx(every[name][:3].mean(), rel=1e-6)
        assert log[name][1] == pytest.approx(every[name][3], rel=1e-6)
    assert log["lr"].tolist() == every["lr"][[2, 3, 4]].tolist()
    wanted = {"weight_decay", "momentum", "teacher_temperature", "encoder_lr", "decoder_lr", "last_layer_lr"}
    wanted |= {"feature_std", "centre_norm", "information_cls", "information_patch", "information_cls_share"}
    assert wanted | {"samples_per_second", "peak_memory_gb"} <= set(log)
    assert log.notna().all().all()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])  # trackio has wandb's interface
def test_trackers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by a package of its interface; one that is not installed is a sentence."""
    package, module = mock.Mock(), "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, package)
    log = train(tmp_path, 2, loop={"tracker": name})
    if name == "wandb":
        found = [call.args[0]["total"] for call in package.log.call_args_list]
        package.finish.assert_called_once()
    else:
        writer = package.SummaryWriter.return_value
        found = [call.args[1] for call in writer.add_scalar.call_args_list if call.args[0] == "total"]
        writer.close.assert_called_once()
    assert found == pytest.approx(log["total"].tolist(), rel=1e-6)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"pip install {name}"):
        train(tmp_path, 3, loop={"tracker": name})


def test_nan_stops_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third step's input is spoilt; rows are fetched every four steps, but the sentence names step 3."""
    real, calls = steps.make_views, []

    def spoilt(*args: Any, **named: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        views = real(*args, **named)
        return {k: v * float("nan") for k, v in views.items()} if len(calls) == 3 else views

    monkeypatch.setattr(steps, "make_views", spoilt)
    with pytest.raises(log.TrainingStopped, match=r"step 3: total became nan.*base_lr"):
        train(tmp_path, 8, loop={"log_every": 4, "checkpoint_every": 8})
    assert not checkpoints.steps_in(tmp_path / "checkpoints")  # what is spoilt is not saved


def test_collapse_is_told_from_a_young_network_and_from_targets_that_say_little(tmp_path: Path) -> None:
    settings = tiny(head={"prototypes": 1000}, optimiser={"epochs": 1e4})
    short = tiny(head={"prototypes": 1000}, optimiser={"epochs": 50.0})  # 200 steps: a warning, no stop

    def judged(settings: params.Params, last: int, entropy: float, std: float, information: float) -> str:
        row = {"teacher_entropy": entropy, "feature_std": std, "information_cls": information}
        row["information_cls_share"] = information / 6.9
        return log.check_collapse([{"step": last - 10 * i, **row} for i in reversed(range(20))], settings.pretrain)

    assert not judged(settings, 1000, 6.9, 1e-4, 0.0)  # the official start looks like this for long
    assert "say nearly nothing" in judged(short, 980, 6.9, 1e-4, 0.0)
    with pytest.raises(log.TrainingStopped, match=r"step 5980: it has collapsed, the targets say nearly nothing"):
        judged(settings, 5980, 6.9, 1e-4, 0.0)
    assert re.search(r"teacher_entropy 0\.100, .*near 0, raise teacher_temp", judged(settings, 5980, 0.1, 0.3, 0.1))
    assert not judged(settings, 5980, 5.0, 0.3, 1.4)
    written = log.Log(tmp_path, 0, short, leads=True)
    row = {"teacher_entropy": 6.9, "feature_std": 1e-4, "information_cls": 0.0, "information_cls_share": 0.0}

    def grow() -> None:
        for step in range(101, 150):
            written.append({"step": step, "samples": 4 * step, **row})

    with pytest.warns(UserWarning, match="say nearly nothing") as warned:
        grow()
    assert len(warned) == 1  # once is enough


def _child(folder: str, epochs: float, every: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # it is warned that so few steps leave the targets uniform
    settings = tiny(optimiser={"epochs": epochs}, loop={"checkpoint_every": every})
    try:
        loop.pretrain(settings, Pictures(), Path(folder), progress=False)
    except loop.Interrupted as stop:
        (Path(folder) / "printed.txt").write_text(str(stop))
        sys.exit(stop.exit_code)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_a_sentence(tmp_path: Path, number: signal.Signals) -> None:
    child = CHILDREN.Process(target=_child, args=(str(tmp_path), 5000.0, 10**6))
    child.start()
    deadline = time.monotonic() + 300
    while len(read_log(tmp_path / "log.csv")) <= 2:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    assert child.pid is not None
    os.kill(child.pid, number)
    child.join(300)
    assert child.exitcode == 128 + number
    step = newest(tmp_path)["step"]
    assert f"Stopped at step {step} of 20000 by {number.name}" in (tmp_path / "printed.txt").read_text()
    assert read_log(tmp_path / "log.csv")["step"].iloc[-1] == step


def test_kills_at_any_moment_change_nothing(tmp_path: Path) -> None:
    """kill -9 at random moments, and the same call again: at last the weights, optimiser and log of an undisturbed run.

    Three kills, or as many as TCORE_SOAK_MOMENTS says.
    """
    _child(str(tmp_path / "whole"), 5.0, 3)
    rng, kills, wanted = np.random.default_rng(5), 0, int(os.environ.get("TCORE_SOAK_MOMENTS", "3"))
    for _ in range(10 * wanted):
        child = CHILDREN.Process(target=_child, args=(str(tmp_path / "killed"), 5.0, 3))
        before = len(read_log(tmp_path / "killed" / "log.csv"))
        child.start()
        while child.is_alive() and len(read_log(tmp_path / "killed" / "log.csv")) <= before:
            time.sleep(0.02)  # at least one step further: however slow the machine is, the run comes to its end
        child.join(rng.uniform(0, 1.0))
        kills += child.is_alive()
        child.kill()
        child.join(60)
        if child.exitcode == 0:  # it was through: compare, and begin anew
            one, other = newest(tmp_path / "whole"), newest(tmp_path / "killed")
            for part in ("step", "student", "teacher", "auxiliary", "centres", "optimiser"):
                assert_same(one[part], other[part], part)
            whole, log = (read_log(tmp_path / name / "log.csv") for name in ("whole", "killed"))
            same = [name for name in whole if name not in NOT_COMPUTED]
            pd.testing.assert_frame_equal(whole[same], log[same], check_exact=True)
            leftovers = [path.name for path in (tmp_path / "killed").rglob(".*") if path.name != ".training.lock"]
            assert not leftovers
            if kills >= wanted:
                return
            shutil.rmtree(tmp_path / "killed")
    pytest.fail(f"{kills} kills, and no run came to its end")


def test_what_cannot_work_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for of_one in ({"accumulate": 4}, {"accumulate": 2, "devices": 2}):
        with pytest.raises(InputError, match="KoLeo needs two samples in a micro-batch"):
            tiny(loop=of_one)
    tiny(loop={"accumulate": 4}, loss={"koleo": 0.0})
    monkeypatch.setattr(loop, "PATIENCE", 0.1)
    with FileLock(tmp_path / ".training.lock"), pytest.raises(InputError, match="in use by another training"):
        train(tmp_path, 1)
