"""The loop: resume, ranks, workers, logs, stops. Tiny networks; everything else is the real thing."""

import ast
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_problem import Pictures, tiny

from tcore_lib import params, runs
from tcore_lib.data import videos
from tcore_lib.data.index import FrameIndex
from tcore_lib.errors import InputError
from tcore_lib.machine import distributed
from tcore_lib.machine.distributed import Place, place_of
from tcore_lib.machine.orphans import VARIABLE
from tcore_lib.model.encoders import load_encoder
from tcore_lib.training import checkpoints, launch, loop as pretrain, step as trainer, watch
from tcore_lib.training.batches import loader, worker_count
from tcore_lib.training.feasible import check_feasible
from tcore_lib.training.step import out_of_memory
from tcore_lib.training.training_log import TrainingLog, read_log

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
CHILDREN = multiprocessing.get_context("forkserver")  # imports once for all tests' processes
CHILDREN.set_forkserver_preload(["tcore_lib.training.loop", "tiny_problem"])
TERMS = ["dino_global", "dino_local", "patch_past", "patch_future", "agreement", "koleo"]


def train(
    folder: Path, steps: int, *, seed: int = 0, index: Any = None, resume: bool = True, **changes: Any
) -> pd.DataFrame:
    changes["loop"] = {"max_steps": steps, **changes.get("loop", {})}
    settings = tiny(seed, **changes)
    return pretrain.pretrain(settings, index or Pictures(), folder, progress=False, resume=resume)


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


# ---- resume -----------------------------------------------------------------------------------------


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path: Path) -> None:
    """2 + 2 + 1 steps against 5: weights, centres, optimiser; the log too. With stochastic depth, masks, two epochs."""
    whole = train(tmp_path / "a", 5, index=Pictures(7))
    for steps in (2, 4, 5):
        log = train(tmp_path / "b", steps, index=Pictures(7))
        assert log["step"].tolist() == list(range(1, steps + 1))
    one, other = newest(tmp_path / "a"), newest(tmp_path / "b")
    for part in ("student", "teacher", "auxiliary", "centres", "optimiser", "step", "num_videos"):
        assert_same(one[part], other[part], part)
    same = [name for name in whole if name not in ("samples_per_second", "peak_memory_gb")]
    pd.testing.assert_frame_equal(whole[same], log[same], check_exact=True)
    assert train(tmp_path / "a", 5, index=Pictures(7)).equals(whole)  # nothing left to do: nothing changes


def test_checkpoints_hold_what_they_should(tmp_path: Path) -> None:
    train(tmp_path, 8, loop={"checkpoint_every": 1, "keep_last": 2, "milestone_every": 3})
    assert list(checkpoints.steps_in(tmp_path / "checkpoints")) == [3, 6, 7, 8]
    content = newest(tmp_path)
    assert content["step"] == 8
    assert content["params"]["pretrain"]["encoder"]["width"] == 32
    assert {"commit", "versions", "params_sha256"} <= set(content["provenance"])
    for which in ("teacher", "student"):
        encoder = load_encoder(tmp_path / "checkpoints" / "step-00000008.pt", which=which)
        weight = encoder.state_dict()["network.vit.blocks.0.attn.qkv.weight"]
        assert torch.equal(weight, content[which]["backbone.blocks.0.attn.qkv.weight"])
    assert not list((tmp_path / "checkpoints").glob(".*"))  # no temporary files


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    train(tmp_path, 4)
    file = checkpoints.path_of(tmp_path / "checkpoints", 4)
    before = newest(tmp_path)
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "garbage": b"no checkpoint" * 99}[damage])
    with pytest.warns(UserWarning, match=r"step-00000004\.pt is damaged"):
        log = train(tmp_path, 4)
    assert log["step"].tolist() == [1, 2, 3, 4]
    assert_same(before["student"], newest(tmp_path)["student"])
    for path in checkpoints.steps_in(tmp_path / "checkpoints").values():
        path.write_bytes(b"")
    warnings.simplefilter("ignore")  # pytest puts the filters back
    with pytest.raises(InputError, match="damaged"):
        train(tmp_path, 4)


def test_a_damaged_later_checkpoint_costs_no_good_one(tmp_path: Path) -> None:
    """What a run has just written is kept, although a damaged file of a later step would count as newer."""
    loop = {"checkpoint_every": 10, "keep_last": 1}
    train(tmp_path, 1, loop=loop)
    checkpoints.path_of(tmp_path / "checkpoints", 5).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"step-00000005\.pt is damaged"):
        train(tmp_path, 2, loop=loop)
    assert list(checkpoints.steps_in(tmp_path / "checkpoints")) == [2, 5]


