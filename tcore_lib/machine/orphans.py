"""A process that ends when the one that started it is gone, however that one ended.

`python -m tcore_lib.machine.orphans ARGUMENTS` is torchrun, but one that does so.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import MutableMapping

VARIABLE = "TCORE_FOLLOW_PARENT"
LOOK = 0.5  # seconds between looks at the parent
GRACE = 60.0  # seconds a process has for its last checkpoint


def asked(environment: MutableMapping[str, str]) -> dict[str, str]:
    """The environment for a child that is to follow this process: `subprocess.Popen(..., env=asked(os.environ))`."""
    return {**environment, VARIABLE: "1"}


def follow_parent() -> None:
    """If the environment asks for it, end this process as SIGTERM would once its parent is gone.

    A parent that is killed cannot tell its children; but the system then gives them another one, and this watches for
    it. A training writes its checkpoint on SIGTERM; what has not ended after `GRACE` seconds is ended.
    """
    if VARIABLE not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, name="follow-parent", daemon=True).start()


if __name__ == "__main__":
    follow_parent()
    from torch.distributed.run import main  # late: it takes seconds, in which the parent may die

    main(sys.argv[1:])
