"""A folder that is complete or not there: drawn beside its place by a pool of processes, then moved in one step."""

import multiprocessing
import os
import shutil
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tcore_lib.errors import InputError
from tcore_lib.files import read_json, write_json
from tcore_lib.machine.workpool import cores

RECORD = "settings.json"

# A function of this package and its arguments after the first, which is the folder to write to.
Job = tuple[Callable[..., None], tuple[Any, ...]]


def write_set(
    root: Path, record: dict[str, Any], jobs: list[Job], texts: dict[str, str], progress: bool, workers: int | None
) -> None:
    """Write a whole set, or keep the one that is there if it is the same and complete.

    Args:
        root: the set's folder. One that holds an older set of the same kind is replaced.
        record: what decides the set; kept with it as `settings.json`. `record["set"]` is its kind.
        jobs: what draws the files, in any order.
        texts: small text files by their path in the set.
        progress: show a bar.
        workers: processes; None = one per core, fewer for a small set.

    Raises:
        InputError: `root` holds something else, which is never removed.
    """
    root = root.absolute()
    if _is_there(root, record):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    mark = f".{root.name}.{socket.gethostname()}."
    _clear(root.parent, mark)
    folder, old = (root.with_name(f"{mark}{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    folder.mkdir()
    try:
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        _run(jobs, folder, f"drawing {record['set']}", progress, workers)
        write_json(folder / RECORD, record | {"files": _count(folder)})
        if not _is_there(root, record):  # unless another process was faster
            if root.exists():
                root.rename(old)
            folder.rename(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _is_there(root: Path, record: dict[str, Any]) -> bool:
    """Whether `root` holds exactly this set."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / RECORD).is_file():
        raise InputError(
            f"{root} exists and was not written by the scene renderer; remove it or choose another folder."
        )
    found = read_json(root / RECORD)
    if not isinstance(found, dict) or found.get("set") != record["set"]:
        raise InputError(f"{root} holds another kind of data set; remove it or choose another folder.")
    return found == record | {"files": _count(root)}


def _count(folder: Path) -> int:
    return sum(path.is_file() and path.name != RECORD for path in folder.rglob("*"))


def _clear(folder: Path, mark: str) -> None:
    """Remove what killed processes of this machine have left behind, and this process itself."""
    for left in folder.glob(f"{mark}*"):
        process = left.name.removeprefix(mark).split(".")[0]
        if process.isdigit() and (int(process) == os.getpid() or not _alive(int(process))):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _run(jobs: list[Job], folder: Path, title: str, progress: bool, workers: int | None) -> None:
    """Do all jobs, in this process or in a pool."""
    # Starting a process takes about as long as drawing four clips.
    workers = min(workers or max(1, min(cores(), len(jobs) // 4)), len(jobs))
    with tqdm(total=len(jobs), desc=title, unit="clip", file=sys.stdout, disable=not progress) as bar:
        if workers == 1:
            for function, arguments in jobs:
                function(folder, *arguments)
                bar.update()
            return
        # spawn: the fork of a process that has started torch's threads may hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = [pool.submit(function, folder, *arguments) for function, arguments in jobs]
            try:
                for done in as_completed(futures):
                    done.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
