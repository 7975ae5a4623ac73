"""An adapter added into its base: a run like any other, with whole weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from danlu.core.errors import UserError
from danlu.core.run import Run, create, is_run
from danlu.data.tokenizer import Tokenizer
from danlu.models import pretrained
from danlu.models.base import resolve
from danlu.stages import report
from danlu.stages.load import adapter_of, open_weights, seal, weights_of


def merge(run: Run, out: Path | None = None, say: Callable[[str], None] = print) -> Run:
    """W + (alpha / rank) B A in float32, in a new run that needs no base.

    Raises:
        UserError: the run has no adapter, or no final model yet.
    """
    if not run.has("final.json"):
        raise UserError(f"{run.path} has no final model yet (it is {run.status})", f"danlu resume {run.path}")
    if adapter_of(run.model) is None:
        raise UserError(f"{run.path} holds whole weights already: nothing to merge", f"use {run.model} as it is")
    place = out or run.path.with_name(f"{run.name}-merged")
    if is_run(place):
        raise UserError(f"{place} is a run already", f"give another out=, or `danlu runs delete {place}`")
    facts = run.read("run.json")
    base = resolve(str(run.path), say)
    model = open_weights(weights_of(base, say), facts["task"], facts["labels"] or None, merged=True)

    def fill(merged: Run) -> None:
        pretrained.save(model, merged.model)
        Tokenizer.load(run.model).save(merged.model)
        for name in ("experiment.json", "data.json"):
            merged.write(name, run.read(name))
        (merged.path / "data").mkdir()
        for path in (*(run.path / "data").glob("*.jsonl"), run.model / "generation_config.json"):
            if path.is_file():
                shutil.copyfile(path, merged.path / path.relative_to(run.path))
        seal(merged)
        merged.update(status="finished")

    try:
        merged = create(
            place,
            fill,
            **{key: facts[key] for key in ("danlu", "recipe", "task", "labels", "machine")},
            lineage={**facts["lineage"], "parent": {"name": run.name, "sha256": base.sha256, "how": "merge"}},
            torch=torch.__version__,
        )
    except SafetensorError as error:  # how safetensors reports a disk that is full
        raise UserError(f"{place} could not be written: {error}", "make room, or give another out=") from error
    report.write(merged.path)
    say(f"merged: {merged.path} (its model folder loads in transformers)")
    return merged
