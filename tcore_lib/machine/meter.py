"""Old name of a part of `machine`, until its users have moved."""

from tcore_lib.machine import Meter

__all__ = ["Meter"]
