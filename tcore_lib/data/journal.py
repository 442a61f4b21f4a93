"""What a preparation has finished, kept so that it can be killed at any moment.

Every shard appends to a file of its own, one JSON line per video. A line that says a folder is finished is written
before the folder gets its name, and only the finished folder is ever given it: finished = the line and the folder are
both there.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tcore_lib.errors import InputError
from tcore_lib.files import read_json, try_lock, write_json


class Journal:
    """The state of preparing one split.

    Args:
        folder: where it is kept; created.
        settings: what the results depend on; a second run with others is refused.
        shard: (i, n), this process and how many share the work.

    Raises:
        InputError: other settings, or another process works on the same shard.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], shard: tuple[int, int]) -> None:
        self.folder = folder
        self.path = folder / f"{shard[0]}-of-{shard[1]}.jsonl"
        self.scratch = folder / f"scratch-{shard[0]}-of-{shard[1]}"
        folder.mkdir(parents=True, exist_ok=True)
        with self.merging():
            known = folder / "settings.json"
            if not known.exists():
                write_json(known, settings)
            earlier = read_json(known)
            if not isinstance(earlier, dict):
                raise InputError(f"{known} is damaged; delete the folder {folder.parent} and prepare anew.")
            changed = sorted(key for key in settings if settings[key] != earlier.get(key))
            if changed:
                key = changed[0]
                raise InputError(
                    f"{folder.parent} was prepared with data.{key} = {earlier.get(key)!r}, not {settings[key]!r}; "
                    "choose another data.root or delete that folder."
                )
        self._stream = open(self.path, "ab")  # noqa: SIM115 (open as long as the preparation runs)
        if not try_lock(self._stream):
            self._stream.close()
            raise InputError(
                f"Another process is preparing shard {shard[0]}/{shard[1]} of {folder.parent}; wait for it."
            )
        if self._stream.tell() and not _ends_with_newline(self.path):
            self._stream.write(b"\n")  # the last line was cut by a kill
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._shard = shard
        self._marker(shard[0]).unlink(missing_ok=True)

    def _marker(self, i: int) -> Path:
        return self.folder / f"{i}-of-{self._shard[1]}.finished"

    def mark_finished(self) -> None:
        """Note that this shard has come to its end."""
        self._marker(self._shard[0]).touch()

    def all_finished(self) -> bool:
        """True where every shard of this division has come to its end."""
        return all(self._marker(i).exists() for i in range(self._shard[1]))

    def entries(self) -> dict[str, dict[str, Any]]:
        """The latest entry of every target, over all shards of any division."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*-of-*.jsonl")):
            for line in path.read_bytes().splitlines():
                entry = _entry(line)
                if entry is None:
                    continue  # cut by a kill: that video is done again
                target = entry["target"]
                if target not in found or entry["time"] >= found[target]["time"]:
                    found[target] = entry
        return found

    def append(self, entry: dict[str, Any]) -> None:
        """Add one line; it survives the process at once (a power cut within seconds may lose it)."""
        entry = entry | {"time": time.time()}
        self._stream.write(json.dumps(entry).encode() + b"\n")
        self._stream.flush()

    @contextmanager
    def merging(self) -> Iterator[None]:
        """Only one shard at a time: so the last one to finish sees what all have done."""
        with open(self.folder / "lock", "ab") as stream:
            with suppress(OSError):  # a network file system without locks: the user's own order has to do
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def close(self) -> None:
        """Give the shard free and remove unfinished folders."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._stream.close()


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of the journal, or None where it is no whole one."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("time"), float):
        return None
    done = isinstance(entry.get("row"), dict)
    bad = all(isinstance(entry.get(key), str) for key in ("bad", "file", "of"))
    return entry if isinstance(entry.get("target"), str) and (done or bad) else None


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
