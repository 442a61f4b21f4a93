"""How long pieces of work take on a device, and how much memory they use: what planner and benchmarks measure with."""

import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch


class Meter:
    """Wall seconds by name, and peak memory, of work on one device.

    Attributes:
        seconds: name -> one entry per `with meter(name)`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def wait(self) -> None:
        """Until the device has done everything it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what happens inside, to its end on the device."""
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.seconds[name].append(time.perf_counter() - start)

    def median(self, name: str) -> float:
        """Median seconds of a piece of work."""
        return statistics.median(self.seconds[name])

    def reset_peak(self) -> None:
        """Forget earlier peaks of memory. Where the system cannot (not Linux), `peak` goes on covering the past."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def peak(self) -> int:
        """Most bytes in use since `reset_peak`: allocated on the GPU, or resident in this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return _status("VmHWM") or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def in_use(self) -> int:
        """Bytes in use now: allocated on the GPU, or resident in this process (0 where the system does not say)."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _status("VmRSS")


def _status(field: str) -> int:
    """A size of this process in bytes, as Linux states it; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)
