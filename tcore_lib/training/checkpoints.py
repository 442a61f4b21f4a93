"""Training checkpoints on disk: `<folder>/step-00000936.pt`, written whole or not at all, read without trust."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tcore_lib.errors import InputError
from tcore_lib.model.weights import UNREADABLE, check_zip, write_torch

FORMAT = 1  # raised when an older checkpoint can no longer be continued


def path_of(folder: Path, step: int) -> Path:
    """The file of a checkpoint after `step` steps."""
    return folder / f"step-{step:08d}.pt"


def steps_in(folder: Path) -> dict[int, Path]:
    """Step -> file of every checkpoint in a folder, oldest first."""
    files = folder.glob("step-*.pt") if folder.is_dir() else ()
    found = {int(match[1]): file for file in files if (match := re.fullmatch(r"step-(\d{8})\.pt", file.name))}
    return dict(sorted(found.items()))


def save(folder: Path, step: int, content: Mapping[str, Any]) -> Path:
    """Write a checkpoint atomically. `content` holds tensors and plain values only."""
    path = path_of(folder, step)
    write_torch(path, {"format": FORMAT, "step": step, **content})
    return path


def prune(folder: Path, newest: int, keep_last: int, milestone_every: int | None) -> None:
    """Of the checkpoints up to step `newest`, remove all but the last `keep_last` and the multiples of `milestone_every`.

    A file of a later step is one that `load_newest` has passed over as damaged: it does not count as kept.
    """
    known = [(step, file) for step, file in steps_in(folder).items() if step <= newest]
    for step, file in known[:-keep_last]:
        if milestone_every is None or step % milestone_every:
            file.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU.

    Raises:
        InputError: it is damaged, no checkpoint of ours, or from another format.
    """
    try:
        check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError as error:
        raise InputError(f"{path} is damaged or no checkpoint; delete it. ({error})") from error
    except UNREADABLE as error:
        reason = str(error).split("\n")[0][:120]
        raise InputError(f"{path} is damaged or no checkpoint ({reason}); delete it.") from error
    if not isinstance(content, dict) or "format" not in content or not isinstance(content.get("step"), int):
        raise InputError(f"{path} is not a checkpoint of this library; move it out of the folder.")
    if content["format"] != FORMAT:
        raise InputError(f"{path} has format {content['format']}, this version continues format {FORMAT}; start anew.")
    return content


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint, or None where there is none. A damaged one is passed over with a warning.

    Raises:
        InputError: there are checkpoints and all are damaged.
    """
    files = list(steps_in(folder).values())
    for i, path in enumerate(reversed(files)):
        try:
            return load(path)
        except InputError as error:
            if i + 1 == len(files):
                raise
            warnings.warn(f"{error} The run continues from the checkpoint before it.", stacklevel=2)
    return None
