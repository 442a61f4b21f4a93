"""This process among the ranks of a training: started by torchrun, by SLURM's srun, or alone."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from tcore_lib.errors import InputError


@dataclass(frozen=True)
class Place:
    """Rank of this process among all, and on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes files and talks."""
        return self.rank == 0


def first_host(nodes: str) -> str:
    """First name of a SLURM node list: `gpu[007-009,12],login1` -> `gpu007`."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?", nodes)
    if not match:
        raise InputError(f"SLURM_STEP_NODELIST = {nodes!r} names no host; set MASTER_ADDR to the first node's name.")
    return match[1] + (match[2] or "")


def place_of(environment: Mapping[str, str]) -> Place:
    """Where the environment says this process stands: torchrun's variables, else those of `srun`, else alone."""
    for rank, world, local in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if rank in environment and world in environment:
            return Place(int(environment[rank]), int(environment[world]), int(environment.get(local, "0")))
    return Place()


def choose_device(device: str, place: Place) -> torch.device:
    """The device of this process: `auto` or `cuda` = the GPU of its local rank, where there is one.

    Raises:
        InputError: the device is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and count == 0):
        return torch.device("cpu")
    index = int(device.split(":")[1]) if ":" in device else place.local_rank
    if place.world > 1 and ":" in device:
        raise InputError(f"run.device = {device} names one GPU, but there are {place.world} processes; set it to auto.")
    if index >= count:
        raise InputError(
            f"run.device = {device} needs GPU number {index}, but this machine has {count}; set it to cpu."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def memory_is_full(error: BaseException) -> bool:
    """Whether an exception means that the memory of the GPU, or of the machine, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: not enough memory" in str(error)


@contextmanager
def joined(place: Place, device: torch.device) -> Iterator[None]:
    """Inside, the ranks can talk: NCCL between GPUs, gloo between CPUs. Alone there is nobody to talk to."""
    if place.world == 1 or dist.is_initialized():
        yield
        return
    if "MASTER_ADDR" not in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        os.environ["MASTER_ADDR"] = first_host(os.environ["SLURM_STEP_NODELIST"])
        os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000))
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        rank=place.rank,
        world_size=place.world,
        timeout=timedelta(minutes=30),
        device_id=device if on_gpu else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, on every rank; alone, the tensor itself."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
