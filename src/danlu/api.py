"""danlu from Python and in a notebook: the same experiment, the same run, the same errors as on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from danlu.core import run as runs
from danlu.core.config import Setting
from danlu.experiment import Asked, ask
from danlu.recipes.catalogue import RECIPES


class Run:
    """A run on the disk, and what can be done with it."""

    def __init__(self, path: str | Path) -> None:
        self.on_disk = runs.open_run(path)

    @property
    def path(self) -> Path:
        return self.on_disk.path

    @property
    def status(self) -> str:
        return self.on_disk.status

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures of the test at the end of training, each with its interval; empty when nothing was tested."""
        return dict(self.on_disk.read("evaluation.json")["metrics"]) if self.on_disk.has("evaluation.json") else {}

    def evaluate(self, data: Any = None, **settings: Any) -> dict[str, Any]:
        """Figures on `data` (a file, a DataFrame, rows), or on the run's own test rows. settings: answers, text, label."""
        from danlu.stages.evaluate import evaluate

        return evaluate(self.on_disk, data, **settings)

    def predict(self, inputs: Sequence[Any] | None = None, data: Any = None, **settings: Any) -> list[dict[str, Any]]:
        """A label or an answer for each input: texts, or conversations for a chat model."""
        from danlu.stages.predict import predict

        return predict(self.on_disk, inputs, data, **settings)

    def report(self) -> Path:
        """Write the run's page and return its path; a notebook shows the run itself as a link to it."""
        from danlu.stages.report import write

        return write(self.path)

    def resume(self, network: Any = None) -> Run:
        """Go on where it stopped. network: the code of a person's own network."""
        from danlu.stages.train import go_on

        go_on(self.on_disk, None, print, network=network)
        return self

    def merge(self, out: str | Path | None = None) -> Run:
        from danlu.stages.merge import merge

        return Run(merge(self.on_disk, Path(out) if out else None).path)

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {entry['value']:.4g}" for name, entry in list(self.metrics.items())[:3])
        return f"<danlu run {self.path}: {self.status}{', ' + figures if figures else ''}>"

    def _repr_html_(self) -> str:
        from html import escape

        figures = "".join(
            f"<tr><td>{escape(name)}</td><td>{entry['value']:.4g}</td><td>[{entry['low']:.4g}, {entry['high']:.4g}]</td></tr>"
            for name, entry in self.metrics.items()
        )
        page = self.path / "report.html"
        return f"<b>{escape(self.path.name)}</b> ({self.status}) <a href='{escape(str(page))}'>report</a><table>{figures}</table>"


def asked(recipe: str, data: Any, settings: dict[str, Any]) -> tuple[Asked, Any]:
    """A path stays a setting of the experiment; rows in memory are handed beside it."""
    if isinstance(data, (str, Path)):
        settings, data = {**settings, "data": str(data)}, None
    if isinstance(settings.get("out"), Path):
        settings["out"] = str(settings["out"])
    return ask(RECIPES.get, [recipe], settings, extra=("out",), origin="Python"), data


def finetune(recipe: str, data: Any = None, **settings: Any) -> Run:
    """Train by a recipe or a YAML file; returns the finished run.

    data: a path, a DataFrame, a list of mappings, or a mapping of arrays. settings: any key of the experiment, and `out`.

    Raises:
        UserError: bad input, with the fix in its text.
    """
    from danlu.stages.train import finetune as stage

    return Run(stage(*asked(recipe, data, settings)).path)


def pretrain(recipe: str, data: Any = None, **settings: Any) -> Run:
    """`finetune` by another name, for what starts from random weights: gpt, bert, mlp, resnet18, autoencoder, gan."""
    return finetune(recipe, data, **settings)


def corpus(data: Any, out: str | Path, **settings: Any) -> dict[str, Any]:
    """`danlu prepare corpus`: raw text to a folder that `pretrain(…, data=out)` learns from; returns what its corpus.json holds.

    data: a path, an address, a DataFrame, a list of mappings, or a mapping of arrays.

    Raises:
        UserError: bad input, with the fix in its text.
    """
    from danlu.stages.curate import corpus as stage

    if isinstance(data, (str, Path)):
        settings, data = {**settings, "data": str(data)}, None
    return stage({key: Setting(value, "Python") for key, value in settings.items()}, Path(out), data)


def preflight(recipe: str, data: Any = None, **settings: Any) -> dict[str, Any]:
    """What training would check and say, without training."""
    from danlu.stages.preflight import preflight as stage

    return stage(*asked(recipe, data, settings))


def open(path: str | Path) -> Run:  # noqa: A001 (danlu.open reads as it should)
    """The run at a path, or under ./runs by its name."""
    return Run(path)
