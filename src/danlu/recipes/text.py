"""Recipes for text: functions that return an experiment. A recipe is another one with a change."""

from __future__ import annotations

from danlu.experiment import Experiment
from danlu.models.options import ModelOptions
from danlu.tasks.options import TaskOptions


def chat() -> Experiment:
    """Fine-tune a chat model on conversations: LoRA on SmolLM2-135M unless told otherwise."""
    return Experiment(task=TaskOptions(task="chat"), model=ModelOptions(model="smollm2-135m"))


def text_classification() -> Experiment:
    """Fine-tune an encoder to sort texts into classes, beside two honest baselines."""
    return Experiment(task=TaskOptions(task="text-classification"), model=ModelOptions(model="minilm"))


def sentiment() -> Experiment:
    """Text classification of opinions."""
    return text_classification()