@pytest.mark.parametrize(
    ("changes", "seed", "key"),
    [
        ({"encoder": {"drop_path": 0.2}}, 0, "pretrain.encoder.drop_path"),
        ({"optimiser": {"base_lr": 0.5}}, 0, "pretrain.optimiser.base_lr"),
        ({"loop": {"batch_size": 2}}, 0, "pretrain.loop.batch_size"),
        ({}, 1, "run.seed"),
    ],
)
def test_another_runs_checkpoint_is_refused_by_key(
    tmp_path: Path, changes: dict[str, Any], seed: int, key: str
) -> None:
    train(tmp_path, 1)
    with pytest.raises(InputError, match=re.escape(key)):
        train(tmp_path, 2, seed=seed, **changes)
    with pytest.raises(InputError, match="holds 5 videos"):
        train(tmp_path, 2, index=Pictures(5))
    free = {"log_every": 3, "keep_last": 1, "checkpoint_every": 7, "accumulate": 2}
    assert train(tmp_path, 2, loop=free)["step"].tolist() == [1, 2]
    assert train(tmp_path, 1, seed=seed, resume=False, **changes)["step"].tolist() == [1]


def test_a_run_that_loses_its_last_log_line_makes_it_again(tmp_path: Path) -> None:
    train(tmp_path, 2)
    log = tmp_path / "log.csv"
    text = log.read_text()
    log.write_text(text + text.splitlines()[-1].replace("2", "3", 1)[:40])  # the crash came in the middle of a line
    assert len(read_log(log)) == 2
    assert train(tmp_path, 3)["step"].tolist() == [1, 2, 3]


# ---- the same batch everywhere -----------------------------------------------------------------------


def _rank(rank: int, world: int, port: str, folder: str, changes: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    train(Path(folder), 3, **changes)


def _free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_two_ranks_are_one(tmp_path: Path) -> None:
    """Gloo on two processes, accumulation on one of the runs: losses, gradient norms, centres, weights within 1e-6."""
    changes: dict[str, Any] = {
        "loss": {"koleo_scope": "global"},
        "loop": {"precision": "fp64", "batch_size": 8, "checkpoint_every": 3},
    }
    one = train(tmp_path / "one", 3, **changes)
    port = _free_port()
    ranks = [CHILDREN.Process(target=_rank, args=(i, 2, port, str(tmp_path / "two"), changes)) for i in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0
    two = read_log(tmp_path / "two" / "log.csv")
    columns = [
        *TERMS,
        "total",
        "teacher_entropy",
        "centre_norm",
        "grad_norm_encoder",
        "grad_norm_head",
        "grad_norm_decoder",
    ]
    for name in columns:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-6, err_msg=name)
    a, b = newest(tmp_path / "one"), newest(tmp_path / "two")
    for role in ("student", "teacher", "auxiliary"):
        for name, value in a[role].items():
            assert (b[role][name] - value).abs().max() <= 1e-6 * value.abs().max() + 1e-9, name
    for name, value in a["centres"].items():
        torch.testing.assert_close(b["centres"][name], value, rtol=1e-6, atol=1e-9)


def test_workers_make_no_difference(tmp_path: Path) -> None:
    """The batches of 0 and 2 loader processes, and of a start in the middle, are equal to the bit."""
    settings = tiny(loop={"workers": 2})
    alone = list(loader(tiny(), Pictures(), Place(), CPU, 0, 4))
    by_two = list(loader(settings, Pictures(), Place(), CPU, 0, 4))
    late = list(loader(tiny(), Pictures(), Place(), CPU, 2, 4))
    assert len(alone) == len(by_two) == 4
    for a, b in [*zip(alone, by_two, strict=True), *zip(alone[2:], late, strict=True)]:
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.counters, b.counters)
        assert np.array_equal(a.views.boxes, b.views.boxes)
        assert torch.equal(a.plan.masks, b.plan.masks)
        assert torch.equal(a.plan.keep_past, b.plan.keep_past)


def test_ranks_and_micro_batches_share_out_the_samples() -> None:
    settings = tiny(loop={"batch_size": 8, "accumulate": 2})
    seen = []
    for rank in range(2):
        batches = list(loader(settings, Pictures(), Place(rank, 2), CPU, 5, 6))
        assert [len(batch.counters) for batch in batches] == [2, 2]
        seen += [i for batch in batches for i in batch.counters.tolist()]
    assert sorted(seen) == list(range(40, 48))
    with pytest.raises(InputError, match=r"batch_size = 8"):
        loader(settings, Pictures(), Place(0, 3), CPU, 0, 1)


