"""Whether the machine is doing something else. Imported before anything: nothing here may take time to import."""

from __future__ import annotations

import os
import time
from pathlib import Path


def at_rest(load: str = "/proc/loadavg") -> bool:
    """Whether nothing else computes on this machine: five looks within some milliseconds, at one of which no other task wanted to run. Not if
    this is one of several processes of a training.

    load: the kernel's file, "0.20 0.18 0.12 1/80 11206": loads, tasks that want to run / all tasks, the newest one.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return False
    try:
        for look in range(5):
            time.sleep(0.001 * (look > 0))
            if int(Path(load).read_text("ascii").split()[3].split("/")[0]) <= 1:  # this one
                return True
    except (OSError, ValueError, IndexError):  # not Linux
        pass
    return False
