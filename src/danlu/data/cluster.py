"""A pass over the units of a corpus on more machines than one, by datatrove's executors: processes, Ray, Slurm."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.core.errors import UserError


ENGINES = {"datatrove": "LocalPipelineExecutor", "ray": "RayPipelineExecutor", "slurm": "SlurmPipelineExecutor"}
"""`engine=`, and the executor behind it."""


@dataclass(frozen=True)
class EachUnit:
    """A step of a datatrove pipeline: task number `rank` works on the unit of that number, wherever it runs."""

    work: Callable[[int], None]

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        self.work(rank)
        return data


def over_units(
    work: Callable[[int], None],
    units: int,
    engine: str,
    options: Mapping[str, str],
    logs: Path,
    workers: int | None = None,
    say: Callable[[str], None] = print,
    pause: float = 10,
) -> None:
    """Call `work` with each number below `units`, in processes that see the same file system; comes back when all are done.

    options: further arguments of the executor, as text; whole numbers become numbers. Tasks that were done before are not done again.
    pause: seconds between two looks at Slurm's queue.

    Raises:
        UserError: the engine is not installed, or does not know an option; a task failed.
    """
    try:
        import datatrove.executor as executors

        kind = getattr(executors, ENGINES[engine])
    except ImportError as error:
        raise UserError(
            f"engine={engine} needs {error.name}, which is not here", "pip install 'danlu[cluster]'"
        ) from None
    given: dict[str, Any] = {name: int(value) if value.isdecimal() else value for name, value in options.items()}
    if engine == "slurm":  # its logs lie where it was started, unless told
        given = {"slurm_logs_folder": str(logs / "slurm"), "job_name": logs.name, **given}
    if workers is not None:
        given["workers"] = workers
    try:
        made = kind(pipeline=[EachUnit(work)], tasks=units, logging_dir=str(logs), **given)
    except TypeError as error:
        raise UserError(
            f"engine={engine}: {str(error).rpartition('__init__() ')[2]}",
            "engine_options=NAME=VALUE,… (datatrove's documentation lists them)",
        ) from None
    try:
        made.run()
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"engine={engine}: {error}", f"{logs} has what its tasks said; the same command goes on"
        ) from None
    done, gone = logs / "completions", engine != "slurm"
    while (missing := units - len(list(done.iterdir()) if done.is_dir() else [])) > 0:
        if gone:
            raise UserError(
                f"engine={engine}: {missing} of {units} tasks failed",
                f"{logs} has what they said; the same command goes on",
            )
        say(f"  {units - missing:,} of {units:,} tasks are done")
        gone = not _queued(made.job_id)
        time.sleep(pause)


def _queued(job: str) -> bool:
    """Whether Slurm still has the job; a controller that does not answer may."""
    found = subprocess.run(["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True, check=False)
    return bool(found.stdout.strip()) if not found.returncode else "Invalid job id" not in found.stderr
