"""Indices that go wrong on purpose, importable by loader processes; and a small disk."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tiny_problem import Pictures

from tcore_lib.errors import InputError


class Mortal(Pictures):
    """Kills the process that reads its last video, as the system does when memory runs out."""

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames, or the end."""
        if i == len(self) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i, frame_indices)


class Missing(Pictures):
    """Its last video cannot be read."""

    def read(self, i: int, frame_indices: Sequence[int]) -> list[np.ndarray]:
        """Frames, or a sentence."""
        if i == len(self) - 1:
            raise InputError("clip7/00000.jpg cannot be read (gone).")
        return super().read(i, frame_indices)


def remount(root: Path, option: str) -> None:
    """Change a small disk: `size=4m`, `ro`."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(root)], check=True, capture_output=True)


@contextmanager
def small_disk(root: Path, size: str) -> Iterator[Path]:
    """A file system in memory of some size, such as `400k`, mounted at a new folder; skips the test where that is not allowed."""
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk has to be mounted, which only root may")
    try:
        yield root
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=False, capture_output=True)
