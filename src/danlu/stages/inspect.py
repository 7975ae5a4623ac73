"""Looking without touching: runs, settings and their origins, models, recipes, the machine."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from danlu.core import calibration, config, device
from danlu.core.errors import UserError
from danlu.core.run import HOME, Run, delete, is_run, list_runs, open_run
from danlu.core.track import read_lines
from danlu.experiment import Asked, Experiment
from danlu.models.catalogue import MODELS


def runs(folder: Path | None = None) -> list[dict[str, Any]]:
    """Every run in `folder`, or under ./runs and here, one mapping each; one that cannot be read says why in its status.

    Raises:
        UserError: there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"{folder} is no folder", "danlu runs [FOLDER] | danlu runs compare ONE TWO | danlu runs delete RUN…"
        )
    listed = [Run(folder)] if folder is not None and is_run(folder) else list_runs(folder or HOME)
    if folder is None:
        listed += [run for run in list_runs(Path()) if is_run(run.path)]
    found = []
    for run in listed:
        try:
            found.append(one_run(run))
        except (UserError, LookupError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
            found.append({"run": str(run.path), "status": f"broken: {getattr(error, 'message', error)}"})
    return found


def one_run(run: Run) -> dict[str, Any]:
    """A run in one line: status, model, steps, best validation loss, figures of its test."""
    facts = run.read("run.json")
    used = run.read("experiment.json")["used"] if run.has("experiment.json") else {}
    lines = read_lines(run.path / "metrics.jsonl")
    validated = [line["validation"]["loss"] for line in lines if "validation" in line]
    figures = run.read("evaluation.json")["metrics"] if run.has("evaluation.json") else {}
    return {
        "run": str(run.path),
        "status": run.status,
        "created": facts["created"],
        "recipe": facts.get("recipe"),
        "task": facts.get("task"),
        "model": facts.get("lineage", {}).get("model", {}).get("name"),
        "steps": f"{lines[-1]['step']}/{used['steps']['value']}" if lines and used else None,
        "validation_loss": min(filter(math.isfinite, validated), default=None),
        "test": {name: entry["value"] for name, entry in figures.items()},
    }


def compare_runs(one: Run, two: Run) -> dict[str, Any]:
    """Two runs beside each other: settings that differ, and their figures on the test."""
    if not (one.has("experiment.json") and two.has("experiment.json")):
        raise UserError(f"{one.path} or {two.path} was cut off before it began", "compare runs that have begun")
    first, second = (run.read("experiment.json")["used"] for run in (one, two))
    differing = {
        key: [first.get(key, {}).get("value"), second.get(key, {}).get("value")]
        for key in sorted(first.keys() | second.keys())
        if first.get(key, {}).get("value") != second.get(key, {}).get("value")
    }
    figures = [run.read("evaluation.json")["metrics"] if run.has("evaluation.json") else {} for run in (one, two)]
    return {
        "runs": [str(one.path), str(two.path)],
        "settings": differing,
        "metrics": {
            name: [each.get(name) for each in figures] for name in sorted(figures[0].keys() | figures[1].keys())
        },
        "same_test": test_rows(one) == test_rows(two),
    }


def test_rows(run: Run) -> bytes:
    """The test rows of a run, to tell whether two runs were measured on the same ones."""
    found = sorted((run.path / "data").glob("test.*"))
    return found[0].read_bytes() if found else b""


def remove(name: str) -> Run:
    """Delete a run from the disk."""
    run = open_run(name)
    delete(run)
    return run


def settings_of(run: Run) -> dict[str, dict[str, Any]]:
    """Every setting a run was made with: key -> value, origin, meaning."""
    used = run.read("experiment.json")["used"]
    about = meanings(used["task"]["value"])
    return {key: {**entry, "about": about[key]} for key, entry in used.items() if key in about}


def settings_asked(asked: Asked) -> dict[str, dict[str, Any]]:
    """Every setting of an experiment before it is prepared; what is still open says so."""
    about, origins = meanings(asked.experiment.task.task), {key: each.origin for key, each in asked.settings.items()}
    return {
        key: {"value": value, "origin": origins.get(key, "open" if value is None else "default"), "about": about[key]}
        for key, value in config.flat(asked.experiment).items()
        if key in about
    }


def meanings(task: str) -> dict[str, str]:
    """Every key that the task reads, and one line about it."""
    read = [(key, field.metadata) for _, key, field, _ in config.leaves(Experiment)]
    return {key: about["about"] for key, about in read if not about["tasks"] or task in about["tasks"]}


def models() -> list[dict[str, Any]]:
    """The catalogue, one mapping a model."""
    return [dataclasses.asdict(MODELS.get(name)) for name in MODELS.names()]


def doctor() -> dict[str, Any]:
    """What this machine has, what is missing, and what it can train; a second of measuring, which later runs go by."""
    machine = device.machine(gpus=True)
    speed = calibration.calibration(machine, fresh=True)
    rates = {
        "float32_gflops": max(speed.threads.values()),
        "bf16_gflops": speed.bfloat16,
        "read_gb_per_s": calibration.reading(),
    }
    found = device.doctor(
        machine,
        calibration.pick_precision(machine, lambda: speed),
        calibration.pick_threads(machine, lambda: speed),
        {name: round(rate, 1) for name, rate in rates.items() if rate is not None},
    )
    largest = found["can_train_parameters"]
    fits = {
        name: ", ".join(method for method in ("lora", "full") if MODELS.get(name).parameters <= largest[method])
        for name in MODELS.names()
    }
    return found | {"models": {name: methods or "too large for this machine" for name, methods in fits.items()}}
