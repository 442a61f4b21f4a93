"""Functions that a GPU runs as few generated kernels (torch.compile), where the settings ask for it.

Only functions are compiled that are called again and again with other tensors (a block of the encoder, one colour
operation, one slice of a loss), never a whole network: that takes seconds instead of minutes, and what was generated
for one block serves all of them.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def compiled(function: Callable[..., Any], dynamic: bool | None = None) -> Callable[..., Any]:
    """The compiled form of a function; the same object every time it is asked for.

    Args:
        function: of tensors, without data-dependent control flow.
        dynamic: True where every call may have another size, False where few sizes come again, each of which deserves
            code of its own; None = sizes that turn out to change.
    """
    return torch.compile(function, dynamic=dynamic)