def test_where_a_process_stands() -> None:
    assert place_of({}) == Place(0, 1, 0)
    assert place_of({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Place(5, 8, 1)
    assert place_of({"SLURM_PROCID": "0"}) == Place()  # a batch script, not a step
    with pytest.raises(InputError, match="srun torchrun"):
        place_of({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"})
    assert worker_count(3, CPU, Place()) == 3
    assert worker_count(None, CPU, Place()) == 0
    if not torch.cuda.is_available():
        assert distributed.choose_device("auto", Place()).type == "cpu"
        with pytest.raises(InputError, match=r"run\.device = cuda"):
            distributed.choose_device("cuda", Place())


# ---- the log -------------------------------------------------------------------------------------------


def test_the_log(tmp_path: Path) -> None:
    """One row per `log_every` steps and at checkpoints; values are means over the steps since the row before."""
    rows: list[dict[str, float]] = []
    every = train(tmp_path / "every", 5)
    settings = tiny(loop={"max_steps": 5, "log_every": 3, "checkpoint_every": 4})
    log = pretrain.pretrain(settings, Pictures(), tmp_path / "some", progress=False, on_log=rows.append)
    assert log["step"].tolist() == [3, 4, 5]
    assert log["samples"].tolist() == [12, 16, 20]
    assert [row["step"] for row in rows] == [3, 4, 5]
    for name in (*TERMS, "total", "grad_norm_head"):
        assert log[name][0] == pytest.approx(every[name][:3].mean(), rel=1e-6)
        assert log[name][1] == pytest.approx(every[name][3], rel=1e-6)
    assert log["lr"].tolist() == every["lr"][[2, 3, 4]].tolist()
    wanted = {"weight_decay", "momentum", "teacher_temperature", "decoder_lr", "last_layer_lr", "teacher_entropy"}
    wanted |= {"feature_std", "centre_norm", "samples_per_second", "peak_memory_gb", "mask_share"}
    assert wanted <= set(log)
    assert log.notna().all().all()
    assert not log.duplicated("step").any()


def test_a_log_that_a_new_run_has_just_removed_is_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)  # seen a moment ago
    assert read_log(tmp_path / "log.csv").empty
    assert launch.written_at(tmp_path / "log.csv") == 0


def test_progress_bar_and_tensorboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain.pretrain(tiny(loop={"max_steps": 2}), Pictures(), tmp_path, progress=True)
    shown = capsys.readouterr()
    assert "2/2" in shown.out
    assert "samples/s, loss" in shown.out
    assert shown.err == ""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        TrainingLog(tmp_path / "log.csv", 0, tmp_path / "tensorboard")


# ---- stops ---------------------------------------------------------------------------------------------


def test_nan_stops_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third step's input is spoilt; rows are fetched every four steps, but the sentence names step 3."""
    real, calls = trainer.make_views, []

    def spoilt(*args: Any, **named: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        views = real(*args, **named)
        return {k: v * float("nan") for k, v in views.items()} if len(calls) == 3 else views

    monkeypatch.setattr(trainer, "make_views", spoilt)
    with pytest.raises(watch.TrainingStopped, match=r"step 3: dino_global became nan.*base_lr"):
        train(tmp_path, 8, loop={"log_every": 4, "checkpoint_every": 8})
    assert not checkpoints.steps_in(tmp_path / "checkpoints")  # what is spoilt is not saved


def test_collapse_is_told_from_a_young_network() -> None:
    settings = tiny(head={"prototypes": 1000}).pretrain
    collapsed = {"teacher_entropy": np.log(1000), "feature_std": 1e-4}
    early = pd.DataFrame([{"step": 10 * i, **collapsed} for i in range(1, 100)])
    watch.check_collapse(early, settings)  # the official initialisation looks like this for hundreds of steps
    late = early.assign(step=early["step"] + 5000)
    with pytest.raises(watch.TrainingStopped, match=r"step 5990: it has collapsed .*6\.908 of at most 6\.908"):
        watch.check_collapse(late, settings)
    watch.check_collapse(late.assign(feature_std=0.3), settings)
    watch.check_collapse(late.assign(teacher_entropy=3.0), settings)


def _endless(folder: str) -> None:
    torch.set_num_threads(1)
    sys.stdout = open(Path(folder) / "printed.txt", "w")  # noqa: SIM115
    settings = tiny(optimiser={"epochs": 5000.0}, loop={"checkpoint_every": 10**6})
    try:
        pretrain.pretrain(settings, Pictures(), folder, progress=False)
    except pretrain.Interrupted as stop:
        print(stop, flush=True)
        sys.exit(stop.exit_code)


def _wait_for(condition: Any, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_a_sentence(tmp_path: Path, number: signal.Signals) -> None:
    child = CHILDREN.Process(target=_endless, args=(str(tmp_path),))
    child.start()
    _wait_for(lambda: len(read_log(tmp_path / "log.csv")) > 2)
    assert child.pid is not None
    os.kill(child.pid, number)
    child.join(300)
    assert child.exitcode == 128 + number
    step = newest(tmp_path)["step"]
    assert f"Stopped at step {step} of 20000 by {number.name}" in (tmp_path / "printed.txt").read_text()
    assert read_log(tmp_path / "log.csv")["step"].iloc[-1] == step


FOLLOWER = """
import os, signal, sys, time
from tcore_lib.machine.orphans import follow_parent
def note(*_):
    open(sys.argv[1], "w").write("told to end")
    sys.exit()
signal.signal(signal.SIGTERM, note)
follow_parent()
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_no_orphan_survives_its_parent(tmp_path: Path) -> None:
    """A shell starts a process that follows its parent and is killed: the process is told to end and does."""
    noted = tmp_path / "noted"
    command = ["sh", "-c", '"$0" -c "$1" "$2" & echo; wait', sys.executable, FOLLOWER, str(noted)]
    environment = {**os.environ, VARIABLE: "1", "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "\n"
    pid = int(parent.stdout.readline())
    assert (Path("/proc") / str(pid)).exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _wait_for(lambda: noted.exists() and noted.read_text() == "told to end")


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
    columns = {"class_ids": [0] * count, "num_frames": [20] * count, "widths": [64] * count, "heights": [48] * count}
    index = FrameIndex(
        root=folder, paths=[f"clip{i}" for i in range(count)], class_names=["any"], **columns
    )
    index.save(videos.index_path(settings.data))
    return settings


def test_the_notebooks_launcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torchrun with two processes, supervised: live rows, figures as in this process, errors in a sentence."""
    loop = {"max_steps": 3, "devices": 2, "precision": "fp64"}
    settings = prepared(tmp_path, loss={"koleo_scope": "global"}, loop=loop)
    rows: list[dict[str, float]] = []
    log = launch.train(settings, on_log=rows.append)
    assert [row["step"] for row in rows] == log["step"].tolist() == [1, 2, 3]
    assert "3/3" in capsys.readouterr().out
    alone = settings.model_dump(mode="json")
    alone["pretrain"]["loop"]["devices"], alone["run"]["name"] = 1, "alone"
    expected = launch.train(params.parse(alone, "test"), progress=False)
    for name in (*TERMS, "total", "grad_norm_encoder"):
        np.testing.assert_allclose(log[name], expected[name], rtol=1e-6, err_msg=name)
    (runs.run_folder(settings) / launch.OUTPUT).write_text("x\ntcore_lib: some key is wrong; mend it.\ny")
    assert launch._reason(runs.run_folder(settings) / launch.OUTPUT, 2) == "some key is wrong; mend it."


def test_the_ranks_of_a_machine_share_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(pretrain, "open_index", lambda settings: None)
    monkeypatch.setattr(pretrain, "pretrain", lambda *arguments, **settings: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert pretrain.run_profile(params.parse({"run": {"threads": 5}}, "test")) == 0
    assert asked == [2]


def test_impossible_settings_are_refused_first() -> None:
    with pytest.raises(InputError, match="nearest neighbour"):
        check_feasible(tiny(loop={"accumulate": 4}), world=1)
    check_feasible(tiny(loop={"accumulate": 4}, loss={"koleo": 0.0}), world=1)
    check_feasible(tiny(loop={"accumulate": 2}, loss={"koleo_scope": "global"}), world=2)
    with pytest.raises(InputError, match="nearest neighbour"):
        check_feasible(tiny(loop={"accumulate": 2}), world=2)


def test_a_full_device_is_a_sentence() -> None:
    settings = tiny(loop={"accumulate": 2}).pretrain
    sentence = out_of_memory(torch.OutOfMemoryError("CUDA out of memory"), settings)
    assert "raise pretrain.loop.accumulate to 4" in str(sentence)
    assert out_of_memory(RuntimeError("a bug"), settings) is None


# ---- every setting is read ----------------------------------------------------------------------------


def test_no_dead_setting() -> None:
    """Every key of `pretrain` is read, as an attribute, somewhere in the library outside the schema."""
    read: set[str] = set()
    for path in (ROOT / "tcore_lib").rglob("*.py"):
        if path.stem != "schema":
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    read |= {"width", "depth", "heads"}  # of the encoder: through `Encoder.shape`
    for name, section in params.Pretrain.model_fields.items():
        keys = getattr(section.annotation, "model_fields", {name: section})
        dead = sorted(set(keys) - read)
        assert not dead, f"pretrain.{name}: nobody reads {dead}"
