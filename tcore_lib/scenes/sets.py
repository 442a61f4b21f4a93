"""A folder that is complete or not there: drawn beside its place by a pool of processes, then moved in one step."""

import multiprocessing
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

from tcore_lib.errors import InputError
from tcore_lib.files import read_json, write_json, write_text
from tcore_lib.machine import cores

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
    with FileLock(root.with_name(f".{root.name}.lock")):
        if _is_there(root, record):  # another process was faster
            return
        folder = root.with_name(f".{root.name}.tmp")
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed: whoever has the lock is alone
        folder.mkdir()
        try:
            for name, text in texts.items():
                write_text(folder / name, text)
            # Starting a process takes about as long as drawing four clips.
            processes = min(workers or max(1, min(cores(), len(jobs) // 4)), len(jobs))
            with tqdm(total=len(jobs), desc=f"drawing {record['set']}", file=sys.stdout, disable=not progress) as bar:
                _draw(jobs, folder, bar, processes)
            write_json(folder / RECORD, record | {"files": _count(folder)})
            if root.exists():
                shutil.rmtree(root)
            folder.rename(root)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_there(root: Path, record: dict[str, Any]) -> bool:
    """Whether `root` holds exactly this set."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / RECORD).is_file():
        raise InputError(f"{root} exists and was not written by the scene renderer; choose another folder.")
    found = read_json(root / RECORD)
    if not isinstance(found, dict) or found.get("set") != record["set"]:
        raise InputError(f"{root} holds another kind of data set; choose another folder.")
    return found == record | {"files": _count(root)}


def _count(folder: Path) -> int:
    return sum(path.is_file() and path.name != RECORD for path in folder.rglob("*"))


def _draw(jobs: list[Job], folder: Path, bar: tqdm, processes: int) -> None:
    """Do all jobs, in this process or in a pool."""
    if processes == 1:
        for function, arguments in jobs:
            function(folder, *arguments)
            bar.update()
        return
    # spawn: the fork of a process that has started torch's threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(function, folder, *arguments) for function, arguments in jobs]
        try:
            for done in as_completed(futures):
                done.result()
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # nothing is left but after an error
