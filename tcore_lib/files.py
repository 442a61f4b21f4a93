"""Writing files so that a reader never sees half of one, and a killed writer leaves nothing behind."""

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tcore_lib.errors import InputError

# What a person can mend: no space, no permission, a read-only disk, a file where a folder should be, an endless link.
MENDABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EEXIST,
}  # fmt: skip
LEFTOVER = re.compile(r"\..*\.(\d+)\.tmp(\.\w+)?")  # names that `atomic_path` gives
_swept: set[Path] = set()


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it replaces `target` in one step, on failure it is removed.

    The temporary name keeps the target's suffix, so writers that choose a format by suffix work, and carries the
    process id, so that two writers never share it. It is locked as long as its writer lives: what a killed process left
    in the folder is told by that and removed. The parent folder is created.

    Raises:
        InputError: the disk is full or read-only, or the folder is not ours; the file that was there is intact.
    """
    target = Path(target)
    # A name has 255 bytes at most, and a letter up to four of them.
    stem = target.stem.encode()[:100].decode(errors="ignore")
    temporary = target.with_name(f".{stem}.{os.getpid()}.tmp{target.suffix}")
    with writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        try:
            with open(temporary, "wb") as mark:
                try_lock(mark)
                yield temporary
                with open(temporary, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(temporary, target)  # still locked: no sweep takes it before it has its name
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writable(target: str | Path) -> Iterator[None]:
    """Inside, an operating system's refusal to write `target` is bad input: one sentence instead of a traceback."""
    try:
        yield
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "choose a folder that can be written"
        raise InputError(
            f"{target} cannot be written ({error.strerror}); {remedy} and run the same command again, which continues."
        ) from error


def try_lock(stream: IO[Any]) -> bool:
    """Lock an open file for this process, until it is closed or the process ends, however it ends.

    Returns:
        False where another process holds the lock. True also on a file system that knows no locks.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system without locks: the user's own order has to do
        pass
    return True


def _sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder; once per process and folder."""
    if folder in _swept:
        return
    _swept.add(folder)
    for path in folder.glob(".*.tmp*"):
        name = LEFTOVER.fullmatch(path.name)
        if name is None or int(name[1]) == os.getpid():  # another thread of ours is writing it
            continue
        try:
            with open(path, "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused where its writer lives
                path.unlink()
        except OSError:
            continue


def write_text(target: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused: a result that is not a number must be null, on purpose."""
    write_text(target, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is not a JSON file ({error}); delete it and rerun the step that writes it."
        ) from error


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
