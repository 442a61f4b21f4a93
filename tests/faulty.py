"""Indexes that go wrong on purpose, importable by loader processes; and a small disk."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tiny_problem import Pictures


class Mortal(Pictures):
    """Kills the process that reads its last video, as the system does when memory runs out."""

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames, or the end."""
        if i == len(self) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i, frame_indices)


class SmallDisk:
    """A file system in memory that can be filled, enlarged and made read-only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def set(self, option: str) -> None:
        """Remount with an option: `size=4m`, `ro`, `rw`."""
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.root)], check=True, capture_output=True)


@contextmanager
def small_disk(root: Path, size: str) -> Iterator[SmallDisk | None]:
    """A `SmallDisk` of some size, such as `400k`, mounted at a new folder; None where that is not allowed."""
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:  # no mount command
        mounted = False
    if not mounted:
        yield None
        return
    try:
        yield SmallDisk(root)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=False, capture_output=True)
