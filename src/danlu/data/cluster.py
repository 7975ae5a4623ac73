"""A pass over the units of a corpus on more machines than one, by datatrove's executors: processes, Ray, Slurm."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
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
    """A step of a datatrove pipeline: task number `rank` works on the unit of that number, wherever it runs.

    folder: where the command was given, which relative paths of sources start from; Ray's workers begin where Ray was started.
    """

    work: Callable[[int], None]
    folder: Path

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        os.chdir(self.folder)
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

    options: further arguments of the executor, as text; what JSON knows (numbers, true, false) becomes that. Tasks that were done before are
    not done again, and jobs of Slurm that still wait or run are waited for.
    pause: seconds between two looks at Slurm's queue.

    Raises:
        UserError: the engine is not installed, or does not know an option; Slurm does not take the job; a task failed.
    """
    try:
        if engine == "ray":
            importlib.import_module("ray")
        import datatrove.executor as executors

        kind = getattr(executors, ENGINES[engine])
    except ImportError as error:
        raise UserError(
            f"engine={engine} needs {error.name}, which is not here",
            "pip install ray" if error.name == "ray" else "pip install 'danlu[cluster]'",
        ) from None
    given = {name: _value(text) for name, text in options.items()}
    if engine == "slurm":
        if not shutil.which("sbatch"):
            raise UserError(
                "engine=slurm needs the command sbatch, which is not on PATH",
                "give the command on a machine that submits to Slurm, or with another engine=",
            )
        if not {"condaenv", "venv_path"} & given.keys():  # the Python that runs here, activated or not
            path = shlex.quote(str(Path(sys.executable).parent))
            given = {"env_command": f"export PATH={path}:$PATH", **given}
        given = {"slurm_logs_folder": str(logs / "slurm"), "job_name": logs.name, **given}
    if workers is not None:
        given["workers"] = workers
    try:
        made = kind(pipeline=[EachUnit(work, Path.cwd())], tasks=units, logging_dir=str(logs), **given)
    except TypeError as error:
        raise UserError(
            f"engine={engine}: {str(error).rpartition('__init__() ')[2]}",
            "engine_options=NAME=VALUE,… (datatrove's documentation lists them)",
        ) from None
    jobs = logs / "jobs"
    try:
        if engine != "slurm":
            made.run()
        elif _queued(jobs):
            say("  its jobs of before are in the queue still, and are waited for")
        else:
            _submit(made, jobs)
            say(f"  jobs of Slurm: {', '.join(_ids(jobs)) or 'none, all is done'}")
    except subprocess.CalledProcessError:
        raise UserError(
            "engine=slurm: sbatch does not take the job; what it says stands above",
            "mend engine_options=; the same command goes on",
        ) from None
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
        gone = not _queued(jobs)
        time.sleep(pause)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _submit(executor: Any, jobs: Path) -> None:
    """Hand the tasks over to Slurm; the file `jobs` gets the id of each job array as soon as it has one."""
    jobs.unlink(missing_ok=True)
    id_of = executor.job_id_retriever

    def noted(answer: str) -> str:
        job: str = id_of(answer)
        with jobs.open("a") as file:
            file.write(f"{job}\n")
        return job

    executor.job_id_retriever = noted
    # That job waits for ever where a task failed, for figures nobody reads.
    executor.launch_merge_stats = lambda: None
    executor.run()


def _ids(jobs: Path) -> list[str]:
    return jobs.read_text().split() if jobs.is_file() else []


def _queued(jobs: Path) -> bool:
    """Whether Slurm still has one of the jobs; a controller that does not answer may."""
    if not (ids := _ids(jobs)):
        return False
    found = subprocess.run(
        ["squeue", "--noheader", f"--jobs={','.join(ids)}"], capture_output=True, text=True, check=False
    )
    return bool(found.stdout.strip()) if not found.returncode else "Invalid job id" not in found.stderr
