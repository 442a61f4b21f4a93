"""Reading strangers' files and writing our own: a bad file is one sentence, and a reader never sees half of a written one."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tcore_lib.errors import InputError


@contextmanager
def reading(path: str | Path, remedy: str) -> Iterator[None]:
    """Whatever goes wrong inside with a stranger's file becomes one sentence: path, reason, remedy ("replace it").

    Decoders raise whatever they like (struct.error, SyntaxError, MemoryError, av's own classes), so everything counts. Keep the
    block to the reading itself: a mistake of ours inside would be blamed on the file.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); {remedy}.") from error


def reason(error: BaseException) -> str:
    """What an exception says, on one line of at most 300 letters; its class where it says nothing."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def read_text(path: str | Path, remedy: str = "check the path") -> str:
    """A text file that a person may have edited: UTF-8, with or without a byte order mark."""
    with reading(path, remedy):
        return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: str | Path, remedy: str = "rerun the step that writes it") -> Any:
    """Content of a JSON file."""
    with reading(path, remedy):
        return json.loads(read_text(path, remedy))


@contextmanager
def writable(target: str | Path) -> Iterator[None]:
    """Inside, an operating system's refusal to write `target` is bad input: one sentence instead of a traceback."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):  # a lock's time-out, a closed pipe
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "choose a folder that can be written"
        raise InputError(
            f"{target} cannot be written ({error.strerror}); {remedy} and run the same command again, which continues."
        ) from error


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`, with its suffix; on success it replaces `target`, on failure it is removed.

    Its name carries the process id, so that two writers never share it. What a killed writer left is removed. The parent folder
    is created.
    """
    target = Path(target)
    stem = target.stem.encode()[:100].decode(errors="ignore")  # a name has 255 bytes at most
    start, end = f".{stem}.", f".tmp{target.suffix}"
    temporary = target.with_name(f"{start}{os.getpid()}{end}")
    with writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in os.listdir(target.parent):
            process = name[len(start) : -len(end)] if name.startswith(start) and name.endswith(end) else ""
            if process.isdigit() and not psutil.pid_exists(int(process)):
                (target.parent / name).unlink(missing_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            mask = os.umask(0)  # can only be read by setting it
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)  # safetensors writes files that only their owner may read
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(target: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: str | Path, value: Any) -> None:
    """Write JSON atomically. NaN and infinity are refused: a result that is not a number must be null, on purpose."""
    write_text(target, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
