"""One owner at a time: a lock that says who holds it and that the system gives back however its owner ends."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcore_lib.errors import InputError
from tcore_lib.files import try_lock, writable

LOOK = 0.2  # seconds between looks


@contextmanager
def sole_owner(lock: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a lock file, which names its owner; used for whole folders, by a file inside.

    Args:
        lock: the file, created with its folder; it stays, empty of meaning once its owner has ended.
        patience: seconds to wait for another owner, who may be about to end: a training whose notebook was killed
            still writes its last checkpoint.

    Raises:
        InputError: another process holds it, with that process; or the folder cannot be written.
    """
    with writable(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = open(lock, "a+", encoding="utf-8")  # noqa: SIM115 (held until the end)
    with stream:
        end = time.monotonic() + patience
        while not try_lock(stream):
            if time.monotonic() >= end:
                stream.seek(0)
                owner = stream.read().strip() or "another process"
                raise InputError(f"{lock.parent} is in use by {owner}; wait for it, or give this run another run.name.")
            time.sleep(LOOK)
        with writable(lock):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {os.uname().nodename}")
            stream.flush()
        yield
