"""Old name of a part of `machine`, until its users have moved."""

from tcore_lib.machine import Place, choose_device, joined, memory_is_full, place_of, summed

__all__ = ["Place", "choose_device", "joined", "memory_is_full", "place_of", "summed"]
