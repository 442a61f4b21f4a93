"""What this machine lends: cores, devices, other ranks, seconds and bytes.

torch is imported by the functions that need it: parameters are checked and videos prepared without it, which saves seconds.
"""

import os
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from tcore_lib.errors import InputError

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(seconds: float = 0.5) -> float:
    """How many of the cores that this process may use others keep busy; measured for `seconds`, in which it only waits."""
    percent = psutil.cpu_percent(interval=seconds, percpu=True)
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(percent))
    return sum(percent[core] for core in own if core < len(percent)) / 100


class Place(NamedTuple):
    """Where this process stands among the processes of a training: rank of all, their number, rank on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0


def place_of() -> Place:
    """This process among the ranks that torchrun started (its variables), or alone."""
    names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
    return Place(*(int(os.environ.get(name, alone)) for name, alone in names.items()))


def choose_device(device: str, place: Place = Place()) -> "torch.device":  # noqa: B008 (a constant)
    """The device of this process: `cpu`, `cuda:N`, or (`auto`, `cuda`) the GPU of its local rank, where there is one."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and count == 0):
        return torch.device("cpu")
    index = int(device.split(":")[1]) if ":" in device else place.local_rank
    if index >= count or (place.world > 1 and ":" in device):
        raise InputError(
            f"run.device = {device} is not possible for process {place.rank} of {place.world}: this machine has {count} GPUs; "
            "set it to auto, or to cpu."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@contextmanager
def joined(place: Place, device: "torch.device") -> Iterator[None]:
    """Inside, the ranks can talk: NCCL between GPUs, gloo between CPUs. Alone there is nobody to talk to."""
    import torch.distributed as dist

    if place.world == 1 or dist.is_initialized():
        yield
        return
    backend, own = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    wait = timedelta(minutes=30)
    dist.init_process_group(backend, rank=place.rank, world_size=place.world, timeout=wait, device_id=own)
    try:
        yield
    finally:
        dist.destroy_process_group()


def summed(values: "torch.Tensor") -> "torch.Tensor":
    """The sum over all ranks, on every rank; alone, the tensor itself."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.all_reduce(values)
    return values


@contextmanager
def full_memory_told(remedy: str) -> Iterator[None]:
    """Inside, a full memory of the GPU, or of the machine, is bad input: one sentence with its remedy."""
    import torch

    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: not enough memory" in str(error):
            raise InputError(f"The device's memory is full; {remedy}.") from error
        raise


@cache
def compiled(function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
    """A function as few generated GPU kernels (torch.compile); the same object every time it is asked for.

    For small functions that are called again and again (a block, a colour operation, a slice of a loss): that takes seconds, a
    network minutes. `dynamic`: True where every call may have another size, False where few sizes come again.
    """
    import torch

    return torch.compile(function, dynamic=dynamic)


class Meter:
    """Wall seconds by name (one entry per `with meter(name)`), and bytes in use, of work on one device."""

    def __init__(self, device: "torch.device") -> None:
        import torch

        self.gpu = torch.cuda if device.type == "cuda" else None
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def wait(self) -> None:
        """Until the device has done everything it was given."""
        if self.gpu:
            self.gpu.synchronize()

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
        """Forget earlier peaks of the GPU's memory; a process's own peak covers its whole life."""
        if self.gpu:
            self.gpu.reset_peak_memory_stats()

    def peak(self) -> int:
        """Most bytes in use: allocated on the GPU since `reset_peak`, or resident in this process."""
        return self.gpu.max_memory_allocated() if self.gpu else peak_resident()

    def in_use(self) -> int:
        """Bytes in use now: allocated on the GPU, or resident in this process."""
        return self.gpu.memory_allocated() if self.gpu else psutil.Process().memory_info().rss


def peak_resident(who: int = resource.RUSAGE_SELF) -> int:
    """Most bytes that this process, or (RUSAGE_CHILDREN) one of its ended children, has held in memory."""
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
